"""The processes of a benchmark: a server under test, and the load on it. None outlives the benchmark.

Every child is told by the kernel to die with its parent (Linux), and its time is limited. Their stderr goes to a file
in the data directory, the end of which is shown when something fails.
"""

import contextlib
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
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final, Self

import psutil
from prometheus_client.parser import text_string_to_metric_families

from bench.deep.jobs import Churn, Fill, Ping, Storm
from bench.load import Consume, Produce, Report
from bench.victim import Failover

START_S: Final = 60.0
"""A server that is not ready by then has failed; a restart with a million messages is well below."""
WORK_S: Final = 3600.0
"""Longest time of one load process: a million requests one by one at 500 a second, and some."""
SCRAPE_S: Final = 30.0
HOLDS_S: Final = 1.2
"""The watch writes down what it saw twice a second."""
STDERR_BYTES: Final = 4000
ROOT: Final = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG: Final = 1

Progress = Callable[[int], None]
Job = Produce | Consume | Failover | Ping | Churn | Fill | Storm
MODULES: Final[dict[type, list[str]]] = {
    Produce: ["bench.load", "produce"],
    Consume: ["bench.load", "consume"],
    Failover: ["bench.failover"],
    Ping: ["bench.deep.ping"],
    Churn: ["bench.deep.churn"],
    Fill: ["bench.deep.fill"],
    Storm: ["bench.deep.storm"],
}
"""What runs a job."""


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
    """The broker or the probe, on a data directory of its own that goes when it is closed.

    Args:
        kind: `broker` or `probe`.
        watched: a broker whose loop is watched, see `bench/deep/watched.py`.
    """

    def __init__(self, kind: str, *, watched: bool = False) -> None:
        self.kind = kind
        self._watched = watched
        self._folder = Path(tempfile.mkdtemp(prefix=f"kyogo-bench-{kind}-"))
        self.data.mkdir()
        self._stderr = (self._folder / "stderr").open("w+b")
        self._process: subprocess.Popen[str] | None = None
        self.target = ""
        self._http = ""
        self._ready_at = 0.0
        self.start_s = 0.0
        """How long the last start took."""
        self.start_cpu_s = 0.0
        """Of processor time."""

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
        common = ["--listen", "127.0.0.1:0", "--data", str(self.data), "--ready-file", str(ready)]
        if self.kind == "probe":
            command = ["bench.probe", *common]
        else:
            broker = ["bench.deep.watched", str(self._holds)] if self._watched else ["kyogo_broker"]
            command = [*broker, "serve", "--http", "127.0.0.1:0", *common]
        began = time.monotonic()
        self._process = spawn(command, self._stderr, piped=False)
        while not ready.exists() or not ready.stat().st_size:
            if self._process.poll() is not None or time.monotonic() - began > START_S:
                raise ChildError(f"the {self.kind} did not start:\n{tail(self._stderr)}")
            time.sleep(0.002)
        self.start_s = time.monotonic() - began
        said = json.loads(ready.read_text())
        self.target, self._http = said["listen"], said.get("http", "")
        self._ready_at = time.monotonic()
        self.start_cpu_s = self.cpu_s()
        return self.start_s

    def stop(self, how: signal.Signals) -> float:
        """Send the signal; seconds until it is gone."""
        began = time.monotonic()
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_S)
        self._process = None
        return time.monotonic() - began

    @property
    def data(self) -> Path:
        """The data directory."""
        return self._folder / "data"

    def rss_bytes(self) -> int:
        """Resident memory of the server and its children."""
        return sum(process.memory_info().rss for process in self._tree())

    def cpu_s(self) -> float:
        """Processor time of the server and its children so far."""
        return sum(process.cpu_times().user + process.cpu_times().system for process in self._tree())

    def disk_bytes(self) -> int:
        """What the data directory takes of the disk, files made ready included."""
        total = 0
        for path in self.data.iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_blocks * 512
        return total

    def metrics(self) -> dict[str, float]:
        """The broker's metrics: summed up over their labels, and each on its own as `name{value,value}`."""
        with urllib.request.urlopen(f"http://{self._http}/metrics", timeout=SCRAPE_S) as answer:
            text = answer.read().decode()
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
                if sample.labels:
                    found[f"{sample.name}{{{','.join(sample.labels.values())}}}"] = sample.value
        return found

    def holds(self, since: float = 0.0) -> list[dict[str, Any]]:
        """What held the loop since it was ready, or since an instant of the monotonic clock; the longest first."""
        time.sleep(HOLDS_S)
        found: list[dict[str, Any]] = json.loads(self._holds.read_text())
        since = max(since, self._ready_at)
        return sorted((hold for hold in found if hold["at"] >= since), key=lambda hold: -hold["cpu_ms"])

    @property
    def _holds(self) -> Path:
        return self._folder / "holds.json"

    def _tree(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            raise ChildError(f"the {self.kind} is gone:\n{tail(self._stderr)}")
        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]


class Load:
    """One load process; ready when made."""

    def __init__(self, job: Job) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = spawn([*MODULES[type(job)], json.dumps(asdict(job))], self._stderr, piped=True)
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
        self._tell("go")

    def stop(self) -> None:
        """Tell a load that goes on until it is told to end."""
        self._tell("stop")

    def result(self, progress: Progress = lambda _: None) -> Report:
        """What it reports at the end; `progress` is told how far it is."""
        while (line := self._line())[0] != "{":
            progress(int(line))
        return Report(**json.loads(line))

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

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
