"""Consumers attach: what is granted, what is refused, who takes over."""

from typing import Any

import pytest

from kyogo_broker.model.commands import (
    Attach,
    Outcome,
    SetPrefetch,
    StreamEnded,
    Subscription,
)
from kyogo_broker.model.effects import AttachDone, AttachRefused, EndStream
from kyogo_broker.model.errors import ErrorCode
from kyogo_broker.model.message import FenceRange
from kyogo_broker.model.settings import QueueSettings
from kyogo_broker.model.states import ConsumerState, SettleStatus
from tests.support.shards import Driver, fences, offsets, only, statuses


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
def test_what_cannot_be_attached(fields: dict[str, Any], code: ErrorCode) -> None:
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
def test_the_weight_is_what_was_said_or_the_prefetch_as_granted(fields: dict[str, Any], weight: int) -> None:
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
