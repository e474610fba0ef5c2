"""Dead letters: when, where, with what history; and what races with one whose body is not in memory."""

from collections.abc import Callable

import pytest

from kyogo_broker.model.commands import (
    DeleteQueue,
    Detach,
    Drain,
    Heartbeat,
    Outcome,
    PurgeQueue,
    Settle,
    Settlement,
    Started,
    StreamEnded,
    UpdateQueue,
)
from kyogo_broker.model.effects import Deliver, Delivery, EndStream, Load, SettleDone
from kyogo_broker.model.facts import DeadLettered, Published, QueueCreated
from kyogo_broker.model.message import DeadLetterInfo
from kyogo_broker.model.settings import QueueSettings, RetrySettings
from kyogo_broker.model.states import RedeliveryReason, SettleStatus
from tests.support.shards import BEGINNING_MS, Driver, fences, offsets, only, runs, statuses

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


# A letter whose body is not in memory.


def dying(*, settle: bool = True, settings: QueueSettings | None = None) -> tuple[Driver, int, Load]:
    """A delivery that ends in a letter as soon as its body comes back: a port, the load that brings it."""
    driver, port = driver_with(settings or QueueSettings())
    driver.publish(b"one", b"two", b"three")
    driver.do(Started(port, fences((1, 3))))
    driver.queue().window.clear()
    if settle:
        driver.handle(Settle(port, (Settlement(DEAD_LETTER, fences(2), reason="bad"),)))
        driver.tick()
    [load] = driver.loads
    driver.loads.clear()
    assert load.ranges == ((2, 2),)
    return driver, port, load


def finish(driver: Driver, load: Load) -> None:
    driver.loads.insert(0, load)
    driver.settle_down()
    driver.shard.check_invariants()


def test_the_answer_waits_for_the_letter() -> None:
    driver, _, load = dying()
    assert 2 not in statuses(driver.effects)
    assert driver.queue().in_flight == 3
    finish(driver, load)
    assert statuses(driver.effects)[2] is OK
    assert bytes(letter(driver).wire) == b"two"
    assert (driver.queue().in_flight, driver.queue().finished_by) == (2, {"dead_lettered": 1})


def test_several_letters_come_with_one_load() -> None:
    driver, port = driver_with(QueueSettings())
    driver.publish(b"one", b"two", b"three")
    driver.queue().window.clear()
    driver.settle(port, DEAD_LETTER, (1, 3))
    assert len(only(driver.effects, Load)) == 2, "the first one is asked for at once, the others together after it"
    assert statuses(driver.effects) == {1: OK, 2: OK, 3: OK}
    assert driver.queue("q.dlq").accepted == 3


@pytest.mark.parametrize("outcome", [ACK, RETRY, RELEASE])
def test_while_it_is_dying_any_other_outcome_is_stale(outcome: Outcome) -> None:
    driver, port, load = dying()
    driver.handle(Settle(port, (Settlement(outcome, fences(2)),)))
    driver.tick()
    assert statuses(driver.effects)[2] is STALE
    finish(driver, load)
    assert driver.queue("q.dlq").accepted == 1


def test_the_same_settlement_again_while_it_is_dying_is_ok_once_the_letter_is_written() -> None:
    driver, port, load = dying()
    driver.handle(Settle(port, (Settlement(DEAD_LETTER, fences(2)),)))
    driver.tick()
    assert 2 not in statuses(driver.effects), "not before it is true"
    finish(driver, load)
    answers = [r for e in only(driver.effects, SettleDone) for r in e.results if r.range.first == 2]
    assert [r.status for r in answers] == [OK, OK]
    assert driver.queue("q.dlq").accepted == 1


def once_more(driver: Driver, port: int, load: Load) -> None:
    """Nothing happens in between."""


def stream_ends(driver: Driver, port: int, load: Load) -> None:
    driver.handle(StreamEnded(port))
    driver.tick()


def detaches(driver: Driver, port: int, load: Load) -> None:
    driver.handle(Detach(port))
    driver.tick()


def is_purged(driver: Driver, port: int, load: Load) -> None:
    driver.handle(PurgeQueue(0, 0, "q"))
    driver.tick()


def falls_silent(driver: Driver, port: int, load: Load) -> None:
    driver.now = driver.now._replace(steady_ms=driver.now.steady_ms + 10_000)
    driver.tick()


