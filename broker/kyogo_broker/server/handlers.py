"""gRPC's handlers around our coroutines: raw bytes in and out, admission, and a status for every exception.

A coroutine raises what went wrong, and never speaks of statuses. Bytes stay bytes, because gRPC's own
decoding answers garbage with an UNKNOWN that shows a Python class.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias, TypeVar

import grpc
import structlog

from kyogo_broker.clock import fresh_name
from kyogo_broker.model.errors import ErrorCode, Refusal, RefusedError
from kyogo_broker.server import status, wire
from kyogo_broker.server.admission import Admission
from kyogo_broker.server.status import Context, OrderError
from kyogo_broker.server.stream import StreamClosedError

Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
Call = Callable[[bytes], Awaitable[bytes]]
"""A unary rpc: encoded request to encoded answer."""
ContextCall = Callable[[bytes, Context], Awaitable[bytes]]
"""The same, for one that needs its call."""
Serve = Callable[[Context], Awaitable[None]]
"""A bidirectional rpc: reads and writes by itself, returns for OK."""
Watch = Callable[[bytes, Context], Awaitable[None]]
"""An rpc with one request and many answers: writes by itself."""

_T = TypeVar("_T")
_log = structlog.get_logger("kyogo.server")


class Handlers:
    """Makes the handlers of one server."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def unary(self, call: Call) -> Handler:
        """A handler for a unary rpc."""

        async def handle(raw: bytes, context: Context) -> bytes:
            return await _guarded(context, self._admission.call(), lambda: call(raw))

        return grpc.unary_unary_rpc_method_handler(handle)

    def unary_open(self, call: ContextCall) -> Handler:
        """A handler for a unary rpc that is never refused, and may end its call itself: health checks."""

        async def handle(raw: bytes, context: Context) -> bytes:
            return await _guarded(context, nullcontext(), lambda: call(raw, context))

        return grpc.unary_unary_rpc_method_handler(handle)

    def bidi(self, serve: Serve) -> Handler:
        """A handler for a bidirectional rpc."""

        async def handle(_: object, context: Context) -> None:
            await _guarded(context, self._admission.stream(context.peer()), lambda: serve(context))

        return grpc.stream_stream_rpc_method_handler(handle)

    def watch(self, watch: Watch) -> Handler:
        """A handler for an rpc with one request and many answers."""

        async def handle(raw: bytes, context: Context) -> None:
            await _guarded(context, self._admission.stream(context.peer()), lambda: watch(raw, context))

        return grpc.unary_stream_rpc_method_handler(handle)

    def missing(self, rpc: wire.Rpc) -> Handler:
        """A handler for an rpc of the contract that is not built."""

        async def refuse() -> None:
            raise RefusedError(
                Refusal(ErrorCode.UNSUPPORTED, f"{rpc.name} is not built in this broker: see GetServerInfo")
            )

        async def handle(_: object, context: Context) -> None:
            await _guarded(context, self._admission.call(), refuse)

        if rpc.client_streams:
            return grpc.stream_stream_rpc_method_handler(handle)
        if rpc.server_streams:
            return grpc.unary_stream_rpc_method_handler(handle)
        return grpc.unary_unary_rpc_method_handler(handle)


async def _guarded(context: Context, admitted: AbstractContextManager[None], run: Callable[[], Awaitable[_T]]) -> _T:
    """Run an rpc; whatever it raises becomes the status, and no traceback reaches the client."""
    try:
        with admitted:
            return await run()
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except RefusedError as error:
        await status.abort(context, error.refusal)
    except wire.UndecodableError as error:
        await status.abort(context, Refusal(ErrorCode.FRAME_INVALID, str(error)))
    except OrderError as error:
        refusal = Refusal(ErrorCode.FRAME_INVALID, str(error))
        await status.abort(context, refusal, grpc.StatusCode.FAILED_PRECONDITION)
    except StreamClosedError as error:
        await status.abort(context, error.refusal, grpc.StatusCode.UNAVAILABLE)
    except Exception:  # noqa: BLE001  # it is logged, and the broker goes on
        reference = fresh_name("fault")
        _log.exception("call_failed", reference=reference)
        text = f"the broker failed at this call; its log says more at {reference}"
        await status.abort(context, Refusal(ErrorCode.INTERNAL, text))
