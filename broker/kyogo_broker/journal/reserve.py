"""Segments made ready ahead of time, so that going on to the next one costs a commit nothing and needs no room.

They carry the numbers that follow the active segment's, and their room is reserved. They are also what lets a broker on
a full disk go on settling until it can free something.

While there is time, they are written with zeros: a synced append into blocks that were written before is quicker by a
third, as the file system need not note each one. Once records are appended that stops: under load one write is enough.
"""

import errno
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

from kyogo_broker.journal.directory import Directory, Meta
from kyogo_broker.journal.files import Files
from kyogo_broker.journal.lane import Lane
from kyogo_broker.journal.segment_file import HEADER_BYTES, ZEROS, Header, Segment, segment_name

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
            made = self._lane.do(self._make, number)
            self._slots.append(Slot(number, self._size, made))
            self._lane.do(self._write_zeros, made)

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
        segment = make_segment(self._files, self._directory, header)
        self._made = number
        return segment

    def _write_zeros(self, made: Future[Segment]) -> None:
        """Piece by piece, so that the log's own syncs never wait long.

        By a number of its own for the file: a number learns of each failed write only once, and the one of a record
        must not be learned of here.
        """
        segment = made.result()
        file = self._files.open(self._directory.of(segment_name(segment.header.number)))
        try:
            for at in range(0, segment.header.size, len(ZEROS)):
                begin, end = max(at, HEADER_BYTES), min(at + len(ZEROS), segment.header.size)
                with segment.claiming:
                    if segment.claimed or self._stopped:
                        return
                    self._files.write(file, [ZEROS[: end - begin]], begin)
                self._files.sync_data(file)
        finally:
            self._files.close(file)


def make_segment(files: Files, directory: Directory, header: Header, *, zeros: bool = False) -> Segment:
    """Make a segment without records under its name, durably; with `zeros` written to it at once.

    Raises:
        OSError: there is no room; nothing of it is left behind.
    """
    path = directory.of(UNFINISHED)
    file = files.open(path, create=True)
    packed = header.pack()
    try:
        files.truncate(file, 0)
        files.allocate(file, header.size)
        if zeros:
            for at in range(0, header.size, len(ZEROS)):
                files.write(file, [ZEROS[: header.size - at]], at)
        files.write(file, [packed], 0)
        files.sync(file)
        files.rename(path, directory.of(segment_name(header.number)))
        directory.sync()
    except OSError:
        files.close(file)
        with suppress(FileNotFoundError):
            files.unlink(path)
        raise
    parsed = Header.parse(packed)
    assert parsed is not None
    return Segment(file, parsed)
