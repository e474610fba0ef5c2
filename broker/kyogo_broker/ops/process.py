"""The process's own figures, and how its memory is set up."""

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

MEMORY_SHARE = 0.75
"""Of the machine, or of its container: what a broker may use before it refuses publishes."""
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

MMAP_THRESHOLD_BYTES = 16 << 20
"""Above every frame: a block of glibc's own is otherwise mapped, faulted in page by page and unmapped again
for each request of 256 KiB, which costs ten times what reading it does."""
TRIM_THRESHOLD_BYTES = 64 << 20
"""So much freed memory is kept for the next frames instead of being given back."""
TRIM_EVERY = 20
"""Checks of a memory that is high, from one attempt to the next to give back what is free in it."""
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

SWITCH_SECONDS = 0.001
"""How long a busy thread keeps the interpreter while another one wants it. The journal's thread wants it when a commit
is done; with the default of 5 ms a busy loop delayed commits by up to 11 ms."""

GC_THRESHOLDS = (50_000, 20, 50)
"""The default of (700, 10, 10) collects some hundred times a second under load and finds nothing: commands,
facts and effects have no cycles, and die by their counts."""


class Process:
    """This process; made once, it opens as many files as it may."""

    def __init__(self, memory_limit_bytes: int | None = None) -> None:
        self._process = psutil.Process()
        _raise_file_limit()
        self._checked_high = 0
        self.memory_limit_bytes = _default_limit() if memory_limit_bytes is None else memory_limit_bytes

    def rss_bytes(self) -> int:
        """Resident memory, now."""
        return int(self._process.memory_info().rss)

    def threads(self) -> int:
        """Of the interpreter and of the libraries, now."""
        return self._process.num_threads()

    def memory_high(self) -> bool:
        """Whether publishes must be refused; what is only kept by the allocator is given back before."""
        if self.rss_bytes() <= self.memory_limit_bytes:
            self._checked_high = 0
            return False
        if self._checked_high % TRIM_EVERY == 0:
            give_back()
        self._checked_high += 1
        return self.rss_bytes() > self.memory_limit_bytes


def tune_memory() -> None:
    """Set up the allocator for blocks of a frame's size. Does nothing where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


def give_back() -> None:
    """Return free memory to the system, holes between used blocks included: what a burst left in pieces."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def tune_threads() -> None:
    """Let the journal's thread in soon when a commit is done."""
    sys.setswitchinterval(SWITCH_SECONDS)


def settle_garbage() -> None:
    """After the start: put what lives for ever, modules and state, out of the collector's sight."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _raise_file_limit() -> None:
    """To what the administrator allows; shells and services start with 1,024, which is few connections."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))


def _default_limit() -> int:
    total = psutil.virtual_memory().total
    try:
        text = _CGROUP_LIMIT.read_text().strip()
    except OSError:
        text = "max"
    if text.isdecimal():
        total = min(total, int(text))
    return int(total * MEMORY_SHARE)
