"""Dead letters: when, where, with what history; and what races with one whose body is not in memory."""

import pytest

from kyogo_broker.model.commands import (
    Heartbeat,
    Outcome,
    Settle,
    Settlement,
    Started,
    StreamEnded,
)
from kyogo_broker.model.effects import Delivery
from kyogo_broker.model.facts import DeadLettered, Published, QueueCreated
from kyogo_broker.model.message import DeadLetterInfo
from kyogo_broker.model.settings import QueueSettings, RetrySettings
from kyogo_broker.model.states import RedeliveryReason, SettleStatus
from tests.support.shards import BEGINNING_MS, Driver, fences, runs, statuses

ACK, RETRY, RELEASE, DEAD_LETTER = Outcome
OK, STALE, UNKNOWN, REJECTED = SettleStatus
AT_ONCE = RetrySettings(initial_ms=1, max_ms=1, jitter=False)


def driver_with(settings: QueueSettings) -> tuple[Driver, int]:
    driver = Driver()
    driver.create(settings=settings)
    return driver, driver.attach(capabilities=("started",))


def letter(driver: Driver, queue: str = "q.dlq") -> Delivery:
    """The first letter, as a consumer gets it."""
    port = driver.attach(queue)
    return runs(driver.effects, port)[0]


def fail(driver: Driver, port: int, times: int, **fields: object) -> None:
    for number in range(times):
        fields |= {"reason": f"error {number + 1}", "error_type": f"Type{number + 1}"}
        driver.settle(port, RETRY, driver.last_delivery(port).first_fence, delay_ms=0, **fields)


@pytest.mark.parametrize("max_attempts", [1, 2, 5])
def test_the_failure_that_makes_max_attempts_ends_a_message(max_attempts: int) -> None:
    driver, port = driver_with(QueueSettings(max_attempts=max_attempts, retry=AT_ONCE))
    driver.publish(b"body")
    fail(driver, port, max_attempts - 1)
    assert "q.dlq" not in driver.shard._state.names
    driver.wait(500)
    fail(driver, port, 1)
    assert driver.queue().finished_by == {"dead_lettered": 1}
    info = letter(driver).dead_letter
    assert info is not None
    assert (info.reason, info.attempts, info.losses) == ("max_attempts", max_attempts, 0)


@pytest.mark.parametrize("max_losses", [1, 2, 3, 10])
def test_the_loss_that_makes_max_losses_ends_a_message(max_losses: int) -> None:
    driver = Driver()
    driver.create(settings=QueueSettings(max_losses=max_losses, retry=AT_ONCE))
    driver.publish(b"body")
    for number in range(max_losses):
        assert driver.queue().finished_by == {}, f"ended by {number} losses"
        port = driver.attach()
        driver.wait(10)
        assert driver.last_delivery(port).losses == number
        driver.do(StreamEnded(port))
    assert driver.queue().finished_by == {"dead_lettered": 1}
    info = letter(driver).dead_letter
    assert info is not None
    assert (info.reason, info.attempts, info.losses) == ("lost_too_often", 0, max_losses)


def test_one_of_many_in_a_lease_is_lost_too_often_and_the_others_return() -> None:
    driver = Driver()
    driver.create(settings=QueueSettings(max_losses=2, retry=AT_ONCE))
    driver.publish(1)
    driver.do(StreamEnded(driver.attach()))
    driver.publish(3)
    driver.do(StreamEnded(driver.attach()))
    assert driver.queue().finished_by == {"dead_lettered": 1}
    assert driver.queue().ready.offsets() == [2, 3, 4]
    assert {t.losses for t in driver.queue().troubles.values()} == {1}


def test_zero_means_never() -> None:
    driver = Driver()
    driver.create(settings=QueueSettings(max_attempts=0, max_losses=0, retry=AT_ONCE))
    driver.publish(b"body")
    port = driver.attach()
    for _ in range(12):
        fail(driver, port, 1)
        driver.wait(10)
    for _ in range(12):
        driver.do(StreamEnded(port))
        port = driver.attach()
        driver.wait(10)
    last = driver.last_delivery(port)
    assert (last.attempt, last.losses) == (13, 12)


def test_a_letter_carries_its_history_and_its_body() -> None:
    driver, port = driver_with(QueueSettings(max_attempts=3, retry=AT_ONCE))
    driver.publish(b"before")
    driver.settle(port, ACK, 1)
    driver.publish(b"the body")
    driver.wait(40)
    fail(driver, port, 1)
    driver.wait(500)
    driver.do(Started(port, fences(driver.last_delivery(port).first_fence)))
    driver.do(StreamEnded(port))
    port = driver.attach(name="last one")
    driver.settle(port, RETRY, driver.last_delivery(port).first_fence, reason="second", error_type="Two", delay_ms=0)
    driver.wait(60)
    driver.settle(port, RETRY, driver.last_delivery(port).first_fence, reason="third", error_type="Three")
    run = letter(driver)
    assert bytes(run.wire) == b"the body"
    assert (run.attempt, run.losses, run.reason) == (1, 0, RedeliveryReason.UNSPECIFIED)
    assert run.dead_letter == DeadLetterInfo(
        queue="q", offset=2, reason="max_attempts", attempts=3, losses=1, first_error="error 1", last_error="third",
        error_type="Three", last_consumer_id="last one", first_delivered_unix_ms=BEGINNING_MS,
        dead_lettered_unix_ms=BEGINNING_MS + 600,
    )  # fmt: skip


