"""Facts to bytes and back: what stands in a record of the journal.

A record's payload is facts, back to back, all numbers little-endian:

    | kind u8 | version u8 | length u32 | body, `length` bytes | kind u8 | version u8 | ...

`length` lets a reader pass over what it does not want. The facts of every message (`Published`, `Moved`, `Leased`,
`Settled`, `Returned`, `Lost`) are packed, see the structs below; the rare ones are JSON objects of their fields.
The wire bytes of a batch are the end of its fact and are handed on as they came, uncopied unless they are small.

A kind's number is never used again for another. A change that an older Kyogo could not read raises the kind's
version; a new field with a default in a JSON fact need not. The golden files in `tests/golden/journal` hold the layout.
"""

import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, repeat
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from kyogo_broker.journal.base import Part
from kyogo_broker.model.commands import Outcome
from kyogo_broker.model.errors import BrokerStopError, NewerDataError, RefusedError
from kyogo_broker.model.facts import (
    DeadLettered,
    Fact,
    FencesReserved,
    Finished,
    Leased,
    Lost,
    Moved,
    Opened,
    ProducersForgotten,
    Published,
    QueueCreated,
    QueueDeleted,
    QueuePaused,
    QueueUpdated,
    Retried,
    Returned,
    Settled,
    Span,
)
from kyogo_broker.model.message import Batch, DeadLetterInfo
from kyogo_broker.model.states import RedeliveryReason

KINDS: Mapping[int, type[Fact]] = {
    1: Opened,
    2: FencesReserved,
    3: QueueCreated,
    4: QueueUpdated,
    5: QueuePaused,
    6: QueueDeleted,
    7: ProducersForgotten,
    8: Finished,
    16: Published,
    17: Moved,
    18: Leased,
    19: Settled,
    20: Returned,
    21: Lost,
    22: Retried,
    23: DeadLettered,
}
VERSION = 1
"""Of every kind, so far."""
MERGED_BYTES_MAX = 256 << 10
"""Small batches are put together up to here when they are read back: a window of many would cost an object for each."""
MERGED_MS_MAX = 10
"""Merged messages share the first one's instant of publishing, at most so much too early."""
SMALL_WIRE_BYTES = 4096
"""Below this, copying a batch into its neighbours is cheaper than one more buffer to write."""

PUBLISHED, MOVED, LEASED, SETTLED, RETURNED, LOST = range(16, 22)
HEAD = "<BBI"
"""kind, version, length of the body"""
PUBLISHED_BODY = "QQqQQIIHI"
"""queue, first offset, published, request, digest, count, size of each message (0: `ends` follow), length of the
producer's id, length of the dead-letter JSON; then these two, `count` u32 of `ends`, the wire bytes."""
MOVED_BODY = "QqQIIBI"
"""queue, published, first offset, count, size of each message (0: `ends` follow), whether offsets are consecutive,
length of the dead-letter JSON; then this, `count` u64 of offsets unless consecutive, `count` u32 of `ends`, wire."""
LEASED_BODY = "QQQQIq"
"""queue, session, first fence, first offset, count, leased; then the consumer's id."""
SPANNED_BODY = "QBI"
"""queue, outcome or reason, spans; then each span: first fence, first offset, count."""
LOST_BODY = "QBIq"
"""As above, and the instant it is due; after the spans the consumer's id."""

_head = struct.Struct(HEAD)
_queue_id = struct.Struct("<Q")
_span = struct.Struct("<QQI")
_published = struct.Struct("<" + PUBLISHED_BODY)
_published_whole = struct.Struct(HEAD + PUBLISHED_BODY)
_moved = struct.Struct("<" + MOVED_BODY)
_moved_whole = struct.Struct(HEAD + MOVED_BODY)
_leased = struct.Struct("<" + LEASED_BODY)
_leased_whole = struct.Struct(HEAD + LEASED_BODY)
_spanned = struct.Struct("<" + SPANNED_BODY)
_spanned_whole = struct.Struct(HEAD + SPANNED_BODY)
_one_span_whole = struct.Struct(HEAD + SPANNED_BODY + "QQI")
_lost = struct.Struct("<" + LOST_BODY)
_lost_whole = struct.Struct(HEAD + LOST_BODY)

_letter: TypeAdapter[DeadLetterInfo] = TypeAdapter(DeadLetterInfo)

if sys.byteorder != "little":
    raise ImportError("the journal's columns are little-endian; run the broker on x86-64 or arm64")


