"""The machine that a broker runs on: its disk, its clocks and its threads, all of them faulty and none of them real.

A file call can be the last one before the power goes (`PowerLoss`), can fail, or find the disk full. What the journal
gives to its threads is done call by call in virtual time; when the process dies, the call that each thread is at gets
some way through, so that a crash meets any combination of the two.
"""

import errno
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from kyogo_broker.clock import Clock
from kyogo_broker.model.now import Now
from tests.simulation.world import Actor, World
from tests.support.faulty_disk import Crash, FaultyDisk

T = TypeVar("T")

BEGINNING_US = 1_700_000_000_000_000
CAPACITY = 4 << 20


class PowerLossError(BaseException):
    """The process is gone in the middle of a call; nobody may catch this."""


class SimDisk(FaultyDisk):
    """A faulty disk with a fuse: after so many calls that change something, the power goes or a call fails."""

    def __init__(self, cover: Counter[str]) -> None:
        super().__init__(CAPACITY)
        self.cover = cover
        self.fuse: int | None = None
        """Calls until the power goes."""
        self.errors: int | None = None
        """Calls until one fails."""
        self.failed = False
        """Whether a call of this process failed."""
        self.lost = False
        self.before = self._before

    def _before(self, call: str) -> None:
        if self.lost:
            raise PowerLossError
        if self.fuse is not None:
            if self.fuse == 0:
                self.lost = True
                self.cover[f"power lost before {call}"] += 1
                raise PowerLossError
            self.fuse -= 1
        if self.errors is not None:
            self.errors -= 1
            if self.errors < 0:
                self.errors, self.failed = None, True
                self.cover[f"EIO in {call}"] += 1
                raise OSError(errno.EIO, "injected")

    def _need(self, more: int) -> None:
        try:
            super()._need(more)
        except OSError:
            self.cover["ENOSPC"] += 1
            raise

    def close(self, file: int) -> None:
        if not self.lost:
            super().close(file)

    def unlink(self, path: Any) -> None:
        super().unlink(path)
        self.cover["segment freed" if path.suffix == ".segment" else "file unlinked"] += 1

    def rename(self, old: Any, new: Any) -> None:
        super().rename(old, new)
        if new.suffix == ".segment":
            self.cover["segment made"] += 1
        elif new.name.startswith("checkpoint-"):
            self.cover["checkpoint"] += 1

    def after_crash(self, kind: Crash, world: World) -> "SimDisk":
        """What the next process finds."""
        found = self.crash(kind, world.random)
        after = SimDisk(self.cover)
        after.capacity = self.capacity
        after.names_now, after.names_durable = found.names_now, found.names_durable
        after.names_pending = found.names_pending
        return after


class SimClock(Clock):
    """One process's clocks; the wall clock may jump under it."""

    def __init__(self, world: World, wall: "Wall") -> None:
        self._world = world
        self._wall = wall
        self._anchor = wall.offset

    def now(self) -> Now:
        since = BEGINNING_US + self._world.now
        return Now((since + self._anchor) // 1000, (since + self._wall.offset) // 1000)

    def seconds(self) -> float:
        return self._world.now / 1e6


class Wall:
    """How wrong the wall clock is, in microseconds."""

    def __init__(self) -> None:
        self.offset = 0


class Threads:
    """What runs beside the loop of one process."""

    def __init__(self, world: World, process: Actor, disk: SimDisk, cover: Counter[str]) -> None:
        self.world = world
        self.process = process
        self.disk = disk
        self.cover = cover
        self.inline = world.chance(0.15)
        """Whether this process's disk is so fast that nothing ever waits for it."""
        self._usual_us = world.random.choice(((30, 700), (300, 4_000)))
        self.slow_until = 0
        self.slow_us = 0
        self.lanes: list[SimLane] = []

    def lane(self, _name: str) -> "SimLane":
        """A thread of the journal."""
        lane = SimLane(self)
        self.lanes.append(lane)
        return lane

    def latency(self) -> int:
        """Of one call, in microseconds."""
        if self.world.now < self.slow_until:
            return self.world.between(self.slow_us // 4, self.slow_us)
        return self.world.between(*self._usual_us)

    def die(self) -> None:
        """Each thread gets some way through what it is at."""
        disk, world = self.disk, self.world
        for lane in sorted(self.lanes, key=lambda _: world.random.random()):
            if not disk.lost and lane.waiting and world.chance(0.6):
                self.cover["crash with a file call under way"] += 1
                disk.fuse = world.between(0, 5)
                try:
                    while lane.waiting:
                        lane.do_next()
                except PowerLossError:
                    disk.lost = False
                disk.fuse = None
        disk.lost = True


class SimFuture(Future[T]):
    """Whoever waits for it has its thread do what there is to do before it. No locks: nobody else is there."""

    def __init__(self, lane: "SimLane") -> None:
        self._lane = lane
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Future[T]], object]] = []

    def done(self) -> bool:
        return self._done

    def cancelled(self) -> bool:
        return False

    def result(self, timeout: float | None = None) -> T:
        self._lane.finish(self)
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._lane.finish(self)
        return self._error

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        if self._done:
            fn(self)
        else:
            self._callbacks.append(fn)

    def set_result(self, result: T) -> None:
        self._value = result
        self._complete()

    def set_exception(self, exception: BaseException | None) -> None:
        self._error = exception
        self._complete()

    def _complete(self) -> None:
        self._done = True
        for call in self._callbacks:
            call(self)


class SimLane:
    """One thread of the journal: calls are done in their order, each a while after the one before."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self.waiting: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self._busy = False

    def do(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        future: SimFuture[T] = SimFuture(self)
        self.waiting.append((future, call, arguments))
        if self._threads.inline:
            self.finish(future)
        elif not self._busy:
            self._go_on()
        return future

    def close(self) -> None:
        while self.waiting and not self._threads.process.dead:
            self.do_next()

    def finish(self, future: Future[Any]) -> None:
        """Do what is needed for a future to be done."""
        while not future.done():
            if self._threads.disk.lost:
                raise PowerLossError
            self.do_next()

    def do_next(self) -> None:
        future, call, arguments = self.waiting.popleft()
        _complete(future, call, arguments)

    def _go_on(self) -> None:
        self._busy = True
        self._threads.world.after(self._threads.latency(), self._threads.process, self._step)

    def _step(self) -> None:
        self._busy = False
        if self.waiting:
            self.do_next()
        if self.waiting and not self._busy:
            self._go_on()


class SimReader(Executor):
    """The thread that reads messages back: it may be slow, and is done with one load before the next."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._free_at = 0
        self._waiting: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()

    def submit(self, fn: Callable[..., T], /, *args: Any, **_: Any) -> Future[T]:
        future: Future[T] = Future()
        world = self._threads.world
        delay = world.between(50, 2_000) if world.chance(0.9) else world.between(20_000, 400_000)
        self._free_at = max(self._free_at, world.now) + delay
        self._waiting.append((future, fn, args))
        world.at(self._free_at, self._threads.process, self._next)
        self._threads.cover["load"] += 1
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if wait and self._waiting:
            self._next()
        if cancel_futures:
            while self._waiting:
                self._waiting.popleft()[0].cancel()

    def _next(self) -> None:
        if self._waiting:
            _complete(*self._waiting.popleft())


def _complete(future: Future[T], call: Callable[..., T], arguments: tuple[Any, ...]) -> None:
    try:
        result = call(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the asker's
        future.set_exception(error)
    else:
        future.set_result(result)
