"""Effects become frames: nothing lost, nothing reordered, never above the limit."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.model.effects import (
    Deliver,
    Delivery,
    Effect,
    ExtendDone,
    PartRefused,
    Revoke,
    SettleDone,
    SettleResult,
    TellDrain,
)
from kyogo_broker.model.errors import ErrorCode, Refusal
from kyogo_broker.model.message import DeadLetterInfo, FenceRange, OffsetRun
from kyogo_broker.model.states import RedeliveryReason, RevokeMode, RevokeReason, SettleStatus
from kyogo_broker.server.limits import FILL_FRAME_BYTES, MIN_FRAME_BYTES
from kyogo_broker.server.wire import RUN_HEAD_BYTES, frames, heartbeat
from kyogo_broker.server.wire.frames import split

LETTER = DeadLetterInfo("q", 4, "max_attempts", 5, 1, "a", "b", "ValueError", "c-1", 10, 20)
SMALLEST = MIN_FRAME_BYTES


def run(first_fence: int, bodies: Sequence[bytes], **fields: Any) -> Delivery:
    wire = pb.PublishRequest(messages=[pb.Message(body=body) for body in bodies]).SerializeToString()
    values = {
        "subscription": 0,
        "first_fence": first_fence,
        "first_offset": first_fence + 1_000,
        "count": len(bodies),
        "attempt": 1,
        "losses": 0,
        "reason": RedeliveryReason.UNSPECIFIED,
        "published_unix_ms": 1_700_000_000_000,
        "dead_letter": None,
        "wire": memoryview(wire),
    }
    return Delivery(**{**values, **fields})


def encode(*effects: Effect, limit: int = 4 << 20, first: bytes = b"") -> list[pb.ConsumeResponse]:
    encoded = list(frames(effects, first=first, max_frame_bytes=limit))
    for frame in encoded:
        parsed = pb.ConsumeResponse.FromString(frame)
        alone = len(parsed.deliveries) == 1 and len(parsed.deliveries[0].messages) == 1
        assert len(frame) <= min(limit, FILL_FRAME_BYTES) or alone, f"a frame of {len(frame)} bytes"
    return [pb.ConsumeResponse.FromString(frame) for frame in encoded]


def unrolled(responses: Sequence[pb.ConsumeResponse]) -> list[tuple[int, int, bytes]]:
    return [
        (delivery.first_fence + n, delivery.first_offset + n, message.body)
        for response in responses
        for delivery in response.deliveries
        for n, message in enumerate(delivery.messages)
    ]


@given(
    st.lists(st.lists(st.integers(0, 40_000), min_size=1, max_size=12), max_size=12),
    st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_every_message_arrives_once_with_its_fence(sizes: list[list[int]], gaps: list[int]) -> None:
    effects, expected, fence = [], [], 1
    for lengths, gap in zip(sizes, gaps, strict=False):
        fence += gap
        bodies = [bytes([fence % 251]) * length for length in lengths]
        effects.append(Deliver(1, (run(fence, bodies),)))
        expected += [(fence + n, fence + n + 1_000, body) for n, body in enumerate(bodies)]
        fence += len(bodies)
    assert unrolled(encode(*effects, limit=SMALLEST)) == expected
    assert unrolled(encode(*effects)) == expected


def test_all_fields_of_a_run_arrive() -> None:
    fields: dict[str, Any] = {
        "subscription": 3,
        "attempt": 4,
        "losses": 2,
        "reason": RedeliveryReason.STREAM_LOSS,
        "dead_letter": LETTER,
    }
    [response] = encode(Deliver(1, (run(77, [b"x"], **fields),)))
    [delivery] = response.deliveries
    assert (delivery.subscription, delivery.attempt, delivery.losses) == (3, 4, 2)
    assert delivery.redelivery_reason == pb.REDELIVERY_REASON_STREAM_LOSS
    assert delivery.published_unix_ms == 1_700_000_000_000
    letter = delivery.dead_letter
    assert (letter.queue, letter.offset, letter.reason, letter.attempts, letter.losses) == (
        "q",
        4,
        "max_attempts",
        5,
        1,
    )
    assert (letter.first_error, letter.last_error, letter.error_type) == ("a", "b", "ValueError")
    assert (letter.last_consumer_id, letter.first_delivered_unix_ms, letter.dead_lettered_unix_ms) == ("c-1", 10, 20)


def test_runs_that_go_on_share_a_head() -> None:
    [response] = encode(Deliver(1, (run(1, [b"a"]), run(2, [b"b", b"c"]))), Deliver(1, (run(4, [b"d"]),)))
    assert [len(delivery.messages) for delivery in response.deliveries] == [4]


@pytest.mark.parametrize(
    "fields",
    [
        {"first_fence": 3},
        {"first_offset": 5},
        {"subscription": 1},
        {"attempt": 2},
        {"losses": 1},
        {"reason": RedeliveryReason.RELEASE},
        {"published_unix_ms": 1_700_000_000_011},
        {"published_unix_ms": 1_699_999_999_999},
        {"dead_letter": LETTER},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_runs_that_differ_keep_their_heads(fields: dict[str, Any]) -> None:
    following = run(2, [b"b"], **fields) if "first_fence" not in fields else run(3, [b"b"])
    [response] = encode(Deliver(1, (run(1, [b"a"]), following)))
    assert [len(delivery.messages) for delivery in response.deliveries] == [1, 1]


def test_a_run_too_long_for_a_frame_is_cut_between_messages() -> None:
    bodies = [bytes([n]) * 30_000 for n in range(100)]
    responses = encode(Deliver(1, (run(1, bodies),)))
    assert len(responses) == 3
    assert unrolled(responses) == [(n + 1, n + 1_001, body) for n, body in enumerate(bodies)]


def test_a_message_larger_than_a_full_frame_goes_alone() -> None:
    large = bytes(FILL_FRAME_BYTES + 5)
    responses = encode(Deliver(1, (run(1, [b"a", large, b"b"]),)), PartRefused(1, Refusal(ErrorCode.INTERNAL, "x")))
    assert [len(response.deliveries) for response in responses] == [1, 1, 1]
    assert [len(response.errors) for response in responses] == [0, 0, 1]
    assert [body for _, _, body in unrolled(responses)] == [b"a", large, b"b"]


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30), st.integers(1, 2_000))
def test_split_keeps_to_its_room(sizes: list[int], room: int) -> None:
    whole = run(10, [bytes(size) for size in sizes])
    parts = list(split(whole, room))
    assert b"".join(part.wire for part in parts) == whole.wire
    assert sum(part.count for part in parts) == whole.count
    assert all(len(part.wire) <= room or part.count == 1 for part in parts)
    assert parts[-1].first_fence + parts[-1].count == whole.first_fence + whole.count
    assert parts[-1].first_offset - whole.first_offset == parts[-1].first_fence - whole.first_fence


def test_the_head_of_a_run_fits_into_what_is_kept_for_it() -> None:
    most = (1 << 53) - 1
    fields: dict[str, Any] = {
        "subscription": 0xFFFF_FFFF,
        "first_offset": most,
        "attempt": 0xFFFF_FFFF,
        "losses": 0xFFFF_FFFF,
        "reason": RedeliveryReason.BROKER_RESTART,
        "published_unix_ms": most,
    }
    delivery = run(most, [b""], **fields)
    [frame] = frames([Deliver(1, (delivery,))], max_frame_bytes=SMALLEST)
    assert len(frame) - len(delivery.wire) <= RUN_HEAD_BYTES


def test_every_kind_of_part_shares_a_frame() -> None:
    fences = FenceRange(5, 9)
    [response] = encode(
        SettleDone(1, (SettleResult(fences, SettleStatus.OK, None, ((OffsetRun(3, 2, duplicate=True),), ())),)),
        ExtendDone(1, (SettleResult(fences, SettleStatus.STALE),)),
        Deliver(1, (run(20, [b"x"]),)),
        Revoke(1, (fences,), RevokeMode.LOST, RevokeReason.SUSPECT),
        TellDrain(1, "stopping", 500),
        PartRefused(1, Refusal(ErrorCode.FRAME_INVALID, "no", 7, {"part": "extend"})),
        first=heartbeat(3, 2, 99),
    )
    assert (response.heartbeat.sequence, response.heartbeat.echo) == (3, 2)
    assert response.heartbeat.broker_time_unix_ms == 99
    [settled] = response.settled
    assert (settled.range.first, settled.range.last, settled.status) == (5, 9, pb.SETTLE_STATUS_OK)
    assert [[(o.first_offset, o.count, o.duplicate) for o in p.offsets] for p in settled.published] == [
        [(3, 2, True)],
        [],
    ]
    assert response.extended[0].status == pb.SETTLE_STATUS_STALE
    assert response.deliveries[0].messages[0].body == b"x"
    assert (response.revokes[0].mode, response.revokes[0].reason) == (
        pb.REVOKE_MODE_LOST,
        pb.REVOKE_REASON_SUSPECT,
    )
    assert (response.drain.reason, response.drain.deadline_ms) == ("stopping", 500)
    [error] = response.errors
    assert (error.code, error.message, error.retry_after_ms) == (pb.ERROR_CODE_FRAME_INVALID, "no", 7)
    assert dict(error.metadata) == {"part": "extend"}


def test_many_answers_are_spread_over_frames() -> None:
    refused = Refusal(ErrorCode.QUEUE_NOT_FOUND, "x" * 5_000, None, {"detail": "y" * 5_000})
    results = [
        SettleResult(FenceRange(n, n), SettleStatus.REJECTED if n % 3 else SettleStatus.OK, refused if n % 3 else None)
        for n in range(1, 4_000)
    ]
    ranges = tuple(FenceRange(n, n) for n in range(1, 9_000))
    responses = encode(
        SettleDone(1, tuple(results)),
        Revoke(1, ranges, RevokeMode.RETURN, RevokeReason.REBALANCE),
        limit=SMALLEST,
    )
    settled = [result for response in responses for result in response.settled]
    assert [(result.range.first, result.range.last) for result in settled] == [(n, n) for n in range(1, 4_000)]
    assert len(settled[0].error.message) == 1_024
    revoked = [fences.first for r in responses for revoke in r.revokes for fences in revoke.ranges]
    assert revoked == list(range(1, 9_000))


def test_nothing_is_no_frame() -> None:
    assert encode() == []
