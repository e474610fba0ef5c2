"""Recording workers in processes of their own, and what they recorded together."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kyogo.admin import QueueStats
from tests.support.processes import START_SECONDS, Broker, Process, Processes, until
from tests.support.queues import stats_when


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the record, see `recording_worker`."""

    op: str
    worker: str
    at: float
    offset: int
    fence: int
    attempt: int
    losses: int
    body: Any


class Workers:
    """The workers of one queue."""

    def __init__(self, children: Processes, broker: Broker, queue: str) -> None:
        self._children = children
        self._broker = broker
        self._queue = queue
        self._record = children.directory / f"{queue}.record.jsonl"
        self.by_name: dict[str, Process] = {}

    async def start(self, *names: str, concurrency: int = 4) -> None:
        """Start workers, and wait until the broker counts them in."""
        for name in names:
            self.by_name[name] = self._children.python(
                name,
                *("-m", "tests.support.recording_worker", self._queue, "--name", name),
                *("--record", str(self._record), "--concurrency", str(concurrency)),
                KYOGO_URL=self._broker.address,
            )
        await self.attached(sum(process.running for process in self.by_name.values()))

    async def attached(self, count: int) -> None:
        """Wait until so many consumers are on the queue."""

        def there(stats: QueueStats) -> bool:
            for process in self.by_name.values():
                assert process.exit_code in {None, 0, -9}, f"{process.name} ended:\n{process.log()}"
            return stats.consumers == count

        await stats_when(self._broker.address, self._queue, there, f"{count} consumers", START_SECONDS)

    def kill(self, name: str) -> None:
        """End a worker with kill -9."""
        self.by_name[name].kill()

    def entries(self, op: str) -> list[Entry]:
        """What was recorded so far: "begin" or "done"."""
        text = self._record.read_text() if self._record.exists() else ""
        read = (Entry(**json.loads(line)) for line in text.splitlines())
        return [entry for entry in read if entry.op == op]

    async def begun(self, count: int, seconds: float = 20.0) -> list[Entry]:
        """The first so many beginnings, once they are there."""
        await until(lambda: len(self.entries("begin")) >= count, f"{count} handlers have begun", seconds)
        return self.entries("begin")

    async def done(self, offsets: Iterable[int], seconds: float = 30.0) -> list[Entry]:
        """All that is done, once all these offsets are."""
        wanted = set(offsets)

        def missing() -> int:
            return len(wanted - {entry.offset for entry in self.entries("done")})

        await until(lambda: not missing(), f"all {len(wanted)} messages are done", seconds)
        return self.entries("done")
