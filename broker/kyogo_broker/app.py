"""The composition root: what a broker is made of, in which order it starts and stops.

    start   journal, recovery -> engine -> HTTP port (not ready yet) -> gRPC port -> ready file, banner
    stop    health and readiness say no -> `Drain`: consumers are told, nothing is delivered any more
            -> settlements are taken until nothing is in flight, or the grace is over
            -> streams and calls end -> HTTP port -> engine: last turns, checkpoint, journal closed

A second signal ends the wait at once. A failed append ends everything at once: what was not durable was not
answered.
"""

import asyncio
import json
import os
import signal
import sys
from importlib.metadata import version
from shutil import disk_usage

import structlog

from kyogo_broker.clock import Clock, fresh_seed
from kyogo_broker.config import Address, Config
from kyogo_broker.core.shard import CAPABILITIES
from kyogo_broker.engine import Engine
from kyogo_broker.journal.base import Journal
from kyogo_broker.journal.memory import MemoryJournal
from kyogo_broker.journal.segments import SegmentJournal, SegmentSettings
from kyogo_broker.model.commands import Drain, Heartbeat
from kyogo_broker.model.errors import BrokerStopError
from kyogo_broker.ops.logs import NoticeLog, configure_logs
from kyogo_broker.ops.metrics import Snapshot
from kyogo_broker.ops.process import Process, settle_garbage, tune_memory, tune_threads
from kyogo_broker.ops.recent import SAMPLE_SECONDS, RecentFigures
from kyogo_broker.ops.web import Web
from kyogo_broker.recovery import recover
from kyogo_broker.server.identity import Identity
from kyogo_broker.server.server import Server
from kyogo_broker.server.wire import BrokerFigures

MIN_FREE_BYTES = 1 << 30
MIN_FREE_SHARE = 0.05
"""Of the disk: below both of these a full disk is near, and publishes are refused."""
EXIT_CANNOT_START = 1
EXIT_STOPPED_ITSELF = 3
"""The broker could not go on safely; 2 is for wrong settings."""
DRAIN_LOOK_SECONDS = 0.02
"""How often a stop looks whether anything is still in flight."""
NOBODY = 0
"""No port has this number: a command of its own wakes the engine and does nothing."""
CALLS_GRACE_SECONDS = 1.0
"""For calls under way, after the streams were ended."""

_log = structlog.stdlib.get_logger("kyogo.broker")


