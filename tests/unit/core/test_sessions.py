"""Consumers come, fall silent, come back and go."""

import pytest

from kyogo_broker.core.limits import ShardConfig
from kyogo_broker.model.commands import (
    Attach,
    Detach,
    Drain,
    Heartbeat,
    Outcome,
    PauseQueue,
    SetPrefetch,
    Started,
    StreamEnded,
    Subscription,
)
from kyogo_broker.model.effects import AttachDone, AttachRefused, EndStream, Revoke, SettleDone, TellDrain
from kyogo_broker.model.errors import ErrorCode
from kyogo_broker.model.message import FenceRange
from kyogo_broker.model.settings import BalancePolicy, QueueSettings
from kyogo_broker.model.states import ConsumerState, RevokeMode, RevokeReason, SettleStatus
from tests.support.shards import Driver, fences, offsets, only, runs, statuses


def refused(driver: Driver) -> ErrorCode:
    """Why the last attach was refused."""
    return only(driver.effects, AttachRefused)[-1].refusal.code


def state_of(driver: Driver, port: int) -> ConsumerState:
    return driver.shard._state.consumers[port].state


# Attaching.


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"subscriptions": (Subscription("none"),)}, ErrorCode.QUEUE_NOT_FOUND),
        ({"subscriptions": (Subscription("q"), Subscription("q"))}, ErrorCode.FRAME_INVALID),
        ({"subscriptions": tuple(Subscription(f"q{n}") for n in range(65))}, ErrorCode.FRAME_INVALID),
        ({"weight": 0}, ErrorCode.FRAME_INVALID),
        ({"weight": 1_000_001}, ErrorCode.FRAME_INVALID),
        ({"subscriptions": (Subscription("q", weight=0),)}, ErrorCode.FRAME_INVALID),
        ({"subscriptions": (Subscription("q", max_unsettled=0),)}, ErrorCode.FRAME_INVALID),
    ],
    ids=["no queue", "twice", "too many", "no weight", "too heavy", "no weight in one", "nothing unsettled"],
)
def test_what_cannot_be_attached(fields: dict[str, object], code: ErrorCode) -> None:
    driver = Driver()
    driver.create()
    driver.attach(**fields)
    assert refused(driver) is code
    assert driver.shard.stats().consumers == ()


def test_no_subscription_is_none() -> None:
    driver = Driver()
    driver.do(Attach(1, 1, "t", "c", ()))
    assert refused(driver) is ErrorCode.FRAME_INVALID


def test_attach_answers_with_what_is_granted() -> None:
    driver = Driver()
    driver.create(settings=QueueSettings(visibility_timeout_ms=5_000, max_attempts=7))
    driver.attach(prefetch_messages=1_000_000, prefetch_bytes=1 << 40, capabilities=("started", "drain", "fly"))
    [done] = only(driver.effects, AttachDone)
    assert (done.prefetch_messages, done.prefetch_bytes) == (10_000, 64 << 20)
    assert done.capabilities == ("drain", "started")
    assert (done.heartbeat_interval_ms, done.suspect_after_ms, done.failed_after_ms) == (1_000, 3_000, 10_000)
    [info] = done.subscriptions
    assert (info.queue, info.visibility_timeout_ms, info.max_attempts) == ("q", 5_000, 7)


@pytest.mark.parametrize(("asked", "granted"), [(1, 100), (100, 100), (60_001, 60_000), (0, 1_000)])
def test_the_heartbeat_interval_has_bounds(asked: int, granted: int) -> None:
    driver = Driver()
    driver.create()
    driver.attach(heartbeat_interval_ms=asked)
    assert only(driver.effects, AttachDone)[-1].heartbeat_interval_ms == granted


def test_held_by_an_unknown_token_is_all_lost() -> None:
    driver = Driver()
    driver.create()
    driver.attach(resumed_token="of another life", held=fences((3, 9), 12))
    done = only(driver.effects, AttachDone)[-1]
    assert (done.kept, done.lost) == ((), (FenceRange(3, 9), FenceRange(12, 12)))


