"""A Consume stream: the session of one consumer, for as long as the stream lives.

    first frame     attach ------> shard ------> attached
    then            settlements, heartbeats, ...           deliveries, settled, revokes, ...
    detach          ---> answered: all that came before, then OK
    anything else   ---> `StreamEnded`, at once: a killed peer looks just like a clean end

Everything that waits when the writer is free goes into as few frames as possible: that is the batching of
deliveries and answers, and it needs no timer. What waits is bounded by the prefetch, and, for answers, by not
reading on while too many of them wait.
"""

import asyncio

from kyogo_broker.clock import Clock, fresh_name, fresh_session_id, fresh_token
from kyogo_broker.engine import Engine
from kyogo_broker.model.commands import Attach, Detach, Heartbeat, StreamEnded
from kyogo_broker.model.effects import AttachDone, AttachRefused, Effect, EndStream
from kyogo_broker.model.errors import ErrorCode, Refusal, RefusedError
from kyogo_broker.server import wire
from kyogo_broker.server.identity import Identity
from kyogo_broker.server.limits import Limits
from kyogo_broker.server.status import Context, OrderError
from kyogo_broker.server.stream import Stream, StreamClosedError

MAX_WAITING_EFFECTS = 4_096
"""Above it nothing more is read: a consumer that asks and asks and does not read the answers waits for
itself."""
ATTACH_WITHIN_SECONDS = 10.0
"""An open stream without a session is nobody's; a client attaches in its first frame."""
HEARTBEAT_AFTER_SECONDS = 4.0
"""Of silence: the contract says at least every 5 s."""
_SILENT = Refusal(ErrorCode.UNSPECIFIED, "the stream was ended: attach again")


class ConsumeStream(Stream):
    """One consumer's stream."""

    def __init__(self, engine: Engine, limits: Limits, identity: Identity, clock: Clock) -> None:
        super().__init__(engine)
        self._limits = limits
        self._identity = identity
        self._clock = clock
        self._session = wire.Session(
            port=self.port,
            session_id=fresh_session_id(),
            session_token=fresh_token(),
            consumer_id=fresh_name("consumer"),
        )
        self._attach: Attach | None = None
        self._attached: AttachDone | None = None
        self._greeted = False
        """`attached` was written: only now anything else may be."""
        self._outbox: list[Effect] = []
        self._detached = False
        self._end: EndStream | AttachRefused | None = None
        self._told = False
        """The shard was told that this stream is over, or need not be."""
        self._beat_due = False
        self._beats = 0
        self._echo = 0
        self._loop = asyncio.get_running_loop()
        self._wrote_at = self._loop.time()
        self._timer = self._loop.call_later(ATTACH_WITHIN_SECONDS, self._on_timer)

    def take(self, effect: Effect) -> None:
        """Accept an effect; `AttachDone` is the first one, `EndStream` the last."""
        if isinstance(effect, AttachDone):
            self._attached = effect
        elif isinstance(effect, EndStream | AttachRefused):
            self._end = effect
        else:
            self._outbox.append(effect)
        self._wake.set()

    def close(self, refusal: Refusal) -> None:
        """End the stream because the broker stops; nobody is charged, so the shard is not told of a loss."""
        self._told = True
        super().close(refusal)

    async def _handle(self, raw: bytes) -> bool:
        frame = wire.decode_consume(raw, self._session, self._limits)
        self._check_order(frame)
        self._outbox.extend(frame.answers)
        if frame.heartbeat:
            self._echo = frame.heartbeat
            self._beat_due = True
        size = len(raw)
        for command in frame.commands or (Heartbeat(self.port),):
            if self._over:
                return True
            self._detached = isinstance(command, Detach)
            await self._engine.submit(command, port=self.port, size=size)
            size = 0
        if frame.answers or frame.heartbeat:
            self._wake.set()
        return self._detached

    def _check_order(self, frame: wire.ConsumerFrame) -> None:
        first = frame.commands[0] if frame.commands else None
        if isinstance(first, Attach):
            if self._attach is not None:
                raise OrderError("this stream is attached already: attach once, in its first frame")
            self._attach = first
        elif self._attach is None:
            raise OrderError("the first frame must attach: set `attach` with at least one subscription")

    async def _flush(self, context: Context) -> bool:
        if self._attached is not None and not self._greeted:
            self._greeted = True
            self._restart_timer(HEARTBEAT_AFTER_SECONDS)
            await self._write(context, wire.attached(self._attached, self._identity, self._limits))
        if self._greeted and self._attach is not None:
            effects, self._outbox = self._outbox, []
            limit = self._attach.max_frame_bytes
            for frame in wire.frames(effects, first=self._heartbeat(), max_frame_bytes=limit):
                await self._write(context, frame)
            self._room.set()
            if self._outbox:
                return False
        return self._done()

    def _done(self) -> bool:
        end = self._end
        if end is None:
            # A client that half-closed right after its attach still wants to know what became of it.
            answered = self._attach is None or self._greeted
            return self._half_closed and not self._detached and answered
        if isinstance(end, EndStream) and end.unavailable:
            raise StreamClosedError(end.refusal if end.refusal is not None else _SILENT)
        if end.refusal is not None:
            raise RefusedError(end.refusal)
        return True

    async def _write(self, context: Context, frame: bytes) -> None:
        await context.write(frame)
        self._wrote_at = self._loop.time()

    def _heartbeat(self) -> bytes:
        if not self._beat_due:
            return b""
        self._beat_due = False
        self._beats += 1
        return wire.heartbeat(self._beats, self._echo, self._clock.now().unix_ms)

    def _full(self) -> bool:
        return len(self._outbox) >= MAX_WAITING_EFFECTS

    def _at_end_of_input(self) -> None:
        if not self._detached:
            self._tell()

    def _ended(self) -> None:
        self._timer.cancel()
        # Also after a detach or an end that the shard asked for: it may not have come to it, and twice does
        # no harm.
        self._tell()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            self._engine.submit_now(StreamEnded(self.port))

    def _on_timer(self) -> None:
        idle = self._loop.time() - self._wrote_at
        if self._attach is None:
            self._fail(OrderError(f"nothing attached within {ATTACH_WITHIN_SECONDS:.0f} s: attach, or close"))
            return
        if self._greeted and idle >= HEARTBEAT_AFTER_SECONDS:
            self._beat_due = True
            self._wake.set()
            idle = 0.0
        self._restart_timer(max(0.1, HEARTBEAT_AFTER_SECONDS - idle))

    def _restart_timer(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._on_timer)
