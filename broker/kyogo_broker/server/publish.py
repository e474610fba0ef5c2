"""Publishing: single calls, and streams with pipelined confirms."""

from dataclasses import replace

from kyogo_broker.engine import Engine
from kyogo_broker.model.commands import Publish
from kyogo_broker.model.effects import Effect, PublishDone
from kyogo_broker.model.errors import RefusedError
from kyogo_broker.server import wire
from kyogo_broker.server.calls import Calls
from kyogo_broker.server.limits import Limits
from kyogo_broker.server.status import Context
from kyogo_broker.server.stream import Stream
from kyogo_broker.server.turnstile import Turnstile

MAX_PIPELINED = 1_024
"""Requests of one stream that were read and whose answers were not written; then it is not read on."""


class PublishStream(Stream):
    """One PublishStream: every request gets one answer, and the stream ends OK after the last of them."""

    def __init__(self, engine: Engine, limits: Limits, turnstile: Turnstile | None = None) -> None:
        super().__init__(engine, turnstile)
        self._limits = limits
        self._outbox: list[bytes] = []
        self._submitted = 0
        self._answered = 0

    def take(self, effect: Effect) -> None:
        """Accept an answer; its tag is the request's id."""
        assert isinstance(effect, PublishDone), f"{type(effect).__name__} is no answer to a publish"
        self._answered += 1
        self._outbox.append(wire.publish_response(effect, effect.tag))
        self._wake.set()

    async def _handle(self, raw: bytes) -> bool:
        try:
            command = await self._turnstile.decode(raw, self._decode)
        except RefusedError as error:
            self._outbox.append(wire.refused_publish(error.refusal, wire.request_id_of(raw)))
            self._wake.set()
            return False
        self._submitted += 1
        await self._engine.submit(command, port=self.port, size=len(raw))
        return False

    def _decode(self, raw: bytes) -> Publish:
        return wire.decode_publish(raw, port=self.port, limits=self._limits)

    async def _flush(self, context: Context) -> bool:
        waiting, self._outbox = self._outbox, []
        for answer in waiting:
            await context.write(answer)
        self._room.set()
        return self._half_closed and self._submitted == self._answered and not self._outbox

    def _full(self) -> bool:
        return self._submitted - self._answered + len(self._outbox) >= MAX_PIPELINED

    def _at_end_of_input(self) -> None:
        """Everything that was read is still answered."""

    def _ended(self) -> None:
        """Nobody has to be told."""


class PublishCalls:
    """The unary `Publish`."""

    def __init__(self, calls: Calls, limits: Limits, turnstile: Turnstile) -> None:
        self._calls = calls
        self._limits = limits
        self._turnstile = turnstile

    async def publish(self, raw: bytes) -> bytes:
        """Store one request; the answer means durable.

        Raises:
            RefusedError: nothing was stored.
            UndecodableError: the bytes are no request.
        """
        command = await self._turnstile.decode(raw, self._decode)
        request_id = command.tag
        done = await self._calls.ask(PublishDone, lambda port, tag: replace(command, port=port, tag=tag), size=len(raw))
        return wire.publish_response(done, request_id)

    def _decode(self, raw: bytes) -> Publish:
        return wire.decode_publish(raw, port=0, limits=self._limits)
