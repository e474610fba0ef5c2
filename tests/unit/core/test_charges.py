""" "What is charged", one test a row: `attempt`, `losses`, the place, the delay."""

import pytest

from kyogo_broker.model.commands import Detach, Extend, Heartbeat, Outcome, Started, StreamEnded
from kyogo_broker.model.effects import Delivery
from kyogo_broker.model.settings import QueueSettings, RetrySettings
from kyogo_broker.model.states import RedeliveryReason, SettleStatus
from tests.support.shards import Driver, fences, offsets, runs, statuses

SETTINGS = QueueSettings(
    visibility_timeout_ms=30_000, retry=RetrySettings(initial_ms=1_000, multiplier=2.0, jitter=False)
)


def held_by_one(*, starts: bool = True, begun: bool = False) -> tuple[Driver, int, Delivery]:
    """Three messages with one consumer; the first two are its own concern."""
    driver = Driver()
    driver.create(settings=SETTINGS)
    port = driver.attach(capabilities=("started",) if starts else ())
    driver.publish(3)
    run = driver.last_delivery(port)
    assert (run.count, run.attempt, run.losses, run.reason) == (3, 1, 0, RedeliveryReason.UNSPECIFIED)
    if begun:
        driver.do(Started(port, fences((run.first_fence, run.first_fence + 2))))
    return driver, port, run


def again(driver: Driver, *, prefetch: int = 16) -> Delivery:
    """The next run that another consumer gets; it must begin at the original place."""
    driver.publish(2)
    port = driver.attach(prefetch_messages=prefetch)
    run = runs(driver.effects, port)[0]
    assert run.first_offset == 1
    return run


def test_ack_finishes() -> None:
    driver, port, run = held_by_one()
    effects = driver.settle(port, Outcome.ACK, (run.first_fence, run.first_fence + 2))
    assert set(statuses(effects).values()) == {SettleStatus.OK}
    assert driver.queue().finished_by == {"acked": 3}
    driver.do(StreamEnded(port))
    assert offsets(driver.effects, driver.attach()) == []


def test_dead_letter_finishes() -> None:
    driver, port, run = held_by_one()
    driver.settle(port, Outcome.DEAD_LETTER, (run.first_fence, run.first_fence + 2), reason="no")
    assert driver.queue().finished_by == {"dead_lettered": 3}
    assert driver.queue("q.dlq").ready_count == 3


def test_retry_charges_an_attempt_and_waits_for_the_backoff() -> None:
    driver, port, run = held_by_one()
    driver.settle(port, Outcome.RETRY, run.first_fence)
    driver.wait(999)
    assert runs(driver.effects, port)[-1] is run
    driver.wait(1)
    second = runs(driver.effects, port)[-1]
    assert (second.first_offset, second.count) == (1, 1)
    assert (second.attempt, second.losses, second.reason) == (2, 0, RedeliveryReason.RETRY)
    driver.settle(port, Outcome.RETRY, second.first_fence)
    driver.wait(1_999)
    assert runs(driver.effects, port)[-1] is second
    driver.wait(1)
    assert runs(driver.effects, port)[-1].attempt == 3


