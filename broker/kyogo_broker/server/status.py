"""The only place where an error becomes a gRPC status."""

from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

# Typed only where the stub packages are installed.
from grpc_status import rpc_status  # type: ignore[import-untyped, unused-ignore]

from kyogo_broker.model.errors import ErrorCode, Refusal
from kyogo_broker.server import wire

DOMAIN = "kyogo"
"""Of every `ErrorInfo`; its reason is the code's name."""

STATUS: dict[ErrorCode, grpc.StatusCode] = {
    ErrorCode.UNSPECIFIED: grpc.StatusCode.UNKNOWN,
    ErrorCode.QUEUE_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorCode.QUEUE_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    ErrorCode.QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.QUEUE_PAUSED: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.MESSAGE_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorCode.MESSAGE_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.MESSAGE_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.MESSAGE_DUPLICATE: grpc.StatusCode.ALREADY_EXISTS,
    ErrorCode.FRAME_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.REQUEST_CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.REQUEST_TOO_OLD: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.DISK_LOW: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.MEMORY_HIGH: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.BROKER_DRAINING: grpc.StatusCode.UNAVAILABLE,
    # Not UNAVAILABLE: another try would go to the same node.
    ErrorCode.WRONG_NODE: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.CONSUMER_ID_IN_USE: grpc.StatusCode.ALREADY_EXISTS,
    ErrorCode.SETTINGS_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.LIMIT_EXCEEDED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    ErrorCode.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    ErrorCode.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorCode.INTERNAL: grpc.StatusCode.INTERNAL,
}

Context = grpc.aio.ServicerContext[Any, Any]


class OrderError(Exception):
    """A frame against the order of a stream; ends it with FAILED_PRECONDITION."""


async def abort(context: Context, refusal: Refusal, code: grpc.StatusCode | None = None) -> NoReturn:
    """End a call with a refusal.

    Args:
        context: of the call.
        refusal: why.
        code: instead of the one that belongs to the refusal.
    """
    status = STATUS[refusal.code] if code is None else code
    await context.abort_with_status(rpc_status.to_status(_status(status, refusal)))
    raise AssertionError("abort returned")


def _status(code: grpc.StatusCode, refusal: Refusal) -> Status:
    reason = ErrorCode(refusal.code).name
    info = ErrorInfo(reason=reason, domain=DOMAIN, metadata=wire.details(refusal))
    details = [_any(info)]
    if refusal.retry_after_ms is not None:
        delay = Duration()
        delay.FromMilliseconds(refusal.retry_after_ms)
        details.append(_any(RetryInfo(retry_delay=delay)))
    return Status(code=code.value[0], message=wire.cut(refusal.message, wire.MAX_ERROR_BYTES), details=details)


def _any(message: ErrorInfo | RetryInfo) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
