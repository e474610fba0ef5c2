"""Unary calls: many callers share one port of the engine, and tell their answers apart by a tag."""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from kyogo_broker.engine import Engine
from kyogo_broker.model.commands import Command
from kyogo_broker.model.effects import AdminDone, Effect, PublishDone
from kyogo_broker.model.errors import Refusal, RefusedError
from kyogo_broker.server.stream import StreamClosedError

_Answer = PublishDone | AdminDone
_A = TypeVar("_A", PublishDone, AdminDone)


class Calls:
    """One port, and who waits on it. A future a call, never a future a message."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._port = engine.open_port(self)
        self._waiting: dict[int, asyncio.Future[_Answer]] = {}
        self._tags = count(1)

    async def ask(self, kind: type[_A], command: Callable[[int, int], Command], *, size: int = 0) -> _A:
        """Submit what `command(port, tag)` makes and wait for its answer.

        Raises:
            RefusedError: the answer is a refusal.
            StreamClosedError: the broker stopped first; what was asked for may be done or not.
        """
        tag = next(self._tags)
        asked = command(self._port, tag)
        waiter: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting[tag] = waiter
        try:
            await self._engine.submit(asked, port=self._port, size=size)
            done = await waiter
        finally:
            del self._waiting[tag]
        assert isinstance(done, kind), f"{type(done).__name__} is no answer to {type(asked).__name__}"
        if done.refusal is not None:
            raise RefusedError(done.refusal)
        return done

    def take(self, effect: Effect) -> None:
        """Accept an answer; its caller may have given up."""
        assert isinstance(effect, PublishDone | AdminDone), f"{type(effect).__name__} answers no call"
        waiter = self._waiting.get(effect.tag)
        if waiter is not None and not waiter.done():
            waiter.set_result(effect)

    def close(self, refusal: Refusal) -> None:
        """Give the port back; who still waits learns that the answer will not come. Idempotent."""
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(StreamClosedError(refusal))
        self._engine.close_port(self._port)
