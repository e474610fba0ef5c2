"""The broker under attack, the client beside the attack, and what both of them felt."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.request import urlopen

import psutil

from tests.support.processes import Broker, Process, until

SECONDS = float(os.environ.get("KYOGO_SECURITY_SECONDS", "1.5"))
"""How long a flood goes on; more finds more."""
RECOVERY_SECONDS = 20.0
SAMPLE_SECONDS = 0.02
MIB = 1 << 20
SPARE_FDS = 8
"""A segment, a checkpoint, a scrape: the broker's own files come and go by so many."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a broker holds, seen from outside."""

    rss: int
    fds: int
    streams: float
    calls: float
    consumers: float


@dataclass(slots=True)
class Felt:
    """One attack: what the broker and its other client felt."""

    name: str
    served: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    worst_ms: float = 0.0
    rss_mib: float = 0.0
    """Growth at the worst moment."""


REPORT: list[Felt] = []
"""Of the whole run; shown at its end."""


@dataclass(slots=True)
class Victim:
    """A broker process and its bystander."""

    broker: Broker
    bystander: Process
    process: psutil.Process = field(init=False)

    def __post_init__(self) -> None:
        self.process = psutil.Process(self.broker.pid)

    @property
    def address(self) -> str:
        return self.broker.address

    @property
    def http(self) -> str:
        return self.broker.http

    async def figures(self) -> Figures:
        metrics = await asyncio.to_thread(self.metrics)
        return Figures(
            self.process.memory_info().rss,
            self.process.num_fds(),
            metrics["kyogo_streams"],
            metrics["kyogo_calls"],
            sum(value for name, value in metrics.items() if name.startswith("kyogo_consumers")),
        )

    def metrics(self) -> dict[str, float]:
        with urlopen(f"http://{self.http}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def instants(self) -> list[float]:
        """When the bystander was served."""
        lines = [json.loads(line) for line in self.bystander.log().splitlines() if line.startswith("{")]
        assert all("served" in line for line in lines), f"the bystander was not served: {lines[-1]}"
        assert self.bystander.running, f"the bystander ended: {self.bystander.log()[-2000:]}"
        return [line["served"] for line in lines]

    @asynccontextmanager
    async def attacked(self, name: str, *, rss_mib: float, served: int = 5) -> AsyncIterator[Felt]:
        """An attack; afterwards the bystander was served all along, memory was bounded, and all of it is back.

        Args:
            name: for the report.
            rss_mib: by how much the broker may grow at most.
            served: how many messages of the bystander must have gone all the way at least.
        """
        before = await self.figures()
        peak = before.rss
        felt = Felt(name)

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, self.process.memory_info().rss)
                await asyncio.sleep(SAMPLE_SECONDS)

        watching = asyncio.create_task(watch())
        began = time.monotonic()
        try:
            yield felt
        finally:
            watching.cancel()
        # What came in last may still hold up the next message: that gap belongs to the attack.
        ended = time.monotonic()
        await until(lambda: self.instants()[-1] > ended, "the bystander is served after it", RECOVERY_SECONDS)
        peak = max(peak, self.process.memory_info().rss)
        self._judge(felt, began, ended)
        felt.rss_mib = (peak - before.rss) / MIB
        REPORT.append(felt)
        assert felt.served >= served, felt
        assert felt.rss_mib <= rss_mib, felt
        await self.recovered(before)

    def _judge(self, felt: Felt, began: float, ended: float) -> None:
        instants = self.instants()
        first = max((n for n, at in enumerate(instants) if at <= began), default=0)
        last = next(n for n, at in enumerate(instants) if at > ended)
        during = instants[first : last + 1]
        gaps = sorted(1000 * (after - before) for before, after in zip(during, during[1:], strict=False))
        felt.served = sum(began <= at <= ended for at in during)
        felt.p50_ms, felt.p99_ms = gaps[len(gaps) // 2], gaps[int(0.99 * (len(gaps) - 1))]
        felt.worst_ms = gaps[-1]

    async def recovered(self, before: Figures) -> None:
        """Wait until connections, streams, calls and consumers are what they were."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while True:
            now = await self.figures()
            back = (now.streams, now.calls, now.consumers) == (before.streams, before.calls, before.consumers)
            if back and now.fds <= before.fds + SPARE_FDS:
                return
            assert time.monotonic() < deadline, f"before: {before}, still: {now}"
            await asyncio.sleep(0.05)
