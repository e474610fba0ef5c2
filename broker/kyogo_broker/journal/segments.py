"""The default journal: a log of preallocated segment files, one record a commit, one write, one sync.

    DIR/lock                    held by the process that uses the directory
    DIR/meta                    whose directory it is, and how often it was opened        directory.py
    DIR/0000000007.segment      records; the one with the last record is active           segment_file.py
    DIR/0000000008.segment      ready for use, without records                            reserve.py
    DIR/checkpoint-0000000003   states of the queues                                      checkpoint.py
    DIR/checkpoint.spare        room for the next one

A position is `segment number << 32 | byte in the file`. It must be known before an append, whatever its size; so a
segment is left when it has no room for the largest record, and what remains of it is given back.

Two threads do the file calls: one appends and nothing else, so that no commit waits behind the other one, which makes
segments ready, writes checkpoints and frees. A small record is written in the caller's thread if he says so. An append
or a sync that fails is never tried again: the system may have dropped what was to be written. It fails that append and
every later one, and the process must stop.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from kyogo_broker.journal.base import CheckpointWriter, JournalStats, Part, Record, Recovered
from kyogo_broker.journal.checkpoint import CheckpointFile, keep_ready
from kyogo_broker.journal.directory import Directory, Meta
from kyogo_broker.journal.files import Files
from kyogo_broker.journal.freeing import Holding, plan_freeing
from kyogo_broker.journal.lane import InlineLane, Lane, ThreadLane
from kyogo_broker.journal.recovery import (
    Place,
    damage,
    find_end,
    newest_checkpoint,
    open_segment,
    opened,
    read_log,
)
from kyogo_broker.journal.reserve import Reserve, make_segment
from kyogo_broker.journal.segment_file import (
    HEAD_BYTES,
    HEADER_BYTES,
    NUMBER_SHIFT,
    Header,
    Segment,
    Walk,
    frame,
    segment_name,
)
from kyogo_broker.model.errors import BrokerStopError, NewerDataError

STRETCH_BYTES = 65_536
READ_AHEAD_BYTES = 4096
"""Read beyond a stretch: its last record is mostly in it."""
IN_PLACE_BYTES = 65_536
"""The most that is written in the caller's thread."""
MIN_FREE_BYTES = 1 << 30
MIN_FREE_PERCENT = 5


