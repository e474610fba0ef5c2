"""A restart: suspicions of replays that random histories might take long to meet."""

import pytest

from kyogo_broker.model.commands import DeleteQueue, Outcome, PurgeQueue, StreamEnded
from kyogo_broker.model.facts import Leased
from kyogo_broker.model.settings import BalancePolicy, QueueSettings, RetrySettings
from kyogo_broker.model.states import RedeliveryReason, SettleStatus
from tests.support.shards import FRAME_HEAD_BYTES, Driver, offsets, runs, small_limits, statuses

ACK, RETRY = Outcome.ACK, Outcome.RETRY
LONG = QueueSettings(retry=RetrySettings(initial_ms=3_600_000, max_ms=3_600_000, jitter=False))
SHORT = QueueSettings(retry=RetrySettings(initial_ms=500, max_ms=500, jitter=False))


def test_a_lease_finds_its_message_among_the_delayed() -> None:
    driver = Driver()
    driver.create(settings=SHORT)
    port = driver.attach()
    driver.publish(3)
    driver.settle(port, RETRY, 2)
    driver.wait(600)
    leased = [fact.span for record in driver.records for fact in record.facts if isinstance(fact, Leased)]
    assert leased[-1][1:] == (2, 1)
    after = driver.restarted()
    after.shard.check_invariants()
    run = runs(after.effects, after.attach())
    assert [(r.first_offset, r.count, r.attempt) for r in run] == [(1, 1, 1), (2, 1, 2), (3, 1, 1)]
    assert {r.reason for r in run} == {RedeliveryReason.BROKER_RESTART}


def test_a_leap_of_the_wall_clock_brings_nothing_early_after_a_restart() -> None:
    driver = Driver()
    driver.create(settings=LONG)
    port = driver.attach()
    driver.publish(2)
    driver.settle(port, RETRY, 1)
    driver.settle(port, Outcome.DEAD_LETTER, 2)
    driver.publish(1)
    driver.settle(port, RETRY, driver.last_delivery(port).first_fence, delay_ms=1)
    driver.wait(1, unix_ms=10 * 3_600_000)
    assert driver.last_delivery(port).first_offset == 3
    driver.now = driver.now._replace(unix_ms=driver.now.steady_ms)
    after = driver.restarted()
    assert offsets(after.effects, after.attach()) == [3], "the hour of the first message is not over"
    after.wait(3_600_000 - 1_001 - 1)
    assert 1 not in offsets(after.effects)
    after.wait(1)
    after.attach()
    assert 1 in offsets(after.effects)


def test_what_was_passed_over_is_ready_after_a_restart_and_read_ahead_goes_on() -> None:
    with small_limits():
        driver = Driver()
        driver.create(settings=QueueSettings(balance_policy=BalancePolicy.ROUND_ROBIN))
        small = driver.attach(max_frame_bytes=FRAME_HEAD_BYTES + 50, prefetch_messages=4)
        driver.publish(b"a" * 20, b"L" * 200, b"b" * 20, b"M" * 200, b"c" * 20)
        for _ in range(10):
            driver.publish(b"x" * 20)
        driver.settle(small, ACK, (1, 3))
        after = driver.restarted()
        after.shard.check_invariants()
        large = after.attach(prefetch_messages=100)
        assert sorted(offsets(after.effects, large)) == [2, 4, *range(6, 16)]
        after.shard.check_invariants()


def test_fences_are_never_issued_twice() -> None:
    driver = Driver()
    driver.create()
    seen: set[int] = set()
    for _ in range(4):
        port = driver.attach()
        driver.publish(3)
        issued = {run.first_fence + n for run in runs(driver.effects) for n in range(run.count)}
        assert not issued & seen
        seen |= issued
        assert set(statuses(driver.settle(port, ACK, max(issued)))) == {max(issued)}
        driver = driver.restarted()


def test_a_queue_deleted_and_made_again() -> None:
    driver = Driver()
    driver.create()
    port = driver.attach()
    driver.publish(3)
    driver.settle(port, ACK, 1)
    driver.do(DeleteQueue(0, 0, "q"))
    driver.create(settings=SHORT)
    driver.publish(2)
    after = driver.restarted()
    after.shard.check_invariants()
    port = after.attach()
    assert after.queue().settings == SHORT
    assert offsets(after.effects, port) == [1, 2]
    assert statuses(after.settle(port, ACK, 1)) == {1: SettleStatus.STALE}


def test_a_purge_with_something_delayed_and_something_in_flight() -> None:
    driver = Driver()
    driver.create(settings=SHORT)
    port = driver.attach(prefetch_messages=2)
    driver.publish(5)
    driver.settle(port, RETRY, 1)
    driver.do(PurgeQueue(0, 0, "q"))
    driver.do(StreamEnded(port))
    after = driver.restarted()
    after.shard.check_invariants()
    after.wait(2_000)
    assert sorted(offsets(after.effects, after.attach())) == sorted(set(driver.queue().ready.offsets()))


def test_what_was_not_appended_never_was() -> None:
    driver = Driver(lazy=True)
    driver.create()
    driver.publish(3)
    port = driver.attach()
    assert offsets(driver.effects, port) == [1, 2, 3]
    assert driver.pending, "nobody waits for a lease"
    fence = driver.last_delivery(port).first_fence
    after = driver.restarted()
    again = after.attach()
    run = after.last_delivery(again)
    assert (run.first_offset, run.count, run.reason) == (1, 3, RedeliveryReason.UNSPECIFIED)
    assert run.first_fence > fence + 2
    assert statuses(after.settle(again, ACK, (fence, fence + 2))) == dict.fromkeys(
        range(fence, fence + 3), SettleStatus.STALE
    )


@pytest.mark.parametrize("losses", [1, 2])
def test_losses_survive(losses: int) -> None:
    driver = Driver()
    driver.create(settings=SHORT)
    driver.publish(1)
    for _ in range(losses):
        driver.do(StreamEnded(driver.attach()))
        driver.wait(600)
    after = driver.restarted()
    after.wait(1_000)
    assert after.last_delivery(after.attach()).losses == losses
