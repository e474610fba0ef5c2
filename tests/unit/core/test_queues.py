"""What operators do to queues."""

import pytest

from kyogo_broker.core.queue import Queue
from kyogo_broker.model.commands import (
    CreateQueue,
    DeleteQueue,
    Heartbeat,
    Outcome,
    PauseQueue,
    PurgeQueue,
    SetPrefetch,
    Started,
    StreamEnded,
    Subscription,
    UpdateQueue,
)
from kyogo_broker.model.effects import AdminDone, Effect, PartRefused, Revoke
from kyogo_broker.model.errors import ErrorCode
from kyogo_broker.model.settings import BalancePolicy, QueueMode, QueueSettings, RetrySettings
from kyogo_broker.model.states import RevokeMode, RevokeReason, SettleStatus
from tests.support.shards import Driver, fences, offsets, only, runs, statuses

ACK, RETRY = Outcome.ACK, Outcome.RETRY


def code(effects: list[Effect]) -> ErrorCode | None:
    [done] = only(effects, AdminDone)
    return done.refusal.code if done.refusal else None


def count(effects: list[Effect]) -> int:
    return only(effects, AdminDone)[0].count


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("other", QueueSettings(), None),
        ("x" * 116, QueueSettings(), None),
        ("q", QueueSettings(), None),
        ("q", QueueSettings(max_attempts=7), ErrorCode.QUEUE_EXISTS),
        ("q.dlq", QueueSettings(), ErrorCode.SETTINGS_INVALID),
        ("x" * 117, QueueSettings(), ErrorCode.SETTINGS_INVALID),
        ("", QueueSettings(), ErrorCode.SETTINGS_INVALID),
        ("a/b", QueueSettings(), ErrorCode.SETTINGS_INVALID),
        ("a\n", QueueSettings(), ErrorCode.SETTINGS_INVALID),
        ("other", QueueSettings(dead_letter_queue="other"), ErrorCode.SETTINGS_INVALID),
        ("other", QueueSettings(mode=QueueMode.KEYED), ErrorCode.UNSUPPORTED),
        ("other", QueueSettings(balance_policy=BalancePolicy.LATENCY), ErrorCode.UNSUPPORTED),
    ],
)
def test_creating(name: str, settings: QueueSettings, expected: ErrorCode | None) -> None:
    driver = Driver()
    driver.create()
    before = set(driver.shard._state.names)
    assert code(driver.do(CreateQueue(1, 2, name, settings))) is expected
    assert set(driver.shard._state.names) - before == ({name} - before if expected is None else set())


@pytest.mark.parametrize(
    "command",
    [
        UpdateQueue(1, 2, "none", QueueSettings()), PauseQueue(1, 2, "none", paused=True), PurgeQueue(1, 2, "none"),
        DeleteQueue(1, 2, "none"),
    ],
)  # fmt: skip
def test_an_unknown_queue_is_not_found(command: UpdateQueue) -> None:
    effects = Driver().do(command)
    assert code(effects) is ErrorCode.QUEUE_NOT_FOUND
    assert (only(effects, AdminDone)[0].port, only(effects, AdminDone)[0].tag) == (1, 2)


def test_the_mode_is_fixed() -> None:
    driver = Driver()
    driver.create()
    assert code(driver.do(UpdateQueue(0, 0, "q", QueueSettings(mode=QueueMode.KEYED)))) is ErrorCode.SETTINGS_INVALID


def test_settings_change_under_load() -> None:
    driver = Driver()
    driver.create()
    port = driver.attach(capabilities=("started",))
    driver.publish(3)
    driver.do(Started(port, fences(1)))
    quick = RetrySettings(initial_ms=10, max_ms=10, jitter=False)
    driver.do(UpdateQueue(0, 0, "q", QueueSettings(visibility_timeout_ms=500, max_attempts=2, retry=quick)))
    driver.do(Started(port, fences(2)))
    driver.wait(500)
    assert driver.queue().in_flight == 2, "what had begun keeps its clock, what begins now has the new one"
    driver.settle(port, RETRY, 1)
    driver.wait(10)
    assert [run.attempt for run in runs(driver.effects, port)] == [1, 2, 2]
    driver.settle(port, RETRY, driver.last_delivery(port).first_fence)
    assert driver.queue().finished_by == {"dead_lettered": 1}


def test_the_policy_can_be_changed_while_it_works() -> None:
    driver = Driver()
    driver.create()
    ports = [driver.attach(prefetch_messages=4) for _ in range(3)]
    driver.publish(3)
    driver.do(UpdateQueue(0, 0, "q", QueueSettings(balance_policy=BalancePolicy.ROUND_ROBIN)))
    driver.publish(6)
    assert [len(offsets(driver.effects, port)) for port in ports] == [3, 3, 3]
    driver.do(UpdateQueue(0, 0, "q", QueueSettings(balance_policy=BalancePolicy.LEAST_IN_FLIGHT)))
    driver.publish(9)
    assert [len(offsets(driver.effects, port)) for port in ports] == [4, 4, 4]
    driver.settle(ports[1], ACK, runs(driver.effects, ports[1])[0].first_fence)
    assert [len(offsets(driver.effects, port)) for port in ports] == [4, 5, 4]


