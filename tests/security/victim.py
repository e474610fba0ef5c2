"""The broker under attack, the client beside the attack, and what both of them felt."""

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import psutil

from tests.support.processes import START_SECONDS, Broker, Process, Processes, until

SECONDS = float(os.environ.get("KYOGO_SECURITY_SECONDS", "1"))
"""How long each flood goes on, at least; more finds more."""
SERVED_MIN = 5
"""Messages of the bystander that go all the way while the attack goes on."""
STARVING_SECONDS = 30.0
"""Without them: generous, since tests share their machine. A broker that defends itself takes a second."""
RECOVERY_SECONDS = 20.0
SAMPLE_SECONDS = 0.02
MIB = 1 << 20
SPARE_FDS = 8
"""A segment, a checkpoint, a scrape: the broker's own files come and go by so many."""
SPARE_TASKS = 3
"""The same, with tasks."""
RSS_KEPT_MIB = 96
"""What freed memory a process may keep: 64 MiB by its own settings, and what lies between the blocks."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a broker holds, seen from outside."""

    rss_mib: float
    fds: int
    streams: float
    calls: float
    consumers: float
    tasks: float


class Bystander:
    """The client beside the attack, read from its notes."""

    def __init__(self, process: Process, notes: Path) -> None:
        self._process = process
        self._notes = notes
        self._read = 0
        self._instants: list[float] = []

    def instants(self) -> list[float]:
        """When it was served, so far."""
        with self._notes.open() as notes:
            notes.seek(self._read)
            while (line := notes.readline()).endswith("\n"):
                self._read = notes.tell()
                assert line[0].isdigit(), f"the bystander was not served: {line}"
                self._instants.append(float(line))
        assert self._process.running, f"the bystander ended: {self._process.log()[-2000:]}"
        return self._instants


@dataclass(slots=True)
class Attack:
    """One attack, and what it did to the broker and its other client."""

    name: str
    bystander: Bystander
    began: float = field(default_factory=time.monotonic)
    served: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    worst_ms: float = 0.0
    rss_mib: float = 0.0
    """Growth at the worst moment."""

    def goes_on(self) -> bool:
        """Whether it has not lasted, or the bystander not been served, long enough.

        Raises:
            AssertionError: the bystander starves.
        """
        lasted = time.monotonic() - self.began
        served = sum(at > self.began for at in self.bystander.instants()[-SERVED_MIN:])
        assert served == SERVED_MIN or lasted < STARVING_SECONDS, f"{served} messages served in {lasted:.0f} s"
        return lasted < SECONDS or served < SERVED_MIN

    def judge(self, ended: float) -> None:
        """Look at the gaps; those at the edges belong to it."""
        instants = self.bystander.instants()
        first = max((n for n, at in enumerate(instants) if at <= self.began), default=0)
        last = next(n for n, at in enumerate(instants) if at > ended)
        during = instants[first : last + 1]
        gaps = sorted(1000 * (after - before) for before, after in zip(during, during[1:], strict=False))
        self.served = sum(self.began <= at <= ended for at in during)
        self.p50_ms, self.p99_ms = gaps[len(gaps) // 2], gaps[int(0.99 * (len(gaps) - 1))]
        self.worst_ms = gaps[-1]


REPORT: list[Attack] = []
"""Of the whole run; shown at its end."""


class Victim:
    """A broker process and its bystander."""

    def __init__(self, broker: Broker, bystander: Bystander) -> None:
        self.broker = broker
        self.bystander = bystander
        self.process = psutil.Process(broker.pid)

    @property
    def address(self) -> str:
        return self.broker.address

    @property
    def http(self) -> str:
        return self.broker.http

    async def figures(self) -> Figures:
        metrics = await asyncio.to_thread(self.metrics)
        return Figures(
            self.process.memory_info().rss / MIB,
            self.process.num_fds(),
            metrics["kyogo_streams"],
            metrics["kyogo_calls"],
            sum(value for name, value in metrics.items() if name.startswith("kyogo_consumers")),
            metrics["kyogo_loop_tasks"],
        )

    def metrics(self) -> dict[str, float]:
        with urlopen(f"http://{self.http}/metrics", timeout=RECOVERY_SECONDS) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    @asynccontextmanager
    async def attacked(self, name: str, *, rss_mib: float = 160) -> AsyncIterator[Attack]:
        """An attack; afterwards the bystander was served all along, memory was bounded, and all of it is back.

        Args:
            name: for the report.
            rss_mib: by how much the broker may grow at most.
        """
        before = await self.figures()
        peak = before.rss_mib

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, self.process.memory_info().rss / MIB)
                await asyncio.sleep(SAMPLE_SECONDS)

        watching = asyncio.create_task(watch())
        attack = Attack(name, self.bystander)
        try:
            yield attack
            while attack.goes_on():
                await asyncio.sleep(SAMPLE_SECONDS)
        finally:
            watching.cancel()
        # What came in last may still hold up the next message: that gap belongs to the attack.
        ended = time.monotonic()
        await until(lambda: self.bystander.instants()[-1] > ended, "the bystander is served after it", RECOVERY_SECONDS)
        attack.judge(ended)
        attack.rss_mib = max(peak, self.process.memory_info().rss / MIB) - before.rss_mib
        REPORT.append(attack)
        assert attack.rss_mib <= rss_mib, f"{name}: grew by {attack.rss_mib:.0f} MiB"
        await self.recovered(before)

    async def recovered(self, before: Figures) -> None:
        """Wait until connections, streams, calls, consumers, tasks and memory are what they were."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while True:
            now = await self.figures()
            if (
                (now.streams, now.calls, now.consumers) == (before.streams, before.calls, before.consumers)
                and now.fds <= before.fds + SPARE_FDS
                and now.tasks <= before.tasks + SPARE_TASKS
                and now.rss_mib <= before.rss_mib + RSS_KEPT_MIB
            ):
                return
            assert time.monotonic() < deadline, f"before: {before}, still: {now}"
            await asyncio.sleep(0.05)


async def attackable(children: Processes, name: str, *options: str) -> Victim:
    """A running broker with a client that is being served."""
    broker = await children.broker("--log-format", "json", *options, name=name)
    notes = children.directory / f"{name}.bystander"
    process = children.python(f"{name}-bystander", "-m", "tests.security.bystander", broker.address, str(notes))
    await until(lambda: notes.exists() and notes.stat().st_size, "the bystander is served", START_SECONDS)
    return Victim(broker, Bystander(process, notes))


def raise_file_limit() -> int:
    """Let this process open as many files as it may; how many that is."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    return 1 << 20 if allowed == resource.RLIM_INFINITY else allowed
