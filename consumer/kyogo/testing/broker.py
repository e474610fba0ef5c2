"""A broker for tests: the real engine and server with a journal in memory, on a loopback port, in a thread.

A thread of its own, so that blocking and asyncio tests use it alike, and so that a test that blocks its loop finds
out what that does to a worker.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

from kyogo import sync
from kyogo.admin import Client
from kyogo.admin.settings import QueueSettings
from kyogo.codec import Codecs
from kyogo.errors import BrokerError
from kyogo.outgoing import PublishOptions
from kyogo.worker import Worker

try:
    from kyogo.testing.hosted import HostedBroker
    from kyogo.testing.record import PublishedMessage, messages
except ImportError as error:
    raise ImportError(
        f"kyogo.testing needs the broker itself: pip install 'kyogo[broker]' (missing: {error.name})"
    ) from error

__all__ = ["InMemoryBroker", "PublishedMessage"]

_DLQ: Final = ".dlq"
_LOOK_SECONDS: Final = 0.005
"""How often `run_until_idle` looks."""
_SKIP_SECONDS: Final = 300.0
"""How far it moves time ahead at once: the longest backoff of the default retry policy."""

_T = TypeVar("_T")


class InMemoryBroker:
    """A running broker; use it in `with`, or call `close`. Queues are made by publishing, and by `run_until_idle`."""

    def __init__(self, *, seed: int = 0) -> None:
        """Start it; it is ready on return.

        Args:
            seed: for all chance in it (jitter, ties), so that a test does the same each time.
        """
        self.codecs = Codecs()
        """Register a codec here to have `value` decoded by it."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kyogo-testing", daemon=True)
        self._thread.start()
        self._hosted = self._call(lambda: HostedBroker(seed))
        self.url = f"kyogo://127.0.0.1:{self._await(self._hosted.start())}"
        """What KYOGO_URL is to be."""
        self._publisher = sync.Publisher(self.url)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._publisher.close()
        self._await(self._hosted.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # --- arrange ---

    def publish(self, queue: str, body: object, **options: Unpack[PublishOptions]) -> int:
        """Publish one message and wait until it is stored; see `kyogo.Publisher.publish`."""
        return self._publisher.publish(queue, body, **options)

    def create_queue(self, queue: str, settings: QueueSettings | None = None) -> None:
        """Make a queue, with settings of its own if it is new.

        Raises:
            BrokerError: `QUEUE_EXISTS` with other settings, `SETTINGS_INVALID`.
        """
        self._await(self._create(queue, settings))

    def advance(self, seconds: float) -> None:
        """Move the broker's time ahead: delays, backoffs, visibility timeouts and expiries pass at once."""
        self._call(lambda: self._hosted.advance(seconds))

    # --- act ---

    async def run_until_idle(self, worker: Worker, *, timeout: float = 10.0, skip_delays: bool = False) -> None:
        """Run a worker against this broker until nothing is left for it to do, then drain it.

        What waits for a delay or a backoff does not count, unless time is moved ahead for it. Queues that the worker
        handles and that do not exist are made. From a blocking test: `asyncio.run(broker.run_until_idle(app))`.

        Args:
            worker: with handlers; not running.
            timeout: seconds of real time until it has to be idle.
            skip_delays: move time ahead until nothing waits for it any more: every retry happens.

        Raises:
            TimeoutError: it did not become idle; the text says what is left.
            KyogoError: the worker ended by itself.
        """
        for queue in worker.queues:
            await asyncio.to_thread(self._ensure, queue)
        before, worker.settings = worker.settings, replace(worker.settings, url=self.url)
        task = asyncio.create_task(worker.serve())
        try:
            async with asyncio.timeout(timeout):
                await self._until_idle(worker, task, skip_delays=skip_delays)
        except TimeoutError as error:
            raise TimeoutError(f"not idle within {timeout} s: {await self._left(worker)}") from error
        finally:
            worker.drain(grace=1.0)
            worker.settings = before
            await task

    # --- assert ---

    def published(self, queue: str) -> list[PublishedMessage]:
        """Everything that was ever accepted in a queue, handled or not, by whomever it was published."""
        return messages(list(self._hosted.journal.payloads), queue, self.codecs)

    def dead(self, queue: str) -> list[PublishedMessage]:
        """The queue's dead letters; `dead_letter` says why."""
        return self.published(queue + _DLQ)

    # --- inside ---

    def _ensure(self, queue: str) -> None:
        try:
            self.create_queue(queue)
        except BrokerError as error:
            if error.code != "QUEUE_EXISTS":
                raise

    async def _create(self, queue: str, settings: QueueSettings | None) -> None:
        async with Client(self.url) as client:
            await client.create_queue(queue, settings)

    async def _until_idle(self, worker: Worker, task: asyncio.Task[None], *, skip_delays: bool) -> None:
        while not await self._is_idle(worker, skip_delays=skip_delays):
            done, _ = await asyncio.wait({task}, timeout=_LOOK_SECONDS)
            if done:
                return

    async def _is_idle(self, worker: Worker, *, skip_delays: bool) -> bool:
        seen = worker.stats()
        queues = await self._queues(worker)
        if not seen.attached or seen.running or seen.unanswered or seen.buffered > seen.parked:
            return False
        if any(q.ready for q in queues) or sum(q.in_flight for q in queues) > seen.parked:
            return False
        if skip_delays and any(q.delayed for q in queues):
            self.advance(_SKIP_SECONDS)
            return False
        return True

    async def _left(self, worker: Worker) -> str:
        queues = await self._queues(worker)
        lines = [f"{q.name}: {q.ready} ready, {q.in_flight} in flight, {q.delayed} delayed" for q in queues]
        return "; ".join([*lines, f"{worker.stats().running} handlers run"])

    async def _queues(self, worker: Worker) -> list[Any]:
        names = set(worker.queues)
        stats = await asyncio.to_thread(self._call, self._hosted.stats)
        return [queue for queue in stats.queues if queue.name in names]

    def _call(self, function: Callable[[], _T]) -> _T:
        """In the broker's thread."""

        async def call() -> _T:
            return function()

        return self._await(call())

    def _await(self, waiting: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(waiting, self._loop).result()
