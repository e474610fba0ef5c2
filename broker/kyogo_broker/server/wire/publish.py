"""A publish, from its bytes to a command, without an object or a line of Python for each message.

The bytes of a request are its head and then its messages, which is just what is stored:

    | destination, request_id, producer_id | tag len message 0 | tag len message 1 | ...
                                           ^ Batch.wire begins here, a slice of what came

Five passes, each in C over the whole request:

1. `PublishView`, messages as bytes: the head, how many messages there are, and that they are not too many.
2. `PublishRequest`: does every message parse, is every string UTF-8?
3. `PublishFeatures`: the same bytes read as messages that have only the fields of features. What it does not
know
   is dropped; if nothing but a tag and a length 0 is left of each message, no message uses a feature.
4. Strides: if the headers of all messages stand at equal distances and are equal, the ends are a `range`. By
   induction over the messages this also proves that the slice is messages and nothing else. Otherwise the
   sizes are taken from the view, and their sum proves the same: no encoding of the same messages is shorter.
5. `PublishIdentity`, only for requests of a producer: ids and bodies, for the digest.

A request in another form than the usual one (unknown fields, messages before the head) is written anew from
the view: rare, and correct.
"""

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TypeVar

import google_crc32c
from google.protobuf.message import DecodeError, Message

from kyogo.internal.v1.views_pb2 import PublishFeatures, PublishIdentity, PublishView
from kyogo.v1.broker_pb2 import PublishRequest
from kyogo_broker.model.commands import Publish
from kyogo_broker.model.errors import ErrorCode, refuse
from kyogo_broker.model.message import Batch
from kyogo_broker.model.settings import NAME_RULE, valid_queue_name
from kyogo_broker.server.limits import MAX_MESSAGES_PER_REQUEST, WIRE_INTEGER_LIMIT, Limits
from kyogo_broker.server.wire.text import UndecodableError, checked_id, shown

_M = TypeVar("_M", bound=Message)
_TAG = 0x7A
"""Field 15, length-delimited: `messages` in PublishRequest and in DeliveryRun."""
_MORE = 0x80
"""Set in every byte of a varint but the last."""
_EMPTY_BYTES = 2
"""An empty message on the wire: its tag and a length of 0."""
_PLAIN_PRIORITY = 4
"""The default of every queue until `default_priority` is built."""


def decode_publish(raw: bytes, *, port: int, limits: Limits, tag: int | None = None) -> Publish:
    """The command in a `PublishRequest`.

    Args:
        raw: the encoded request.
        port: of the connection.
        limits: what is accepted.
        tag: of the command; None: the request's id.

    Raises:
        UndecodableError: these bytes are no `PublishRequest`.
        RefusedError: they are, and it cannot be stored; names the index where one message is the reason.
    """
    _check_request_size(len(raw), limits.max_request_bytes)
    view = _parse(PublishView, raw)
    queue, request_id, producer_id = view.destination, view.request_id, view.producer_id
    count = len(view.messages)
    _check_head(queue, request_id, producer_id, count)
    request = _parse(PublishRequest, raw)
    if _uses_features(raw, count):
        _refuse_features(request)
    batch = _batch(raw, view)
    _check_sizes(batch, limits.max_message_bytes)
    return Publish(
        port=port,
        tag=request_id if tag is None else tag,
        queue=queue,
        batch=batch,
        producer_id=producer_id,
        request_id=request_id,
        digest=_digest(raw, count) if producer_id else 0,
    )


def request_id_of(raw: bytes) -> int:
    """The request's id, for the answer to one that was refused; 0 if it has none."""
    try:
        return PublishView.FromString(raw).request_id
    except DecodeError:
        return 0


def _check_request_size(size: int, limit: int) -> None:
    if size > limit:
        raise refuse(
            ErrorCode.MESSAGE_TOO_LARGE,
            f"the request has {size} bytes, at most {limit} are accepted: send its messages in several requests",
            size=str(size),
            limit=str(limit),
        )


def _parse(kind: type[_M], raw: bytes) -> _M:
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise UndecodableError("PublishRequest") from None