# Purge.


def everywhere() -> tuple[Driver, int]:
    """One message in flight, one delayed, one returned, three fresh."""
    driver = Driver()
    driver.create(settings=QueueSettings(retry=RetrySettings(jitter=False)))
    port = driver.attach(prefetch_messages=3)
    driver.publish(6)
    driver.do(SetPrefetch(port, 0, 0))
    driver.settle(port, RETRY, 2)
    driver.settle(port, Outcome.RELEASE, 3)
    stats = driver.shard.stats().queues[0]
    assert (stats.in_flight, stats.delayed, stats.ready) == (1, 1, 4)
    return driver, port


def test_a_purge_finishes_all_but_what_is_in_flight() -> None:
    driver, port = everywhere()
    assert count(driver.do(PurgeQueue(0, 0, "q"))) == 5
    stats = driver.shard.stats().queues[0]
    assert (stats.in_flight, stats.delayed, stats.ready, stats.finished) == (1, 0, 0, {"purged": 5})
    driver.shard.check_invariants()
    driver.do(SetPrefetch(port, 10, 0))
    driver.wait(2_000)
    assert offsets(driver.effects, port) == [1, 2, 3], "what was purged is never delivered"
    assert statuses(driver.settle(port, ACK, 1)) == {1: SettleStatus.OK}


def test_what_was_in_flight_at_a_purge_may_return() -> None:
    driver, port = everywhere()
    driver.do(PurgeQueue(0, 0, "q"))
    driver.do(StreamEnded(port))
    assert offsets(driver.effects, driver.attach()) == [1]
    driver.shard.check_invariants()


def test_a_purge_of_nothing() -> None:
    driver = Driver()
    driver.create()
    assert count(driver.do(PurgeQueue(0, 0, "q"))) == 0


def test_publishing_goes_on_after_a_purge() -> None:
    driver, port = everywhere()
    driver.do(PurgeQueue(0, 0, "q"))
    driver.publish(2)
    driver.do(SetPrefetch(port, 10, 0))
    assert offsets(driver.effects, port)[3:] == [7, 8]
    driver.shard.check_invariants()


# Delete.


def test_a_deletion_tells_consumers_what_they_lost() -> None:
    driver = Driver()
    driver.create("a")
    driver.create("b")
    told = driver.attach("a", "b", capabilities=("started",))
    untold = driver.attach("a")
    driver.publish(4, queue="a")
    driver.publish(1, queue="b")
    effects = driver.do(DeleteQueue(0, 0, "a"))
    assert count(effects) == 4
    [revoke] = only(effects, Revoke)
    assert (revoke.port, revoke.mode, revoke.reason) == (told, RevokeMode.LOST, RevokeReason.PURGED)
    assert {e.port for e in only(effects, PartRefused)} == {told, untold}
    driver.shard.check_invariants()


def test_consumers_of_a_deleted_queue_go_on_with_their_others() -> None:
    driver = Driver()
    driver.create("a")
    driver.create("b")
    port = driver.attach(subscriptions=(Subscription("a"), Subscription("b")), prefetch_messages=2)
    driver.publish(5, queue="a")
    driver.do(DeleteQueue(0, 0, "a"))
    driver.publish(5, queue="b")
    assert [(run.subscription, run.count) for run in runs(driver.effects, port)] == [(0, 2), (1, 2)]
    driver.do(StreamEnded(port))
    driver.shard.check_invariants()


def test_a_deleted_queue_with_delayed_messages_wakes_nobody() -> None:
    driver, port = everywhere()
    driver.settle(port, RETRY, 1, delay_ms=9_000)
    driver.do(DeleteQueue(0, 0, "q"))
    for _ in range(2):
        driver.wait(1_000)
        driver.do(Heartbeat(port))
    assert not [timed for _, _, timed in driver.shard._state.timers._heap if isinstance(timed, Queue)]
    assert len(offsets(driver.effects)) == 3


def test_a_queue_of_the_same_name_is_another_one() -> None:
    driver, port = everywhere()
    driver.do(DeleteQueue(0, 0, "q"))
    queue = driver.create()
    assert (queue.id, queue.next_offset, queue.members) == (2, 1, {})
    driver.publish(1)
    assert len(offsets(driver.effects, port)) == 3, "its old consumers attach again if they want to"
    assert offsets(driver.effects, driver.attach()) == [1]


def test_a_pause_keeps_what_is_in_flight_and_everything_after_a_restart() -> None:
    driver, port = everywhere()
    driver.do(PauseQueue(0, 0, "q", paused=True))
    assert statuses(driver.settle(port, ACK, 1)) == {1: SettleStatus.OK}
    after = driver.restarted()
    port = after.attach()
    assert offsets(after.effects, port) == []
    after.do(PauseQueue(0, 0, "q", paused=False))
    after.wait(2_000)
    assert sorted(offsets(after.effects, port)) == [2, 3, 4, 5, 6]
