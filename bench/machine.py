"""What it was measured on, and how quickly that machine's disk takes a commit."""

import os
import platform
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil

from bench.figures import Figure, percentile

SIZES_KIB: Final = (4, 64, 256)
FILE_BYTES: Final = 64 << 20
COMMITS: Final = 200


def describe() -> dict[str, str]:
    """Name and value, for the head of the results."""
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "data on": _file_system(Path(tempfile.gettempdir())),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **{name: _version(name) for name in ("grpcio", "protobuf", "kyogo")},
        "load average at the start": load,
    }


def disk() -> list[Figure]:
    """One write and one fdatasync into a file whose blocks were written before, and into one only preallocated."""
    with tempfile.TemporaryDirectory(prefix="kyogo-bench-disk-") as folder:
        return [
            Figure("disk", f"write + fdatasync of {size} KiB, {kind} file, p50", "us", machine=commit)
            for kind in ("written", "preallocated")
            for size in SIZES_KIB
            for commit in (_commit_us(folder, size, kind),)
        ]


def _commit_us(folder: str, size_kib: int, kind: str) -> float:
    path = Path(folder) / "commits"
    data = os.urandom(size_kib << 10)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.posix_fallocate(descriptor, 0, FILE_BYTES)
        if kind == "written":
            for start in range(0, FILE_BYTES, 1 << 20):
                os.pwrite(descriptor, bytes(1 << 20), start)
        os.fsync(descriptor)
        times = []
        for place in range(0, min(COMMITS * len(data), FILE_BYTES), len(data)):
            began = time.perf_counter()
            os.pwrite(descriptor, data, place)
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - began)
    finally:
        os.close(descriptor)
        path.unlink()
    return percentile(times, 0.5) * 1e6


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


class Others:
    """How much of the machine everybody else used: figures of a busy machine are worth less."""

    def __init__(self) -> None:
        self._began = (time.monotonic(), *self._busy_and_own())

    def share(self) -> float:
        """Of all cores since it was made; processes count as ours once they have ended."""
        seconds = time.monotonic() - self._began[0]
        busy, own = self._busy_and_own()
        others = busy - self._began[1] - (own - self._began[2])
        return max(0.0, others / seconds / (os.cpu_count() or 1))

    @staticmethod
    def _busy_and_own() -> tuple[float, float]:
        whole = psutil.cpu_times()
        busy = sum(getattr(whole, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
        return busy, sum(os.times()[:4])


def _file_system(folder: Path) -> str:
    """A tmpfs would make every commit free, so it has to be seen."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[path] for path in (folder, *folder.parents) if path in mounts), "unknown")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
