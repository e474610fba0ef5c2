"""What a segment log holds when it is opened: its end, its records, its newest checkpoint.

Appends go one at a time and each is synced before the next, so only the last record can be torn. Whatever stands where
a record should, and is none, is therefore
- the end, if it is zeros and nothing later follows;
- torn, if nothing later follows: it was never answered, and is overwritten with zeros, durably, before anything else
  is appended, so that no part of it can ever be taken for a record again;
- damage, if the head of a later record follows, in this segment or in one behind it: the broker stops.

The last whole record is written once more and synced: after a crash, or after a sync that failed, it may have been in
the machine's memory only, and from here on others rely on it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kyogo_broker.journal.base import Record, Section
from kyogo_broker.journal.checkpoint import checkpoint_name, checkpoint_number, parse_checkpoint
from kyogo_broker.journal.directory import Directory, Meta, remedy
from kyogo_broker.journal.files import Files
from kyogo_broker.journal.segment_file import (
    HEAD_BYTES,
    HEADER_BYTES,
    NUMBER_SHIFT,
    ZEROS,
    Found,
    Head,
    Header,
    Segment,
    Walk,
    look_behind,
    parse_head,
    segment_name,
    segment_number,
)
from kyogo_broker.model.errors import BrokerStopError


class Place(NamedTuple):
    """A segment that holds records."""

    number: int
    first_sequence: int
    used: int
    """Bytes, its header included; for the active segment as of its opening."""


class End(NamedTuple):
    """Where the log ends."""

    number: int
    """Of the active segment; 0: there is none yet."""
    offset: int
    chain: int
    """Crc of the last record."""
    sequence: int
    """Of the last record; 0: there is none."""
    epoch: int
    """The highest one met with."""


@dataclass(frozen=True, slots=True)
class Log:
    """What was found."""

    places: tuple[Place, ...]
    end: End
    unused: tuple[int, ...]
    """Numbers of the segments that are ready behind the active one."""
    notes: tuple[str, ...]

    def reaches_back_to(self, after: int) -> bool:
        """Whether every record above `after` is there, by the segments' numbers."""
        if after >= self.end.sequence:
            return after == self.end.sequence
        number = self.end.number
        for place in reversed(self.places):
            if place.number != number:
                return False
            if place.first_sequence <= after + 1:
                return True
            number -= 1
        return False


class _Surveyed(NamedTuple):
    header: Header
    first: Head | None
    size: int


def damage(directory: Directory, number: int, offset: int, what: str) -> BrokerStopError:
    """The error for a place that cannot be read."""
    place = f"{directory.of(segment_name(number))}, byte {offset}"
    return BrokerStopError(f"the journal is damaged: {place}: {what}. {remedy(directory.path)}")


@contextmanager
def opened(files: Files, directory: Directory, meta: Meta, number: int, *, write: bool = False) -> Iterator[Segment]:
    """A segment, open for as long as the block runs."""
    segment = open_segment(files, directory, meta, number, write=write)
    try:
        yield segment
    finally:
        files.close(segment.file)


def open_segment(files: Files, directory: Directory, meta: Meta, number: int, *, write: bool) -> Segment:
    """Open a segment and check that it is what its name says.

    Raises:
        BrokerStopError: it is not.
    """
    file = files.open(directory.of(segment_name(number)), write=write)
    header = Header.parse(files.read(file, HEADER_BYTES, 0))
    if header is None or (header.shard, header.key, header.number) != (meta.shard, meta.key, number):
        files.close(file)
        what = "the segment's header is not whole" if header is None else "the segment belongs to another journal"
        raise damage(directory, number, 0, what)
    return Segment(file, header)


