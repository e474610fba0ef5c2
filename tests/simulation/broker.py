"""The broker under test: the real engine, shard, recovery, checkpoints and segment log, one process after another.

What dies with a process and what the disk keeps is decided here; what must hold about it is said in `check`.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from kyogo_broker.core.limits import ShardConfig
from kyogo_broker.engine import Engine
from kyogo_broker.journal.base import Part
from kyogo_broker.journal.segments import SegmentJournal, SegmentSettings
from kyogo_broker.model.commands import Drain
from kyogo_broker.model.errors import BrokerStopError
from kyogo_broker.recovery import recover
from tests.simulation.check import Check
from tests.simulation.limits import MAX_RECORD_BYTES, STRETCH
from tests.simulation.machine import PowerLossError, SimClock, SimDisk, SimReader, Threads, Wall
from tests.simulation.network import Edge, Link
from tests.simulation.watched import WatchedShard
from tests.simulation.world import Actor, SimLoop, ViolationError, World
from tests.support.faulty_disk import CRASHES, Crash

DATA = Path("/data")
GRACE_US = 300_000
LOOK_US = 20_000


class SimJournal(SegmentJournal):
    """The segment log, watched."""

    stretch = STRETCH
    check: Check

    def append(self, sequence: int, parts: Sequence[Part], *, in_place: bool = False) -> Future[None]:
        # Which of the threads writes is the machine's choice, see `Threads`.
        self.check.appending(sequence, self.position, parts)
        future = super().append(sequence, parts)
        future.add_done_callback(lambda done: self.check.appended(sequence, done))
        return future


class Broker:
    """A machine with a broker on it."""

    def __init__(self, world: World, check: Check, cover: Counter[str]) -> None:
        self.world = world
        self.check = check
        self.cover = cover
        self.wall = Wall()
        # A busy machine serves its network from time to time: so turns with many commands are as usual as with one.
        self.grain = world.random.choice((1, 5_000, 20_000))
        self.disk = SimDisk(cover)
        self.process = Actor()
        self.process.dead = True
        self.engine: Engine | None = None
        self.journal: SimJournal | None = None
        self.threads: Threads | None = None
        self.stopping = False
        self.graceful = False
        self.restarts = True
        """Whether somebody starts it again when it is down."""
        self._supervisor = Actor()
        self._edges: list[Edge] = []
        self._task: asyncio.Task[None] | None = None
        self._settings = SegmentSettings(
            segment_bytes=world.random.choice((96, 112, 160)) << 10,
            max_record_bytes=MAX_RECORD_BYTES,
            reserve_segments=world.between(1, 2),
            min_free_bytes=128 << 10,
        )

    @property
    def up(self) -> bool:
        """Whether it serves."""
        return self.engine is not None and not self.stopping

    # a life

    def start(self) -> None:
        """Begin a process: recover, then serve."""
        if self.engine is not None:
            return
        self.process = Actor()
        self.stopping = False
        # A machine that starts sets its clock, more or less.
        self.wall.offset = self.world.between(-2_000_000, 2_000_000)
        self.threads = threads = Threads(self.world, self.process, self.disk, self.cover)
        loop = SimLoop(self.world, self.process)
        asyncio._set_running_loop(loop)
        clock = SimClock(self.world, self.wall)
        journal = SimJournal(DATA, self._settings, key=77, files=self.disk, lane=threads.lane)
        journal.check = self.check
        self.journal = journal
        self.check.starting(journal, clock)
        WatchedShard.check = self.check
        try:
            shard, found = recover(
                journal, ShardConfig(auto_create=True), seed=self.world.between(1, 1 << 60), clock=clock
            )
        except PowerLossError:
            self.cover["crash while recovering"] += 1
            self._end()
            self._down(self.world.random.choice(CRASHES))
            return
        except (BrokerStopError, OSError) as error:
            self._cannot_start(error)
            return
        self.cover["start"] += 1
        self.cover["records replayed"] += found.records
        self.engine = Engine(shard, journal, clock, on_notice=self.check.notice, reader=SimReader(threads))
        self._task = loop.create_task(self.engine.run())
        self._task.add_done_callback(self._engine_ended)

    def accept(self, link: Link) -> None:
        """A client opens a stream."""
        if self.up:
            assert self.engine is not None
            link.edge = Edge(self.world, self.engine, link, self.check)
            self._edges.append(link.edge)
            self.check.opened(link.edge)
        else:
            link.refuse()

    @property
    def edges(self) -> list[Edge]:
        """Streams that are open on the broker's side."""
        self._edges = [edge for edge in self._edges if not edge.over]
        return self._edges

    def crash(self, kind: Crash) -> None:
        """The process dies between two callbacks, or the machine does."""
        if self.engine is None:
            return
        assert self.threads is not None
        self.cover[f"crash: {kind}"] += 1
        if self.process.frozen_until > self.world.now:
            self.cover["crash while frozen"] += 1
        self.threads.die()
        self._end()
        self._down(kind)

    def power_lost(self) -> None:
        """The disk's fuse has blown in the middle of something."""
        self.cover["crash inside a file call"] += 1
        self._end()
        self._down(self.world.random.choice(CRASHES))

    def dispose(self) -> None:
        """The history is over, however it ended."""
        self.restarts = False
        if not self.process.dead:
            self._end(checked=False)

    def freeze(self, duration: int) -> None:
        """Stop the whole process for a while."""
        since = max(self.world.now, self.process.frozen_until)
        until = self.world.now + duration
        if until > since:
            self.process.frozen_until = until
            self.check.froze(since, until)

    def thaw(self) -> None:
        """Let it go on at once."""
        self.process.frozen_until = min(self.process.frozen_until, self.world.now)
        self.check.thawed(self.world.now)

    def stop(self) -> None:
        """As on SIGTERM: drain, then end with a checkpoint."""
        if self.up:
            self.cover["graceful stop"] += 1
            self.stopping = True
            assert self.engine is not None
            self.engine.submit_now(Drain(GRACE_US // 1000))
            self.world.after(LOOK_US, self.process, self._draining, self.world.now + GRACE_US)

    # its end

    def _draining(self, until: int) -> None:
        assert self.engine is not None
        if self.world.now < until and any(consumer.in_flight for consumer in self.engine.shard_stats().consumers):
            self.world.after(LOOK_US, self.process, self._draining, until)
            return
        for edge in self.edges:
            edge.abandon()
        self._stop = asyncio.get_running_loop().create_task(self.engine.stop())

    def _engine_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, PowerLossError):
            self.power_lost()
            return
        if isinstance(error.__cause__ if error is not None else None, AssertionError):
            assert error is not None
            raise error.__cause__  # type: ignore[misc]
        if error is not None and not self._excused(error):
            raise ViolationError(f"the broker stopped itself: {error}") from error
        if error is None and not self.stopping:
            raise ViolationError("the broker stopped without a reason")
        if error is None:
            self.graceful = True
            if self.disk.open_files():
                raise ViolationError(f"I17: {self.disk.open_files()} files are still open after a stop")
        else:
            self.cover["stopped by an error"] += 1
        for edge in self.edges:
            edge.abandon()
        self._end()
        self._down("killed")

    def _cannot_start(self, error: Exception) -> None:
        if not self._excused(error):
            raise ViolationError(f"the broker cannot start: {error}") from error
        self.cover["could not start"] += 1
        self._end()
        self._down("killed")

    def _excused(self, _: BaseException) -> bool:
        """Whether a broker may end like this: a call of its disk failed."""
        return self.disk.failed

    def _end(self, *, checked: bool = True) -> None:
        """Nothing of the process happens any more."""
        if checked:
            self.check.died(self.engine, graceful=self.graceful)
        self.graceful = False
        self.disk.lost = True
        self.process.dead = True
        if self._task is not None and not self._task.done():
            self._task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is dead, not forgotten
            coroutine = self._task.get_coro()
            with suppress(PowerLossError, RuntimeError):
                coroutine.close()
        for edge in self._edges:
            if not edge.over:
                edge.over = True
                if self.world.chance(0.7):
                    edge.link.close()
                else:
                    edge.link.cut(client=False, broker=False)
        self._edges = []
        self._task = self.engine = self.threads = None

    def _down(self, kind: Crash) -> None:
        if self.disk.unsynced():
            self.cover[f"unsynced data: {kind}"] += 1
        self.disk = self.disk.after_crash(kind, self.world)
        if self.restarts:
            self.world.after(self.world.between(20_000, 600_000), self._supervisor, self._start_again)

    def _start_again(self) -> None:
        if self.world.chance(0.1) and self.check.faulty:
            # Half of them while it recovers, which takes few calls.
            self.disk.fuse = self.world.between(0, self.world.random.choice((10, 60)))
        elif self.world.chance(0.03) and self.check.faulty:
            self.disk.errors = self.world.between(0, 30)
        self.start()
        # What did not come in the start may come later, in the life.