def encode(facts: Sequence[Fact]) -> list[Part]:
    """The payload of a record, as buffers to be written one after the other."""
    parts: list[Part] = []
    small: list[bytes] = []
    for fact in facts:
        small.append(_ENCODERS[type(fact)](fact))
        if isinstance(fact, Published | Moved):
            wire = fact.batch.wire
            if len(wire) < SMALL_WIRE_BYTES:
                small.append(wire)
            else:
                parts.append(b"".join(small))
                parts.append(wire)
                small.clear()
    if small:
        parts.append(b"".join(small))
    return parts


def decode(payload: memoryview | bytes) -> list[Fact]:
    """The facts of a record's payload.

    Raises:
        BrokerStopError: written by a newer Kyogo, or not facts at all.
    """
    payload = memoryview(payload)
    facts: list[Fact] = []
    for kind, start, end in _frames(payload):
        facts.append(_decode_one(kind, payload, start, end))
    return facts


def published(payloads: Iterable[memoryview | bytes], queue_id: int) -> Iterator[Published | Moved]:
    """Only the facts that hold messages of one queue; the others are passed over undecoded.

    Plain batches that follow one another are put together as they are found: a backlog that was published one by one
    would otherwise cost an object and a decoding for each message.
    """
    run: _Run | None = None
    for whole in payloads:
        payload = memoryview(whole)
        for kind, start, end in _frames(payload):
            if kind not in (PUBLISHED, MOVED) or _queue_id.unpack_from(payload, start)[0] != queue_id:
                continue
            plain = _plain(payload, kind, start, end)
            if run is not None and (plain is None or not run.goes_on(plain)):
                yield run.fact(queue_id)
                run = None
            if plain is not None:
                run = _Run(plain) if run is None else run
                run.add(plain)
            else:
                fact = _decode_one(kind, payload, start, end)
                assert isinstance(fact, Published | Moved)
                yield fact
    if run is not None:
        yield run.fact(queue_id)


class _Plain(NamedTuple):
    """A batch that can be put together with others."""

    offset: int
    unix_ms: int
    messages: int
    step: int
    """Bytes of each message."""
    wire: memoryview


def _plain(payload: memoryview, kind: int, start: int, end: int) -> _Plain | None:
    """The batch of a `Published` whose messages have one size and are no letter."""
    if kind != PUBLISHED:
        return None
    _, offset, unix_ms, _, _, count, step, producer, letter = _published.unpack_from(payload, start)
    if not step or letter:
        return None
    wire = payload[start + _published.size + producer : end]
    if len(wire) != step * count:
        raise BrokerStopError(f"a batch at byte {start} of its record has a wrong size; {_INSPECT}")
    return _Plain(offset, unix_ms, count, step, wire)


class _Run:
    """Plain batches with consecutive offsets, being put together."""

    __slots__ = ("bytes", "counts", "first", "following", "steps", "unix_ms", "wires")

    def __init__(self, plain: _Plain) -> None:
        self.first = self.following = plain.offset
        self.unix_ms = plain.unix_ms
        self.bytes = 0
        self.wires: list[memoryview] = []
        self.counts: list[int] = []
        self.steps: list[int] = []

    def goes_on(self, plain: _Plain) -> bool:
        """Whether a batch may be added."""
        return (
            plain.offset == self.following
            and 0 <= plain.unix_ms - self.unix_ms <= MERGED_MS_MAX
            and self.bytes + len(plain.wire) <= MERGED_BYTES_MAX
        )

    def add(self, plain: _Plain) -> None:
        """Take in a batch."""
        self.following += plain.messages
        self.bytes += len(plain.wire)
        self.wires.append(plain.wire)
        self.counts.append(plain.messages)
        self.steps.append(plain.step)

    def fact(self, queue_id: int) -> Published:
        """All of it as one batch."""
        step = self.steps[0]
        ends: Sequence[int] = range(step, self.bytes + 1, step)
        if self.steps.count(step) != len(self.steps):
            sizes = chain.from_iterable(map(repeat, self.steps, self.counts))
            ends = array("I", accumulate(sizes))
        return Published(queue_id, self.first, Batch(b"".join(self.wires), ends), self.unix_ms)


