"""What both kinds of bidirectional streams have in common: one reader, one writer, one outbox.

The writer is the coroutine that gRPC runs for the call; gRPC cancels it when the client is gone. The reader
is a task of its own that is never cancelled (a cancelled read loses messages): when the call is over its last
read returns, and it ends by itself. Only the writer writes, since two writes at once are an error. A peer that does
not read holds up the writer for ever: when the stream is to end, it is given a moment and then cancelled.

    context.read() -> reader -> engine.submit     ...     engine -> take() -> outbox -> writer ->
    context.write()
"""

import asyncio
from abc import ABC, abstractmethod

import grpc

from kyogo_broker.engine import Engine
from kyogo_broker.model.effects import Effect
from kyogo_broker.model.errors import Refusal
from kyogo_broker.server.limits import LAST_WORD_SECONDS
from kyogo_broker.server.status import Context
from kyogo_broker.server.turnstile import Turnstile

_readers: set[asyncio.Task[None]] = set()
"""Keeps readers from being collected between the end of their call and their own, a moment later."""


async def readers_ended(seconds: float) -> None:
    """Wait, but not for ever, until the readers of ended calls are gone."""
    if _readers:
        await asyncio.wait(_readers, timeout=seconds)


class StreamClosedError(Exception):
    """The broker ends a stream on its own account: the call ends as UNAVAILABLE."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Stream(ABC):
    """One open stream; a sink for the effects of its port."""

    def __init__(self, engine: Engine, turnstile: Turnstile | None = None) -> None:
        self._engine = engine
        self._turnstile = Turnstile() if turnstile is None else turnstile
        self.port = engine.open_port(self)
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._fault: Exception | None = None
        self._half_closed = False
        self._over = False
        self._writer: asyncio.Task[object] | None = None
        self._last_word: asyncio.TimerHandle | None = None

    async def serve(self, context: Context) -> None:
        """Run the stream to its end; returns for status OK.

        Raises:
            Exception: what ends it with another status; the caller knows which.
        """
        self._writer = asyncio.current_task()
        reader = asyncio.create_task(self._read(context))
        _readers.add(reader)
        reader.add_done_callback(_readers.discard)
        try:
            while True:
                self._wake.clear()
                if self._fault is not None:
                    if isinstance(self._fault, StreamClosedError):
                        await self._flush(context)
                    raise self._fault
                if await self._flush(context):
                    return
                await self._wake.wait()
        finally:
            self._over = True
            self._room.set()
            if self._last_word is not None:
                self._last_word.cancel()
            self._ended()
            self._engine.close_port(self.port)

    def close(self, refusal: Refusal) -> None:
        """End the stream as UNAVAILABLE, because the broker stops."""
        self._fail(StreamClosedError(refusal))

    @abstractmethod
    def take(self, effect: Effect) -> None:
        """Accept an effect; called by the engine."""

    @abstractmethod
    async def _handle(self, raw: bytes) -> bool:
        """Take one frame; True: no more will be read."""

    @abstractmethod
    async def _flush(self, context: Context) -> bool:
        """Write what waits; True: the stream is done."""

    @abstractmethod
    def _full(self) -> bool:
        """Whether so much waits to be written that nothing more may be read."""

    @abstractmethod
    def _at_end_of_input(self) -> None:
        """The client sends nothing more."""

    @abstractmethod
    def _ended(self) -> None:
        """The stream is over, whatever the cause."""

    async def _read(self, context: Context) -> None:
        try:
            while not self._over:
                raw = await context.read()
                if raw is grpc.aio.EOF or await self._handle(raw):
                    break
                while self._full() and not self._over:
                    self._room.clear()
                    await self._room.wait()
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            pass  # The call is over, and this was its last read.
        except Exception as error:  # noqa: BLE001  # the writer raises it, within the call
            self._fail(error)
            return
        self._half_closed = True
        self._at_end_of_input()
        self._wake.set()

    def _fail(self, error: Exception) -> None:
        if self._fault is None:
            self._fault = error
        self._end_soon()

    def _end_soon(self) -> None:
        """There is nothing to wait for but the last frames; a writer that cannot write them is cancelled."""
        self._wake.set()
        if self._last_word is None and self._writer is not None and not self._over:
            self._last_word = asyncio.get_running_loop().call_later(LAST_WORD_SECONDS, self._writer.cancel)
