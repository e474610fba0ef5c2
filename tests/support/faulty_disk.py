"""A disk in memory that can lose power, fill up and fail: stands in for `kyogo_broker.journal.files.Files`.

What was written is *pending* until it is synced, a name given or taken until its directory is. A crash keeps what is
durable and, of what is pending, whatever its kind says. Locks end with the process, so also with a crash.
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Literal

from kyogo_broker.journal.files import Files, Space

SECTOR_BYTES = 512

Crash = Literal["kept", "dropped", "torn", "headless", "reordered", "killed"]
CRASHES: tuple[Crash, ...] = ("kept", "dropped", "torn", "headless", "reordered", "killed")
"""What becomes of pending writes: all there; none; the last one only in its first half; the last one without its first
sector; each sector, and each name, by chance; all there for those who read, and none of it durable (only the process
died). Where it is not said, names given and taken are there up to a point in their order."""


@dataclass(slots=True)
class Inode:
    data: bytearray = field(default_factory=bytearray)
    """As read."""
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, bytes written), or (size, None) for a change of size."""
    locked_by: int | None = None


NameChange = dict[Path, "Inode | None"]
"""What happens to names at once: the file that has a name from then on, or None."""


class FaultyDisk(Files):
    """A file system for one directory tree."""

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        self.names_now: dict[Path, Inode] = {}
        self.names_durable: dict[Path, Inode] = {}
        self.names_pending: list[NameChange] = []
        self.before: Callable[[str], None] = lambda call: None
        """Called before each call that changes something; may raise an OSError instead of it."""
        self.lies: frozenset[str] = frozenset()
        """Calls that do nothing and say that they did."""
        self.torn_write: float | None = None
        """When set, the next write does this part of its work and then fails with `torn_error`."""
        self.torn_error = errno.EIO
        self._open: dict[int, Inode] = {}
        self._numbers = count(3)

    # what the journal calls

    def make_directory(self, path: Path) -> None:
        pass

    def names(self, directory: Path) -> list[str]:
        return sorted(path.name for path in self.names_now if path.parent == directory)

    def open(self, path: Path, *, create: bool = False, write: bool = True) -> int:
        inode = self.names_now.get(path)
        if inode is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            self._change("create")
            inode = Inode()
            self._name({path: inode})
        file = next(self._numbers)
        self._open[file] = inode
        return file

    def close(self, file: int) -> None:
        inode = self._open.pop(file)
        if inode.locked_by == file:
            inode.locked_by = None

    def lock(self, file: int) -> bool:
        inode = self._open[file]
        if inode.locked_by is not None:
            return False
        inode.locked_by = file
        return True

    def size(self, file: int) -> int:
        return len(self._open[file].data)

    def read(self, file: int, size: int, offset: int) -> bytes:
        return bytes(self._open[file].data[offset : offset + size])

    def write(self, file: int, parts: Sequence[bytes], offset: int) -> None:
        self._change("write")
        inode, data = self._open[file], b"".join(parts)
        self._need(offset + len(data) - len(inode.data))
        if self.torn_write is not None:
            data = data[: int(len(data) * self.torn_write)]
        _apply(inode.data, offset, data)
        inode.pending.append((offset, data))
        if self.torn_write is not None:
            self.torn_write = None
            raise OSError(self.torn_error, "injected")

    def sync_data(self, file: int) -> None:
        self._sync("sync_data", self._open[file])

    def sync(self, file: int) -> None:
        self._sync("sync", self._open[file])

    def allocate(self, file: int, size: int) -> None:
        self._change("allocate")
        inode = self._open[file]
        if size > len(inode.data):
            self._need(size - len(inode.data))
            _apply(inode.data, size, None)
            inode.pending.append((size, None))

    def truncate(self, file: int, size: int) -> None:
        self._change("truncate")
        inode = self._open[file]
        _apply(inode.data, size, None)
        inode.pending.append((size, None))

    def rename(self, old: Path, new: Path) -> None:
        self._change("rename")
        self._name({old: None, new: self.names_now[old]})

    def unlink(self, path: Path) -> None:
        self._change("unlink")
        if path not in self.names_now:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        self._name({path: None})

    def sync_directory(self, path: Path) -> None:
        self._change("sync_directory")
        if "sync_directory" not in self.lies:
            for change in self.names_pending:
                _rename(self.names_durable, change)
            self.names_pending.clear()

    def space(self, path: Path) -> Space:
        return Space(max(self.capacity - self._used(), 0), self.capacity)

    # what tests call

    def crash(self, kind: Crash, random: Random) -> "FaultyDisk":
        """The disk as a machine that starts again finds it."""
        after = FaultyDisk(self.capacity)
        copies: dict[int, Inode] = {}
        names = dict(self.names_durable)
        if kind == "killed":
            names = dict(self.names_now)
            after.names_pending = [
                {p: None if i is None else _copy(i, kind, random, copies) for p, i in change.items()}
                for change in self.names_pending
            ]
            after.names_durable = {p: _copy(i, kind, random, copies) for p, i in self.names_durable.items()}
        elif kind != "dropped":
            reached = len(self.names_pending) if kind == "kept" else random.randint(0, len(self.names_pending))
            for index, change in enumerate(self.names_pending):
                if random.random() < 0.5 if kind == "reordered" else index < reached:
                    _rename(names, change)
        after.names_now = {path: _copy(inode, kind, random, copies) for path, inode in names.items()}
        if kind != "killed":
            after.names_durable = dict(after.names_now)
        return after

    def flip(self, path: Path, byte: int, bit: int = 0) -> None:
        """Let one bit rot, in what is read and in what is durable."""
        inode = self.names_now[path]
        inode.data[byte] ^= 1 << bit
        if byte < len(inode.durable):
            inode.durable[byte] ^= 1 << bit

    def files(self) -> Iterator[tuple[Path, bytes]]:
        """All files and what they hold."""
        for path, inode in self.names_now.items():
            yield path, bytes(inode.data)

    def open_files(self) -> int:
        """Files that somebody has open."""
        return len(self._open)

    def unsynced(self) -> bool:
        """Whether a crash could lose anything."""
        return bool(self.names_pending) or any(inode.pending for inode in self.names_now.values())

    def _change(self, call: str) -> None:
        self.before(call)

    def _name(self, change: NameChange) -> None:
        _rename(self.names_now, change)
        self.names_pending.append(change)

    def _sync(self, call: str, inode: Inode) -> None:
        try:
            self._change(call)
        except OSError:
            inode.pending.clear()  # as systems do: it was not written, and will not be, and reads as if it were
            raise
        if call not in self.lies:
            for offset, data in inode.pending:
                _apply(inode.durable, offset, data)
            inode.pending.clear()

    def _need(self, more: int) -> None:
        if more > 0 and self._used() + more > self.capacity:
            raise OSError(errno.ENOSPC, "no space left on the faulty disk")

    def _used(self) -> int:
        inodes = {id(inode): inode for inode in [*self.names_now.values(), *self._open.values()]}
        return sum(len(inode.data) for inode in inodes.values())


