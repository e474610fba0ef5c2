"""gRPC's handlers around our coroutines: raw bytes in and out, admission, and a status for every exception.

A coroutine raises what went wrong, and never speaks of statuses. Bytes stay bytes, because gRPC's own
decoding answers garbage with an UNKNOWN that shows a Python class.

Every rpc is registered as one whose client streams, which is the same on the wire: so the handler runs, and counts,
from the first byte on, and a request that never comes or an answer that is never read ends in its time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TypeAlias, TypeVar

import grpc
import structlog

from kyogo_broker.clock import fresh_name
from kyogo_broker.model.errors import ErrorCode, Refusal, RefusedError
from kyogo_broker.server import status, wire
from kyogo_broker.server.admission import Admission
from kyogo_broker.server.limits import LAST_WORD_SECONDS, MAX_CONTROL_BYTES, MAX_RECEIVE_BYTES, REQUEST_SECONDS
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

    def unary(self, call: Call, bytes_max: int = MAX_RECEIVE_BYTES) -> Handler:
        """A handler for a unary rpc whose request has at most `bytes_max`."""

        async def run(context: Context) -> bytes:
            raw = await _request(context, bytes_max)
            with self._admission.call():
                return await call(raw)

        async def handle(_: object, context: Context) -> bytes:
            return await _guarded(context, run)

        return grpc.stream_unary_rpc_method_handler(handle)

    def unary_open(self, call: ContextCall) -> Handler:
        """A handler for a unary rpc that is never refused, and may end its call itself: health checks."""

        async def run(context: Context) -> bytes:
            return await call(await _request(context, MAX_CONTROL_BYTES), context)

        async def handle(_: object, context: Context) -> bytes:
            return await _guarded(context, run)

        return grpc.stream_unary_rpc_method_handler(handle)

    def bidi(self, serve: Serve) -> Handler:
        """A handler for a bidirectional rpc."""

        async def run(context: Context) -> None:
            with self._admission.stream(context.peer()):
                await serve(context)

        async def handle(_: object, context: Context) -> None:
            await _guarded(context, run)

        return grpc.stream_stream_rpc_method_handler(handle)

    def watch(self, watch: Watch) -> Handler:
        """A handler for an rpc with one request and many answers."""

        async def serve(context: Context) -> None:
            await watch(await _request(context, MAX_CONTROL_BYTES), context)

        return self.bidi(serve)

    def missing(self, rpc: wire.Rpc) -> Handler:
        """A handler for an rpc of the contract that is not built."""

        async def refuse(_: Context) -> None:
            raise RefusedError(
                Refusal(ErrorCode.UNSUPPORTED, f"{rpc.name} is not built in this broker: see GetServerInfo")
            )

        async def handle(_: object, context: Context) -> None:
            await _guarded(context, refuse)

        if rpc.server_streams:
            return grpc.stream_stream_rpc_method_handler(handle)
        return grpc.stream_unary_rpc_method_handler(handle)


async def _request(context: Context, bytes_max: int) -> bytes:
    """The one request of a call.

    Raises:
        UndecodableError: there is none.
        RefusedError: it is too large.
    """
    loop = asyncio.get_running_loop()
    late = loop.call_later(REQUEST_SECONDS, _spawn, _refuse_late, context)
    try:
        raw = await context.read()
    finally:
        late.cancel()
    if raw is grpc.aio.EOF:
        if late.when() <= loop.time():
            raise grpc.aio.AbortError
        raise wire.UndecodableError("request")
    assert isinstance(raw, bytes), "requests are left as they come"
    if len(raw) > bytes_max:
        text = f"the request has {len(raw)} bytes, at most {bytes_max} are accepted: name fewer things in it"
        raise RefusedError(Refusal(ErrorCode.LIMIT_EXCEEDED, text))
    return raw


async def _refuse_late(context: Context) -> None:
    """End a call from outside of its handler, whose read then returns."""
    text = f"the request did not arrive within {REQUEST_SECONDS:.0f} s: send it again, all of it at once"
    with suppress(grpc.aio.AbortError, grpc.aio.UsageError):
        await status.abort(context, Refusal(ErrorCode.FRAME_INVALID, text), grpc.StatusCode.DEADLINE_EXCEEDED)


_spawned: set[asyncio.Task[None]] = set()


def _spawn(run: Callable[[Context], Coroutine[None, None, None]], context: Context) -> None:
    task = asyncio.create_task(run(context))
    _spawned.add(task)
    task.add_done_callback(_spawned.discard)


def _limit_last_word() -> None:
    """From now on the answer and the status are on their way, which is not for ever."""
    task = asyncio.current_task()
    assert task is not None, "handlers run in tasks"
    timer = asyncio.get_running_loop().call_later(LAST_WORD_SECONDS, task.cancel)
    task.add_done_callback(lambda _: timer.cancel())


async def _guarded(context: Context, run: Callable[[Context], Awaitable[_T]]) -> _T:
    """Run an rpc; whatever it raises becomes the status, and no traceback reaches the client."""
    try:
        return await _with_status(context, run)
    except grpc.aio.InternalError:
        # A peer that goes away in the middle of a write is no fault of ours, and no line of the log.
        raise asyncio.CancelledError from None


async def _with_status(context: Context, run: Callable[[Context], Awaitable[_T]]) -> _T:
    try:
        try:
            return await run(context)
        finally:
            _limit_last_word()
    except (asyncio.CancelledError, grpc.aio.AbortError, grpc.aio.InternalError):
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
