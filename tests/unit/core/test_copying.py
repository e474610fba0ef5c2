"""Copying forward: live messages are written anew, whatever happens meanwhile."""

import pytest

from kyogo_broker.model.commands import CopyForward, DeleteQueue, Outcome, Publish, PurgeQueue, Settle, Settlement
from kyogo_broker.model.effects import Load
from kyogo_broker.model.facts import Moved
from tests.support.shards import RECORD_STEP, Driver, Stored, batch_of, fences, messages_in, offsets

ACK = Outcome.ACK


def with_rows() -> tuple[Driver, int]:
    """Messages 1 to 5 in one record, of which 2 and 4 are finished; port of who holds the others."""
    driver = Driver()
    driver.create()
    port = driver.attach()
    driver.publish(b"one", b"two", b"three", b"four", b"five")
    fence = driver.last_delivery(port).first_fence
    driver.settle(port, ACK, fence + 1, fence + 3)
    for number in range(15):
        driver.create(f"other-{number}")
    return driver, port


def everything(driver: Driver) -> CopyForward:
    return CopyForward(0, driver.sequence * RECORD_STEP)


def begin(driver: Driver) -> Load:
    driver.handle(everything(driver))
    driver.tick()
    [load] = driver.loads
    driver.loads.clear()
    return load


def finish(driver: Driver, load: Load) -> list[tuple[int, Stored]]:
    """The messages that were written anew."""
    driver.loads.append(load)
    driver.settle_down()
    driver.shard.check_invariants()
    facts = [fact for record in driver.records for fact in record.facts if isinstance(fact, Moved)]
    return [(offset, stored) for _, offset, stored in messages_in(facts)]


def test_only_what_is_live_is_moved_each_with_its_own_body() -> None:
    driver, _ = with_rows()
    load = begin(driver)
    assert load.ranges == ((1, 1), (3, 3), (5, 5))
    position = driver.sequence * RECORD_STEP
    moved = finish(driver, load)
    assert [(offset, stored.body) for offset, stored in moved] == [(1, b"one"), (3, b"three"), (5, b"five")]
    assert driver.queue().extents.row_of(1) == (1, 5, position)
    assert list(dict(driver.shard.live_bytes())) == [position]


@pytest.mark.parametrize("finished", [1, 3, 5])
def test_what_finishes_meanwhile_is_left_out(finished: int) -> None:
    driver, port = with_rows()
    load = begin(driver)
    fence = driver.last_delivery(port).first_fence
    driver.handle(Settle(port, (Settlement(ACK, fences(fence + finished - 1)),)))
    driver.tick()
    moved = finish(driver, load)
    assert [offset for offset, _ in moved] == [o for o in (1, 3, 5) if o != finished]
    assert driver.queue().extents.total_live() == 2


def test_of_a_whole_batch_the_middle_can_finish_meanwhile() -> None:
    driver = Driver()
    driver.create()
    port = driver.attach()
    driver.publish(b"one", b"two", b"three")
    for number in range(15):
        driver.create(f"other-{number}")
    load = begin(driver)
    assert load.ranges == ((1, 3),)
    driver.handle(Settle(port, (Settlement(ACK, fences(driver.last_delivery(port).first_fence + 1)),)))
    driver.tick()
    assert [(o, stored.body) for o, stored in finish(driver, load)] == [(1, b"one"), (3, b"three")]


def test_everything_may_finish_meanwhile() -> None:
    driver, port = with_rows()
    load = begin(driver)
    fence = driver.last_delivery(port).first_fence
    driver.settle(port, ACK, (fence, fence + 4))
    assert finish(driver, load) == []
    assert driver.queue().extents.total_live() == 0


@pytest.mark.parametrize("command", [DeleteQueue(0, 0, "q"), PurgeQueue(0, 0, "q")])
def test_the_queue_may_be_deleted_or_purged_meanwhile(command: DeleteQueue | PurgeQueue) -> None:
    driver, _ = with_rows()
    load = begin(driver)
    driver.handle(command)
    driver.tick()
    moved = finish(driver, load)
    assert [offset for offset, _ in moved] == ([] if isinstance(command, DeleteQueue) else [1, 3, 5])


def test_a_row_that_was_moved_meanwhile_is_left_alone() -> None:
    driver, _ = with_rows()
    first, second = begin(driver), begin(driver)
    assert [o for o, _ in finish(driver, first)] == [1, 3, 5]
    assert [o for o, _ in finish(driver, second)] == [1, 3, 5], "not twice"


def test_a_row_that_grows_meanwhile_is_left_alone() -> None:
    driver = Driver()
    driver.create()
    driver.publish(b"one", b"two")
    load = begin(driver)
    driver.handle(Publish(0, 0, "q", batch_of(b"three")))
    driver.tick()
    assert finish(driver, load) == []
    driver.shard.check_invariants()
    driver.queue().window.clear()
    driver.queue().loaded_to = 1
    assert offsets(driver.effects, driver.attach()) == [1, 2, 3]


def test_letters_keep_their_history() -> None:
    driver, port = with_rows()
    driver.settle(port, Outcome.DEAD_LETTER, driver.last_delivery(port).first_fence, reason="bad")
    for number in range(20, 35):
        driver.create(f"other-{number}")
    driver.copy_rows_forward()
    driver.queue("q.dlq").window.clear()
    driver.queue("q.dlq").loaded_to = 1
    letter = driver.last_delivery(driver.attach("q.dlq"))
    assert letter.dead_letter is not None
    assert (letter.dead_letter.reason, bytes(letter.wire)) == ("bad", b"one")


def test_all_is_there_after_a_restart() -> None:
    driver, port = with_rows()
    driver.copy_rows_forward()
    driver.publish(b"six")
    driver.settle(port, ACK, driver.last_delivery(port).first_fence)
    after = driver.restarted()
    after.shard.check_invariants()
    assert offsets(after.effects, after.attach()) == [1, 3, 5]
