"""The only loop: inbox -> shard -> journal -> release.

One turn takes everything that waits, reads the clock once, lets the shard handle it and then tick, appends the facts
as one record if somebody waits for one of them, and releases the effects in order once the record is durable. What
arrives meanwhile forms the next turn: that is the group commit, and it needs no timer.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from kyogo_broker.checkpointing import Checkpointing
from kyogo_broker.clock import Clock
from kyogo_broker.core.shard import Shard
from kyogo_broker.journal.base import Journal
from kyogo_broker.journal.codec import encode
from kyogo_broker.journal.loading import load
from kyogo_broker.model.commands import Command, Loaded, SetPressure, Tick
from kyogo_broker.model.effects import Effect, Load, Notice
from kyogo_broker.model.errors import BrokerStopError, Refusal
from kyogo_broker.model.facts import Fact, Moved, Published
from kyogo_broker.model.now import Now
from kyogo_broker.model.stats import COMMIT_BOUNDS_SECONDS, EngineStats, Histogram, QueueStats, ShardStats

PORT_COMMANDS_MAX = 256
"""Commands of one connection in the inbox: enough to keep a pipeline full during one commit."""
PORT_BYTES_MAX = 4 << 20
RECORD_BYTES_SOFT = 2 << 20
"""Messages written in one turn, after which it takes nothing more. One command adds 8 MiB at most (the largest frame or
a row of extents that is copied forward) and letters 5 MiB: a record stays below the journal's 16 MiB."""
TURN_SECONDS = 0.006
"""Commands are handled for so long in one turn; the rest have the next one, and others a look at the loop between."""
PENDING_FACTS_MAX = 512
"""Facts that nobody waits for, after which they are written all the same."""
PENDING_MS_MAX = 1_000
PRESSURE_CHECK_MS = 500
SLEEP_MS_MAX = 250
"""The loop looks at its own clock at least this often, so that it knows when it stood still."""
QUICK_COMMIT_SECONDS = 0.02
"""A loop that slept longer than its last commit took waits for the next one on the spot: the way to another thread and
back takes longer than the sync of a small record. A disk that once took longer than this"""
THREADED_COMMITS = 256
"""has so many commits done in the other thread before it is trusted again."""
STALL_MS_MIN = 50
"""Delays below are ordinary scheduling."""


class Sink(Protocol):
    """A connection's end for effects; `take` is called on the loop, must not block and must not raise."""

    def take(self, effect: Effect) -> None:
        """Accept one effect addressed to the port; called in the order of release."""


@dataclass(slots=True)
class _Port:
    sink: Sink
    commands: int = 0
    bytes: int = 0
    room: asyncio.Event | None = None