def serve(config: Config) -> int:
    """Run a broker until it is told to stop; returns the process's exit code."""
    people = configure_logs(config.log)
    tune_memory()
    tune_threads()
    try:
        app = App(config, people=people)
    except BrokerStopError as error:
        return _cannot_start(error, people=people)
    except OSError as error:
        said = BrokerStopError(f"cannot use {config.data}: {error.strerror}; name another directory with --data")
        return _cannot_start(said, people=people)
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
        self._min_free_bytes = 0 if config.ephemeral else _min_free_bytes(config)
        self._journal = _journal(config, self._min_free_bytes)
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
        self._server: Server
        self._not_ready = "starting"
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    async def run(self) -> int:
        """Serve until a signal or a failure; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        server = Server(self._engine, self._clock, self._identity, self._config.limits, self._figures)
        self._server = server
        web = Web(snapshot=self._snapshot, not_ready=lambda: self._not_ready, hosts=self._config.http_hosts)
        engine = asyncio.create_task(self._engine.run())
        sampler = asyncio.create_task(self._sample())
        try:
            code = await self._serve(engine, server, web)
        except BrokerStopError as error:
            code = _cannot_start(error, people=self._people)
        sampler.cancel()
        failed = engine.done()
        await server.stop(0 if failed or self._stop_now.is_set() else CALLS_GRACE_SECONDS)
        await web.stop()
        await self._engine.stop()
        try:
            await engine
        except BrokerStopError as error:
            _log.critical("broker_stopped", reason=str(error), answered="what was answered is durable")
            code = EXIT_STOPPED_ITSELF
        if code == 0:
            self._forget_ready()
            _log.info("broker_ended")
        return code

    async def _serve(self, engine: asyncio.Task[None], server: Server, web: Web) -> int:
        """From binding the ports to the end of the drain."""
        http = ""
        if self._config.http is not None:
            port = await web.start(self._config.http.host, self._config.http.port)
            http = str(Address(self._config.http.host, port))
        port = await server.start(str(self._config.listen))
        listen = str(Address(self._config.listen.host, port))
        settle_garbage()
        self._not_ready = ""
        self._tell_ready(listen, http)
        await self._until(engine, self._stop)
        if engine.done():
            return EXIT_STOPPED_ITSELF
        self._not_ready = "stopping"
        server.refuse_new()
        await self._drain(engine)
        return 0

    async def _drain(self, engine: asyncio.Task[None]) -> None:
        """Let consumers settle what they hold, for as long as the grace lasts."""
        grace = self._config.grace_seconds
        _log.info("broker_stopping", grace_seconds=grace, in_flight=self._in_flight())
        self._engine.submit_now(Drain(int(grace * 1000)))
        end = asyncio.get_running_loop().time() + grace
        empty_turn: int | None = None
        while not (engine.done() or self._stop_now.is_set()) and asyncio.get_running_loop().time() < end:
            turn = self._engine.stats().turns
            if self._in_flight():
                empty_turn = None
            elif empty_turn is None:
                # The last settlement may still be on its way to the disk: its answer is out when the next
                # turn begins.
                empty_turn = turn
                self._engine.submit_now(Heartbeat(NOBODY))
            elif turn > empty_turn:
                return
            await self._until(engine, self._stop_now, DRAIN_LOOK_SECONDS)

    @staticmethod
    async def _until(engine: asyncio.Task[None], event: asyncio.Event, seconds: float | None = None) -> None:
        """Until the event, the end of the engine or of the time."""
        waiting = asyncio.create_task(event.wait())
        await asyncio.wait({engine, waiting}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    def _signalled(self) -> None:
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    def _in_flight(self) -> int:
        return self._engine.in_flight()

    async def _sample(self) -> None:
        while True:
            self._recent.sample(self._engine.stats())
            await asyncio.sleep(SAMPLE_SECONDS)

    def _snapshot(self) -> Snapshot:
        edge = self._server.stats()
        return Snapshot(
            version=self._identity.version,
            node=self._identity.node,
            shard=self._engine.shard_stats(),
            engine=self._engine.stats(),
            journal=self._journal.stats(),
            streams=edge.streams,
            calls=edge.calls,
            refused=edge.refused,
            tasks=len(asyncio.all_tasks()),
            threads=self._process.threads(),
        )

    def _figures(self) -> BrokerFigures:
        engine, journal = self._engine.stats(), self._journal.stats()
        recent = self._recent.last_minute(engine)
        return BrokerFigures(
            node=self._identity.node,
            version=self._identity.version,
            durability=self._identity.durability,
            started_unix_ms=self._identity.started_unix_ms,
            now_unix_ms=self._clock.now().unix_ms,
            publish_streams=self._server.publish_streams(),
            journal_records=engine.commits,
            journal_written_bytes=engine.commit_bytes,
            journal_bytes=journal.bytes_on_disk,
            disk_free_bytes=journal.free_bytes,
            disk_free_min_bytes=self._min_free_bytes,
            rss_bytes=self._process.rss_bytes(),
            memory_limit_bytes=self._process.memory_limit_bytes,
            commit_p50_ms=recent.commit_p50_ms,
            commit_p99_ms=recent.commit_p99_ms,
            stall_max_ms=recent.stall_max_ms,
            draining=self._stop.is_set(),
        )

    def _tell_ready(self, listen: str, http: str) -> None:
        said = {"listen": listen, "http": http, "pid": os.getpid(), "node": self._identity.node}
        file = self._config.ready_file
        if file is not None:
            beside = file.with_name(f".{file.name}.{os.getpid()}")
            beside.write_text(json.dumps(said))
            beside.replace(file)
        data = "in memory, gone with the process" if self._config.ephemeral else str(self._config.data)
        found = self._recovery
        history = "new"
        if not found.new:
            history = f"recovered {found.messages:,} messages in {found.seconds:.2f} s"
        if self._people:
            sys.stderr.write(_banner(self._identity, listen, http, f"{data} ({history})"))
        else:
            _log.info("broker_started", version=self._identity.version, data=data, history=history, **said)

        for note in found.notes:
            _log.warning("journal_mended", note=note)

    def _forget_ready(self) -> None:
        if self._config.ready_file is not None:
            self._config.ready_file.unlink(missing_ok=True)


def _banner(identity: Identity, listen: str, http: str, data: str) -> str:
    page = f"http://{http}" if http else "off"
    return (
        f"Kyogo {identity.version}, node {identity.node}\n"
        f"  gRPC  {listen}\n"
        f"  HTTP  {page}  (/healthz /readyz /metrics)\n"
        f"  data  {data}\n"
        f"Next: `kyogo --help` in another terminal. Ctrl-C stops; once more, at once.\n"
    )


def _min_free_bytes(config: Config) -> int:
    if config.min_free_bytes is not None:
        return config.min_free_bytes
    there = next(path for path in (config.data, *config.data.parents) if path.exists())
    return max(MIN_FREE_BYTES, int(disk_usage(there).total * MIN_FREE_SHARE))


def _journal(config: Config, min_free_bytes: int) -> Journal:
    if config.ephemeral:
        return MemoryJournal()
    settings = SegmentSettings(min_free_bytes=min_free_bytes)
    return SegmentJournal(config.data, settings, key=fresh_seed() >> 1, version=version("kyogo"))


def _cannot_start(error: BrokerStopError, *, people: bool) -> int:
    """One line that says why."""
    if people:
        sys.stderr.write(f"broker: {error}\n")
    else:
        _log.critical("cannot_start", reason=str(error))
    return EXIT_CANNOT_START
