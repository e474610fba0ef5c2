"""What is read back from the journal, and what races with it."""

import pytest

from kyogo_broker.core import reading, window
from kyogo_broker.model.commands import DeleteQueue, Loaded, Outcome, PauseQueue, PurgeQueue, SetPrefetch, StreamEnded
from kyogo_broker.model.effects import Load
from kyogo_broker.model.states import RedeliveryReason
from tests.support.shards import Driver, batch_of, offsets, only, runs, small_limits

ACK, RELEASE = Outcome.ACK, Outcome.RELEASE


def backlog(count: int, *, at_once: int = 1) -> Driver:
    """A queue with a backlog of which only the head is in memory."""
    driver = Driver()
    driver.create()
    for number in range(0, count, at_once):
        driver.publish(*(b"%04d" % (number + n + 1) for n in range(at_once)))
    return driver


def drain(driver: Driver, port: int) -> list[int]:
    """Ack everything as it comes; the offsets in the order of their delivery."""
    seen: list[int] = []
    done = 0
    while True:
        given = runs(driver.effects, port)
        if done == len(given):
            return seen
        for run in given[done:]:
            assert bytes(run.wire) == b"".join(
                b"%04d" % o for o in range(run.first_offset, run.first_offset + run.count)
            )
            seen += range(run.first_offset, run.first_offset + run.count)
            driver.settle(port, ACK, (run.first_fence, run.first_fence + run.count - 1))
            driver.shard.check_invariants()
        done = len(given)


@pytest.mark.parametrize("at_once", [1, 3, 10])
def test_a_backlog_beyond_the_window_is_drained_in_order(at_once: int) -> None:
    with small_limits():
        driver = backlog(60, at_once=at_once)
        assert driver.queue().window.bytes <= window.QUEUE_BYTES_MAX + window.ENTRY_BYTES
        assert drain(driver, driver.attach(prefetch_messages=4)) == list(range(1, 61))
        assert driver.queue().window.bytes == 0


def test_memory_is_bounded_by_the_window_not_by_the_backlog() -> None:
    with small_limits():
        driver = backlog(400)
        port = driver.attach(prefetch_messages=3)
        for _ in range(50):
            driver.settle(port, ACK, driver.last_delivery(port).first_fence)
            assert (
                driver.queue().window.bytes <= window.QUEUE_BYTES_MAX + reading.LOAD_BYTES_MAX + 20 * window.ENTRY_BYTES
            )


def test_publishing_goes_on_into_the_window_once_the_backlog_is_in_it() -> None:
    with small_limits():
        driver = backlog(10)
        drain(driver, driver.attach(prefetch_messages=4))
        loads = len(only(driver.effects, Load))
        driver.publish(b"0011")
        assert len(only(driver.effects, Load)) == loads, "what was just published is not read back"
        assert 11 in offsets(driver.effects)


def waiting_for_a_load() -> tuple[Driver, int, Load]:
    """Six messages, the last of them on their way from the journal."""
    driver = backlog(6)
    driver.queue().window.clear()
    driver.queue().loaded_to = 1
    port = driver.attach(prefetch_messages=0)
    driver.loads.clear()
    state = driver.shard._state
    state.dirty[driver.queue().id] = driver.queue()
    driver.tick()
    [load] = driver.loads
    driver.loads.clear()
    assert load.ranges == ((1, 6),)
    return driver, port, load


def deliver_all(driver: Driver, load: Load) -> list[int]:
    driver.loads.insert(0, load)
    driver.settle_down()
    driver.shard.check_invariants()
    return offsets(driver.effects, driver.attach(prefetch_messages=100))


def test_what_is_published_during_a_load_follows_without_another_one() -> None:
    driver, _, load = waiting_for_a_load()
    for number in (7, 8):
        driver.begin()
        driver.publish(b"%04d" % number)
    loads = len(only(driver.effects, Load))
    assert deliver_all(driver, load) == list(range(1, 9))
    assert len(only(driver.effects, Load)) == loads
    assert driver.queue().loaded_to == 9


def test_what_is_published_during_a_load_that_does_not_reach_the_end_is_read_later() -> None:
    with small_limits():
        driver = backlog(60)
        driver.attach(prefetch_messages=1)
        driver.publish(b"0061")
        assert drain(driver, driver.attach(prefetch_messages=9))[-1] == 61


def test_a_purge_during_a_load() -> None:
    driver, _, load = waiting_for_a_load()
    driver.handle(PurgeQueue(0, 0, "q"))
    driver.tick()
    driver.publish(b"0007")
    assert deliver_all(driver, load) == [7]
    assert [held.first for held in driver.queue().window] == [7]


