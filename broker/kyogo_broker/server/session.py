"""A Consume stream: the session of one consumer, for as long as the stream lives.

    first frame     attach ------> shard ------> attached
    then            settlements, heartbeats, ...           deliveries, settled, revokes, ...
    detach          ---> answered: all that came before, then OK
    anything else   ---> `StreamEnded`, at once: a killed peer looks just like a clean end

Everything that waits when the writer is free goes into as few frames as possible: that is the batching of
deliveries and answers, and it needs no timer. What waits is bounded: answers by not reading on while too many of them
wait, deliveries by the prefetch, unless leases run out while nothing is read. So a consumer for whom more than twice
its prefetch waits, or whom nothing could be written for a minute, is lost, however lively its heartbeats, and so is the
slowest when too much waits for all of them. Lost means at once: what waits is forgotten, what it held goes to others;
only its stream may live on for some seconds, in which it is told.
"""

import asyncio
from collections.abc import Sequence

from kyogo_broker.clock import Clock, fresh_name, fresh_session_id, fresh_token
from kyogo_broker.engine import PORT_BYTES_MAX, Engine
from kyogo_broker.model.commands import Attach, Command, Detach, Heartbeat, SetPrefetch, StreamEnded
from kyogo_broker.model.effects import AttachDone, AttachRefused, Deliver, Effect, EndStream
from kyogo_broker.model.errors import ErrorCode, Refusal, RefusedError
from kyogo_broker.server import wire
from kyogo_broker.server.identity import Identity
from kyogo_broker.server.limits import HEAVY_COST_BYTES, MAX_WAITING_ITEMS, UNREAD_SECONDS, Limits
from kyogo_broker.server.status import Context, OrderError
from kyogo_broker.server.stream import Stream, StreamClosedError
from kyogo_broker.server.turnstile import Turnstile
from kyogo_broker.server.unread import Unread

MAX_WAITING_EFFECTS = 4_096
"""Above it nothing more is read: a consumer that asks and asks and does not read the answers waits for
itself."""
ATTACH_WITHIN_SECONDS = 10.0
"""An open stream without a session is nobody's; a client attaches in its first frame."""
HEARTBEAT_AFTER_SECONDS = 4.0
"""Of silence: the contract says at least every 5 s."""
UNREAD_PREFETCHES = 2
"""What waits for a consumer, in its prefetches: one may be on its way out while leases of it have run out already."""
_SILENT = Refusal(ErrorCode.UNSPECIFIED, "the stream was ended: attach again")
_UNREAD = Refusal(ErrorCode.LIMIT_EXCEEDED, "deliveries were not read in time: read what is sent, or attach again")


