"""Every call that the journal makes to the file system, and nothing else: tests put a faulty disk in its place.

A file has a path; in use, it is a number. Errors are `OSError`, as the system gives them.
"""

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

BUFFERS_MAX = 1000
"""Buffers handed to one call; the system's limit is 1,024."""


class Space(NamedTuple):
    """Room on a file system, in bytes."""

    free: int
    """For processes without privileges."""
    total: int


class Files:
    """The real file system."""

    def make_directory(self, path: Path) -> None:
        """Make a directory and those above it; it may exist already."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def names(self, directory: Path) -> list[str]:
        """What stands in a directory, sorted."""
        return sorted(path.name for path in directory.iterdir())

    def open(self, path: Path, *, create: bool = False, write: bool = True) -> int:
        """Open a file, made empty if `create` and it is not there."""
        flags = (os.O_RDWR if write else os.O_RDONLY) | (os.O_CREAT if create else 0) | os.O_CLOEXEC
        return os.open(path, flags, 0o600)

    def close(self, file: int) -> None:
        """Let go of a file."""
        os.close(file)

    def lock(self, file: int) -> bool:
        """Take a file's lock for this process until the file is closed; False: another has it."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def size(self, file: int) -> int:
        """Bytes in an open file."""
        return os.fstat(file).st_size

    def read(self, file: int, size: int, offset: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        data = os.pread(file, size, offset)
        while 0 < len(data) < size:
            more = os.pread(file, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def write(self, file: int, parts: Sequence[bytes], offset: int) -> None:
        """Write all of `parts`, with one call where the system lets it."""
        size = sum(map(len, parts))
        if len(parts) > BUFFERS_MAX:
            parts = [b"".join(parts)]
        written = os.pwritev(file, parts, offset)
        while written < size:
            rest = b"".join(parts)[written:]
            more = os.pwrite(file, rest, offset + written)
            if more == 0:
                raise OSError(errno.EIO, "a write made no progress")
            written += more

    def sync_data(self, file: int) -> None:
        """Make what was written durable, and what is needed to read it back."""
        os.fdatasync(file)

    def sync(self, file: int) -> None:
        """Make the file and all that is known about it durable."""
        os.fsync(file)

    def allocate(self, file: int, size: int) -> None:
        """Reserve room for `size` bytes; what is new reads as zeros."""
        os.posix_fallocate(file, 0, size)

    def truncate(self, file: int, size: int) -> None:
        """Cut a file off."""
        os.ftruncate(file, size)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, at once or not at all."""
        old.rename(new)

    def unlink(self, path: Path) -> None:
        """Take a file's name away."""
        path.unlink()

    def sync_directory(self, path: Path) -> None:
        """Make names given and taken in a directory durable."""
        file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def space(self, path: Path) -> Space:
        """Room on the file system of a directory."""
        found = os.statvfs(path)
        return Space(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)