def test_a_purge_during_a_load_with_something_older_in_flight() -> None:
    driver = backlog(6)
    port = driver.attach(prefetch_messages=1)
    driver.queue().window.clear()
    driver.queue().loaded_to = 2
    driver.handle(PauseQueue(0, 0, "q", paused=True))
    driver.handle(PauseQueue(0, 0, "q", paused=False))
    driver.tick()
    [load] = driver.loads
    driver.loads.clear()
    driver.handle(PurgeQueue(0, 0, "q"))
    driver.tick()
    driver.loads.insert(0, load)
    driver.settle_down()
    driver.publish(b"0007")
    driver.shard.check_invariants()
    driver.do(StreamEnded(port))
    assert offsets(driver.effects, driver.attach()) == [1, 7]
    assert driver.queue().window.find(4) is None, "what was purged is not kept"


def test_a_deletion_during_a_load() -> None:
    driver, _, load = waiting_for_a_load()
    driver.handle(DeleteQueue(0, 0, "q"))
    driver.tick()
    driver.create()
    driver.publish(b"0001")
    assert deliver_all(driver, load) == [1]


def test_an_answer_that_nobody_waits_for_is_passed_over() -> None:
    driver, _, load = waiting_for_a_load()
    assert deliver_all(driver, load) == list(range(1, 7))
    before = driver.queue().window.bytes
    assert driver.do(Loaded(load.queue_id, load.load_id, driver.answer(load).batches)) == []
    assert driver.queue().window.bytes == before


def test_what_returned_is_read_back_first_and_keeps_its_reason() -> None:
    with small_limits():
        driver = backlog(40)
        port = driver.attach(prefetch_messages=6)
        held = [run.first_fence for run in runs(driver.effects, port)]
        other = driver.attach(prefetch_messages=1)
        for _ in range(20):
            driver.settle(other, ACK, driver.last_delivery(other).first_fence)
        assert driver.queue().window.find(1) is None
        assert held
        driver.do(StreamEnded(port))
        third = driver.attach(prefetch_messages=5)
        got = runs(driver.effects, third)
        assert [run.first_offset for run in got][:1] == [1]
        assert sorted(offsets(driver.effects, third))[:5] == [1, 2, 3, 4, 5]
        assert {run.losses for run in got} == {1}
        assert {run.reason for run in got} == {RedeliveryReason.STREAM_LOSS}
        assert b"".join(bytes(run.wire) for run in got) == b"00010002000300040005"


def test_what_was_read_for_a_redelivery_may_go_once_it_is_delivered() -> None:
    driver = backlog(3)
    port = driver.attach()
    driver.queue().window.clear()
    driver.settle(port, RELEASE, (driver.last_delivery(port).first_fence, driver.last_delivery(port).first_fence))
    assert [held.pinned for held in driver.queue().window] == [False]


def test_what_was_read_for_a_redelivery_is_kept_for_nobody_after_a_purge() -> None:
    driver = backlog(3)
    port = driver.attach()
    driver.queue().window.clear()
    driver.do(SetPrefetch(port, 1, 0))
    fence = driver.last_delivery(port).first_fence
    driver.settle(port, RELEASE, fence, fence - 1)
    assert [(held.first, held.last) for held in driver.queue().window if held.pinned] == [(2, 3)]
    driver.do(PurgeQueue(0, 0, "q"))
    assert [held.first for held in driver.queue().window if held.pinned] == []


def test_rows_that_begin_at_one_position_are_read_to_the_end_of_the_longest() -> None:
    """Two rows moved into one record share their position; the last one goes on with what is published after."""
    driver = Driver()
    queue = driver.create()
    driver.publish(b"0001")
    for _ in range(12):
        driver.create(f"other-{len(driver.records)}")
    driver.publish(b"0002")
    assert len(queue.extents) == 2
    for _ in range(12):
        driver.create(f"other-{len(driver.records)}")
    position = driver.sequence * 10
    driver.copy_rows_forward()
    assert [row[0] for row in queue.extents.rows_from(1)] == [position, position]
    driver.publish(b"0003")
    queue.window.clear()
    queue.loaded_to = 1
    assert drain(driver, driver.attach()) == [1, 2, 3]


def test_a_window_full_of_another_queues_messages_never_stops_a_queue() -> None:
    with small_limits():
        driver = backlog(30)
        for name in "abcdef":
            driver.create(name)
            driver.publish(5, queue=name)
        assert driver.shard._state.budget.used > 0
        assert drain(driver, driver.attach(prefetch_messages=2)) == list(range(1, 31))


def test_a_message_larger_than_every_budget_is_read_and_delivered() -> None:
    with small_limits():
        driver = Driver()
        driver.create()
        driver.publish(b"x" * 5_000)
        driver.publish(b"y" * 5_000, b"z")
        port = driver.attach(prefetch_messages=1)
        for _ in range(2):
            driver.settle(port, ACK, driver.last_delivery(port).first_fence)
        assert offsets(driver.effects, port) == [1, 2, 3]


def test_batches_that_do_not_hold_what_they_say_are_caught() -> None:
    driver, _, load = waiting_for_a_load()
    answer = driver.answer(load)
    bad = answer.batches[0].__class__(range(1, 3), batch_of(b"only one"), 0)
    with pytest.raises(AssertionError, match="consecutive"):
        driver.handle(Loaded(load.queue_id, load.load_id, (bad,)))
