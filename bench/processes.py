"""The processes of a benchmark: a server under test, and the load on it. None outlives the benchmark.

Every child is told by the kernel to die with its parent (Linux), and its time is limited. Their stderr goes to a file
in the data directory, the end of which is shown when something fails.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Final, Self

import psutil

from bench.load import Consume, Produce, Report
from bench.victim import Failover

START_S: Final = 60.0
"""A server that is not ready by then has failed; a restart with a million messages is well below."""
WORK_S: Final = 1800.0
"""Longest time of one load process: a million requests one by one at 1,000 a second, and some."""
STDERR_BYTES: Final = 4000
ROOT: Final = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG: Final = 1

Progress = Callable[[int], None]
Job = Produce | Consume | Failover


class ChildError(Exception):
    """A process of the benchmark failed; the text has the end of its stderr."""


def spawn(command: list[str], stderr: IO[bytes], *, piped: bool) -> subprocess.Popen[str]:
    """Start a child that dies with this process."""
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        if sys.platform == "linux":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("KYOGO_")},
        stderr=stderr,
        text=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - no thread of ours holds a lock that it needs
        stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
        stdout=subprocess.PIPE if piped else stderr,
    )


class Server:
    """The broker or the probe, on a data directory of its own that goes when it is closed."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._folder = Path(tempfile.mkdtemp(prefix=f"kyogo-bench-{kind}-"))
        (self._folder / "data").mkdir()
        self._stderr = (self._folder / "stderr").open("w+b")
        self._process: subprocess.Popen[str] | None = None
        self.target = ""
        self.start_s = 0.0
        """How long the last start took."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.stop(signal.SIGKILL)
        self._stderr.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> float:
        """Start; seconds from the fork until it says that it is ready."""
        ready = self._folder / "ready"
        ready.unlink(missing_ok=True)
        common = ["--listen", "127.0.0.1:0", "--data", str(self._folder / "data"), "--ready-file", str(ready)]
        if self.kind == "probe":
            command = ["bench.probe", *common]
        else:
            command = ["kyogo_broker", "serve", "--http", "127.0.0.1:0", *common]
        began = time.monotonic()
        self._process = spawn(command, self._stderr, piped=False)
        while not ready.exists() or not ready.stat().st_size:
            if self._process.poll() is not None or time.monotonic() - began > START_S:
                raise ChildError(f"the {self.kind} did not start:\n{tail(self._stderr)}")
            time.sleep(0.002)
        self.start_s = time.monotonic() - began
        self.target = json.loads(ready.read_text())["listen"]
        return self.start_s

    def stop(self, how: signal.Signals) -> float:
        """Send the signal; seconds until it is gone."""
        began = time.monotonic()
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_S)
        self._process = None
        return time.monotonic() - began

    def rss_bytes(self) -> int:
        """Resident memory of the server and its children."""
        return sum(process.memory_info().rss for process in self._tree())

    def cpu_s(self) -> float:
        """Processor time of the server and its children so far."""
        return sum(process.cpu_times().user + process.cpu_times().system for process in self._tree())

    def _tree(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            raise ChildError(f"the {self.kind} is gone:\n{tail(self._stderr)}")
        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]


class Load:
    """One load process; ready when made."""

    def __init__(self, job: Job) -> None:
        module, role = {
            Produce: ("bench.load", ["produce"]),
            Consume: ("bench.load", ["consume"]),
            Failover: ("bench.failover", []),
        }[type(job)]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = spawn([module, *role, json.dumps(asdict(job))], self._stderr, piped=True)
        self._timer = threading.Timer(WORK_S, self._process.kill)
        self._timer.daemon = True
        self._timer.start()
        try:
            self._expect("ready")
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def go(self) -> None:
        """Let it work."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self, progress: Progress) -> Report:
        """What it reports at the end; `progress` is told how far it is."""
        while (line := self._line())[0] != "{":
            progress(int(line))
        return Report(**json.loads(line))

    def _expect(self, word: str) -> None:
        line = self._line()
        if line.strip() != word:
            raise ChildError(f"a load process said {line!r}")

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise ChildError(f"a load process failed:\n{tail(self._stderr)}")
        return line


def tail(file: IO[bytes]) -> str:
    """The end of what a child wrote."""
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), STDERR_BYTES, max(0, size - STDERR_BYTES)).decode(errors="replace")