class Engine:
    """Owns the shard and the journal of one broker."""

    def __init__(
        self,
        shard: Shard,
        journal: Journal,
        clock: Clock,
        *,
        on_notice: Callable[[Notice], None] = lambda _: None,
        memory_high: Callable[[], bool] = lambda: False,
        reader: Executor | None = None,
    ) -> None:
        """An engine that has not begun.

        Args:
            shard: recovered, its new epoch begun.
            journal: open.
            clock: read once a turn.
            on_notice: gets what operators want to know.
            memory_high: whether the process is above its limit; asked twice a second at most.
            reader: reads messages back, one load after the other; None: a thread of its own. Shut down with the engine.
        """
        self._shard = shard
        self._journal = journal
        self._clock = clock
        self._on_notice = on_notice
        self._memory_high = memory_high
        self._checkpointing = Checkpointing(shard, journal, clock)
        self._reader = ThreadPoolExecutor(1, "journal-read") if reader is None else reader
        self._loads: set[int] = set()
        """Reads of the journal that are under way, by id."""
        self._ports: dict[int, _Port] = {}
        self._last_port = 0
        self._inbox: list[tuple[Command, _Port | None, int]] = []
        self._wake = asyncio.Event()
        self._pending: list[Fact] = []
        self._pending_since_ms = 0
        self._planned_ms = 0
        """When the next turn was to begin."""
        self._turn_ms = 0
        """When the last turn began: what it took, on the processor or in a commit, is nobody's silence either."""
        self._slept_seconds = self._commit_took_seconds = 0.0
        """Before this turn, and the last time."""
        self._threaded_commits = 0
        self._pressure_at_ms = 0
        self._pressure = SetPressure(disk_low=False, memory_high=False)
        self._failure: BaseException | None = None
        self._stopping = False
        self._stopped = asyncio.Event()
        self._running = False
        self._turns = self._commits = self._commit_bytes = self._copied_bytes = 0
        self._commit_counts = [0] * (len(COMMIT_BOUNDS_SECONDS) + 1)
        self._commit_seconds = 0.0
        self._lag_ms = self._stalled_ms = self._stall_ms = 0

    def open_port(self, sink: Sink) -> int:
        """Register a connection; its number goes into every command it submits."""
        self._last_port += 1
        self._ports[self._last_port] = _Port(sink)
        return self._last_port

    def close_port(self, port: int) -> None:
        """Forget a connection; effects still under way to it are dropped. A consumer's `StreamEnded` goes first."""
        closed = self._ports.pop(port, None)
        if closed is not None and closed.room is not None:
            closed.room.set()

    async def submit(self, command: Command, *, port: int, size: int = 0) -> None:
        """Put a command into the inbox; waits only while this port has too much in it (bytes or commands).

        Args:
            command: what to do.
            port: whose it is.
            size: its bytes, as they came from the wire.
        """
        owner = self._ports[port]
        owner.commands += 1
        owner.bytes += size
        self._inbox.append((command, owner, size))
        self._wake.set()
        while owner.commands >= PORT_COMMANDS_MAX or owner.bytes >= PORT_BYTES_MAX:
            if owner.room is None:
                owner.room = asyncio.Event()
            owner.room.clear()
            await owner.room.wait()
            if port not in self._ports:
                return

    def submit_now(self, command: Command) -> None:
        """Put a command into the inbox whatever is in it: for what must not be lost, like `StreamEnded`."""
        self._inbox.append((command, None, 0))
        self._wake.set()

    async def run(self) -> None:
        """Turn until `stop`.

        Raises:
            BrokerStopError: an append failed or an invariant broke; nothing after it was released.
        """
        self._running = True
        try:
            while not self._stopping:
                await self._sleep()
                await self._turn()
            await self._finish()
        except Exception as error:
            self._failure = error
            if isinstance(error, BrokerStopError):
                raise
            raise BrokerStopError(f"{type(error).__name__}: {error}") from error
        finally:
            self._reader.shutdown(wait=False, cancel_futures=True)
            self._journal.close()
            self._stopped.set()

    async def stop(self) -> None:
        """Handle what is in the inbox, take a checkpoint, close the journal. Idempotent."""
        self._stopping = True
        self._wake.set()
        if self._running:
            await self._stopped.wait()

    def shard_stats(self) -> ShardStats:
        """Queues and consumers as of the last turn."""
        return self._shard.stats()

    def queue_stats(self, name: str) -> QueueStats | Refusal:
        """One queue as of the last turn; the refusal if there is none of that name."""
        return self._shard.queue_stats(name)

    def in_flight(self) -> int:
        """Deliveries that are not settled."""
        return self._shard.in_flight()

    def stats(self) -> EngineStats:
        """The loop's own figures."""
        return EngineStats(
            turns=self._turns, commits=self._commits, commit_bytes=self._commit_bytes,
            commit_seconds=Histogram(counts=tuple(self._commit_counts), sum=self._commit_seconds),
            inbox=len(self._inbox), lag_seconds=self._lag_ms / 1000, stalled_seconds=self._stalled_ms / 1000,
            copied_bytes=self._copied_bytes,
        )  # fmt: skip

    async def _sleep(self) -> None:
        """Until there is something to do, by the inbox or by the clock."""
        now_ms = self._clock.now().steady_ms
        if self._turns and now_ms - self._turn_ms >= STALL_MS_MIN:
            self._stall_ms += now_ms - self._turn_ms
        self._slept_seconds = 0.0
        if self._inbox or self._checkpointing.under_way:
            self._planned_ms = now_ms
            await asyncio.sleep(0)
            return
        until = now_ms + SLEEP_MS_MAX
        wake_ms = self._shard.next_wake_ms()
        if wake_ms is not None:
            until = min(until, wake_ms)
        if self._pending:
            until = min(until, self._pending_since_ms + PENDING_MS_MAX)
        self._planned_ms = max(until, now_ms)
        if until <= now_ms:
            await asyncio.sleep(0)
            return
        began = self._clock.seconds()
        self._wake.clear()
        timer = asyncio.get_running_loop().call_later((until - now_ms) / 1000, self._wake.set)
        await self._wake.wait()
        timer.cancel()
        self._slept_seconds = self._clock.seconds() - began

    async def _turn(self) -> None:
        now = self._clock.now()
        self._turns += 1
        self._turn_ms = now.steady_ms
        self._lag_ms = max(0, now.steady_ms - self._planned_ms) if self._planned_ms else 0
        stalled = self._stall_ms + (self._lag_ms if self._lag_ms >= STALL_MS_MIN else 0)
        self._stalled_ms += stalled
        self._stall_ms = 0
        self._shard.begin(position=self._journal.position, now=now, stalled_ms=stalled)
        self._check_pressure(now)
        effects: list[Effect] = []
        facts: list[Fact] = []
        taken, self._inbox, written = self._inbox, [], 0
        until = self._clock.seconds() + TURN_SECONDS
        for number, (command, _, _) in enumerate(taken, 1):
            step = self._shard.handle(command, now)
            facts += step.facts
            effects += step.effects
            written += sum(len(fact.batch.wire) for fact in step.facts if isinstance(fact, Published | Moved))
            if written >= RECORD_BYTES_SOFT or self._clock.seconds() >= until:
                self._inbox = taken[number:] + self._inbox
                del taken[number:]
                step = self._shard.hear([command for command, _, _ in self._inbox], now)
                facts += step.facts
                effects += step.effects
                break
        step = self._shard.handle(Tick(), now)
        facts += step.facts
        effects += step.effects
        await self._append(facts, now)
        for _, owner, size in taken:
            if owner is not None:
                owner.commands -= 1
                owner.bytes -= size
                if owner.room is not None:
                    owner.room.set()
        for effect in effects:
            self._release(effect)
        if not self._pending:
            self._checkpointing.advance(loads=self._loads)
            copy = self._checkpointing.next_copy()
            if copy is not None:
                self.submit_now(copy)

    async def _append(self, facts: list[Fact], now: Now) -> None:
        """Make durable what somebody waits for, and what came before it."""
        if facts and not self._pending:
            self._pending_since_ms = now.steady_ms
        self._pending += facts
        pending = self._pending
        if not pending:
            return
        overdue = now.steady_ms - self._pending_since_ms >= PENDING_MS_MAX or len(pending) >= PENDING_FACTS_MAX
        if not (overdue or self._checkpointing.under_way or any(f.WAITED or type(f) is Moved for f in facts)):
            return
        self._pending = []
        parts = encode(pending)
        size = sum(map(len, parts))
        self._copied_bytes += sum(len(fact.batch.wire) for fact in pending if type(fact) is Moved)
        began = self._clock.seconds()
        in_place = self._slept_seconds > self._commit_took_seconds and not self._threaded_commits
        future = self._journal.append(self._journal.sequence, parts, in_place=in_place)
        if future.done():
            future.result()
        else:
            await asyncio.wrap_future(future)
        self._measure(size, len(pending), self._clock.seconds() - began)

    def _measure(self, size: int, facts: int, seconds: float) -> None:
        self._checkpointing.wrote(size=size, facts=facts)
        self._commits += 1
        self._commit_bytes += size
        self._commit_seconds += seconds
        self._commit_took_seconds = seconds
        if seconds > QUICK_COMMIT_SECONDS:
            self._threaded_commits = THREADED_COMMITS
        elif self._threaded_commits:
            self._threaded_commits -= 1
        self._commit_counts[bisect_left(COMMIT_BOUNDS_SECONDS, seconds)] += 1

    def _release(self, effect: Effect) -> None:
        kind = type(effect)
        if kind is Load:
            assert isinstance(effect, Load)
            self._loads.add(effect.load_id)
            task = self._reader.submit(load, self._journal, effect)
            loop = asyncio.get_running_loop()
            task.add_done_callback(lambda done: loop.call_soon_threadsafe(self._loaded, effect.load_id, done))
        elif kind is Notice:
            assert isinstance(effect, Notice)
            self._on_notice(effect)
        else:
            port = self._ports.get(effect.port)  # type: ignore[union-attr]  # every other effect has one
            if port is not None:
                port.sink.take(effect)

    def _loaded(self, load_id: int, done: Future[Loaded]) -> None:
        self._loads.discard(load_id)
        if done.cancelled():
            return
        error = done.exception()
        if error is not None:
            self._failure = error
            self._stopping = True
            self._wake.set()
            return
        self.submit_now(done.result())

    def _check_pressure(self, now: Now) -> None:
        if now.steady_ms < self._pressure_at_ms:
            return
        self._pressure_at_ms = now.steady_ms + PRESSURE_CHECK_MS
        pressure = SetPressure(disk_low=self._journal.disk_low(), memory_high=self._memory_high())
        self._checkpointing.disk_is(low=pressure.disk_low)
        if pressure != self._pressure:
            self._pressure = pressure
            self._inbox.insert(0, (pressure, None, 0))

    async def _finish(self) -> None:
        """The last turns: everything that was submitted, then what nobody waited for, then a checkpoint."""
        if self._failure is not None:
            raise BrokerStopError(f"the journal could not be read back: {self._failure}") from self._failure
        while self._inbox:
            await self._turn()
        if self._pending:
            pending, self._pending = self._pending, []
            await asyncio.wrap_future(self._journal.append(self._journal.sequence, encode(pending)))
        # What is still being read is not wanted any more, but must not be freed under its reader.
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._checkpointing.finish()