def test_a_letter_of_a_first_failure() -> None:
    driver, port = driver_with(QueueSettings())
    driver.publish(b"body")
    driver.settle(port, DEAD_LETTER, 1, reason="bad", error_type="ValueError")
    info = letter(driver).dead_letter
    assert info is not None
    assert (info.reason, info.attempts, info.first_error, info.last_error) == ("bad", 1, "bad", "bad")
    assert (info.error_type, info.last_consumer_id) == ("ValueError", "consumer-1")


def test_types_that_need_no_second_try() -> None:
    driver, port = driver_with(QueueSettings(retry=RetrySettings(non_retryable=("ValueError",))))
    driver.publish(2)
    driver.settle(port, RETRY, 1, error_type="ValueError")
    driver.settle(port, RETRY, 2, error_type="KeyError")
    assert driver.queue().finished_by == {"dead_lettered": 1}
    info = letter(driver).dead_letter
    assert info is not None
    assert (info.reason, info.error_type) == ("non_retryable", "ValueError")


def test_a_visibility_timeout_can_be_the_last_failure() -> None:
    driver, port = driver_with(QueueSettings(max_attempts=1, visibility_timeout_ms=500))
    driver.publish(1)
    driver.do(Started(port, fences(1)))
    driver.wait(500)
    info = letter(driver).dead_letter
    assert info is not None
    assert (info.reason, info.error_type) == ("max_attempts", "VisibilityTimeout")
    assert statuses(driver.settle(port, ACK, 1)) == {1: STALE}


def test_long_errors_are_cut() -> None:
    driver, port = driver_with(QueueSettings())
    driver.publish(1)
    driver.settle(port, DEAD_LETTER, 1, reason="x" * 5_000)
    info = letter(driver).dead_letter
    assert info is not None
    assert len(info.last_error) == 2_000


def test_the_settlement_its_letter_and_its_queue_are_one_step() -> None:
    driver, port = driver_with(QueueSettings())
    driver.publish(1)
    driver.begin()
    step = driver.shard.handle(Settle(port, (Settlement(DEAD_LETTER, fences(1)),)), driver.now)
    assert [type(fact) for fact in step.facts] == [QueueCreated, Published, DeadLettered]


# Where letters go.


def test_a_queue_without_letters_finishes_with_a_notice() -> None:
    driver, port = driver_with(QueueSettings(dead_letter_queue=""))
    driver.publish(1)
    effects = driver.settle(port, DEAD_LETTER, 1, reason="no")
    assert [getattr(e, "event", "") for e in effects if getattr(e, "event", "")] == ["dead_letter"]
    assert statuses(effects) == {1: OK}
    assert list(driver.shard._state.names) == ["q"]


def test_letters_of_many_queues_can_share_a_queue() -> None:
    driver = Driver()
    for name in ("a", "b"):
        driver.create(name, QueueSettings(dead_letter_queue="grave"))
        port = driver.attach(name)
        driver.publish(1, queue=name)
        driver.settle(port, DEAD_LETTER, driver.last_delivery(port).first_fence)
    assert driver.queue("grave").accepted == 2
    assert driver.queue("grave").settings == QueueSettings()


@pytest.mark.parametrize("how", ["RETRY", "DEAD_LETTER", "timeout", "loss"])
def test_what_fails_in_a_dead_letter_queue_returns_for_ever(how: str) -> None:
    driver, port = driver_with(QueueSettings(max_attempts=1))
    driver.publish(1)
    driver.settle(port, RETRY, 1)
    letters = driver.queue("q.dlq")
    assert (letters.settings.max_attempts, letters.settings.max_losses) == (0, 0)
    reader = driver.attach("q.dlq")
    for _ in range(12):
        fence = driver.last_delivery(reader).first_fence
        if how in ("RETRY", "DEAD_LETTER"):
            driver.settle(reader, Outcome[how], fence)
        elif how == "loss":
            driver.do(StreamEnded(reader))
            reader = driver.attach("q.dlq")
        else:
            for _ in range(30):
                driver.wait(1_000)
                driver.do(Heartbeat(reader))
        for _ in range(0, 310_000, 2_000):
            driver.wait(2_000)
            driver.do(Heartbeat(reader))
            if runs(driver.effects)[-1].first_fence != fence:
                break
    last = driver.last_delivery(reader)
    assert (last.attempt, last.losses) == ((1, 12) if how == "loss" else (13, 0))
    assert list(driver.shard._state.names) == ["q", "q.dlq"]
    assert last.dead_letter is not None