@pytest.mark.parametrize("delay_ms", [0, 5, 60_000])
def test_retry_waits_as_said(delay_ms: int) -> None:
    driver, port, run = held_by_one()
    driver.settle(port, Outcome.RETRY, run.first_fence, delay_ms=delay_ms)
    for _ in range(delay_ms // 1_000):
        driver.wait(1_000)
        driver.do(Heartbeat(port))
    driver.wait(delay_ms % 1_000)
    again_run = runs(driver.effects, port)[-1]
    assert again_run is not run
    assert again_run.attempt == 2


def test_visibility_timeout_charges_an_attempt_and_waits_for_the_backoff() -> None:
    driver, port, run = held_by_one(begun=True)
    driver.do(Extend(port, fences((run.first_fence + 1, run.first_fence + 2)), 3_600_000))
    for _ in range(30):
        assert driver.queue().in_flight == 3
        driver.wait(1_000)
        driver.do(Heartbeat(port))
    assert (driver.queue().in_flight, len(driver.queue().delayed)) == (2, 1)
    driver.wait(1_000)
    second = runs(driver.effects, port)[-1]
    assert (second.first_offset, second.attempt, second.losses) == (1, 2, 0)
    assert second.reason is RedeliveryReason.VISIBILITY_TIMEOUT


def test_the_first_loss_of_what_had_started_does_not_wait() -> None:
    driver, port, _ = held_by_one(begun=True)
    driver.do(StreamEnded(port))
    run = again(driver)
    assert (run.count, run.attempt, run.losses, run.reason) == (3, 1, 1, RedeliveryReason.STREAM_LOSS)


def test_the_second_loss_waits_for_the_first_backoff() -> None:
    driver, port, _ = held_by_one(begun=True)
    driver.do(StreamEnded(port))
    driver.do(StreamEnded(driver.attach()))
    assert (driver.queue().ready_count, len(driver.queue().delayed)) == (0, 3)
    port = driver.attach()
    driver.wait(999)
    assert offsets(driver.effects, port) == []
    driver.wait(1)
    run = runs(driver.effects, port)[0]
    assert (run.first_offset, run.attempt, run.losses) == (1, 1, 2)


def test_failed_charges_a_loss_to_what_had_started() -> None:
    driver, _, _ = held_by_one(begun=True)
    driver.wait(10_000)
    run = again(driver)
    assert (run.count, run.attempt, run.losses, run.reason) == (3, 1, 1, RedeliveryReason.FAILED)


def test_without_the_capability_everything_delivered_had_started() -> None:
    driver, port, _ = held_by_one(starts=False)
    driver.do(StreamEnded(port))
    run = again(driver)
    assert (run.attempt, run.losses, run.reason) == (1, 1, RedeliveryReason.STREAM_LOSS)


def test_stream_loss_before_the_start_is_free() -> None:
    driver, port, _ = held_by_one()
    driver.do(StreamEnded(port))
    run = again(driver)
    assert (run.count, run.attempt, run.losses, run.reason) == (3, 1, 0, RedeliveryReason.STREAM_LOSS)


def test_suspect_before_the_start_is_free() -> None:
    driver, _, _ = held_by_one()
    driver.wait(3_000)
    run = again(driver)
    assert (run.count, run.attempt, run.losses, run.reason) == (3, 1, 0, RedeliveryReason.SUSPECT)


def test_suspect_leaves_what_had_started() -> None:
    driver, _, _ = held_by_one(begun=True)
    driver.wait(9_999)
    assert driver.queue().in_flight == 3


def test_release_is_free() -> None:
    driver, port, run = held_by_one()
    driver.settle(port, Outcome.RELEASE, (run.first_fence, run.first_fence + 2))
    back = runs(driver.effects, port)[-1]
    assert (back.first_offset, back.count, back.attempt, back.losses) == (1, 3, 1, 0)
    assert back.reason is RedeliveryReason.RELEASE


@pytest.mark.parametrize("begun", [False, True])
def test_detach_is_free_also_of_what_had_started(begun: bool) -> None:
    driver, port, _ = held_by_one(begun=begun)
    driver.do(Detach(port))
    run = again(driver)
    assert (run.count, run.attempt, run.losses, run.reason) == (3, 1, 0, RedeliveryReason.DETACH)


@pytest.mark.parametrize("begun", [False, True])
def test_a_restart_of_the_broker_is_free(begun: bool) -> None:
    driver, _, _ = held_by_one(begun=begun)
    after = driver.restarted()
    run = again(after)
    assert (run.count, run.attempt, run.losses, run.reason) == (3, 1, 0, RedeliveryReason.BROKER_RESTART)


def test_failures_and_losses_count_apart() -> None:
    driver, port, run = held_by_one(begun=True)
    driver.settle(port, Outcome.RETRY, run.first_fence, delay_ms=0)
    driver.do(Started(port, fences(runs(driver.effects, port)[-1].first_fence)))
    driver.do(StreamEnded(port))
    other = driver.attach(prefetch_messages=1)
    last = driver.last_delivery(other)
    assert (last.first_offset, last.attempt, last.losses) == (1, 2, 1)
    assert last.reason is RedeliveryReason.STREAM_LOSS
