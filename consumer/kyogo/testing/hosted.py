"""The broker's parts put together without a disk, a process or signals; lives in one loop."""

import asyncio
from importlib.metadata import version

from kyogo.testing.clock import MovableClock
from kyogo.testing.record import RecordingJournal
from kyogo_broker.core.shard import CAPABILITIES, ShardConfig
from kyogo_broker.engine import Engine
from kyogo_broker.model.commands import SetPressure
from kyogo_broker.model.stats import ShardStats
from kyogo_broker.recovery import recover
from kyogo_broker.server.identity import Identity
from kyogo_broker.server.limits import Limits
from kyogo_broker.server.server import Server
from kyogo_broker.server.wire import BrokerFigures


class HostedBroker:
    """A broker in this loop."""

    def __init__(self, seed: int) -> None:
        self.journal = RecordingJournal()
        self._clock = MovableClock()
        self._identity = Identity(
            node="testing",
            version=version("kyogo"),
            capabilities=tuple(sorted(CAPABILITIES)),
            durability="MEMORY",
            started_unix_ms=self._clock.now().unix_ms,
        )
        config = ShardConfig(auto_create=True)
        shard, _ = recover(self.journal, config, seed=seed, clock=self._clock)
        self._engine = Engine(shard, self.journal, self._clock)
        self._server = Server(self._engine, self._clock, self._identity, Limits(), self._figures)
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Serve on a free port of this machine; which one."""
        self._running = asyncio.create_task(self._engine.run(), name="kyogo-testing")
        return await self._server.start("127.0.0.1:0")

    async def stop(self) -> None:
        """End everything; what is in memory stays readable."""
        await self._server.stop(0)
        await self._engine.stop()
        if self._running is not None:
            await self._running

    def advance(self, seconds: float) -> None:
        """Move time ahead. To the engine it looks like a stall of its own, which counts as nobody's silence."""
        self._clock.advance(seconds)
        self._engine.submit_now(SetPressure(disk_low=False, memory_high=False))

    def stats(self) -> ShardStats:
        """As of the last turn."""
        return self._engine.shard_stats()

    def _figures(self) -> BrokerFigures:
        return BrokerFigures(
            node=self._identity.node,
            version=self._identity.version,
            durability=self._identity.durability,
            started_unix_ms=self._identity.started_unix_ms,
            now_unix_ms=self._clock.now().unix_ms,
            publish_streams=self._server.publish_streams(),
            journal_records=len(self.journal.payloads),
            journal_written_bytes=0,
            journal_bytes=0,
            disk_free_bytes=0,
            disk_free_min_bytes=0,
            rss_bytes=0,
            memory_limit_bytes=0,
            commit_p50_ms=0.0,
            commit_p99_ms=0.0,
            stall_max_ms=0.0,
            draining=False,
        )