def _check_head(queue: str, request_id: int, producer_id: str, count: int) -> None:
    if not valid_queue_name(queue):
        raise refuse(
            ErrorCode.FRAME_INVALID,
            f"destination {shown(queue)} cannot be a queue's name: {NAME_RULE}",
            field="destination",
        )
    if not count:
        raise refuse(ErrorCode.FRAME_INVALID, "the request has no messages: send at least one", field="messages")
    if count > MAX_MESSAGES_PER_REQUEST:
        raise refuse(
            ErrorCode.LIMIT_EXCEEDED,
            f"the request has {count} messages, at most {MAX_MESSAGES_PER_REQUEST} are accepted: "
            "send them in several requests",
            limit=str(MAX_MESSAGES_PER_REQUEST),
        )
    if request_id >= WIRE_INTEGER_LIMIT:
        raise refuse(ErrorCode.FRAME_INVALID, "request_id must stay below 2^53", field="request_id")
    if producer_id:
        checked_id(producer_id, "producer_id")
        if not request_id:
            raise refuse(
                ErrorCode.FRAME_INVALID,
                "a request with a producer_id needs a request_id from 1 on, increasing for each destination",
                field="request_id",
            )


def _uses_features(raw: bytes, count: int) -> bool:
    features = PublishFeatures.FromString(raw)
    features.DiscardUnknownFields()
    return features.ByteSize() != _EMPTY_BYTES * count


def _refuse_features(request: PublishRequest) -> None:
    for index, message in enumerate(request.messages):
        field, remedy = "", ""
        if message.key:
            field, remedy = "key", "publish without it; order by key comes with KEYED queues"
        elif message.HasField("priority") and message.priority != _PLAIN_PRIORITY:
            field, remedy = "priority", f"leave it unset (which means {_PLAIN_PRIORITY})"
        elif message.delay_ms or message.deliver_at_unix_ms:
            field = "delay_ms" if message.delay_ms else "deliver_at_unix_ms"
            remedy = "leave it unset, and publish when the message is due"
        elif message.HasField("ttl_ms") and message.ttl_ms:
            field, remedy = "ttl_ms", "leave it unset (messages do not expire yet)"
        if field:
            raise refuse(
                ErrorCode.UNSUPPORTED,
                f"message {index} sets {field}, which this broker cannot do yet: {remedy}",
                index=str(index),
                field=field,
            )


def _batch(raw: bytes, view: PublishView) -> Batch:
    head = PublishView(
        destination=view.destination, request_id=view.request_id, producer_id=view.producer_id
    ).SerializeToString()
    wire = raw[len(head) :] if raw.startswith(head) else b""
    even = _even_ends(wire, len(view.messages))
    if even is not None:
        return Batch(wire, even)
    ends = _ends(map(len, view.messages))
    if ends[-1] != len(wire):
        view.DiscardUnknownFields()
        for field in ("destination", "request_id", "producer_id"):
            view.ClearField(field)
        wire = view.SerializeToString()
    assert ends[-1] == len(wire), "the ends of a batch do not fit its bytes"
    return Batch(wire, ends)


def _even_ends(wire: bytes, count: int) -> range | None:
    """The ends of messages that all have one size; None if they do not, or if `wire` is anything else."""
    stride, rest = divmod(len(wire), count)
    if rest or stride < _EMPTY_BYTES or wire[0] != _TAG:
        return None
    length, header = 0, 1
    while header < stride:
        byte = wire[header]
        length |= (byte & 0x7F) << 7 * (header - 1)
        header += 1
        if byte < _MORE:
            break
    if header + length != stride:
        return None
    for column in range(header):
        if wire[column::stride] != wire[column : column + 1] * count:
            return None
    return range(stride, len(wire) + 1, stride)


def _ends(sizes: Iterable[int]) -> Sequence[int]:
    return array("I", accumulate(size + 1 + max(1, (size.bit_length() + 6) // 7) for size in sizes))


def _check_sizes(batch: Batch, limit: int) -> None:
    if len(batch.wire) <= limit:
        return
    for index in range(1 if isinstance(batch.ends, range) else batch.count):
        whole = batch.size(index, index)
        size = whole - 1 - _length_bytes(whole)
        if size > limit:
            raise refuse(
                ErrorCode.MESSAGE_TOO_LARGE,
                f"message {index} has {size} bytes encoded, at most {limit} are accepted: "
                "store the payload elsewhere and publish a reference to it",
                index=str(index),
                size=str(size),
                limit=str(limit),
            )


def _length_bytes(whole: int) -> int:
    """How many of a message's bytes on the wire are its length."""
    return next(n for n in range(1, 6) if whole - 1 - n < 1 << 7 * n)


def _digest(raw: bytes, count: int) -> int:
    """64 bits of ids and bodies, the same for a true resend whatever its headers.

    The upper half is the CRC-32C, the lower half a mix of length and count (Knuth's multiplicative hash).
    """
    identity = PublishIdentity.FromString(raw)
    identity.DiscardUnknownFields()
    encoded = identity.SerializeToString(deterministic=True)
    mixed = (len(encoded) * 2_654_435_761 + count * 40_503) & 0xFFFF_FFFF
    return int(google_crc32c.value(encoded)) << 32 | mixed