def _frames(payload: memoryview) -> Iterator[tuple[int, int, int]]:
    """Kind, start and end of the body of each fact."""
    at, size = 0, len(payload)
    while at < size:
        if at + _head.size > size:
            raise BrokerStopError(f"a fact breaks off at byte {at} of its record; {_INSPECT}")
        kind, version, length = _head.unpack_from(payload, at)
        if kind not in KINDS or version != VERSION:
            raise NewerDataError(
                f"the journal holds a fact of kind {kind}, version {version}, which this Kyogo does not know"
            )
        start = at + _head.size
        at = start + length
        if at > size:
            raise BrokerStopError(f"a fact of kind {kind} runs past the end of its record; {_INSPECT}")
        yield kind, start, at


_INSPECT = "run `broker inspect DIR` on the data directory to see what is damaged"


def _decode_one(kind: int, payload: memoryview, start: int, end: int) -> Fact:
    try:
        return _DECODERS[kind](payload, start, end)
    except ValidationError as error:
        what = error.errors(include_url=False, include_context=False, include_input=False)[0]["msg"]
        raise BrokerStopError(f"a fact of kind {kind} at byte {start} does not decode: {what}; {_INSPECT}") from None
    except (struct.error, ValueError, RefusedError) as error:
        raise BrokerStopError(f"a fact of kind {kind} at byte {start} does not decode: {error}; {_INSPECT}") from error


def _encode_published(fact: Published) -> bytes:
    batch = fact.batch
    count = len(batch.ends)
    step = _uniform_step(batch.ends)
    ends = b"" if step else array("I", batch.ends).tobytes()
    producer = fact.producer_id.encode()
    letter = b"" if fact.dead_letter is None else _letter.dump_json(fact.dead_letter)
    length = _published.size + len(producer) + len(letter) + len(ends) + len(batch.wire)
    head = _published_whole.pack(
        PUBLISHED, VERSION, length, fact.queue_id, fact.first_offset, fact.published_unix_ms, fact.request_id,
        fact.digest, count, step, len(producer), len(letter),
    )  # fmt: skip
    return b"".join((head, producer, letter, ends))


def _decode_published(payload: memoryview, start: int, end: int) -> Published:
    queue_id, offset, unix_ms, request_id, digest, count, step, producer, letter = _published.unpack_from(
        payload, start
    )
    at = start + _published.size
    producer_id = str(payload[at : at + producer], "utf-8")
    at += producer
    dead_letter = _letter.validate_json(bytes(payload[at : at + letter])) if letter else None
    batch = _batch(payload, at + letter, end, count, step)
    return Published(queue_id, offset, batch, unix_ms, producer_id, request_id, digest, dead_letter)


def _encode_moved(fact: Moved) -> bytes:
    batch, offsets = fact.batch, fact.offsets
    count = len(offsets)
    step = _uniform_step(batch.ends)
    ends = b"" if step else array("I", batch.ends).tobytes()
    consecutive = offsets[-1] - offsets[0] == count - 1
    places = b"" if consecutive else array("Q", offsets).tobytes()
    letter = b"" if fact.dead_letter is None else _letter.dump_json(fact.dead_letter)
    length = _moved.size + len(letter) + len(places) + len(ends) + len(batch.wire)
    head = _moved_whole.pack(
        MOVED, VERSION, length, fact.queue_id, fact.published_unix_ms, offsets[0], count, step, consecutive, len(letter)
    )
    return b"".join((head, letter, places, ends))


def _decode_moved(payload: memoryview, start: int, end: int) -> Moved:
    queue_id, unix_ms, first, count, step, consecutive, letter = _moved.unpack_from(payload, start)
    at = start + _moved.size
    dead_letter = _letter.validate_json(bytes(payload[at : at + letter])) if letter else None
    at += letter
    offsets: tuple[int, ...] | range = range(first, first + count)
    if not consecutive:
        offsets = tuple(array("Q", bytes(payload[at : at + 8 * count])))
        at += 8 * count
    return Moved(queue_id, offsets, _batch(payload, at, end, count, step), unix_ms, dead_letter)


def _uniform_step(ends: Sequence[int]) -> int:
    """The size of every message if all have one, else 0."""
    step, count = ends[0], len(ends)
    if ends[-1] != step * count or step == 0:
        return 0
    if isinstance(ends, range) or count == 1 or list(ends) == list(range(step, step * count + 1, step)):
        return step
    return 0


def _batch(payload: memoryview, at: int, end: int, count: int, step: int) -> Batch:
    ends: Sequence[int]
    if step:
        ends = range(step, step * count + 1, step)
    else:
        ends = array("I", bytes(payload[at : at + 4 * count]))
        at += 4 * count
    if not ends or ends[-1] != end - at:
        raise ValueError(f"{count} messages do not end where their {end - at} bytes end")
    return Batch(bytes(payload[at:end]), ends)


