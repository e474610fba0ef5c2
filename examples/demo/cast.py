"""The demo's processes: a broker and some workers, real ones, in a directory of their own, ended with it."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 20.0
STOP_SECONDS = 5.0
POLL_SECONDS = 0.02


class BrokerFailedError(Exception):
    """The broker did not start; its log is the message."""


class Cast:
    """Who takes part. Names of workers are free; the broker keeps its address over restarts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = directory / "ledger.sqlite"
        self.address = "127.0.0.1:0"
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def start_broker(self) -> None:
        """Start the broker and wait until it serves."""
        ready = self.directory / "ready.json"
        ready.unlink(missing_ok=True)
        where = ["--listen", self.address, "--http", "127.0.0.1:0", "--data", str(self.directory / "data")]
        broker = await self._start("broker", "-m", "kyogo_broker", "serve", *where, "--ready-file", str(ready))
        async with asyncio.timeout(START_SECONDS):
            while not (said := _read(ready)):
                if broker.returncode is not None:
                    raise BrokerFailedError(self.log("broker"))
                await asyncio.sleep(POLL_SECONDS)
        self.address = said["listen"]

    async def start_worker(self, name: str) -> None:
        """Start a worker; it connects by itself."""
        await self._start(name, "-m", "examples.demo.worker", WORKER=name, LEDGER=str(self.ledger))

    async def kill(self, name: str) -> None:
        """End a process with kill -9: it can say nothing any more."""
        process = self._processes[name]
        process.kill()
        await process.wait()

    def pid(self, name: str) -> int:
        """Of the process that goes by this name now."""
        return self._processes[name].pid

    def alive(self, name: str) -> bool:
        """Whether it runs."""
        return name in self._processes and self._processes[name].returncode is None

    def log(self, name: str) -> str:
        """The end of what it wrote."""
        path = self.directory / f"{name}.log"
        return path.read_text(errors="replace")[-2_000:] if path.exists() else ""

    async def close(self) -> None:
        """End everything, workers first, politely and then not. Idempotent."""
        for process in reversed(self._processes.values()):
            await _end(process)

    async def _start(self, name: str, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
        with (self.directory / f"{name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "KYOGO_URL": self.address, **environment},
                start_new_session=True,  # Ctrl-C is for the demo, which ends the others in order
            )
        self._processes[name] = process
        return process


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _read(ready: Path) -> dict[str, str]:
    try:
        said: dict[str, str] = json.loads(ready.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return said