@dataclass(frozen=True, slots=True)
class SegmentSettings:
    """Sizes of a segment log. They may change from one opening to the next."""

    segment_bytes: int = 40 << 20
    """Of a file: the smaller, the sooner one can be freed; the larger, the fewer there are. The active one and those
    that lie ready are on the disk whatever the journal holds. With what is not freed yet after two late checkpoints,
    that is to stay below 256 MB."""
    max_record_bytes: int = 16 << 20
    """Largest payload of a record."""
    reserve_segments: int = 2
    """Made ready behind the active one: what settling can go on with on a full disk."""
    min_free_bytes: int | None = None
    """Below this the disk counts as low; None: 1 GiB or 5% of it, whichever is more."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        least = HEADER_BYTES + 2 * (HEAD_BYTES + self.max_record_bytes)
        if not least <= self.segment_bytes <= 1 << 31:
            raise ValueError(f"segment_bytes is {self.segment_bytes}; it must lie between {least} and {1 << 31}")
        if self.max_record_bytes < 1 or self.reserve_segments < 1:
            raise ValueError("max_record_bytes and reserve_segments must be at least 1")


class SegmentJournal:
    """A journal on this machine's disk; see `Journal` for what its methods promise.

    Args:
        path: the data directory; made if there is none.
        settings: sizes.
        shard: number of the shard that the journal belongs to.
        key: random, below 2^63; used when the directory is new. Keeps anything that is not this journal's, message
            bodies included, from passing for a record.
        version: of the Kyogo that opens it, for those who find newer data than they know.
        begin_after: segment and record behind which a new log begins, as if those up to there had been freed: without
            a checkpoint that contains them it is not whole.
        files: the file system.
        lane: makes the two threads.
    """

    max_in_flight = 1
    stretch = STRETCH_BYTES
    durability = "FSYNC"

    def __init__(  # noqa: PLR0913  # most callers name two of them
        self,
        path: Path | str,
        settings: SegmentSettings | None = None,
        *,
        shard: int = 0,
        key: int = 0,
        version: str = "",
        begin_after: tuple[int, int] = (0, 0),
        files: Files | None = None,
        lane: Callable[[str], Lane] = ThreadLane,
    ) -> None:
        self._settings = SegmentSettings() if settings is None else settings
        self.max_record_bytes = self._settings.max_record_bytes
        self._shard = shard
        self._key = key
        self._version = version
        self._begin_after = begin_after
        self._files = Files() if files is None else files
        self._directory = Directory(self._files, Path(path).absolute())
        self._make_lane = lane
        self._opened = False
        self._closed = False

    def open(self) -> Recovered:
        """Lock the directory, find the log's end and the newest checkpoint, begin an epoch."""
        if self._opened:
            raise BrokerStopError("a journal is opened once; make another one")
        self._opened = True
        try:
            return self._open()
        except BaseException:
            self._closed = True
            self._directory.release()
            raise

    def _open(self) -> Recovered:
        meta = self._directory.take(shard=self._shard, key=self._key)
        try:
            return self._take_over(meta)
        except NewerDataError as error:
            raise error.by(meta.version) from None

    def _take_over(self, meta: Meta) -> Recovered:
        self._log = find_end(self._files, self._directory, meta)
        segments_before, records_before = 0, self._log.end.sequence
        if not self._log.end.number:
            segments_before, records_before = self._begin_after
            header = Header(meta.shard, meta.key, segments_before + 1, meta.epoch, self._settings.segment_bytes)
            self._files.close(make_segment(self._files, self._directory, header, zeros=True).file)
            self._log = find_end(self._files, self._directory, meta)
        newest = newest_checkpoint(self._files, self._directory, meta, self._log)
        self._checkpoints = newest.on_disk
        self._checkpoint_number = max(newest.on_disk, default=0)
        self._meta = meta.opened(epoch=max(meta.epoch, self._log.end.epoch) + 1, version=self._version)
        self._directory.begin_epoch(self._meta)
        self._places = list(self._log.places)
        self._sequence = records_before + 1
        self._failure: BrokerStopError | None = None
        self._appended: Future[None] | None = None
        self._writer = self._make_lane("kyogo-journal-append")
        self._keeper = self._make_lane("kyogo-journal-keep")
        self._here = InlineLane("")
        self._begin_segments()
        self._keep(keep_ready, self._files, self._directory, self._checkpoints, 0)
        new = self._log.end.sequence == 0 and not newest.sections
        return Recovered(self._meta.epoch, newest.sections, new, self._log.notes + newest.notes, meta.version)

    def _begin_segments(self) -> None:
        """Open the active segment and adopt those that are ready behind it."""
        end = self._log.end
        ready = self._open_unused()
        self._reserve = Reserve(
            self._files, self._directory, self._keeper, meta=self._meta, size=self._settings.segment_bytes,
            wanted=self._settings.reserve_segments, made=end.number + len(ready),
        )  # fmt: skip
        for segment in ready:
            self._reserve.adopt(segment)
        self._writing = open_segment(self._files, self._directory, self._meta, end.number, write=True)
        self._active: Future[Segment] = Future()
        self._active.set_result(self._writing)
        self._number, self._offset, self._size = end.number, end.offset, self._files.size(self._writing.file)
        self._reserve.fill(self._number)
        self._durable = self._number << NUMBER_SHIFT | self._offset
        self._chain = end.chain

    def _open_unused(self) -> list[Segment]:
        """The segments that are ready; made for other settings they may be too small, and go."""
        ready: list[Segment] = []
        for index, number in enumerate(self._log.unused):
            segment = open_segment(self._files, self._directory, self._meta, number, write=True)
            if segment.header.size < HEADER_BYTES + HEAD_BYTES + self.max_record_bytes:
                self._files.close(segment.file)
                self._unlink(self._log.unused[index:])
                break
            ready.append(segment)
        return ready

    def replay(self, after: int) -> Iterator[Record]:
        """Every record above `after`, in order."""
        return read_log(self._files, self._directory, self._meta, self._log, after)

    @property
    def sequence(self) -> int:
        """Sequence that the next record will get."""
        return self._sequence

    @property
    def position(self) -> int:
        """Position that the next record will get, however large it is."""
        if self._has_room():
            return self._number << NUMBER_SHIFT | self._offset
        return (self._number + 1) << NUMBER_SHIFT | HEADER_BYTES

    def _has_room(self) -> bool:
        return self._offset + HEAD_BYTES + self.max_record_bytes <= self._size

    def append(self, sequence: int, parts: Sequence[Part], *, in_place: bool = False) -> Future[None]:
        """Write one record; durable when the future is done."""
        length = sum(map(len, parts))
        if sequence != self._sequence or length > self.max_record_bytes:
            raise ValueError(
                f"record {sequence} of {length} bytes: {self._sequence} is next, with {self.max_record_bytes} at most"
            )
        if not self._has_room():
            self._go_on()
        if not self._places or self._places[-1].number != self._number:
            self._places.append(Place(self._number, sequence, 0))
        lane = self._here if in_place and self._is_next(length) else self._writer
        future = lane.do(self._write, self._active, self._offset, sequence, parts)
        self._offset += HEAD_BYTES + length
        self._sequence += 1
        self._appended = future
        return future

    def _is_next(self, length: int) -> bool:
        """Whether a record is small, with none before it under way, and no segment that is still being made."""
        free = self._appended is None or self._appended.done()
        return length <= IN_PLACE_BYTES and free and self._active.done() and self._active.result() is self._writing

    def _go_on(self) -> None:
        """Make the next segment the active one."""
        last = self._places[-1]
        self._places[-1] = last._replace(used=self._offset)
        slot = self._reserve.take(self._number)
        self._active, self._number, self._offset, self._size = slot.segment, slot.number, HEADER_BYTES, slot.size

    def _write(self, active: Future[Segment], offset: int, sequence: int, parts: Sequence[Part]) -> None:
        """In the appending thread."""
        if self._failure is not None:
            raise self._failure
        try:
            segment = active.result()
            if segment is not self._writing:
                segment.claim()
            start = segment.header.anchor if offset == HEADER_BYTES else self._chain
            buffers, crc, size = frame(segment.header.anchor, start, sequence, self._meta.epoch, parts)
            self._files.write(segment.file, buffers, offset)
            self._files.sync_data(segment.file)
        except Exception as error:
            self._failure = BrokerStopError(
                f"record {sequence} could not be written to {self._directory.path}: {error}. Nothing after record "
                f"{sequence - 1} was answered; see to the disk, then start the broker again"
            )
            raise self._failure from error
        self._chain = crc
        if segment is not self._writing:
            self._keep(self._leave, self._writing, self._durable & (1 << NUMBER_SHIFT) - 1)
            self._writing = segment
        self._durable = segment.header.number << NUMBER_SHIFT | (offset + size)

    def _leave(self, segment: Segment, end: int) -> None:
        """Give back what a segment did not use; in the keeping thread."""
        try:
            self._files.truncate(segment.file, end)
        finally:
            self._files.close(segment.file)

    def read_many(self, stretches: Sequence[tuple[int, int]]) -> list[Record]:
        """Records that begin within each (position, length), both ends included."""
        records: list[Record] = []
        durable = self._durable
        for position, length in stretches:
            number, first = position >> NUMBER_SHIFT, position & (1 << NUMBER_SHIFT) - 1
            below = min(position + length + 1, durable) - (number << NUMBER_SHIFT)
            try:
                with opened(self._files, self._directory, self._meta, number) as segment:
                    chunk = length + READ_AHEAD_BYTES
                    walk = Walk(self._files, segment, start=first, chain=None, begin_below=below, chunk=chunk)
                    found = [Record(f.head.sequence, number << NUMBER_SHIFT | f.offset, f.payload) for f in walk]
            except FileNotFoundError as error:
                raise damage(self._directory, number, first, "the segment is missing") from error
            if walk.fault is not None or not found:
                raise damage(self._directory, number, walk.end, walk.fault or "there is no record")
            records += found
        return records

    def begin_checkpoint(self) -> CheckpointWriter:
        """Start a checkpoint; `commit` fails with OSError if the disk has no room, and the one before stays."""
        self._checkpoint_number += 1
        return CheckpointFile(
            self._files, self._directory, self._keeper, meta=self._meta, number=self._checkpoint_number,
            kept=self._checkpoints, appended=lambda: self._appended,
        )  # fmt: skip

    def part_of(self, position: int) -> int:
        """The number of the segment."""
        return position >> NUMBER_SHIFT

    def free(self, *, below: int, live: Mapping[int, int]) -> list[tuple[int, int]]:
        """Unlink segments that nobody needs; name those that hold little."""
        durable = self._durable >> NUMBER_SHIFT
        holdings = [
            Holding(place.number, following.first_sequence - 1, place.used)
            for place, following in pairwise(self._places)
            if place.number < durable
        ]
        spare = self._settings.segment_bytes
        plan = plan_freeing(holdings, below=below, live=live, spare=spare, disk_low=self.disk_low())
        if plan.gone:
            gone = set(plan.gone)
            self._places = [place for place in self._places if place.number not in gone]
            self._keep(self._unlink, plan.gone)
            self._reserve.fill(self._number)
        return [(number << NUMBER_SHIFT, (number + 1) << NUMBER_SHIFT) for number in plan.sparse]

    def _unlink(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._files.unlink(self._directory.of(segment_name(number)))
        self._directory.sync()

    def _keep(self, call: Callable[..., None], *arguments: object) -> None:
        """Have the keeping thread do what must not fail."""
        self._keeper.do(call, *arguments).add_done_callback(self._kept)

    def _kept(self, future: Future[None]) -> None:
        if (error := future.exception()) is not None and self._failure is None:
            self._failure = BrokerStopError(
                f"{self._directory.path} could not be kept in order: {error}; see to the disk, then start the broker "
                "again"
            )

    def disk_low(self) -> bool:
        """Whether there is little room, or the reserve could not be made. One cheap system call: ask every turn."""
        space = self._files.space(self._directory.path)
        if self._reserve.short:
            if space.free > self._settings.segment_bytes:
                self._reserve.fill(self._number)
            return True
        least = self._settings.min_free_bytes
        if least is None:
            least = max(MIN_FREE_BYTES, space.total * MIN_FREE_PERCENT // 100)
        return space.free < least

    def stats(self) -> JournalStats:
        """Figures as of now."""
        return JournalStats(
            bytes_on_disk=sum(place.used for place in self._places[:-1]) + self._size + self._reserve.bytes,
            segments=len(self._places),
            free_bytes=self._files.space(self._directory.path).free,
        )

    def close(self) -> None:
        """Finish what is under way and let the directory go. Idempotent."""
        if self._closed or not self._opened:
            return
        self._closed = True
        self._writer.close()
        self._reserve.stop()
        self._keeper.close()
        self._reserve.close()
        self._files.close(self._writing.file)
        self._directory.release()