class ConsumeStream(Stream):
    """One consumer's stream."""

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        identity: Identity,
        clock: Clock,
        turnstile: Turnstile | None = None,
        unread: Unread | None = None,
    ) -> None:
        super().__init__(engine, turnstile)
        self._unread = Unread() if unread is None else unread
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
        self._leaving: list[Effect] = []
        """What the writer is at, and what waits behind it."""
        self._waiting_items = 0
        """Results and ranges in both."""
        self._prefetch_bytes = 0
        """The most it was ever granted."""
        self._detached = False
        self._end: EndStream | AttachRefused | None = None
        self._told = False
        """The shard was told that this stream is over, or need not be."""
        self._given_up = False
        self._beat_due = False
        self._beats = 0
        self._echo = 0
        self._loop = asyncio.get_running_loop()
        self._wrote_at = self._loop.time()
        self._writing_since: float | None = None
        self._timer = self._loop.call_later(ATTACH_WITHIN_SECONDS, self._on_timer)

    def take(self, effect: Effect) -> None:
        """Accept an effect; `AttachDone` is the first one, `EndStream` the last."""
        if isinstance(effect, AttachDone):
            self._attached = effect
            self._granted(effect.prefetch_bytes)
        elif isinstance(effect, EndStream | AttachRefused):
            self._end = effect
            self._end_soon()
        elif not self._given_up:
            self._outbox.append(effect)
            self._waiting_items += wire.items_of(effect)
            if isinstance(effect, Deliver):
                self._unread.add(self, sum(len(run.wire) for run in effect.runs))
                if self._unread.waiting(self) > self._waiting_bytes_max():
                    self.give_up()
        self._wake.set()

    def writing_since(self) -> float | None:
        """When the frame that is under way was begun; None: none is, or the consumer is lost already."""
        return None if self._given_up else self._writing_since

    def give_up(self) -> None:
        """Lose a consumer that does not read: others get its work now, not when its stream is over."""
        self._given_up = True
        self._forget()
        self._tell()
        self._fail(StreamClosedError(_UNREAD))

    def close(self, refusal: Refusal) -> None:
        """End the stream because the broker stops; nobody is charged, so the shard is not told of a loss."""
        self._told = True
        super().close(refusal)

    async def _handle(self, raw: bytes) -> bool:
        frame = await self._turnstile.decode(raw, self._decode)
        self._check_order(frame)
        self._outbox.extend(frame.answers)
        if frame.heartbeat:
            self._echo = frame.heartbeat
            self._beat_due = True
        if frame.cost < HEAVY_COST_BYTES:
            await self._submit(frame.commands, frame.cost)
        else:
            async with self._turnstile.heavy:
                await self._submit(frame.commands, max(frame.cost, PORT_BYTES_MAX))
        if frame.answers or frame.heartbeat:
            self._wake.set()
        return self._detached or self._over or self._given_up

    async def _submit(self, commands: Sequence[Command], cost: int) -> None:
        """Give a frame to the engine; one that weighs as much as may wait there is handled when this returns."""
        last = len(commands) - 1
        for number, command in enumerate(commands):
            if self._over or self._given_up:
                return
            self._detached = isinstance(command, Detach)
            if isinstance(command, SetPrefetch):
                self._granted(command.bytes)
            await self._engine.submit(command, port=self.port, size=cost if number == last else 0)
        if not commands:
            await self._engine.submit(Heartbeat(self.port), port=self.port, size=cost)

    def _decode(self, raw: bytes) -> wire.ConsumerFrame:
        return wire.decode_consume(raw, self._session, self._limits)

    def _granted(self, prefetch_bytes: int) -> None:
        """What was granted earlier may still be in flight."""
        self._prefetch_bytes = max(self._prefetch_bytes, min(prefetch_bytes, self._limits.max_prefetch_bytes))

    def _waiting_bytes_max(self) -> int:
        """A message that is larger than the prefetch goes alone, and the next one follows its answer."""
        return UNREAD_PREFETCHES * (self._prefetch_bytes + self._limits.max_message_bytes)

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
            self._leaving = effects
            items, octets = self._waiting_items, self._unread.waiting(self)
            limit = self._attach.max_frame_bytes
            for frame in wire.frames(effects, first=self._heartbeat(), max_frame_bytes=limit):
                await self._write(context, frame)
            self._waiting_items -= items
            if not self._given_up:
                self._unread.remove(self, octets)
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
        self._writing_since = self._loop.time()
        await context.write(frame)
        self._writing_since = None
        self._wrote_at = self._loop.time()

    def _heartbeat(self) -> bytes:
        if not self._beat_due:
            return b""
        self._beat_due = False
        self._beats += 1
        return wire.heartbeat(self._beats, self._echo, self._clock.now().unix_ms)

    def _full(self) -> bool:
        return len(self._outbox) >= MAX_WAITING_EFFECTS or self._waiting_items >= MAX_WAITING_ITEMS

    def _at_end_of_input(self) -> None:
        if not self._detached:
            self._tell()

    def _ended(self) -> None:
        self._timer.cancel()
        self._forget()
        # Also after a detach or an end that the shard asked for: it may not have come to it, and twice does
        # no harm.
        self._tell()

    def _forget(self) -> None:
        self._outbox.clear()
        self._leaving.clear()
        self._unread.remove(self, self._unread.waiting(self))

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            self._engine.submit_now(StreamEnded(self.port))

    def _on_timer(self) -> None:
        idle = self._loop.time() - self._wrote_at
        if self._attach is None:
            self._fail(OrderError(f"nothing attached within {ATTACH_WITHIN_SECONDS:.0f} s: attach, or close"))
            return
        if self._writing_since is not None and self._loop.time() - self._writing_since >= UNREAD_SECONDS:
            self.give_up()
            return
        if self._greeted and idle >= HEARTBEAT_AFTER_SECONDS:
            self._beat_due = True
            self._wake.set()
            idle = 0.0
        self._restart_timer(max(0.1, HEARTBEAT_AFTER_SECONDS - idle))

    def _restart_timer(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._on_timer)
