"""Threads for plain functions: results go back to the loop in batches, and no thread keeps the process alive.

Not `concurrent.futures`: its threads are joined when the interpreter exits, so one stuck handler would keep a drained
worker from leaving; and each result would wake the loop by itself.
"""

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeAlias

Outcome: TypeAlias = "tuple[object, BaseException | None]"


@dataclass(frozen=True, slots=True)
class _Job:
    run: Callable[[], object]
    answer: "asyncio.Future[Outcome]"


class Threads:
    """As many threads as are needed at once, up to a limit. Used by one loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._done: deque[tuple[_Job, Outcome]] = deque()
        self._lock = threading.Lock()
        self._woken = False
        self._started = 0
        self._busy = 0

    async def call(self, function: Callable[[], object]) -> object:
        """Run a function in a thread, in a copy of this context.

        Raises:
            BaseException: whatever the function raised.
        """
        context = contextvars.copy_context()
        job = _Job(run=lambda: context.run(function), answer=self._loop.create_future())
        self._busy += 1
        if self._busy > self._started and self._started < self._limit:
            self._started += 1
            threading.Thread(target=self._work, name=f"kyogo-{self._started}", daemon=True).start()
        self._jobs.put(job)
        result, error = await job.answer
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Let idle threads end; what runs goes on, and its result is dropped."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            outcome = _outcome(job.run)
            self._report(job, outcome)
            del job, outcome  # not kept alive while waiting

    def _report(self, job: _Job, outcome: Outcome) -> None:
        with self._lock:
            self._done.append((job, outcome))
            wake, self._woken = not self._woken, True
        if wake:
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed: nobody wants the result
                return

    def _deliver(self) -> None:
        with self._lock:
            done, self._done = self._done, deque()
            self._woken = False
        for job, outcome in done:
            self._busy -= 1
            if not job.answer.done():
                job.answer.set_result(outcome)


def _outcome(run: Callable[[], object]) -> Outcome:
    # As a value: a future refuses StopIteration, and SystemExit would end the loop.
    try:
        return run(), None
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the handler's, and decided on elsewhere
        return None, error