def find_end(files: Files, directory: Directory, meta: Meta) -> Log:
    """Survey the segments, judge what stands at the end, and put it right.

    Raises:
        BrokerStopError: damage; says where.
    """
    surveyed = [_survey(files, directory, meta, number) for number in segment_numbers(files, directory.path)]
    with_records = [index for index, one in enumerate(surveyed) if one.first is not None]
    active = with_records[-1] if with_records else 0
    for one in surveyed[:active]:
        if one.first is None:
            raise damage(directory, one.header.number, HEADER_BYTES, "the head of its first record is not whole")
    for one, following in zip(surveyed[active:], surveyed[active + 1 :], strict=False):
        if following.header.number != one.header.number + 1:
            raise damage(directory, one.header.number + 1, 0, "the segment is missing")
    if not surveyed:
        if meta.epoch > 0:
            raise damage(directory, 1, 0, "there is no segment at all")
        return Log((), End(0, 0, 0, 0, 0), (), ())
    return _judge(files, directory, meta, surveyed, active)


def segment_numbers(files: Files, path: Path) -> list[int]:
    """The segments in a directory, in order."""
    return sorted(number for name in files.names(path) if (number := segment_number(name)) is not None)


def _survey(files: Files, directory: Directory, meta: Meta, number: int) -> _Surveyed:
    with opened(files, directory, meta, number) as segment:
        head = files.read(segment.file, HEAD_BYTES, HEADER_BYTES)
        first = parse_head(head, segment.header.anchor) if len(head) == HEAD_BYTES else None
        return _Surveyed(segment.header, first, files.size(segment.file))


def _judge(files: Files, directory: Directory, meta: Meta, surveyed: list[_Surveyed], active: int) -> Log:
    """Find the last whole record in segment `active` or, if its first is torn, in the one before."""
    first = surveyed[active].first
    end, last = _walk_to_end(files, directory, meta, surveyed[active].header.number)
    if last is None and first is not None and first.sequence > 1:
        active -= 1
        if active >= 0:
            end, last = _walk_to_end(files, directory, meta, surveyed[active].header.number)
        if end.sequence != first.sequence - 1:
            raise damage(directory, end.number, end.offset, f"record {end.sequence + 1} is missing")
    behind = [(end.number, end.offset)]
    behind += [(one.header.number, HEADER_BYTES) for one in surveyed[active + 1 :]]
    tails = [(number, at, _dirty_until(files, directory, meta, number, at, end.sequence)) for number, at in behind]
    cut = surveyed[active].header.size - surveyed[active].size if active >= 0 else 0
    if cut > 0:
        what = f"{cut} bytes were cut off the last segment, which keeps its size until another one follows it"
        raise damage(directory, end.number, surveyed[active].size, what)
    notes = []
    for number, start, dirty_until in tails:
        if dirty_until > start:
            _cut(files, directory, meta, number, start, dirty_until)
            notes.append(
                f"cut off record {end.sequence + 1}, torn by a crash before it was answered: "
                f"{segment_name(number)}, bytes {start} to {dirty_until}"
            )
    if last is not None:
        _write_again(files, directory, meta, end, last)
    places = [
        Place(one.header.number, one.first.sequence, one.size)
        for one in surveyed[: active + 1]
        if one.first is not None and end.sequence > 0
    ]
    unused = [one.header.number for one in surveyed[active + 1 :]]
    end = end._replace(epoch=max(end.epoch, *(one.header.epoch for one in surveyed)))
    return Log(tuple(places), end, tuple(unused), tuple(notes))


def _walk_to_end(files: Files, directory: Directory, meta: Meta, number: int) -> tuple[End, Found | None]:
    with opened(files, directory, meta, number) as segment:
        walk = Walk(files, segment, chain=segment.header.anchor)
        last = None
        for last in walk:  # noqa: B007 - the last one is wanted
            pass
        if walk.strayed:
            raise damage(directory, number, walk.end, walk.fault or "")
        sequence, epoch = (0, 0) if last is None else (last.head.sequence, last.head.epoch)
        return End(number, walk.end, walk.chain or 0, sequence, epoch), last