def _encode_leased(fact: Leased) -> bytes:
    consumer = fact.consumer_id.encode()
    head = _leased_whole.pack(
        LEASED, VERSION, _leased.size + len(consumer), fact.queue_id, fact.session_id, *fact.span, fact.leased_unix_ms
    )
    return head + consumer


def _decode_leased(payload: memoryview, start: int, end: int) -> Leased:
    queue_id, session_id, fence, offset, count, unix_ms = _leased.unpack_from(payload, start)
    consumer_id = str(payload[start + _leased.size : end], "utf-8")
    return Leased(queue_id, session_id, consumer_id, Span(fence, offset, count), unix_ms)


def _encode_spanned(kind: int, queue_id: int, number: int, spans: tuple[Span, ...]) -> bytes:
    length = _spanned.size + _span.size * len(spans)
    if len(spans) == 1:
        return _one_span_whole.pack(kind, VERSION, length, queue_id, number, 1, *spans[0])
    return _spanned_whole.pack(kind, VERSION, length, queue_id, number, len(spans)) + _encode_spans(spans)


def _encode_spans(spans: tuple[Span, ...]) -> bytes:
    return struct.pack("<" + "QQI" * len(spans), *chain.from_iterable(spans))


def _decode_spans(payload: memoryview, start: int, count: int) -> tuple[Span, ...]:
    if count == 1:
        return (Span._make(_span.unpack_from(payload, start)),)
    return tuple(map(Span._make, _span.iter_unpack(payload[start : start + count * _span.size])))


def _decode_settled(payload: memoryview, start: int, _end: int) -> Settled:
    queue_id, outcome, count = _spanned.unpack_from(payload, start)
    return Settled(queue_id, Outcome(outcome), _decode_spans(payload, start + _spanned.size, count))


def _decode_returned(payload: memoryview, start: int, _end: int) -> Returned:
    queue_id, reason, count = _spanned.unpack_from(payload, start)
    return Returned(queue_id, RedeliveryReason(reason), _decode_spans(payload, start + _spanned.size, count))


def _encode_lost(fact: Lost) -> bytes:
    spans, consumer = _encode_spans(fact.spans), fact.consumer_id.encode()
    length = _lost.size + len(spans) + len(consumer)
    head = _lost_whole.pack(LOST, VERSION, length, fact.queue_id, fact.reason, len(fact.spans), fact.due_ms)
    return head + spans + consumer


def _decode_lost(payload: memoryview, start: int, end: int) -> Lost:
    queue_id, reason, count, due_ms = _lost.unpack_from(payload, start)
    start += _lost.size
    spans = _decode_spans(payload, start, count)
    consumer_id = str(payload[start + count * _span.size : end], "utf-8")
    return Lost(queue_id, RedeliveryReason(reason), spans, consumer_id, due_ms)


def _json_codec(kind: int, fact_type: type[Fact]) -> tuple[Callable[[Any], bytes], Callable[..., Fact]]:
    adapter: TypeAdapter[Fact] = TypeAdapter(fact_type)

    def encode_json(fact: Fact) -> bytes:
        body = adapter.dump_json(fact)
        return _head.pack(kind, VERSION, len(body)) + body

    def decode_json(payload: memoryview, start: int, end: int) -> Fact:
        return adapter.validate_json(bytes(payload[start:end]))

    return encode_json, decode_json


_ENCODERS: dict[type[Fact], Callable[[Any], bytes]] = {
    Published: _encode_published,
    Moved: _encode_moved,
    Leased: _encode_leased,
    Settled: lambda fact: _encode_spanned(SETTLED, fact.queue_id, fact.outcome, fact.spans),
    Returned: lambda fact: _encode_spanned(RETURNED, fact.queue_id, fact.reason, fact.spans),
    Lost: _encode_lost,
}
_DECODERS: dict[int, Callable[[memoryview, int, int], Fact]] = {
    PUBLISHED: _decode_published,
    MOVED: _decode_moved,
    LEASED: _decode_leased,
    SETTLED: _decode_settled,
    RETURNED: _decode_returned,
    LOST: _decode_lost,
}
for _kind, _fact_type in KINDS.items():
    if _kind not in _DECODERS:
        _ENCODERS[_fact_type], _DECODERS[_kind] = _json_codec(_kind, _fact_type)
