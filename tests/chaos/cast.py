"""Everybody in a run: the broker, and for each client a place that is filled again whenever its process ends.

A place has a proxy of its own, for good; its processes have numbers ("raw-1.3" is the third one in place "raw-1").
All children end with the run, even if it is killed.
"""

import asyncio
import json
import random
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.chaos.disk import MIN_FREE_BYTES
from tests.chaos.node import NodeReader
from tests.chaos.proxy import Proxy
from tests.chaos.workload import EXIT_POISONED
from tests.support.history import Recorder
from tests.support.processes import ROOT, Broker, Process, until

NODE_EXAMPLE = ROOT / "examples" / "node"
LOOK_SECONDS = 0.05
REFILL_SECONDS = 0.5
GRACE_SECONDS = 3
EXIT_STREAM_LOST = 3
"""Of the Node example."""
PORTS = range(20_000, 32_000)
"""Below those that the system gives to clients, so that nobody takes the broker's while it is down."""


class Child(Process):
    """A process that does not outlive the run."""

    def launch(self) -> None:
        """Start it."""
        if shutil.which("setpriv") is not None and self.arguments[0] != "setpriv":
            self.arguments = ["setpriv", "--pdeathsig", "KILL", *self.arguments]
        super().launch()


class RecordedBroker(Child, Broker):
    """The broker; each start has a name of its own, which clients are told."""

    def __init__(self, directory: Path, recorder: Recorder) -> None:
        config = directory / "broker.toml"
        config.write_text(f"min_free = {MIN_FREE_BYTES}\ngrace_seconds = {GRACE_SECONDS}\nlog_level = 'info'\n")
        self._fixed = ("--config", str(config))
        Broker.__init__(self, directory, *self._fixed)
        self.address, self.http = (f"127.0.0.1:{port}" for port in _free_ports(2))
        self._recorder = recorder
        self._starts = 0
        self._serves = False

    @property
    def node(self) -> str:
        """The name of this start."""
        return f"b{self._starts}"

    @property
    def data(self) -> Path:
        """Where it keeps its journal."""
        return self._data

    async def start(self) -> None:
        """Start it, and wait until it serves."""
        self._starts += 1
        self._options = (*self._fixed, "--node", self.node)
        await super().start()
        self._serves = True
        self._recorder.write("broker", what="ready", node=self.node, data="data")

    def kill(self) -> None:
        """End it without a word."""
        serves, self._serves = self._serves and self.running, False
        super().kill()
        if serves:
            self._recorder.write("broker", what="killed", node=self.node)

    async def stop(self) -> int:
        """Ask it to end."""
        self._serves = False
        code = await super().stop()
        self._recorder.write("broker", what="ended", node=self.node, code=code)
        return code


class Place:
    """One client's place."""

    def __init__(self, name: str, kind: str, directory: Path, command: Callable[[str, str], Sequence[str]]) -> None:
        """Empty.

        Args:
            name: of the place.
            kind: what stands in it.
            directory: for its logs and histories.
            command: of a process, by its name and its broker's address.
        """
        self.name = name
        self.kind = kind
        self.proxy = Proxy()
        self.process: Process | None = None
        self.leaving = False
        """Its process was told to end, or was ended."""
        self._directory = directory
        self._command = command
        self._number = 0
        self._reader: NodeReader | None = None
        self._fill_at = 0.0

    @property
    def process_name(self) -> str:
        """Of the one that stands there now, or stood there last."""
        return f"{self.name}.{self._number}"

    @property
    def counts_start(self) -> bool:
        """Whether it says what has begun."""
        return self.kind in {"consumer", "sdk_worker"} and "--level-1" not in self._command("", "")

    @property
    def running(self) -> bool:
        """Whether somebody stands there."""
        return self.process is not None and self.process.running

    def fill(self) -> None:
        """Put a new process there."""
        self._number += 1
        name = self.process_name
        self.process = Child(name, self._command(name, self.proxy.address), self._directory)
        self.process.launch()
        self.leaving = False
        if self.kind == "node":
            self._reader = NodeReader(self._directory, name)

    def refill(self) -> None:
        """Put a new process there, after a moment: starting one is work for the machine."""
        now = asyncio.get_running_loop().time()
        if not self._fill_at:
            self._fill_at = now + REFILL_SECONDS
        elif now >= self._fill_at:
            self._fill_at = 0.0
            self.fill()

    def look(self) -> None:
        """Take in what it printed, if that is how it records."""
        if self._reader is not None:
            self._reader.read()

    def kill(self) -> None:
        """End its process without a word."""
        assert self.process is not None
        self.leaving = True
        self.process.kill()


