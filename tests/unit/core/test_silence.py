"""Consumers fall silent, come back, and go."""

import pytest

from kyogo_broker.core.limits import ShardConfig
from kyogo_broker.model.commands import (
    Detach,
    Drain,
    Heartbeat,
    Outcome,
    PauseQueue,
    SetPrefetch,
    Started,
    StreamEnded,
)
from kyogo_broker.model.effects import AttachRefused, EndStream, Revoke, SettleDone, TellDrain
from kyogo_broker.model.errors import ErrorCode
from kyogo_broker.model.states import ConsumerState, RevokeMode, RevokeReason, SettleStatus
from tests.support.shards import Driver, fences, offsets, only, runs, statuses


def refused(driver: Driver) -> ErrorCode:
    """Why the last attach was refused."""
    return only(driver.effects, AttachRefused)[-1].refusal.code


def state_of(driver: Driver, port: int) -> ConsumerState:
    return driver.shard._state.consumers[port].state


# Silence.


def silent(*, starts: bool = True) -> tuple[Driver, int, int]:
    """One consumer that holds three messages of which the first has begun."""
    driver = Driver()
    driver.create()
    port = driver.attach(capabilities=("started",) if starts else ())
    driver.publish(3)
    fence = driver.last_delivery(port).first_fence
    driver.do(Started(port, fences(fence)))
    return driver, port, fence


def test_silence_is_suspected_then_failed_then_ended() -> None:
    driver, port, _ = silent()
    other = driver.attach(capabilities=("started",))
    seen = []
    for _ in range(14):
        seen.append((state_of(driver, port), len(offsets(driver.effects, other))))
        effects = driver.wait(1_000)
        driver.do(Heartbeat(other))
    assert [state for state, _ in seen] == (
        [ConsumerState.PROCESSING] * 3 + [ConsumerState.SUSPECT] * 7 + [ConsumerState.FAILED] * 4
    )
    assert [count for _, count in seen] == [0] * 3 + [2] * 7 + [3] * 4
    ended = only(driver.effects, EndStream)
    assert [(e.port, e.unavailable) for e in ended] == [(port, True)]
    assert effects is not None


def test_thresholds_are_met_to_the_millisecond() -> None:
    driver, port, _ = silent()
    driver.wait(2_999)
    assert state_of(driver, port) is ConsumerState.PROCESSING
    driver.wait(1)
    assert state_of(driver, port) is ConsumerState.SUSPECT
    driver.wait(6_999)
    assert state_of(driver, port) is ConsumerState.SUSPECT
    driver.wait(1)
    assert state_of(driver, port) is ConsumerState.FAILED


@pytest.mark.parametrize("how", ["heartbeat", "prefetch", "started", "settle", "nothing to say"])
def test_every_command_is_a_sign_of_life(how: str) -> None:
    driver, port, fence = silent()
    driver.wait(2_500)
    match how:
        case "heartbeat":
            driver.do(Heartbeat(port))
        case "prefetch":
            driver.do(SetPrefetch(port, 16, 0))
        case "started":
            driver.do(Started(port, fences(fence + 1)))
        case "settle":
            driver.settle(port, Outcome.ACK, fence)
    driver.wait(2_500)
    expected = ConsumerState.SUSPECT if how == "nothing to say" else ConsumerState.PROCESSING
    assert state_of(driver, port) is expected


@pytest.mark.parametrize(
    ("silence_ms", "reason", "lost"), [(3_000, RevokeReason.SUSPECT, [1, 2]), (10_000, RevokeReason.FAILED, [0, 1, 2])]
)
def test_heard_again_it_is_told_what_it_lost_and_is_back_in_the_balance(
    silence_ms: int, reason: RevokeReason, lost: list[int]
) -> None:
    driver, port, fence = silent()
    driver.wait(silence_ms)
    effects = driver.do(Heartbeat(port))
    [revoke] = only(effects, Revoke)
    told = [f - fence for r in revoke.ranges for f in range(r.first, r.last + 1)]
    assert (revoke.mode, revoke.reason, sorted(told)) == (RevokeMode.LOST, reason, lost)
    assert len(offsets(effects, port)) == len(lost), "it is given messages again"
    assert only(driver.do(Heartbeat(port)), Revoke) == []


def test_a_settlement_after_silence_is_stale_for_what_was_lost_only() -> None:
    driver, port, fence = silent()
    driver.wait(3_000)
    effects = driver.settle(port, Outcome.ACK, (fence, fence + 2))
    assert statuses(effects) == {
        fence: SettleStatus.OK, fence + 1: SettleStatus.STALE, fence + 2: SettleStatus.STALE,
    }  # fmt: skip


