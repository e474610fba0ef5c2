"""Segments made ready ahead of time, so that going on to the next one costs a commit nothing and needs no room.

They carry the numbers that follow the active segment's and are zeros behind their headers. They are also what lets a
broker on a full disk go on settling until it can free something.
"""

import errno
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from kyogo_broker.journal.directory import Directory, Meta
from kyogo_broker.journal.files import Files
from kyogo_broker.journal.lane import Lane
from kyogo_broker.journal.segment_file import ZEROS, Header, Segment, segment_name

UNFINISHED = "next.tmp"


@dataclass(slots=True)
class Slot:
    """A segment that is, or is being, made ready."""

    number: int
    size: int
    segment: Future[Segment]

    @property
    def failed(self) -> bool:
        """Whether it could not be made."""
        return self.segment.done() and self.segment.exception() is not None


class Reserve:
    """The segments behind the active one. Used from the journal's thread; the lane does the work."""

    def __init__(
        self, files: Files, directory: Directory, lane: Lane, *, meta: Meta, size: int, wanted: int, made: int
    ) -> None:
        self._files = files
        self._directory = directory
        self._lane = lane
        self._meta = meta
        self._size = size
        self._wanted = wanted
        self._made = made
        """Highest number on disk; belongs to the lane."""
        self._slots: deque[Slot] = deque()
        self._stopped = False

    @property
    def short(self) -> bool:
        """Whether a segment could not be made: the disk is full."""
        return any(slot.failed for slot in self._slots)

    @property
    def bytes(self) -> int:
        """Of the segments that are ready."""
        return sum(slot.size for slot in self._slots if slot.segment.done() and not slot.failed)

    def adopt(self, segment: Segment) -> None:
        """Count in a segment that was made ready before this opening."""
        ready: Future[Segment] = Future()
        ready.set_result(segment)
        self._slots.append(Slot(segment.header.number, segment.header.size, ready))

    def fill(self, after: int) -> None:
        """Have made what is missing behind segment `after`, failed attempts included."""
        while self._slots and self._slots[-1].failed:
            self._slots.pop()
        while len(self._slots) < self._wanted:
            number = (self._slots[-1].number if self._slots else after) + 1
            self._slots.append(Slot(number, self._size, self._lane.do(self._make, number)))

    def take(self, after: int) -> Slot:
        """The segment behind `after`; it may still be in the making."""
        self.fill(after)
        slot = self._slots.popleft()
        self.fill(slot.number)
        return slot

    def stop(self) -> None:
        """Break off what is being made; what is ready stays."""
        self._stopped = True

    def close(self) -> None:
        """Let go of the files; the lane must have ended."""
        for slot in self._slots:
            if not slot.failed:
                self._files.close(slot.segment.result().file)
        self._slots.clear()

    def _make(self, number: int) -> Segment:
        if self._made != number - 1:
            raise OSError(errno.ENOSPC, "the segment before could not be made")
        header = Header(self._meta.shard, self._meta.key, number, self._meta.epoch, self._size)
        segment = make_segment(self._files, self._directory, header, after_piece=self._after_piece)
        self._made = number
        return segment

    def _after_piece(self, file: int) -> None:
        """Sync each piece by itself, so that the log's own syncs never wait long."""
        if self._stopped:
            raise OSError(errno.ECANCELED, "the journal is being closed")
        self._files.sync_data(file)


def make_segment(
    files: Files, directory: Directory, header: Header, *, after_piece: Callable[[int], None] | None = None
) -> Segment:
    """Write a segment without records under its name, durably.

    Args:
        files: the file system.
        directory: where.
        header: whose size the file gets.
        after_piece: called with the file after each of many writes; what it raises breaks it off.

    Raises:
        OSError: there is no room; nothing of it is left behind.
    """
    path = directory.of(UNFINISHED)
    file = files.open(path, create=True)
    try:
        files.truncate(file, 0)
        files.allocate(file, header.size)
        for at in range(0, header.size, len(ZEROS)):
            files.write(file, [ZEROS[: header.size - at]], at)
            if after_piece is not None:
                after_piece(file)
        packed = header.pack()
        files.write(file, [packed], 0)
        files.sync(file)
    except OSError:
        files.close(file)
        files.unlink(path)
        raise
    files.rename(path, directory.of(segment_name(header.number)))
    directory.sync()
    parsed = Header.parse(packed)
    assert parsed is not None
    return Segment(file, parsed)