def test_deliveries_follow_the_answer_to_attach() -> None:
    driver = Driver()
    driver.create()
    driver.publish(3)
    port = driver.attach()
    kinds = [type(e).__name__ for e in driver.effects if getattr(e, "port", None) == port]
    assert kinds == ["AttachDone", "Deliver"]


# An id in use.


def test_an_id_in_use_is_refused_with_a_time_to_come_back() -> None:
    driver = Driver()
    driver.create()
    driver.attach(name="ann")
    driver.attach(name="ann")
    assert refused(driver) is ErrorCode.CONSUMER_ID_IN_USE
    assert only(driver.effects, AttachRefused)[-1].refusal.retry_after_ms == 10_000
    driver.attach(name="ann", resumed_token="not it")
    assert refused(driver) is ErrorCode.CONSUMER_ID_IN_USE


def test_its_token_takes_over_and_what_the_old_stream_held_goes_back() -> None:
    driver = Driver()
    driver.create()
    old = driver.attach(name="ann", session_token="secret", capabilities=("started",))
    driver.publish(2)
    fence = driver.last_delivery(old).first_fence
    new = driver.attach(name="ann", resumed_token="secret")
    assert [e.port for e in only(driver.effects, EndStream)] == [old]
    assert offsets(driver.effects, new) == [1, 2]
    assert statuses(driver.settle(new, Outcome.ACK, fence)) == {fence: SettleStatus.STALE}
    before = len(driver.effects)
    driver.do(StreamEnded(old))
    assert state_of(driver, new) is ConsumerState.PROCESSING, "the end of the old stream concerns the old session only"
    assert driver.effects[before:] == []


def test_its_token_takes_over_also_where_no_further_consumer_may_attach() -> None:
    driver = Driver()
    driver.create(settings=QueueSettings(max_consumers=1))
    driver.attach(name="ann", session_token="secret")
    driver.attach(name="bob")
    assert refused(driver) is ErrorCode.LIMIT_EXCEEDED
    new = driver.attach(name="ann", resumed_token="secret")
    assert [c.port for c in driver.shard.stats().consumers] == [new]


def test_a_failed_takeover_leaves_the_old_session_alone() -> None:
    driver = Driver()
    driver.create()
    old = driver.attach(name="ann", session_token="secret")
    driver.attach("none", name="ann", resumed_token="secret")
    assert refused(driver) is ErrorCode.QUEUE_NOT_FOUND
    assert [c.port for c in driver.shard.stats().consumers] == [old]


def test_an_id_is_free_again_after_its_stream_ended() -> None:
    driver = Driver()
    driver.create()
    driver.do(StreamEnded(driver.attach(name="ann")))
    new = driver.attach(name="ann")
    assert [c.port for c in driver.shard.stats().consumers] == [new]


# Weights.


@pytest.mark.parametrize(
    ("fields", "weight"),
    [
        ({}, 16), ({"prefetch_messages": 40}, 40), ({"prefetch_messages": 0}, 1), ({"weight": 3}, 3),
        ({"prefetch_messages": 4_000_000_000}, 10_000),
        ({"weight": 3, "subscriptions": (Subscription("q", weight=9),)}, 9),
    ],
)  # fmt: skip
def test_the_weight_is_what_was_said_or_the_prefetch_as_granted(fields: dict[str, object], weight: int) -> None:
    driver = Driver()
    driver.create()
    port = driver.attach(**fields)
    [member] = driver.shard._state.consumers[port].members
    assert member.weight == weight


def test_a_weight_that_was_not_said_follows_the_prefetch() -> None:
    driver = Driver()
    driver.create()
    said, unsaid = driver.attach(weight=5, prefetch_messages=0), driver.attach(prefetch_messages=0)
    for port in (said, unsaid):
        driver.do(SetPrefetch(port, 64, 0))
    weights = {port: driver.shard._state.consumers[port].members[0].weight for port in (said, unsaid)}
    assert weights == {said: 5, unsaid: 64}
    driver.publish(69)
    shares = {port: len(offsets(driver.effects, port)) for port in (said, unsaid)}
    assert shares == {said: 5, unsaid: 64}


