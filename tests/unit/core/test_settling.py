"""What a settlement is answered, and what it changes."""

from typing import Any

import pytest

from kyogo_broker.core.limits import EXTENSION_MS_MAX, FENCE_RANGE_MAX
from kyogo_broker.model.commands import (
    DeleteQueue,
    Drain,
    Extend,
    Outcome,
    Publish,
    SetPressure,
    Settle,
    Settlement,
    Started,
    StreamEnded,
)
from kyogo_broker.model.effects import ExtendDone, PartRefused, Revoke, SettleDone
from kyogo_broker.model.errors import ErrorCode
from kyogo_broker.model.facts import DeadLettered, Published, Settled
from kyogo_broker.model.message import FenceRange, OffsetRun
from kyogo_broker.model.settings import QueueSettings, RetrySettings
from kyogo_broker.model.states import RevokeMode, RevokeReason, SettleStatus
from tests.support.shards import Driver, batch_of, fences, offsets, only, runs, statuses

OK, STALE, UNKNOWN, REJECTED = SettleStatus
ACK, RETRY, RELEASE, DEAD_LETTER = Outcome


def holding(count: int = 3, settings: QueueSettings | None = None) -> tuple[Driver, int, int]:
    """A driver, a port, and the first of the `count` fences that it holds."""
    driver = Driver()
    driver.create(settings=settings)
    port = driver.attach(capabilities=("started",))
    driver.publish(count)
    return driver, port, driver.last_delivery(port).first_fence


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("repeated", Outcome)
def test_a_repeated_settlement_is_ok_only_with_the_same_outcome(outcome: Outcome, repeated: Outcome) -> None:
    driver, port, fence = holding(1)
    assert statuses(driver.settle(port, outcome, fence)) == {fence: OK}
    assert statuses(driver.settle(port, repeated, fence)) == {fence: OK if repeated is outcome else STALE}
    other = driver.attach()
    assert statuses(driver.settle(other, repeated, fence)) == {fence: OK if repeated is outcome else STALE}


@pytest.mark.parametrize("outcome", Outcome)
def test_a_repeated_settlement_is_ok_after_a_restart(outcome: Outcome) -> None:
    driver, port, fence = holding(1)
    driver.settle(port, outcome, fence)
    after = driver.restarted()
    other = after.attach()
    for repeated in Outcome:
        assert statuses(after.settle(other, repeated, fence)) == {fence: OK if repeated is outcome else STALE}


@pytest.mark.parametrize("outcome", [RETRY, DEAD_LETTER])
def test_a_repeated_settlement_in_a_dead_letter_queue_is_ok_only_with_the_same_outcome(outcome: Outcome) -> None:
    driver, port, fence = holding(1)
    driver.settle(port, DEAD_LETTER, fence)
    reader = driver.attach("q.dlq")
    letter = driver.last_delivery(reader).first_fence
    assert statuses(driver.settle(reader, outcome, letter)) == {letter: OK}
    after = driver.restarted()
    for one in (driver, after):
        asker = reader if one is driver else after.attach()
        for repeated in (RETRY, DEAD_LETTER):
            answer = statuses(one.settle(asker, repeated, letter))
            assert answer == {letter: OK if repeated is outcome else STALE}


def test_anothers_delivery_is_unknown() -> None:
    driver, port, fence = holding(1)
    other = driver.attach()
    for outcome in Outcome:
        assert statuses(driver.settle(other, outcome, fence)) == {fence: UNKNOWN}
    assert statuses(driver.settle(port, ACK, fence)) == {fence: OK}


def test_what_was_never_issued_is_unknown() -> None:
    driver, port, fence = holding(3)
    effects = driver.settle(port, ACK, (fence + 1, fence + 6))
    assert statuses(effects) == {fence + 1: OK, fence + 2: OK} | dict.fromkeys(range(fence + 3, fence + 7), UNKNOWN)


def test_of_an_earlier_process_is_stale() -> None:
    driver, _, fence = holding(3)
    after = driver.restarted()
    port = after.attach()
    assert statuses(after.settle(port, ACK, (fence, fence + 2))) == dict.fromkeys(range(fence, fence + 3), STALE)
    newest = after.last_delivery(port).first_fence
    assert newest > fence + 2
    assert statuses(after.settle(port, ACK, newest - 1)) == {newest - 1: STALE}


def test_of_a_deleted_queue_is_stale() -> None:
    driver, port, fence = holding(2)
    driver.settle(port, ACK, fence)
    driver.do(DeleteQueue(0, 0, "q"))
    assert statuses(driver.settle(port, ACK, (fence, fence + 1))) == {fence: STALE, fence + 1: STALE}
    driver.create()
    assert statuses(driver.settle(port, ACK, (fence, fence + 1))) == {fence: STALE, fence + 1: STALE}


