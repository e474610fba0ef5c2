"""The composition root: what a broker is made of, in which order it starts and stops.

    start   journal, recovery -> engine -> HTTP port (not ready yet) -> gRPC port -> ready file, banner
    stop    health and readiness say no -> `Drain`: consumers are told, nothing is delivered any more
            -> settlements are taken until nothing is in flight, or the grace is over
            -> streams and calls end -> HTTP port -> engine: last turns, checkpoint, journal closed

A second signal ends the wait at once. A failed append ends everything at once: what was not durable was not answered.
"""

import asyncio
import json
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path

import structlog

from kyogo_broker.clock import Clock, fresh_seed
from kyogo_broker.config import Config
from kyogo_broker.core.shard import CAPABILITIES
from kyogo_broker.engine import Engine
from kyogo_broker.journal.base import Journal
from kyogo_broker.journal.memory import MemoryJournal
from kyogo_broker.journal.segments import SegmentJournal, SegmentSettings
from kyogo_broker.model.commands import Drain
from kyogo_broker.model.errors import BrokerStopError
from kyogo_broker.ops.logs import NoticeLog, configure_logs
from kyogo_broker.ops.metrics import Snapshot
from kyogo_broker.ops.process import Process, settle_garbage, tune_memory
from kyogo_broker.ops.recent import SAMPLE_SECONDS, RecentFigures
from kyogo_broker.ops.web import Web
from kyogo_broker.recovery import Recovery, recover
from kyogo_broker.server.identity import Identity
from kyogo_broker.server.server import Server
from kyogo_broker.server.wire import BrokerFigures

EXIT_CANNOT_START = 1
EXIT_STOPPED_ITSELF = 3
"""The broker could not go on safely; 2 is for wrong settings."""
DRAIN_LOOK_SECONDS = 0.05
"""How often a stop looks whether anything is still in flight."""
CALLS_GRACE_SECONDS = 1.0
"""For calls under way, after the streams were ended."""

_log = structlog.stdlib.get_logger("kyogo.broker")


def serve(config: Config) -> int:
    """Run a broker until it is told to stop; returns the process's exit code."""
    people = configure_logs(config.log)
    tune_memory()
    try:
        app = App(config, people=people)
    except BrokerStopError as error:
        return _cannot_start(error, people=people)
    return asyncio.run(app.run())


class App:
    """One broker, from its settings to its end."""

    def __init__(self, config: Config, *, people: bool = False) -> None:
        """Open and recover the journal; blocking, and before any port is open.

        Args:
            config: checked.
            people: whether somebody reads along on a terminal.

        Raises:
            BrokerStopError: the data directory is in use, damaged, or cannot be written.
        """
        self._config = config
        self._people = people
        self._clock = Clock()
        self._process = Process(config.memory_limit_bytes)
        self._recent = RecentFigures()
        self._journal = _journal(config)
        shard, self._recovery = recover(self._journal, config.shard, seed=fresh_seed(), clock=self._clock)
        self._identity = Identity(
            node=config.node,
            version=version("kyogo"),
            capabilities=tuple(sorted(CAPABILITIES)),
            durability=self._journal.durability,
            started_unix_ms=self._clock.now().unix_ms,
        )
        self._engine = Engine(
            shard,
            self._journal,
            self._clock,
            on_notice=NoticeLog(),
            memory_high=self._process.memory_high,
        )
        self._not_ready = "starting"
        self._signals = 0
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    async def run(self) -> int:
        """Serve until a signal or a failure."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        engine = asyncio.create_task(self._engine.run())
        server = Server(self._engine, self._clock, self._identity, self._config.limits, self._figures)
        web = Web(snapshot=lambda: self._snapshot(server), not_ready=lambda: self._not_ready, hosts=self._config.http_hosts)
        sampler = asyncio.create_task(self._sample())
        try:
            await self._start(server, web)
        except BrokerStopError as error:
            ...
