"""Reads what is whole of a segment log, damaged or not, without changing it: what `inspect` and `salvage` see.

Where a record should stand and none does, reading goes on at the next head of a later record, in whatever segment. A
record counts if its own checksum holds; that needs the segment's anchor, so one whose header has rotted is looked for:
it is the header's checksum, as it stands there, or as it must have been, and some record must agree with it. Nothing
that somebody publishes can stand for one: the journal's key is in every candidate.
"""

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import google_crc32c

from kyogo_broker.journal.base import Section
from kyogo_broker.journal.checkpoint import checkpoint_name, checkpoint_number, read_sections
from kyogo_broker.journal.directory import Meta, read_meta
from kyogo_broker.journal.files import Files
from kyogo_broker.journal.recovery import segment_numbers
from kyogo_broker.journal.segment_file import (
    HEAD_BYTES,
    HEADER_BYTES,
    MAGIC,
    ZEROS,
    Found,
    Header,
    Segment,
    Walk,
    look_behind,
    segment_name,
)
from kyogo_broker.model.errors import BrokerStopError, NewerDataError

BLOCK_BYTES = 4096
"""What a disk cannot read is left out in pieces of this size."""
EPOCHS_TRIED_MAX = 100_000
EPOCHS_BEYOND = 1_000
"""Openings in which a segment with a rotten header may have been made: up to the last, which `meta` may have known."""

_u32 = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole record."""

    number: int
    """Of its segment."""
    found: Found


@dataclass(frozen=True, slots=True)
class Damaged:
    """A part of a segment that is not what was written."""

    number: int
    byte: int
    until: int
    """Byte from which on all is well again; the file's end if it never is."""
    sequence: int
    """Of the record that should stand there."""
    error: str
    cut: int = 0
    """Bytes that the file was made with and has no more; they were empty, unless it was cut off."""


@dataclass(frozen=True, slots=True)
class Torn:
    """The end of the log is no whole record, and nothing follows: a crash leaves that, and so does rot."""

    number: int
    byte: int
    until: int
    sequence: int
    error: str


@dataclass(frozen=True, slots=True)
class Absent:
    """Segments that are not there, and the records that should be in them: freed, or missing."""

    first: int
    last: int
    segments: tuple[int, int]


@dataclass(frozen=True, slots=True)
class SegmentEnd:
    """A segment was read to its end."""

    number: int
    bytes: int
    used: int
    records: int
    sequences: tuple[int, int] | None


Event = Whole | Damaged | Torn | Absent | SegmentEnd


@dataclass(frozen=True, slots=True)
class CheckpointRead:
    """What a checkpoint's file holds."""

    number: int
    sections: tuple[Section, ...]
    """Those that are whole."""
    error: str | None
    """What is wrong with the rest."""


class PatientFiles(Files):
    """A file system whose disk may fail to read: what it cannot read becomes zeros, and so shows as damage."""

    def read(self, file: int, size: int, offset: int) -> bytes:
        """As `Files.read`, whatever the disk says."""
        try:
            return self._read(file, size, offset)
        except OSError:
            size = min(size, max(0, self.size(file) - offset))
            ends = [*range(offset - offset % BLOCK_BYTES + BLOCK_BYTES, offset + size, BLOCK_BYTES), offset + size]
            return b"".join(map(self._piece, [file] * len(ends), [offset, *ends], ends))

    def _piece(self, file: int, begin: int, end: int) -> bytes:
        try:
            return self._read(file, end - begin, begin)
        except OSError:
            return bytes(end - begin)

    def _read(self, file: int, size: int, offset: int) -> bytes:
        return super().read(file, size, offset)