def test_a_lost_lease_is_stale_and_nothing_is_done() -> None:
    driver, port, fence = holding(1)
    driver.do(Started(port, fences(fence)))
    driver.wait(10_000)
    for outcome in Outcome:
        assert statuses(driver.settle(port, outcome, fence)) == {fence: STALE}
    assert driver.queue().finished_by == {}


def test_one_range_over_everything_is_answered_in_pieces_once_each() -> None:
    driver, port, fence = holding(2)
    driver.publish(2)
    other = driver.attach(prefetch_messages=1)
    driver.publish(1)
    driver.settle(port, ACK, fence + 1)
    first, last = fence - 1, fence + 8
    effects = driver.settle(port, ACK, (max(first, 1), last))
    [done] = only(effects, SettleDone)
    answered = [f for r in done.results for f in range(r.range.first, r.range.last + 1)]
    assert answered == list(range(max(first, 1), last + 1))
    held_by_other = driver.last_delivery(other).first_fence
    status = statuses(effects)
    assert status[held_by_other] is UNKNOWN
    assert [status[f] for f in (fence, fence + 1, fence + 2)] == [OK, OK, OK]
    neighbours = list(zip(done.results, done.results[1:], strict=False))
    assert all(a.status is not b.status for a, b in neighbours), "neighbours with one answer were not joined"


@pytest.mark.parametrize("outcome", Outcome)
def test_overlapping_ranges_take_effect_once(outcome: Outcome) -> None:
    driver, port, fence = holding(3)
    effects = driver.settle(port, outcome, (fence, fence + 1), (fence + 1, fence + 2), fence)
    results = [(r.range.first, r.range.last, r.status) for e in only(effects, SettleDone) for r in e.results]
    answered = [f for first, last, _ in results for f in range(first, last + 1)]
    assert sorted(answered) == sorted([fence, fence, fence + 1, fence + 1, fence + 2])
    assert {status for _, _, status in results} == {OK}
    counted = driver.shard.stats().queues[0].settled
    assert counted == {outcome.name: 3}


@pytest.mark.parametrize(
    ("first", "last"),
    [(5, 4), (0, 3), (-1, 1), (1, FENCE_RANGE_MAX + 1)],
    ids=["backwards", "zero", "negative", "endless"],
)
def test_ranges_that_are_none_are_refused_and_nothing_of_their_part_is_done(first: int, last: int) -> None:
    driver, port, fence = holding(3)
    bad = Settlement(ACK, (FenceRange(fence, fence), FenceRange(first, last)))
    good = Settlement(ACK, fences(fence + 1))
    effects = driver.do(Settle(port, (bad, good)))
    assert [e.refusal.code for e in only(effects, PartRefused)] == [ErrorCode.FRAME_INVALID]
    assert statuses(effects) == {fence + 1: OK}
    for command in (Started(port, bad.ranges), Extend(port, bad.ranges, 1_000)):
        assert [e.refusal.code for e in only(driver.do(command), PartRefused)] == [ErrorCode.FRAME_INVALID]


def test_a_range_may_be_as_long_as_the_limit() -> None:
    driver, port, fence = holding(3)
    effects = driver.settle(port, ACK, (fence, fence + FENCE_RANGE_MAX - 1))
    assert len(statuses(effects)) == FENCE_RANGE_MAX


# Time.


def test_extending_moves_the_deadline_and_starts_what_had_not() -> None:
    driver, port, fence = holding(2, QueueSettings(visibility_timeout_ms=1_000, retry=RetrySettings(jitter=False)))
    driver.do(Started(port, fences(fence)))
    effects = driver.do(Extend(port, fences((fence, fence + 1)), 2_500))
    assert [(r.range, r.status) for e in only(effects, ExtendDone) for r in e.results] == [
        (FenceRange(fence, fence + 1), OK)
    ]
    driver.wait(2_499)
    assert driver.queue().in_flight == 2
    driver.wait(1)
    assert driver.queue().in_flight == 0


def test_extensions_are_answered_by_whose_they_are() -> None:
    driver, port, fence = holding(2)
    other = driver.attach()
    driver.settle(port, ACK, fence)
    effects = driver.do(Extend(port, fences((fence, fence + 2)), 1_000))
    assert [r.status for e in only(effects, ExtendDone) for r in e.results] == [STALE, OK, UNKNOWN]
    effects = driver.do(Extend(other, fences(fence + 1), 1_000))
    assert [r.status for e in only(effects, ExtendDone) for r in e.results] == [UNKNOWN]