def times_out(driver: Driver, port: int, load: Load) -> None:
    for _ in range(31):
        driver.now = driver.now._replace(steady_ms=driver.now.steady_ms + 1_000)
        driver.handle(Heartbeat(port))
        driver.tick()


@pytest.mark.parametrize("meanwhile", [once_more, stream_ends, detaches, is_purged, falls_silent, times_out])
def test_the_letter_is_written_whatever_happens_meanwhile(meanwhile: Callable[[Driver, int, Load], None]) -> None:
    driver, port, load = dying()
    meanwhile(driver, port, load)
    driver.shard.check_invariants()
    finish(driver, load)
    assert driver.queue().finished_by["dead_lettered"] == 1
    info = letter(driver).dead_letter
    assert info is not None
    assert (info.offset, info.attempts, info.losses, info.last_consumer_id) == (2, 1, 0, "consumer-1")
    assert statuses(driver.effects)[2] is OK
    assert 2 not in offsets([e for e in driver.effects if isinstance(e, Deliver) and e.port != port][:1])


def test_after_a_detach_all_that_came_before_is_answered_and_then_the_stream_ends() -> None:
    driver, port, load = dying()
    driver.handle(Detach(port))
    driver.tick()
    finish(driver, load)
    mine = [e for e in driver.effects if getattr(e, "port", None) == port]
    assert isinstance(mine[-1], EndStream), "the stream ended before its last answer"
    assert len(only(mine, EndStream)) == 1
    assert statuses(mine)[2] is OK


def test_a_stream_lost_after_its_detach_is_not_ended_again() -> None:
    driver, port, load = dying()
    driver.handle(Detach(port))
    driver.handle(StreamEnded(port))
    driver.tick()
    finish(driver, load)
    assert driver.queue().finished_by == {"dead_lettered": 1}


def test_a_deleted_queue_answers_what_was_dying() -> None:
    driver, port, load = dying()
    driver.handle(DeleteQueue(0, 0, "q"))
    driver.tick()
    finish(driver, load)
    assert statuses(driver.effects)[2] is STALE
    assert list(driver.shard._state.names) == []


def test_a_deleted_queue_of_letters_is_made_again() -> None:
    driver, port, load = dying()
    driver.create("q.other", QueueSettings())
    finish(driver, load)
    driver.do(DeleteQueue(0, 0, "q.dlq"))
    driver.settle(port, DEAD_LETTER, 3)
    assert driver.queue("q.dlq").accepted == 1


def test_a_queue_that_keeps_no_letters_any_more_writes_none() -> None:
    driver, _, load = dying()
    driver.handle(UpdateQueue(0, 0, "q", QueueSettings(dead_letter_queue="")))
    driver.tick()
    finish(driver, load)
    assert driver.queue().finished_by == {"dead_lettered": 1}
    assert list(driver.shard._state.names) == ["q"]


def test_a_crash_before_the_letter_delivers_the_message_again() -> None:
    driver, _, _ = dying()
    after = driver.restarted()
    port = after.attach()
    run = runs(after.effects, port)[0]
    assert (run.first_offset, run.count, run.attempt, run.reason) == (1, 3, 1, RedeliveryReason.BROKER_RESTART)


def test_a_loss_can_be_dying_while_its_consumer_is_heard_again() -> None:
    driver, port = driver_with(QueueSettings(max_losses=1))
    driver.publish(b"one")
    driver.do(Started(port, fences(1)))
    driver.queue().window.clear()
    driver.now = driver.now._replace(steady_ms=driver.now.steady_ms + 10_000)
    driver.tick()
    loads, driver.loads = driver.loads, []
    driver.handle(Heartbeat(port))
    driver.tick()
    driver.loads = loads
    driver.settle_down()
    driver.shard.check_invariants()
    assert driver.queue().finished_by == {"dead_lettered": 1}
    assert driver.shard._state.consumers[port].in_flight == 0


def test_letters_are_written_and_answered_while_the_broker_drains() -> None:
    driver, port = driver_with(QueueSettings())
    driver.publish(b"one", b"two", b"three")
    driver.queue().window.clear()
    driver.do(Drain(9_000))
    assert statuses(driver.settle(port, DEAD_LETTER, (1, 3))) == {1: OK, 2: OK, 3: OK}


def test_letters_leave_nothing_pinned_behind() -> None:
    driver, _, load = dying()
    finish(driver, load)
    assert [held for held in driver.queue().window if held.pinned] == []
