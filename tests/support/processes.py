"""Real processes for end-to-end tests: brokers, workers, the command line.

A process keeps its output in a file, so that a failed test can show it and a full pipe can stop nobody.
Waiting is always for a condition, with a deadline. A broker keeps its address over restarts.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 45.0
"""Starting Python with grpc takes half a second, and ten where every core is taken three times over."""
STOP_SECONDS = 45.0
"""The broker's grace is 10 s."""
POLL_SECONDS = 0.01
LOG_CHARACTERS_SHOWN = 4_000

_T = TypeVar("_T")


async def until(condition: Callable[[], _T | None], what: str, seconds: float = 10.0) -> _T:
    """What `condition` returns as soon as it is true.

    Raises:
        AssertionError: it was not in time; the message says what was waited for and what was there instead.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    while not (value := condition()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds} s: {what} (is: {value!r})"
        await asyncio.sleep(POLL_SECONDS)
    return value


class Process:
    """One child, not started yet."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        directory: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.arguments = list(arguments)
        self._log = directory / f"{name}.log"
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._popen: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start it, and do not wait for anything."""
        assert not self.running, f"{self.name} runs already"
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=self._environment,
            )

    @property
    def pid(self) -> int:
        """Of the running child."""
        assert self._popen is not None, f"{self.name} was not started"
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None: it runs, or was never started; negative: the signal that ended it."""
        return None if self._popen is None else self._popen.poll()

    def log(self) -> str:
        """Everything it wrote, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, STOP and CONT included."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a power cut would, without a chance to say anything. Idempotent."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.kill()
        if self._popen is not None:
            self._popen.wait()

    async def stop(self) -> int:
        """Ask it to end (SIGTERM), wait for it, and return its exit code."""
        if self.running:
            self.send(signal.SIGTERM)
        return await self.exited(STOP_SECONDS)

    async def exited(self, seconds: float = 10.0) -> int:
        """Its exit code, once it has ended."""
        await until(lambda: not self.running, f"{self.name} ends; it wrote: {self.log()[-1000:]}", seconds)
        assert self.exit_code is not None
        return self.exit_code

    async def wrote(self, text: str, seconds: float = START_SECONDS) -> None:
        """Wait for `text` in its output."""

        def found() -> bool:
            there = text in self.log()
            assert there or self.running, f"{self.name} ended ({self.exit_code}) without {text!r}: {self.log()}"
            return there

        await until(found, f"{text!r} in the output of {self.name}", seconds)


class Broker(Process):
    """A real broker on loopback with its own data directory."""

    def __init__(self, directory: Path, *options: str, name: str = "broker") -> None:
        self._ready = directory / f"{name}.ready.json"
        self._data = directory / f"{name}.data"
        self._options = options
        self.address = "127.0.0.1:0"
        self.http = "127.0.0.1:0"
        super().__init__(name, (), directory)

    async def start(self) -> None:
        """Start it, and wait until it serves; from the second start on at the address of the first."""
        self._ready.unlink(missing_ok=True)
        self.arguments = [sys.executable, "-m", "kyogo_broker", "serve", "--listen", self.address]
        self.arguments += ["--http", self.http, "--data", str(self._data), "--ready-file", str(self._ready)]
        self.arguments += self._options
        self.launch()
        said = await until(self._read_ready, f"{self.name} is ready", START_SECONDS)
        self.address, self.http = said["listen"], said["http"]

    def _read_ready(self) -> dict[str, str] | None:
        assert self.running, f"{self.name} ended with {self.exit_code} instead of serving:\n{self.log()}"
        try:
            said: dict[str, str] = json.loads(self._ready.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return said


class Processes:
    """All the children of one test; ended with it, and their logs shown if it fails."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._all: list[Process] = []

    async def broker(self, *options: str, name: str = "broker") -> Broker:
        """A started broker."""
        broker = Broker(self.directory, *options, name=name)
        self._all.append(broker)
        await broker.start()
        return broker

    def python(self, name: str, *arguments: str, **environment: str) -> Process:
        """A started child of this interpreter: `-m module` or a script, with its arguments."""
        return self.run(name, sys.executable, *arguments, **environment)

    def run(self, name: str, *arguments: str, **environment: str) -> Process:
        """A started child."""
        process = Process(name, arguments, self.directory, environment)
        self._all.append(process)
        process.launch()
        return process

    def end(self) -> None:
        """Kill what still runs, and print all logs: pytest shows them if the test failed."""
        for process in reversed(self._all):
            process.kill()
        for process in self._all:
            print(f"--- {process.name} (exit code {process.exit_code})\n{process.log()[-LOG_CHARACTERS_SHOWN:]}")


@asynccontextmanager
async def processes(directory: Path) -> AsyncIterator[Processes]:
    """The children of one test."""
    children = Processes(directory)
    try:
        yield children
    finally:
        children.end()