# Prefetch.


def test_prefetch_is_absolute_and_lowering_takes_nothing_back() -> None:
    driver = Driver()
    driver.create()
    port = driver.attach(prefetch_messages=4)
    driver.publish(10)
    assert len(offsets(driver.effects, port)) == 4
    driver.do(SetPrefetch(port, 2, 0))
    assert driver.queue().in_flight == 4
    fence = driver.last_delivery(port).first_fence
    driver.settle(port, Outcome.ACK, (fence, fence + 1))
    assert len(offsets(driver.effects, port)) == 4
    driver.settle(port, Outcome.ACK, fence + 2)
    assert len(offsets(driver.effects, port)) == 5
    driver.do(SetPrefetch(port, 0, 0))
    driver.settle(port, Outcome.ACK, fence + 3)
    assert len(offsets(driver.effects, port)) == 5


def test_prefetch_zero_bytes_means_the_default() -> None:
    driver = Driver()
    driver.create()
    port = driver.attach()
    driver.do(SetPrefetch(port, 5, 0))
    assert driver.shard._state.consumers[port].prefetch_bytes == 4 << 20


def test_prefetch_counts_bytes_and_one_larger_message_goes_alone() -> None:
    driver = Driver()
    driver.create()
    port = driver.attach(prefetch_bytes=100)
    driver.publish(b"a" * 60, b"b" * 40, b"c" * 500, b"d" * 10)
    assert offsets(driver.effects, port) == [1, 2]
    first = driver.last_delivery(port).first_fence
    driver.settle(port, Outcome.ACK, first)
    assert offsets(driver.effects, port) == [1, 2], "500 bytes do not fit beside 40"
    driver.settle(port, Outcome.ACK, first + 1)
    assert offsets(driver.effects, port) == [1, 2, 3]
    driver.settle(port, Outcome.ACK, driver.last_delivery(port).first_fence)
    assert offsets(driver.effects, port) == [1, 2, 3, 4]


def test_whoever_waits_for_bytes_gets_on_when_another_took_the_large_message() -> None:
    driver = Driver()
    driver.create(settings=QueueSettings(balance_policy=BalancePolicy.ROUND_ROBIN))
    narrow = driver.attach(prefetch_bytes=100)
    driver.publish(b"a" * 60)
    driver.publish(b"b" * 90)
    wide = driver.attach()
    driver.publish(b"c" * 10)
    driver.publish(b"d" * 10)
    assert offsets(driver.effects, wide)[0] == 2
    assert 3 in offsets(driver.effects, narrow) or 4 in offsets(driver.effects, narrow)


def test_a_large_message_of_one_queue_does_not_keep_a_consumer_from_another_queue() -> None:
    driver = Driver()
    driver.create("a")
    driver.create("b")
    port = driver.attach("a", "b", prefetch_bytes=100)
    driver.publish(b"x" * 60, queue="a")
    driver.publish(b"y" * 90, queue="a")
    driver.publish(b"z" * 10, queue="b")
    assert [(run.subscription, run.first_offset) for run in runs(driver.effects, port)] == [(0, 1), (1, 1)]


def test_max_unsettled_bounds_one_subscription_and_prefetch_all_of_them() -> None:
    driver = Driver()
    driver.create("a")
    driver.create("b")
    port = driver.attach(subscriptions=(Subscription("a", max_unsettled=2), Subscription("b")), prefetch_messages=5)
    driver.publish(9, queue="a")
    driver.publish(9, queue="b")
    given = [(run.subscription, run.count) for run in runs(driver.effects, port)]
    assert given == [(0, 2), (1, 3)]
    driver.settle(port, Outcome.ACK, runs(driver.effects, port)[0].first_fence)
    assert driver.queue("a").in_flight + driver.queue("b").in_flight == 5
    assert driver.queue("a").in_flight <= 2


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