@pytest.mark.parametrize("extension_ms", [0, -1, EXTENSION_MS_MAX + 1])
def test_extensions_have_bounds(extension_ms: int) -> None:
    driver, port, fence = holding(1)
    effects = driver.do(Extend(port, fences(fence), extension_ms))
    assert [e.refusal.code for e in only(effects, PartRefused)] == [ErrorCode.FRAME_INVALID]


def test_each_message_of_a_lease_has_its_own_deadline_and_none_is_looked_at_late() -> None:
    driver, port, fence = holding(3, QueueSettings(visibility_timeout_ms=1_000, retry=RetrySettings(jitter=False)))
    for number in range(3):
        driver.do(Started(port, fences(fence + number)))
        driver.wait(50)
    in_flight = []
    for _ in range(20):
        driver.wait(50)
        in_flight.append(driver.queue().in_flight)
    assert in_flight == [3] * 16 + [2, 1, 0, 0], "a deadline was looked at too late or too early"


def test_a_consumer_is_told_what_its_timeouts_took() -> None:
    driver, port, fence = holding(2, QueueSettings(visibility_timeout_ms=1_000))
    driver.do(Started(port, fences((fence, fence + 1))))
    effects = driver.wait(1_000)
    [revoke] = only(effects, Revoke)
    assert (revoke.port, revoke.ranges) == (port, (FenceRange(fence, fence + 1),))
    assert (revoke.mode, revoke.reason) == (RevokeMode.LOST, RevokeReason.VISIBILITY_TIMEOUT)


def test_a_level_1_consumer_is_timed_from_delivery_and_told_nothing() -> None:
    driver = Driver()
    driver.create(settings=QueueSettings(visibility_timeout_ms=1_000))
    driver.attach()
    driver.publish(1)
    effects = driver.wait(1_000)
    assert driver.queue().in_flight == 0
    assert only(effects, Revoke) == []


# Units: a settlement with publishes.


def unit(*ranges: int | tuple[int, int], outcome: Outcome = ACK, to: str = "out", **fields: object) -> Settlement:
    publish = Publish(0, 0, to, batch_of(b"one", b"two"), **fields)  # type: ignore[arg-type]
    return Settlement(outcome, fences(*ranges), publishes=(publish,))


def test_a_unit_is_stored_in_one_step_with_its_publishes() -> None:
    driver, port, fence = holding(2)
    driver.create("out")
    driver.begin()
    step = driver.shard.handle(Settle(port, (unit((fence, fence + 1)),)), driver.now)
    assert [type(fact) for fact in step.facts] == [Published, Settled]
    [done] = only(step.effects, SettleDone)
    assert [(r.range, r.status) for r in done.results] == [(FenceRange(fence, fence + 1), OK)]
    assert done.results[0].published == ((OffsetRun(1, 2),),)


def test_a_repeated_unit_is_ok_and_publishes_nothing() -> None:
    driver, port, fence = holding(2)
    driver.create("out")
    driver.do(Settle(port, (unit((fence, fence + 1)),)))
    assert statuses(driver.do(Settle(port, (unit((fence, fence + 1)),)))) == {fence: OK, fence + 1: OK}
    assert driver.queue("out").accepted == 2


@pytest.mark.parametrize("bad", ["stale", "foreign", "never"])
def test_one_invalid_fence_rejects_the_whole_unit(bad: str) -> None:
    driver, port, fence = holding(3)
    driver.create("out")
    driver.attach(prefetch_messages=1)
    driver.publish(1)
    driver.settle(port, RELEASE, fence + 2)
    newest = max(r.first_fence + r.count - 1 for r in runs(driver.effects))
    other = next(e for e in reversed(driver.effects) if getattr(e, "runs", None) and e.port != port)  # type: ignore[union-attr]
    invalid = {"stale": fence + 2, "foreign": other.runs[0].first_fence, "never": newest + 1}[bad]  # type: ignore[union-attr]
    effects = driver.do(Settle(port, (unit(fence, invalid),)))
    expected = {"stale": STALE, "foreign": UNKNOWN, "never": UNKNOWN}[bad]
    assert statuses(effects) == {fence: REJECTED, invalid: expected}
    assert driver.queue("out").accepted == 0
    assert statuses(driver.settle(port, ACK, fence)) == {fence: OK}, "a rejected delivery keeps its lease"


