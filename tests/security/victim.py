"""The broker under attack, the client beside the attack, and what both of them felt."""

import asyncio
import gc
import json
import resource
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil

from tests.security.bystander import QUEUE
from tests.security.sizes import SIZES
from tests.support.processes import Broker, Process, Processes, until

SERVED_MIN = 3
"""Messages of the bystander that go all the way while the attack goes on."""
STARVING_SECONDS = 30.0
"""Without them: generous, since tests share their machine. A broker that defends itself takes a second."""
RECOVERY_SECONDS = 30.0
SAMPLE_SECONDS = 0.02
MIB = 1 << 20
SPARE_FDS = 8
"""A checkpoint, a scrape: the broker's own files come and go by so many."""
SPARE_TASKS = 3
"""The same, with tasks."""
RSS_KEPT_MIB = 256
"""What a process may keep of freed memory after all attacks: 64 MiB by its own settings, and what lies between the
blocks that live on, in the heap of each of gRPC's threads."""
LOG_BYTES_MAX = 256 << 10
"""Of one attack, however long: beyond the first ones, lines of a kind are only counted."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a broker holds, seen from outside."""

    rss_mib: float
    fds: float
    """Those of the journal's segments aside."""
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
        self._ended = False

    def instants(self) -> list[float]:
        """When it was served, so far."""
        with self._notes.open() as notes:
            notes.seek(self._read)
            while (line := notes.readline()).endswith("\n"):
                self._read = notes.tell()
                assert line[0].isdigit(), f"the bystander was not served: {line}"
                self._instants.append(float(line))
        assert self._ended or self._process.running, f"the bystander ended: {self._process.log()[-2000:]}"
        return self._instants

    def end(self) -> None:
        """Kill it."""
        self._ended = True
        self._process.kill()


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
        return lasted < SIZES.attack_seconds or served < SERVED_MIN

    async def run(self, *floods: Coroutine[Any, Any, object]) -> None:
        """Let floods that never end go on for as long as the attack does.

        Raises:
            Exception: one of them ended by itself.
        """
        tasks = [asyncio.create_task(flood) for flood in floods]
        try:
            while self.goes_on() and not any(task.done() for task in tasks):
                await asyncio.wait(tasks, timeout=SAMPLE_SECONDS)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, asyncio.CancelledError):
                continue
            raise AssertionError(f"a flood ended: {error!r}") from (error if isinstance(error, Exception) else None)

    def judge(self, ended: float) -> None:
        """Look at the gaps; those at the edges belong to it."""
        instants = self.bystander.instants()
        first = max((n for n, at in enumerate(instants) if at <= self.began), default=0)
        last = next(n for n, at in enumerate(instants) if at > ended)
        during = instants[first : last + 1]
        gaps = sorted(1000 * (after - before) for before, after in pairwise(during))
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
        self._judged = 0
        """Bytes of the log."""
        self._rest: Figures | None = None
        """What it holds when only the bystander is there."""

    @property
    def address(self) -> str:
        return self.broker.address

    @property
    def http(self) -> str:
        return self.broker.http

    @property
    def data(self) -> Path:
        return self.broker._data

    def judge_log(self) -> None:
        """See that what was logged since the last time is little, one event a line, and none of them a fault."""
        octets = self.broker.log().encode()
        fresh = octets[self._judged :]
        self._judged = len(octets)
        assert len(fresh) <= LOG_BYTES_MAX, f"{len(fresh)} B of log"
        for line in fresh.decode().splitlines():
            event = json.loads(line)
            assert event["level"] in ("info", "warning"), line
            assert line.isprintable(), line

    async def figures(self) -> Figures:
        metrics = await asyncio.to_thread(self.metrics)
        return Figures(
            self.process.memory_info().rss / MIB,
            self.process.num_fds() - metrics["kyogo_journal_segments"],
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
        if self._rest is None:
            self._rest = before
        self.judge_log()
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
            await until(lambda: not attack.goes_on(), "the bystander is served during it", STARVING_SECONDS + 1)
        finally:
            watching.cancel()
        # What came in last may still hold up the next message: that gap belongs to the attack.
        ended = time.monotonic()
        await until(lambda: self.bystander.instants()[-1] > ended, "the bystander is served after it", RECOVERY_SECONDS)
        attack.judge(ended)
        attack.rss_mib = max(peak, self.process.memory_info().rss / MIB) - before.rss_mib
        REPORT.append(attack)
        assert attack.rss_mib <= rss_mib, f"{name}: grew by {attack.rss_mib:.0f} MiB"
        await self.recovered()
        self.judge_log()

    async def recovered(self) -> None:
        """Wait until connections, streams, calls, consumers, tasks and memory are what they were before all attacks."""
        rest = self._rest
        assert rest is not None, "nothing was attacked yet"
        deadline = time.monotonic() + RECOVERY_SECONDS
        while True:
            now = await self.figures()
            if (
                (now.streams, now.calls, now.consumers) == (rest.streams, rest.calls, rest.consumers)
                and now.fds <= rest.fds + SPARE_FDS
                and now.tasks <= rest.tasks + SPARE_TASKS
                and now.rss_mib <= rest.rss_mib + RSS_KEPT_MIB
            ):
                return
            gc.collect()  # Calls of ours that are over keep their connections open, until the last of them is gone.
            assert time.monotonic() < deadline, f"before: {rest}, still: {now}"
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        """After all attacks: nothing of the bystander's was lost or is left over, and a restart knows it all.

        What is on the disk after them is read back, and the process ended as it was asked to.
        """
        self.bystander.end()
        settled = len(self.bystander.instants())
        counts: dict[str, float] = {}

        def at_rest() -> bool:
            counts.update(_of_bystander(self.metrics()))
            return not counts["in_flight"]

        deadline = time.monotonic() + RECOVERY_SECONDS
        while not await asyncio.to_thread(at_rest):
            assert time.monotonic() < deadline, counts
            await asyncio.sleep(0.05)
        assert settled <= counts["acked"] <= counts["accepted"] == counts["acked"] + counts["ready"], counts
        assert await self.broker.stop() == 0
        self.judge_log()
        await self.broker.start()
        assert _of_bystander(await asyncio.to_thread(self.metrics)) == counts
        assert await self.broker.stop() == 0


def _of_bystander(metrics: dict[str, float]) -> dict[str, float]:
    label = f'queue="{QUEUE}"'
    states = {state: metrics[f'kyogo_queue_messages{{{label},state="{state}"}}'] for state in ("ready", "in_flight")}
    return {
        **states,
        "accepted": metrics[f"kyogo_messages_accepted_total{{{label}}}"],
        "acked": metrics[f'kyogo_messages_finished_total{{{label},reason="acked"}}'],
    }


async def attackable(children: Processes, name: str, *options: str) -> Victim:
    """A running broker with a client that is being served."""
    broker = await children.broker("--log-format", "json", *options, name=name)
    notes = children.directory / f"{name}.bystander"
    process = children.python(f"{name}-bystander", "-m", "tests.security.bystander", broker.address, str(notes))
    await until(lambda: notes.exists() and notes.stat().st_size, "the bystander is served", STARVING_SECONDS)
    return Victim(broker, Bystander(process, notes))


def raise_file_limit() -> int:
    """Let this process open as many files as it may; how many that is."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    return 1 << 20 if allowed == resource.RLIM_INFINITY else allowed
