"""Metrics for all who ask meanwhile: with ten thousand queues they take 200 ms, and asking takes one line.

The snapshot is taken on the loop, at most for a tenth of its time; printing is done in a thread, one at a time. Who
asks while one is being made gets the next, which is newer than his question.
"""

import asyncio
from collections.abc import Callable

from prometheus_client.exposition import choose_encoder

from kyogo_broker.ops.metrics import Snapshot, render

REST = 9
"""Times as long as making one took, until the next."""


class Scrapes:
    """What `/metrics` answers."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._next: dict[str, asyncio.Task[tuple[bytes, str]]] = {}
        """By content type: there are few, whatever a client accepts."""
        self._turn = asyncio.Lock()
        self._not_before = 0.0

    async def get(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type."""
        _, kind = choose_encoder(accept)
        if kind not in self._next:
            self._next[kind] = asyncio.create_task(self._made(kind, accept))
        return await asyncio.shield(self._next[kind])

    async def _made(self, kind: str, accept: str) -> tuple[bytes, str]:
        loop = asyncio.get_running_loop()
        async with self._turn:
            await asyncio.sleep(self._not_before - loop.time())
            del self._next[kind]
            began = loop.time()
            try:
                return await asyncio.to_thread(render, self._snapshot(), accept)
            finally:
                ended = loop.time()
                self._not_before = ended + REST * (ended - began)