def test_without_the_capability_suspicion_takes_nothing_and_failure_everything() -> None:
    driver, port, _ = silent(starts=False)
    driver.wait(3_000)
    assert (state_of(driver, port), driver.queue().in_flight) == (ConsumerState.SUSPECT, 3)
    driver.wait(7_000)
    assert (state_of(driver, port), driver.queue().in_flight) == (ConsumerState.FAILED, 0)
    assert only(driver.do(Heartbeat(port)), Revoke) == [], "it declared nothing that it could be sent"


def test_the_suspected_are_given_nothing() -> None:
    driver = Driver()
    driver.create()
    port = driver.attach()
    driver.wait(3_000)
    driver.publish(1)
    assert offsets(driver.effects, port) == []
    driver.do(Heartbeat(port))
    assert offsets(driver.effects, port) == [1]


def test_a_stall_of_the_broker_is_nobodys_silence() -> None:
    driver, port, _ = silent()
    driver.stall(60_000)
    driver.do()
    assert state_of(driver, port) is ConsumerState.PROCESSING
    driver.wait(2_999)
    assert state_of(driver, port) is ConsumerState.PROCESSING
    driver.wait(1)
    assert state_of(driver, port) is ConsumerState.SUSPECT


def test_failed_after_one_long_leap_counts_once() -> None:
    driver, port, _ = silent()
    driver.now = driver.now._replace(steady_ms=driver.now.steady_ms + 10_500)
    driver.do()
    assert state_of(driver, port) is ConsumerState.FAILED
    assert driver.shard.stats().failovers == {"failed": 1}
    assert {(t.losses, t.failures) for t in driver.queue().troubles.values()} == {(1, 0)}


# Leaving.


def test_detach_is_answered_with_the_end_of_the_stream() -> None:
    driver, port, fence = silent()
    effects = driver.do(Detach(port))
    assert [(e.port, e.refusal, e.unavailable) for e in only(effects, EndStream)] == [(port, None, False)]
    other = driver.attach()
    assert statuses(driver.settle(other, Outcome.ACK, fence)) == {fence: SettleStatus.STALE}
    assert driver.do(StreamEnded(port)) == []


def test_a_lost_stream_is_counted_a_detach_is_not() -> None:
    driver = Driver()
    driver.create()
    driver.do(Detach(driver.attach()))
    driver.do(StreamEnded(driver.attach()))
    assert driver.shard.stats().failovers == {"stream_loss": 1}


def test_nothing_is_left_of_one_that_left() -> None:
    driver, port, _ = silent()
    driver.do(StreamEnded(port))
    state = driver.shard._state
    assert not state.consumers
    assert not state.consumer_ids
    assert not state.sessions
    assert not driver.queue().members
    assert driver.queue().balance.allocate(5) == []


# The broker drains.


def test_draining_stops_deliveries_and_tells_those_who_can_be_told() -> None:
    driver = Driver()
    driver.create()
    told, untold = driver.attach(capabilities=("drain",)), driver.attach()
    driver.publish(2)
    fence = min(run.first_fence for run in runs(driver.effects))
    effects = driver.do(Drain(9_000))
    assert [(e.port, e.deadline_ms) for e in only(effects, TellDrain)] == [(told, 9_000)]
    driver.settle(told, Outcome.RELEASE, (fence, fence + 1))
    assert len(offsets(driver.effects)) == 2, "nothing is delivered any more"
    driver.attach()
    assert refused(driver) is ErrorCode.BROKER_DRAINING
    assert only(driver.do(Detach(untold)), EndStream)


def test_one_that_failed_before_the_drain_is_still_told_what_it_lost() -> None:
    driver, port, fence = silent()
    driver.wait(10_000)
    driver.do(Drain(9_000))
    effects = driver.settle(port, Outcome.ACK, fence)
    assert statuses(effects) == {fence: SettleStatus.STALE}
    assert [e.reason for e in only(effects, Revoke)] == [RevokeReason.FAILED]


def test_a_paused_queue_gives_nothing_and_goes_on_where_it_was() -> None:
    driver = Driver()
    driver.create()
    port = driver.attach()
    driver.do(PauseQueue(0, 0, "q", paused=True))
    driver.publish(2)
    assert offsets(driver.effects, port) == []
    driver.do(PauseQueue(0, 0, "q", paused=False))
    assert offsets(driver.effects, port) == [1, 2]
    assert only(driver.effects, SettleDone) == []


def test_limits_of_a_config_of_its_own() -> None:
    driver = Driver(ShardConfig(prefetch_messages_max=3, prefetch_bytes_max=50, subscriptions_max=1))
    driver.create("a")
    driver.create("b")
    driver.attach("a", "b")
    assert refused(driver) is ErrorCode.FRAME_INVALID
    port = driver.attach("a", prefetch_messages=10)
    driver.do(SetPrefetch(port, 10, 1_000))
    consumer = driver.shard._state.consumers[port]
    assert (consumer.prefetch_messages, consumer.prefetch_bytes) == (3, 50)
