"""What a consumer is sent: effects packed into as few frames as their limit allows.

A frame is put together from encoded pieces, because concatenated protobuf messages are one message. A
delivery is never taken apart: its head is encoded, and the stored messages follow as they are.

    | tag 2, length | RunHead | tag len message | tag len message | ... | tag 3, length | SettleResult | ...
    '--- ConsumeResponse.deliveries -----------------------------------' '--- .settled ----------------'
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from kyogo.internal.v1.views_pb2 import RunHead
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
from kyogo_broker.server.limits import FILL_FRAME_BYTES
from kyogo_broker.server.wire import answers

RUN_HEAD_BYTES = 96
"""The most that a run adds to its messages: nine varints, two tags, a length. A dead letter's history is
beyond."""
_DELIVERIES_TAG = b"\x12"
_MORE = 0x80
"""Set in every byte of a varint but the last."""
_MERGE_MS = 10
"""`published_unix_ms` of a run is its first message's; the contract allows the others to differ by so
much."""
_ITEMS_IN_A_PIECE = 512
"""Results or ranges, 50 bytes each at most: a piece is never split over frames, and fits into the
smallest."""

_Piece = tuple[int, Sequence[bytes | memoryview]]
"""Bytes altogether, and the buffers."""


def frames(effects: Iterable[Effect], *, first: bytes = b"", max_frame_bytes: int) -> Iterator[bytes]:
    """Encode effects, in their order, into frames filled to `FILL_FRAME_BYTES`.

    Args:
        effects: `Deliver` and whatever else a frame has a part for; not `AttachDone`, see `answers.attached`.
        first: an encoded part to begin the first frame with (a heartbeat).
        max_frame_bytes: what the consumer can receive; only a single message is allowed to need more than 1
        MiB.
    """
    room = min(FILL_FRAME_BYTES, max_frame_bytes)
    buffers: list[bytes | memoryview] = [first]
    size = len(first)
    for piece_size, piece in _pieces(effects, room):
        if size and size + piece_size > room:
            yield b"".join(buffers)
            buffers, size = [], 0
        buffers.extend(piece)
        size += piece_size
    if size:
        yield b"".join(buffers)


def items_of(effect: Effect) -> int:
    """Results and ranges in an effect: what it costs to keep and to encode, messages aside."""
    match effect:
        case SettleDone(results=results) | ExtendDone(results=results):
            return len(results)
        case Revoke(ranges=ranges):
            return len(ranges)
        case _:
            return 1


def _pieces(effects: Iterable[Effect], room: int) -> Iterator[_Piece]:
    for delivers, group in groupby(effects, key=_is_deliver):
        if delivers:
            runs = (run for effect in group if isinstance(effect, Deliver) for run in effect.runs)
            yield from _run_pieces(runs, room)
        else:
            for effect in group:
                for response in _responses(effect):
                    encoded = response.SerializeToString()
                    yield len(encoded), (encoded,)


def _is_deliver(effect: Effect) -> bool:
    return type(effect) is Deliver


def _run_pieces(runs: Iterable[Delivery], room: int) -> Iterator[_Piece]:
    """Runs as pieces: joined where one goes on where the last one ended, split where one is too large."""
    joined: list[Delivery] = []
    size = 0
    for run in runs:
        length = len(run.wire)
        if joined and (size + length + RUN_HEAD_BYTES > room or not _goes_on(joined, run)):
            yield from _run_piece(joined, size, room)
            joined, size = [], 0
        joined.append(run)
        size += length
    if joined:
        yield from _run_piece(joined, size, room)


def _goes_on(joined: Sequence[Delivery], run: Delivery) -> bool:
    first, last = joined[0], joined[-1]
    return (
        run.first_fence == last.first_fence + last.count
        and run.first_offset == last.first_offset + last.count
        and run.subscription == first.subscription
        and 0 <= run.published_unix_ms - first.published_unix_ms <= _MERGE_MS
        and run.attempt == first.attempt
        and run.losses == first.losses
        and run.reason == first.reason
        and run.dead_letter is None
        and first.dead_letter is None
    )


def _run_piece(joined: Sequence[Delivery], size: int, room: int) -> Iterator[_Piece]:
    first = joined[0]
    if size + RUN_HEAD_BYTES > room and first.count > 1:
        for part in split(first, room - RUN_HEAD_BYTES):
            yield _encode_run(part, (part.wire,), len(part.wire))
    else:
        yield _encode_run(first, [run.wire for run in joined], size)


def _encode_run(run: Delivery, wires: Sequence[memoryview], size: int) -> _Piece:
    head = RunHead(
        subscription=run.subscription,
        first_fence=run.first_fence,
        first_offset=run.first_offset,
        attempt=run.attempt,
        losses=run.losses,
        redelivery_reason=pb.RedeliveryReason.ValueType(run.reason),
        published_unix_ms=run.published_unix_ms,
        dead_letter=None if run.dead_letter is None else answers.dead_letter(run.dead_letter),
    ).SerializeToString()
    length = _varint(len(head) + size)
    return 1 + len(length) + len(head) + size, (_DELIVERIES_TAG, length, head, *wires)


def split(run: Delivery, room: int) -> Iterator[Delivery]:
    """Cut a run at the ends of messages into runs of at most `room` bytes, or of one message."""
    wire = run.wire
    start, end, done = 0, 0, 0
    for index in range(run.count):
        after = _message_end(wire, end)
        if after - start > room and end > start:
            yield _part(run, done, index, wire[start:end])
            start, done = end, index
        end = after
    yield _part(run, done, run.count, wire[start:end])


def _part(run: Delivery, begin: int, end: int, wire: memoryview) -> Delivery:
    return replace(
        run,
        first_fence=run.first_fence + begin,
        first_offset=run.first_offset + begin,
        count=end - begin,
        wire=wire,
    )


def _message_end(wire: memoryview, at: int) -> int:
    """Where the message whose tag stands at `at` ends."""
    while wire[at] >= _MORE:
        at += 1
    at += 1
    length, shift = 0, 0
    while True:
        byte = wire[at]
        length |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < _MORE:
            return at + length


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= _MORE:
        encoded.append(number & 0x7F | _MORE)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _responses(effect: Effect) -> Iterator[pb.ConsumeResponse]:
    match effect:
        case SettleDone(results=results):
            for part in _result_groups(results):
                yield pb.ConsumeResponse(settled=map(answers.settle_result, part))
        case ExtendDone(results=results):
            for part in _result_groups(results):
                yield pb.ConsumeResponse(extended=map(answers.extend_result, part))
        case Revoke(ranges=ranges):
            for at in range(0, len(ranges), _ITEMS_IN_A_PIECE):
                few = replace(effect, ranges=ranges[at : at + _ITEMS_IN_A_PIECE])
                yield pb.ConsumeResponse(revokes=[answers.revoke(few)])
        case TellDrain(reason=reason, deadline_ms=deadline_ms):
            yield pb.ConsumeResponse(drain=pb.Drain(reason=reason, deadline_ms=deadline_ms))
        case PartRefused(refusal=refusal):
            yield pb.ConsumeResponse(errors=[answers.error(refusal)])
        case _:
            raise AssertionError(f"{type(effect).__name__} is no part of a consumer's frame")


def _result_groups(results: Sequence[SettleResult]) -> Iterator[Sequence[SettleResult]]:
    """Many plain results together; one with an error or offsets, which may be long, alone."""
    start = 0
    for index, result in enumerate(results):
        if result.refusal is not None or result.published:
            if start < index:
                yield results[start:index]
            yield results[index : index + 1]
            start = index + 1
        elif index + 1 - start == _ITEMS_IN_A_PIECE:
            yield results[start : index + 1]
            start = index + 1
    if start < len(results):
        yield results[start:]
