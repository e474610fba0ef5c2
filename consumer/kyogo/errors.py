"""One tree of errors. Each has a `code` to decide by and a message that says what to do next.

A refusal by the broker is a `BrokerError` whose code is one of the contract's (`QUEUE_NOT_FOUND`); those that
programs decide by have a class of their own. The other codes are this SDK's: `UNAVAILABLE`, `TIMEOUT`, `CLOSED`,
`CONFIGURATION_INVALID`, `ENCODE_FAILED`, `DECODE_FAILED`, `TIME_LIMIT_EXCEEDED`, `PROTOCOL_VIOLATED`, `FORKED`.
This module knows gRPC's status, and nothing of frames or streams.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, cast

import grpc
from google.protobuf.message import DecodeError as _BytesError
from google.rpc import error_details_pb2, status_pb2

_DOMAIN = "kyogo"
_DETAILS_KEY = "grpc-status-details-bin"


class KyogoError(Exception):
    """The root: catch it to catch everything this SDK raises."""

    default_code: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retry_after_ms: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        """What went wrong and what to do next."""
        self.code = self.default_code if code is None else code
        """What to decide by; stable."""
        self.retry_after_ms = retry_after_ms
        """Try again after this long. None: the other side did not say."""
        self.metadata: Mapping[str, str] = {} if metadata is None else metadata
        """Details by name, such as queue, index, limit."""

    @property
    def retryable(self) -> bool:
        """Whether the same call can succeed later, unchanged."""
        return self.retry_after_ms is not None

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ConfigurationError(KyogoError, ValueError):
    """A worker, publisher or handler was set up with values that cannot work."""

    default_code = "CONFIGURATION_INVALID"


class CodecError(KyogoError, ValueError):
    """A body could not be turned into bytes or back."""


class EncodeError(CodecError):
    """A body cannot be published as it is: pass bytes, str, JSON values, a protobuf message or a pydantic model."""

    default_code = "ENCODE_FAILED"


class DecodeError(CodecError):
    """A body is not what its content type or the handler's annotation says."""

    default_code = "DECODE_FAILED"


class UnavailableError(KyogoError):
    """The broker cannot be reached, or the connection to it broke. What was not answered is unknown."""

    default_code = "UNAVAILABLE"

    @property
    def retryable(self) -> bool:
        """Always: the broker may be back at any time."""
        return True


class PublishTimeoutError(KyogoError, TimeoutError):
    """No answer in time: whether the messages are stored is unknown. The same message id makes a repeat safe."""

    default_code = "TIMEOUT"


class ClosedError(KyogoError):
    """The publisher is closed: make a new one."""

    default_code = "CLOSED"


class ForkedError(KyogoError):
    """gRPC was in use before this process was forked, and does not survive that."""

    default_code = "FORKED"


class ProtocolError(KyogoError):
    """The other side broke the wire contract: it is no Kyogo broker, or a much newer one."""

    default_code = "PROTOCOL_VIOLATED"


class TimeLimitExceeded(KyogoError):  # noqa: N818 - this name is the error type that the broker's users see
    """A handler ran longer than its `time_limit`."""

    default_code = "TIME_LIMIT_EXCEEDED"


class BrokerError(KyogoError):
    """The broker refused; `code` says why, the message names the remedy."""


class QueueNotFoundError(BrokerError):
    """No such queue; the message names the nearest."""


class QueueFullError(BrokerError):
    """The queue is at its limit."""


class MessageTooLargeError(BrokerError):
    """A message is above the broker's `max_message_bytes`. Also raised by the SDK before anything is sent."""

    default_code = "MESSAGE_TOO_LARGE"


class MessageInvalidError(BrokerError):
    """A message's fields contradict each other or its queue."""

    default_code = "MESSAGE_INVALID"


class AccessError(BrokerError):
    """The broker does not know the caller, or the caller may not do that: check KYOGO_TOKEN and its rights."""


class UnsupportedError(BrokerError):
    """This broker cannot do that."""


_CLASSES: Mapping[str, type[KyogoError]] = {
    "QUEUE_NOT_FOUND": QueueNotFoundError,
    "QUEUE_FULL": QueueFullError,
    "MESSAGE_TOO_LARGE": MessageTooLargeError,
    "MESSAGE_INVALID": MessageInvalidError,
    "PERMISSION_DENIED": AccessError,
    "UNAUTHENTICATED": AccessError,
    "UNSUPPORTED": UnsupportedError,
    "UNAVAILABLE": UnavailableError,
    # The broker is going down and will be back, as with a broken connection.
    "BROKER_DRAINING": UnavailableError,
}


def refusal(
    code: str,
    message: str,
    *,
    retry_after_ms: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> KyogoError:
    """The error for one of the contract's codes, without the prefix of its enum."""
    kind = _CLASSES.get(code, BrokerError)
    return kind(message, code=code, retry_after_ms=retry_after_ms, metadata=metadata)


def from_rpc(error: grpc.RpcError, *, address: str = "") -> KyogoError:
    """The error for a call that ended with a gRPC status.

    Args:
        error: what a call of grpc or grpc.aio raised.
        address: whom it went to, for the message.
    """
    details = _details(error)
    if details is not None:
        return details
    status = error.code() if callable(getattr(error, "code", None)) else grpc.StatusCode.UNKNOWN
    text = error.details() if callable(getattr(error, "details", None)) else str(error)
    place = f" at {address}" if address else ""
    if status is grpc.StatusCode.UNAVAILABLE:
        return UnavailableError(f"no connection to a broker{place}: {text}. Is it running, is KYOGO_URL right?")
    if status is grpc.StatusCode.UNIMPLEMENTED:
        return UnsupportedError(f"what answers{place} is no Kyogo broker, or an older one: {text}", code="UNSUPPORTED")
    return refusal(status.name, f"{text}{place}")


def from_stream(error: grpc.RpcError, *, address: str = "") -> KyogoError:
    """The error for a stream that ended with a gRPC status.

    As `from_rpc`, but what gRPC itself says when a connection breaks (INTERNAL, UNKNOWN, CANCELLED and others, without
    the broker's details) is a lost connection: what follows is another stream, and nothing is done twice by it.
    """
    known = from_rpc(error, address=address)
    status = error.code() if callable(getattr(error, "code", None)) else grpc.StatusCode.UNKNOWN
    if known.code != status.name or status in _FINAL_FOR_STREAMS:
        return known
    return UnavailableError(f"the stream to the broker broke: {known}")


_FINAL_FOR_STREAMS = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,  # says so already
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
)


def _details(error: grpc.RpcError) -> KyogoError | None:
    """The error as the broker's ErrorInfo and RetryInfo describe it; None without them."""
    trailing = error.trailing_metadata() if callable(getattr(error, "trailing_metadata", None)) else None
    # Pairs, whatever the type stubs say.
    pairs = cast("Iterable[tuple[str, str | bytes]]", trailing if trailing is not None else ())
    packed = next((value for key, value in pairs if key == _DETAILS_KEY), None)
    if not isinstance(packed, bytes):
        return None
    try:
        status = status_pb2.Status.FromString(packed)
    except _BytesError:
        return None
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    retry_after_ms = None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after_ms = retry.retry_delay.ToMilliseconds()
    if info.domain != _DOMAIN:
        return None
    return refusal(info.reason, status.message, retry_after_ms=retry_after_ms, metadata=dict(info.metadata))