@pytest.mark.parametrize(
    ("settlement", "code"),
    [
        (lambda fence: unit(fence, to="nowhere"), ErrorCode.QUEUE_NOT_FOUND),
        (lambda fence: unit(fence, (fence, fence + 1)), ErrorCode.FRAME_INVALID),
        (lambda fence: unit(fence, outcome=RETRY), ErrorCode.UNSUPPORTED),
    ],
    ids=["missing queue", "overlap", "not an ACK"],
)
def test_a_unit_that_cannot_be_done_is_rejected_and_keeps_its_leases(settlement: object, code: ErrorCode) -> None:
    driver, port, fence = holding(2)
    driver.create("out")
    effects = driver.do(Settle(port, (settlement(fence),)))  # type: ignore[operator]
    results = [r for e in only(effects, SettleDone) for r in e.results]
    assert {r.status for r in results} == {REJECTED}
    assert {r.refusal.code for r in results if r.refusal} == {code}
    assert (driver.queue().in_flight, driver.queue("out").accepted) == (2, 0)


@pytest.mark.parametrize(
    ("pressure", "code"), [((True, False), ErrorCode.DISK_LOW), ((False, True), ErrorCode.MEMORY_HIGH)]
)
def test_under_pressure_only_settlements_that_publish_are_rejected(
    pressure: tuple[bool, bool], code: ErrorCode
) -> None:
    driver, port, fence = holding(2)
    driver.create("out")
    driver.do(SetPressure(*pressure))
    effects = driver.do(Settle(port, (unit(fence), Settlement(ACK, fences(fence + 1)))))
    assert statuses(effects) == {fence: REJECTED, fence + 1: OK}
    assert [r.refusal.code for e in only(effects, SettleDone) for r in e.results if r.refusal] == [code]


def test_while_the_broker_drains_settlements_go_on_publishes_included() -> None:
    driver, port, fence = holding(2)
    driver.create("out")
    driver.do(Drain(10_000))
    assert statuses(driver.do(Settle(port, (unit(fence), Settlement(ACK, fences(fence + 1)))))) == {
        fence: OK, fence + 1: OK,
    }  # fmt: skip
    assert driver.queue("out").accepted == 2


def test_a_producers_resend_inside_a_unit_is_stored_once() -> None:
    driver, port, fence = holding(2)
    driver.create("out")
    as_producer: dict[str, Any] = {"producer_id": "p", "request_id": 7, "digest": 1}
    first = driver.do(Settle(port, (unit(fence, **as_producer),)))
    second = driver.do(Settle(port, (unit(fence + 1, **as_producer),)))
    for effects in (first, second):
        assert [r.published for e in only(effects, SettleDone) for r in e.results] == [((OffsetRun(1, 2),),)]
    assert driver.queue("out").accepted == 2


def test_a_producers_request_twice_in_one_unit_is_stored_once() -> None:
    driver, port, fence = holding(1)
    driver.create("out")
    once = Publish(0, 0, "out", batch_of(b"one"), "p", 7, 1)
    effects = driver.do(Settle(port, (Settlement(ACK, fences(fence), publishes=(once, once)),)))
    assert [r.published for e in only(effects, SettleDone) for r in e.results] == [((OffsetRun(1, 1),),) * 2]
    assert driver.queue("out").accepted == 1


@pytest.mark.parametrize("beside", [False, True], ids=["earlier", "in one unit"])
def test_a_producers_conflict_inside_a_unit_rejects_it(beside: bool) -> None:
    driver, port, fence = holding(2)
    driver.create("out")
    one = Publish(0, 0, "out", batch_of(b"one"), "p", 7, 1)
    other = Publish(0, 0, "out", batch_of(b"other"), "p", 7, 2)
    if not beside:
        driver.do(Settle(port, (Settlement(ACK, fences(fence), publishes=(one,)),)))
    publishes = (one, other) if beside else (other,)
    effects = driver.do(Settle(port, (Settlement(ACK, fences(fence + 1), publishes=publishes),)))
    assert statuses(effects) == {fence + 1: REJECTED}
    assert [r.refusal.code for e in only(effects, SettleDone) for r in e.results if r.refusal] == [
        ErrorCode.REQUEST_CONFLICT
    ]
    assert driver.queue("out").accepted == (0 if beside else 1)


def test_the_facts_of_an_ending_say_what_the_consumer_said() -> None:
    driver, port, fence = holding(1, QueueSettings(max_attempts=1))
    driver.begin()
    step = driver.shard.handle(Settle(port, (Settlement(RETRY, fences(fence)),)), driver.now)
    [letter] = [fact for fact in step.facts if isinstance(fact, DeadLettered)]
    assert (letter.outcome, letter.reason) == (RETRY, "max_attempts")


def test_after_the_stream_ended_nothing_is_settled() -> None:
    driver, port, fence = holding(1)
    driver.do(StreamEnded(port))
    assert driver.settle(port, ACK, fence) == []
    assert offsets(driver.effects, driver.attach()) == [1]
