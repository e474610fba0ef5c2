"""Virtual time: one heap of what is to happen, in whole microseconds, and an asyncio loop on top of it.

Everything belongs to an *actor*. What belongs to a dead one never happens, what belongs to a frozen one happens when it
thaws, in its order: so a process can be killed or stopped between any two callbacks while its peers go on.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from heapq import heappop, heappush
from random import Random
from typing import Any

EVENTS_AT_ONCE_MAX = 50_000
"""Without time passing: more than that is a loop that waits for nothing."""


class ViolationError(Exception):
    """The history breaks a promise; the text begins with which."""


class Actor:
    """Somebody to whom things happen: a process or a peer."""

    def __init__(self) -> None:
        self.dead = False
        self.frozen_until = 0


class World:
    """The only source of time and chance of a history."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0
        """Microseconds since the beginning."""
        self.stopped = False
        self.events = 0
        self._heap: list[tuple[int, int, Actor, Callable[..., object], tuple[Any, ...]]] = []
        self._sequence = 0
        self._at_once = 0

    def at(self, when: int, actor: Actor, call: Callable[..., object], *arguments: Any) -> None:
        """Have something happen to an actor at an instant."""
        self._sequence += 1
        heappush(self._heap, (max(self.now, when), self._sequence, actor, call, arguments))

    def after(self, delay: int, actor: Actor, call: Callable[..., object], *arguments: Any) -> None:
        """The same, so many microseconds from now."""
        self._sequence += 1
        heappush(self._heap, (self.now + delay, self._sequence, actor, call, arguments))

    def run(self, until: int) -> None:
        """Let things happen until an instant, or until somebody sets `stopped`."""
        heap = self._heap
        while heap and not self.stopped:
            entry = heappop(heap)
            when, sequence, actor, call, arguments = entry
            if actor.dead:
                continue
            if actor.frozen_until > when:
                heappush(heap, (actor.frozen_until, sequence, actor, call, arguments))
                continue
            if when > self.now:
                if when > until:
                    heappush(heap, entry)
                    break
                self.now = when
                self._at_once = 0
            else:
                self._at_once += 1
                if self._at_once > EVENTS_AT_ONCE_MAX:
                    raise ViolationError(f"busy: {EVENTS_AT_ONCE_MAX} events in no time, the last one {call}")
            self.events += 1
            call(*arguments)

    def chance(self, probability: float) -> bool:
        """Whether something happens that happens so often."""
        return self.random.random() < probability

    def between(self, low: int, high: int) -> int:
        """A number, both ends included."""
        return low + int(self.random.random() * (high - low + 1))


class _Timer:
    """What `call_later` returns: something to cancel."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], object] | None) -> None:
        self.call = call

    def cancel(self) -> None:
        self.call = None

    def fire(self) -> None:
        if self.call is not None:
            self.call()


class SimLoop(asyncio.AbstractEventLoop):
    """The loop of one process. Just what tasks, futures and events need; nothing here can wait for the real world."""

    def __init__(self, world: World, process: Actor) -> None:
        self._world = world
        self._process = process

    def time(self) -> float:
        return self._world.now / 1e6

    def call_soon(self, callback: Any, *arguments: Any, context: Context | None = None) -> Any:
        self._world.after(0, self._process, callback, *arguments)

    def call_soon_threadsafe(self, callback: Any, *arguments: Any, context: Context | None = None) -> Any:
        self._world.after(0, self._process, callback, *arguments)

    def call_later(self, delay: float, callback: Any, *arguments: Any, context: Context | None = None) -> Any:
        timer = _Timer(lambda: callback(*arguments))
        self._world.after(max(0, round(delay * 1e6)), self._process, timer.fire)
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name)

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._process.dead:
            raise ViolationError(f"the loop's exception handler was called: {context}")