def _dirty_until(files: Files, directory: Directory, meta: Meta, number: int, start: int, sequence: int) -> int:
    """Byte after the last one that is not zero; the record after `sequence` is torn if there is one."""
    with opened(files, directory, meta, number) as segment:
        tail = look_behind(files, segment, start, sequence + 1)
    if tail.later is not None:
        what = f"record {sequence + 1} is not whole, and a later one stands at byte {tail.later} of segment {number}"
        raise damage(directory, number, start, what)
    return tail.dirty_until


def _cut(files: Files, directory: Directory, meta: Meta, number: int, start: int, end: int) -> None:
    with opened(files, directory, meta, number, write=True) as segment:
        for at in range(start, end, len(ZEROS)):
            files.write(segment.file, [ZEROS[: end - at]], at)
        files.sync(segment.file)


def _write_again(files: Files, directory: Directory, meta: Meta, end: End, last: Found) -> None:
    with opened(files, directory, meta, end.number, write=True) as segment:
        files.write(segment.file, [files.read(segment.file, end.offset - last.offset, last.offset)], last.offset)
        files.sync(segment.file)


def read_log(files: Files, directory: Directory, meta: Meta, log: Log, after: int) -> Iterator[Record]:
    """Every record above `after`, checked.

    Raises:
        BrokerStopError: one of them is damaged or missing.
    """
    first = max((i for i, place in enumerate(log.places) if place.first_sequence <= after + 1), default=0)
    expected = after + 1
    for place in log.places[first:]:
        if place.first_sequence > expected:
            raise damage(directory, place.number, HEADER_BYTES, f"record {expected} is missing before it")
        with opened(files, directory, meta, place.number) as segment:
            limit = log.end.offset if place.number == log.end.number else None
            walk = Walk(files, segment, chain=segment.header.anchor, begin_below=limit)
            for found in walk:
                if found.head.sequence > after:
                    expected = found.head.sequence + 1
                    yield Record(found.head.sequence, place.number << NUMBER_SHIFT | found.offset, found.payload)
            if walk.fault is not None:
                raise damage(directory, place.number, walk.end, walk.fault)


class Newest(NamedTuple):
    """The checkpoint to begin from."""

    sections: tuple[Section, ...]
    on_disk: list[int]
    """Numbers of all checkpoints, the first ones to go first."""
    notes: tuple[str, ...]


def newest_checkpoint(files: Files, directory: Directory, meta: Meta, log: Log) -> Newest:
    """The newest whole checkpoint whose later records are all there.

    Raises:
        BrokerStopError: there are checkpoints, and none that will do.
    """
    numbers = [number for name in files.names(directory.path) if (number := checkpoint_number(name)) is not None]
    useless: list[int] = []
    notes: list[str] = []
    for number in reversed(numbers):
        try:
            sections = _read_checkpoint(files, directory, meta, number)
        except ValueError as error:
            notes.append(f"{checkpoint_name(number)} is damaged: {error}")
            useless.append(number)
            continue
        high = max((section.sequence for section in sections), default=0)
        if high > log.end.sequence:
            what = f"{checkpoint_name(number)} contains record {high}, but the log ends with {log.end.sequence}"
            raise damage(directory, log.end.number, log.end.offset, what)
        if log.reaches_back_to(min((section.sequence for section in sections), default=0)):
            return Newest(sections, [*useless, *(n for n in numbers if n <= number)], tuple(notes))
        notes.append(f"{checkpoint_name(number)} is whole, but records after it are missing")
        useless.append(number)
    if not log.reaches_back_to(0):
        raise BrokerStopError(
            f"the journal is damaged: records are missing in {directory.path} and no checkpoint makes up for them"
            f"{''.join(f'; {note}' for note in notes)}. {remedy(directory.path)}"
        )
    return Newest((), useless, tuple(notes))


def _read_checkpoint(files: Files, directory: Directory, meta: Meta, number: int) -> tuple[Section, ...]:
    file = files.open(directory.of(checkpoint_name(number)), write=False)
    try:
        return parse_checkpoint(files.read(file, files.size(file), 0), key=meta.key, number=number)
    finally:
        files.close(file)