def identify(files: Files, path: Path) -> tuple[Meta, str | None]:
    """Whose directory it is, and what is wrong with `meta`, if anything is: then its segments say it.

    Raises:
        NewerDataError: a newer Kyogo wrote it.
        BrokerStopError: it is no data directory, or nothing that says whose is left.
    """
    try:
        return read_meta(files, path), None
    except NewerDataError:
        raise
    except FileNotFoundError:
        error = "it is missing"
    except BrokerStopError:
        error = "neither slot of it is whole"
    said = [header for number in segment_numbers(files, path) if (header := _header(files, path, number))]
    if not said:
        raise BrokerStopError(
            f"{path} holds neither a whole `meta` nor a whole segment: it is no data directory of Kyogo, or nothing is "
            "left of it; name the right directory, or restore a backup"
        )
    (shard, key), _ = Counter((header.shard, header.key) for header in said).most_common(1)[0]
    return Meta(shard, key, max(header.epoch for header in said)), error


def _header(files: Files, path: Path, number: int) -> Header | None:
    try:
        file = files.open(path / segment_name(number), write=False)
    except FileNotFoundError:
        return None  # freed just now by the broker that uses the directory
    try:
        return Header.parse(files.read(file, HEADER_BYTES, 0))
    finally:
        files.close(file)


def checkpoints(files: Files, path: Path, meta: Meta) -> Iterator[CheckpointRead]:
    """Every checkpoint, oldest first, with what is whole of it."""
    for number in sorted(n for name in files.names(path) if (n := checkpoint_number(name)) is not None):
        try:
            file = files.open(path / checkpoint_name(number), write=False)
        except FileNotFoundError:
            continue  # replaced just now by the broker that uses the directory
        try:
            data = files.read(file, files.size(file), 0)
        finally:
            files.close(file)
        yield CheckpointRead(number, *read_sections(data, shard=meta.shard, key=meta.key, number=number))