class Cast:
    """All of them."""

    def __init__(self, directory: Path, recorder: Recorder, seed: int, rate: float) -> None:
        self.broker = RecordedBroker(directory, recorder)
        self.failures: list[str] = []
        """Processes that ended as they should not."""
        self._recorder = recorder
        self._directory = directory
        self._chance = random.Random(f"{seed}-cast")
        self._seed = seed
        self._done: set[str] = set()
        """Places that are not filled again."""
        self.producers = [
            self._python("producer", "stream-1", "--mode", "stream", "--rate", str(rate * 0.35), "--poison"),
            self._python("producer", "stream-2", "--mode", "stream", "--rate", str(rate * 0.25)),
            self._python("producer", "unary-1", "--mode", "unary", "--rate", str(rate * 0.2)),
            self._python("producer", "bare-1", "--mode", "bare", "--rate", str(rate * 0.05)),
            self._python("sdk_producer", "sdkp-1", "--rate", str(rate * 0.15)),
        ]
        self.consumers = [
            self._python("consumer", "raw-1", "--queues", "orders,images,mails"),
            self._python("consumer", "raw-2", "--queues", "images,orders", "--prefetch", "8", "--consumer-id", "fixed"),
            self._python("consumer", "raw-3", "--queues", "mails,scrap,orders", "--level-1", "--prefetch", "12"),
            self._python("sdk_worker", "sdk-1", "--queues", "orders,images,mails,scrap"),
        ]
        self.skipped: list[str] = []
        if shutil.which("node") is None or not (NODE_EXAMPLE / "node_modules" / "@grpc").is_dir():
            self.skipped.append("no Node consumer: node or examples/node/node_modules is missing")
        else:
            script = str(NODE_EXAMPLE / "consume.js")
            self.consumers.append(
                Place(
                    "node-1", "node", directory,
                    lambda _, address: ["node", script, "orders", "--server", address, "--prefetch", "8"],
                )
            )  # fmt: skip

    @property
    def places(self) -> list[Place]:
        """Everybody but the broker."""
        return [*self.producers, *self.consumers]

    def letters(self, queues: Sequence[str]) -> Place:
        """One more consumer, for the dead letters."""
        place = self._python("consumer", "letters", "--queues", ",".join(queues), "--prefetch", "64")
        self.consumers.append(place)
        return place

    async def open(self, place: Place) -> None:
        """Put somebody into a place for the first time."""
        await place.proxy.start(self.broker.address)
        place.fill()

    async def supervise(self) -> None:
        """Fill places whose process ended, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for place in self.places:
                place.look()
                if place.process is not None and not place.running and place.name not in self._done:
                    self._ended(place)

    def _ended(self, place: Place) -> None:
        assert place.process is not None
        code = place.process.exit_code
        if code == EXIT_POISONED and not place.leaving:
            fault = f"poison-{place.process_name}"
            self._recorder.write(
                "fault", id=fault, kind="kill", name="poison", target=place.process_name, of=place.kind
            )
            self._recorder.write("effect", id=fault, what="its process ended")
            self._recorder.write("over", id=fault)
        elif not place.leaving and not (place.kind == "node" and code == EXIT_STREAM_LOST):
            self.failures.append(f"{place.process_name} ended with {code}: {place.process.log()[-500:]}")
        place.leaving = True
        place.refill()

    async def leave(self, places: Sequence[Place], seconds: float) -> None:
        """Tell processes to finish, and wait for it."""
        await until(lambda: all(place.running for place in places), "every place is filled", seconds)
        self._done.update(place.name for place in places)
        for place in places:
            place.leaving = True
            if place.process is not None and place.process.running:
                place.process.send(signal.SIGTERM)
        for place in places:
            if place.process is not None:
                code = await place.process.exited(seconds)
                place.look()
                if code != 0:
                    self.failures.append(f"{place.process_name} left with {code}, not 0: {place.process.log()[-500:]}")

    async def close(self) -> None:
        """End everybody at once. Idempotent."""
        self._done.update(place.name for place in self.places)
        for place in self.places:
            if place.process is not None:
                place.process.kill()
                place.look()
            await place.proxy.stop()
        self.broker.kill()

    def _python(self, module: str, name: str, *options: str) -> Place:
        def command(process: str, address: str) -> list[str]:
            fixed = ["--name", process, "--address", address, "--directory", str(self._directory)]
            return [sys.executable, "-m", f"tests.chaos.{module}", *fixed, "--seed", str(self._seed), *options]

        return Place(name, module, self._directory, command)


def figures_of(process: Process) -> dict[str, int]:
    """What a process costs."""
    proc = Path("/proc") / str(process.pid)
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    return {
        "rss": int(status["VmRSS"].split()[0]) * 1024,
        "threads": int(status["Threads"]),
        "fds": len(list((proc / "fd").iterdir())),
    }


async def stand_still(process: Process) -> bool:
    """Stop it, and wait until it really stands still; False: it ended before."""
    stat = Path("/proc") / str(process.pid) / "stat"

    def state() -> str:
        try:
            return stat.read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return "gone"

    if not process.running:
        return False
    process.send(signal.SIGSTOP)
    return await until(lambda: (now := state()) in {"T", "Z", "gone"} and now, f"{process.name} stands still") == "T"


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(json.dumps({"no free ports in": [PORTS.start, PORTS.stop]}))
