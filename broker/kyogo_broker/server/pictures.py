"""Figures of everything, made once for all who ask meanwhile.

With ten thousand queues a picture of all of them takes 100 ms of the loop, and asking for it takes twenty bytes. So it
is made at most for a tenth of the time; whoever asks in between waits for the next one, which is newer than his
question.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

REST = 9
"""Times as long as making one took, until the next."""

_T = TypeVar("_T")


class Pictures(Generic[_T]):
    """Of one kind."""

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        self._next: asyncio.Task[_T] | None = None
        self._not_before = 0.0

    async def get(self) -> _T:
        """One that is newer than this call."""
        if self._next is None:
            self._next = asyncio.create_task(self._made())
        return await asyncio.shield(self._next)

    async def _made(self) -> _T:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._not_before - loop.time())
        self._next = None
        began = loop.time()
        try:
            return self._make()
        finally:
            ended = loop.time()
            self._not_before = ended + REST * (ended - began)