class Scan:
    """Iterates over a log's events, in the order of the log.

    Args:
        files: the file system.
        path: the data directory.
        meta: whose it is.
    """

    def __init__(self, files: Files, path: Path, meta: Meta) -> None:
        self._files = files
        self._path = path
        self._meta = meta
        self.number = 0
        self.sequence = 0
        """Segment and sequence of the last whole record."""
        self._follows = True
        """Whether the next record should follow that one: not behind damage."""
        self._doubts: list[Torn] = []
        """Places that are damage if any record follows, else the torn end of the log."""
        self._sizes: set[int] = set()
        """Of whole segments, as they were made."""
        self._cut = 0
        """Bytes by which the segment of the last whole record is shorter than it was made."""
        self._used = 0
        """Where its records end."""

    @property
    def segment_bytes(self) -> int:
        """As large as any segment was made, as far as is known."""
        return max(self._sizes, default=0)

    def __iter__(self) -> Iterator[Event]:
        """Read everything, once."""
        numbers = segment_numbers(self._files, self._path)
        self._sizes = {header.size for number in numbers if (header := _header(self._files, self._path, number))}
        for number in numbers:
            try:
                file = self._files.open(self._path / segment_name(number), write=False)
            except FileNotFoundError:
                continue  # freed just now by the broker that uses the directory
            try:
                yield from self._file(number, file)
            finally:
                self._files.close(file)
        yield from self._end(numbers)

    def _end(self, numbers: Sequence[int]) -> Iterator[Event]:
        """A segment is cut to what it holds when it is left, for one whose first record is durable."""
        following = [self.number, *(number for number in numbers if number > self.number)]
        missing = [(before + 1, after - 1) for before, after in pairwise(following) if after > before + 1]
        if missing or self._cut:
            yield from self._something_follows()
        if self._cut and (not missing or missing[0][0] > self.number + 1):
            yield self._broken(self.number, self._used, self._used, "the segment was cut off here", self._cut)
        for first, last in missing:
            what = "the segment is missing" if first == last else f"the segments {first} to {last} are missing"
            yield self._broken(first, 0, 0, what, (last - first + 1) * self.segment_bytes)
        yield from self._doubts

    def _file(self, number: int, file: int) -> Iterator[Event]:
        raw, size = self._files.read(file, HEADER_BYTES, 0), self._files.size(file)
        header = Header.parse(raw)
        meta = self._meta
        if header is not None and (header.shard, header.key, header.number) != (meta.shard, meta.key, number):
            yield self._broken(number, 0, size, "the segment belongs to another journal")
            return
        if header is None:
            header = self._found_again(number, file, raw, size)
            if header is None:
                filled = look_behind(self._files, Segment(file, Header(0, 0, 0, 0, 0)), HEADER_BYTES, 1 << 64)
                until = max(HEADER_BYTES, min(filled.dirty_until, size))
                yield self._broken(number, 0, until, "the segment's header is not whole, and no record agrees with it")
                return
            yield self._broken(number, 0, HEADER_BYTES, "the segment's header is not whole; its records can be read")
        yield from self._segment(Segment(file, header), size)

    def _found_again(self, number: int, file: int, raw: bytes, size: int) -> Header | None:
        """The header of a segment whose own is not whole, with the anchor that its records agree with."""
        meta = self._meta
        likely = max([size, *self._sizes])
        anchors: dict[int, int] = {}
        """And the size that the file was made with."""
        if len(raw) == HEADER_BYTES:
            anchors = dict.fromkeys((_u32.unpack(raw[-4:])[0], google_crc32c.value(raw[:-4])), likely)
        for epoch in range(max(0, meta.epoch - EPOCHS_TRIED_MAX), meta.epoch + EPOCHS_BEYOND):
            for made in (size, *self._sizes):
                anchors[_u32.unpack(Header(meta.shard, meta.key, number, epoch, made).pack()[-4:])[0]] = made
        at = 0
        while len(data := self._files.read(file, len(ZEROS), at)) >= HEAD_BYTES:
            found = data.find(MAGIC)
            while 0 <= found <= len(data) - HEAD_BYTES:
                head = data[found : found + HEAD_BYTES]
                anchor = google_crc32c.value(head[8:28]) ^ _u32.unpack(head[28:])[0]
                if anchor in anchors:
                    return Header(meta.shard, meta.key, number, meta.epoch, anchors[anchor], anchor)
                found = data.find(MAGIC, found + 1)
            at += len(data) - HEAD_BYTES + 1
        return None

    def _segment(self, segment: Segment, size: int) -> Iterator[Event]:
        number, records, first = segment.header.number, 0, 0
        walk = Walk(self._files, segment, chain=segment.header.anchor)
        while True:
            for found in walk:
                yield from self._place(number, found)
                self._cut = max(0, segment.header.size - size)
                records += 1
                first = first if first else found.head.sequence
                yield Whole(number, found)
            search = walk.end if walk.fault is None or walk.strayed else walk.end + 1
            tail = look_behind(self._files, segment, search, self.sequence)
            if walk.fault is None and tail.dirty_until <= walk.end:
                break
            what = walk.fault if walk.fault is not None else "there are bytes, but no record"
            if tail.later is None:
                until = max(tail.dirty_until, min(walk.end + HEAD_BYTES, size))
                self._doubts.append(Torn(number, walk.end, until, self.sequence + 1, what))
                break
            yield from self._something_follows()
            yield self._broken(number, walk.end, tail.later, f"{what}; the next record begins at byte {tail.later}")
            walk = Walk(self._files, segment, start=tail.later, chain=None)
        if records:
            self._used = walk.end
        yield SegmentEnd(number, size, walk.end, records, (first, self.sequence) if records else None)

    def _place(self, number: int, found: Found) -> Iterator[Event]:
        """Judge a record by the one before."""
        sequence = found.head.sequence
        yield from self._something_follows()
        if self._follows and sequence != self.sequence + 1:
            if number > self.number + 1:
                yield Absent(self.sequence + 1, sequence - 1, (self.number + 1, number - 1))
            else:
                missing = f"records {self.sequence + 1} to {sequence - 1} are missing before it"
                yield self._broken(number, found.offset, found.offset, missing, self._cut)
        self.number, self.sequence, self._follows = number, sequence, True

    def _something_follows(self) -> Iterator[Event]:
        """What might have been the end is none."""
        for torn in self._doubts:
            yield self._broken(torn.number, torn.byte, torn.until, torn.error, self._cut)
        self._doubts.clear()

    def _broken(self, number: int, byte: int, until: int, error: str, cut: int = 0) -> Damaged:
        self._follows = False
        return Damaged(number, byte, until, self.sequence + 1, error, cut)