def _apply(target: bytearray, offset: int, data: bytes | None) -> None:
    """Write `data`, or change the size to `offset`."""
    if data is None:
        if offset < len(target):
            del target[offset:]
        else:
            target.extend(bytes(offset - len(target)))
        return
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


def _rename(names: dict[Path, Inode], change: NameChange) -> None:
    for path, inode in change.items():
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode


def _copy(inode: Inode, kind: Crash, random: Random, copies: dict[int, Inode]) -> Inode:
    if id(inode) not in copies:
        after = copies[id(inode)] = Inode(bytearray(inode.durable), bytearray(inode.durable))
        if kind == "killed":
            after.data, after.pending = bytearray(inode.data), list(inode.pending)
            return after
        for index, (offset, data) in enumerate(inode.pending):
            last = index == len(inode.pending) - 1
            _survive(after.data, offset, data, kind, last=last, random=random)
        after.durable = bytearray(after.data)
    return copies[id(inode)]


def _survive(target: bytearray, offset: int, data: bytes | None, kind: Crash, *, last: bool, random: Random) -> None:
    """Let a pending write come through a crash, as far as its kind says."""
    if kind == "kept" or (kind in {"torn", "headless"} and not last):
        _apply(target, offset, data)
    elif kind == "dropped":
        return
    elif data is None:
        if random.random() < 0.5:
            _apply(target, offset, None)
    else:
        first = -(offset % SECTOR_BYTES)
        for number, begin in enumerate(range(first, len(data), SECTOR_BYTES)):
            there = {
                "torn": begin + SECTOR_BYTES <= (len(data) + first) // 2 + SECTOR_BYTES // 2,
                "headless": number > 0,
            }.get(kind, random.random() < 0.5)
            if there:
                low, high = max(begin, 0), min(begin + SECTOR_BYTES, len(data))
                _apply(target, offset + low, data[low:high])
