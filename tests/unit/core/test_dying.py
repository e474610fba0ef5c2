"""Deliveries that end in a letter whose body is not in memory, and what races with them."""

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
from kyogo_broker.model.settings import QueueSettings
from kyogo_broker.model.states import RedeliveryReason, SettleStatus
from tests.support.shards import Driver, fences, offsets, only, runs, statuses

ACK, RETRY, RELEASE, DEAD_LETTER = Outcome
OK, STALE, UNKNOWN, REJECTED = SettleStatus


def driver_with(settings: QueueSettings) -> tuple[Driver, int]:
    driver = Driver()
    driver.create(settings=settings)
    return driver, driver.attach(capabilities=("started",))


def letter(driver: Driver, queue: str = "q.dlq") -> Delivery:
    """The first letter, as a consumer gets it."""
    port = driver.attach(queue)
    return runs(driver.effects, port)[0]


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
    assert [e for e in only(driver.effects, EndStream) if e.port == port] == []


def test_a_deleted_queue_answers_what_was_dying() -> None:
    driver, _, load = dying()
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
