"""The wire contract as the SDK uses it: the only module beside `admin/` that imports generated code.

Frames stay protobuf objects on their way in: upb parses a frame once and hands out a message's fields when asked.
On their way out published messages are bytes from the start, each with the tag and length of the field that it
will fill, so that a request is a head and a join, and a resend is the same bytes again.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypeVar, cast

import grpc
import grpc.aio

from kyogo.errors import KyogoError, refusal
from kyogo.v1 import broker_pb2 as pb

Attach = pb.Attach
Attached = pb.Attached
BrokerHeartbeat = pb.BrokerHeartbeat
ClientInfo = pb.ClientInfo
ConsumeRequest = pb.ConsumeRequest
ConsumeResponse = pb.ConsumeResponse
ConsumerHeartbeat = pb.ConsumerHeartbeat
DeadLetterInfo = pb.DeadLetterInfo
DeliveryRun = pb.DeliveryRun
Detach = pb.Detach
Drain = pb.Drain
Error = pb.Error
Extend = pb.Extend
ExtendResult = pb.ExtendResult
FenceRange = pb.FenceRange
Limits = pb.Limits
Message = pb.Message
OffsetRun = pb.OffsetRun
Prefetch = pb.Prefetch
PublishRequest = pb.PublishRequest
PublishResponse = pb.PublishResponse
Redirect = pb.Redirect
Revoke = pb.Revoke
Settlement = pb.Settlement
SettleResult = pb.SettleResult
Subscription = pb.Subscription
SubscriptionInfo = pb.SubscriptionInfo

OUTCOMES = (pb.OUTCOME_UNSPECIFIED, pb.OUTCOME_ACK, pb.OUTCOME_RETRY, pb.OUTCOME_RELEASE, pb.OUTCOME_DEAD_LETTER)
"""By `kyogo.outcomes.Outcome`."""
STATUS_OK = pb.SETTLE_STATUS_OK
STATUS_STALE = pb.SETTLE_STATUS_STALE
STATUS_UNKNOWN = pb.SETTLE_STATUS_UNKNOWN
STATUS_REJECTED = pb.SETTLE_STATUS_REJECTED
REVOKE_RETURN = pb.REVOKE_MODE_RETURN
REVOKE_LOST = pb.REVOKE_MODE_LOST
REVOKE_CANCEL = pb.REVOKE_MODE_CANCEL

ConsumeCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.ConsumeRequest, pb.ConsumeResponse]"
PublishCall: TypeAlias = "grpc.aio.StreamStreamCall[bytes, pb.PublishResponse]"

Frame = TypeVar("Frame")

_SERVICE = "/kyogo.v1.BrokerService/"
_MESSAGES_TAG = bytes([pb.PublishRequest.MESSAGES_FIELD_NUMBER << 3 | 2])
_VARINT_PART = 0x7F
_VARINT_MORE = 0x80


# --- calls ---


def consume(channel: grpc.aio.Channel, metadata: Iterable[tuple[str, str]]) -> ConsumeCall:
    """Opens a consumer's stream."""
    method: grpc.aio.StreamStreamMultiCallable[pb.ConsumeRequest, pb.ConsumeResponse] = channel.stream_stream(
        _SERVICE + "Consume",
        request_serializer=pb.ConsumeRequest.SerializeToString,
        response_deserializer=pb.ConsumeResponse.FromString,
    )
    return method(metadata=tuple(metadata))


def publish_stream(channel: grpc.aio.Channel, metadata: Iterable[tuple[str, str]]) -> PublishCall:
    """Opens a publisher's stream; it takes requests as bytes."""
    method: grpc.aio.StreamStreamMultiCallable[bytes, pb.PublishResponse] = channel.stream_stream(
        _SERVICE + "PublishStream",
        request_serializer=None,
        response_deserializer=pb.PublishResponse.FromString,
    )
    return method(metadata=tuple(metadata))


async def read(call: grpc.aio.StreamStreamCall[Any, Frame]) -> Frame | None:
    """The next frame; None: the stream has ended. Must not be cancelled: that would end the call."""
    frame = await call.read()
    return None if frame is grpc.aio.EOF else cast("Frame", frame)


async def server_limits(channel: grpc.aio.Channel, metadata: Iterable[tuple[str, str]], *, timeout: float) -> pb.Limits:
    """What the broker accepts at most."""
    method = channel.unary_unary(
        _SERVICE + "GetServerInfo",
        request_serializer=pb.GetServerInfoRequest.SerializeToString,
        response_deserializer=pb.GetServerInfoResponse.FromString,
    )
    info = await method(pb.GetServerInfoRequest(), metadata=tuple(metadata), timeout=timeout)
    return info.limits


# --- published messages, as bytes ---


def message_field(message: pb.Message) -> bytes:
    """A message as the bytes of one entry of `repeated Message messages`, tag and length included."""
    encoded = message.SerializeToString()
    return _MESSAGES_TAG + _varint(len(encoded)) + encoded


def publish_request(destination: str, request_id: int, producer_id: str, fields: Iterable[bytes]) -> bytes:
    """A whole PublishRequest; `fields` come from `message_field`."""
    head = pb.PublishRequest(destination=destination, request_id=request_id, producer_id=producer_id)
    return head.SerializeToString() + b"".join(fields)


def _varint(value: int) -> bytes:
    if value <= _VARINT_PART:
        return bytes((value,))
    out = bytearray()
    while value > _VARINT_PART:
        out.append(value & _VARINT_PART | _VARINT_MORE)
        value >>= 7
    out.append(value)
    return bytes(out)


# --- errors and fences ---


def error_from(error: pb.Error) -> KyogoError:
    """The error that a frame carries."""
    try:
        code = pb.ErrorCode.Name(error.code).removeprefix("ERROR_CODE_")
    except ValueError:  # of a newer broker
        code = str(int(error.code))
    return refusal(
        code,
        error.message,
        retry_after_ms=error.retry_after_ms if error.HasField("retry_after_ms") else None,
        metadata=dict(error.metadata),
    )


def code_number(code: str) -> pb.ErrorCode.ValueType:
    """The wire's number of one of the contract's codes."""
    return pb.ErrorCode.Value(f"ERROR_CODE_{code}")


def revoke_reason(number: int) -> str:
    """The wire's word for why a delivery was taken back, without the prefix of its enum."""
    return _words(pb.RevokeReason.items(), "REVOKE_REASON_").get(number, str(number))


def redelivery_reasons() -> Mapping[int, str]:
    """The wire's words for why a message is delivered again."""
    return _words(pb.RedeliveryReason.items(), "REDELIVERY_REASON_")


def fence_ranges(fences: list[int]) -> list[pb.FenceRange]:
    """The fences as few ranges as they make; sorts the list in place."""
    fences.sort()
    first, last = fences[0], fences[-1]
    if last - first + 1 == len(fences):  # the usual case: a run, handled in order
        return [pb.FenceRange(first=first, last=last)]
    ranges = []
    previous = first
    for fence in fences:
        if fence > previous + 1:
            ranges.append(pb.FenceRange(first=first, last=previous))
            first = fence
        previous = fence
    ranges.append(pb.FenceRange(first=first, last=previous))
    return ranges


def _words(items: Iterable[tuple[str, int]], prefix: str) -> dict[int, str]:
    return {number: name.removeprefix(prefix) for name, number in items}
