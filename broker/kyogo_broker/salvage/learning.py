"""The first reading: what there is and what is missing, place by place, and what all of it says."""

from collections.abc import Callable, Iterator
from pathlib import Path

from kyogo_broker.journal.checkpoint import checkpoint_name
from kyogo_broker.journal.codec import decode
from kyogo_broker.journal.directory import Meta
from kyogo_broker.journal.files import Files
from kyogo_broker.journal.inspect import Finding
from kyogo_broker.journal.scan import (
    Absent,
    CheckpointRead,
    Damaged,
    Event,
    Scan,
    SegmentEnd,
    Torn,
    Whole,
    checkpoints,
)
from kyogo_broker.journal.segment_file import segment_name
from kyogo_broker.model.errors import BrokerStopError, NewerDataError
from kyogo_broker.salvage.knowledge import Knowledge

FOR_EVER = 1 << 63
"""Above the sequence of every record: nobody knows which was the last."""


class Learning:
    """Reads a directory from end to end.

    Args:
        files: the file system.
        path: the directory.
        meta: whose it is.
        went_on: is told of every event.
    """

    def __init__(self, files: Files, path: Path, meta: Meta, *, went_on: Callable[[Event], None]) -> None:
        self.knowledge = Knowledge(meta.shard)
        self.damaged = 0
        """Places that are not as they were written."""
        self._files = files
        self._path = path
        self._meta = meta
        self._went_on = went_on
        self._scan = Scan(files, path, meta)
        self._hurt = False
        """Whether there was damage since the last whole record."""
        self._lost_bytes = 0
        """Of that damage."""

    @property
    def end(self) -> tuple[int, int]:
        """Segment and sequence of the last whole record."""
        return self._scan.number, self._scan.sequence

    def damage(self, place: dict[str, object], error: str) -> Finding:
        """Something is not as it was written."""
        self.damaged += 1
        self._hurt = True
        return Finding("damage", {**place, "error": error})

    def findings(self) -> Iterator[Finding]:
        """Read all of it; what is damaged is told as it is found.

        Raises:
            NewerDataError: a newer Kyogo wrote a part of it.
        """
        read = list(checkpoints(self._files, self._path, self._meta))
        for one in read:
            if one.error is not None:
                place = {"file": checkpoint_name(one.number), "sections_whole": len(one.sections)}
                yield self.damage(place, one.error)
        self.knowledge.begin_with(read)
        self._hurt = False
        sequence = 0
        for event in self._scan:
            if isinstance(event, Whole):
                yield from self._record(event, sequence)
                sequence = event.found.head.sequence
            else:
                yield from self._place(event)
            self._went_on(event)
        yield from self._log_end(read, sequence)
        self.knowledge.end()

    def _place(self, event: Damaged | Torn | Absent | SegmentEnd) -> Iterator[Finding]:
        match event:
            case Damaged():
                self._lost_bytes += event.until - event.byte + event.cut
                place = {"file": segment_name(event.number), "byte": event.byte, "until": event.until}
                yield self.damage(place, event.error)
            case Torn():
                place = {"file": segment_name(event.number), "byte": event.byte, "until": event.until}
                yield Finding("torn", {**place, "sequence": event.sequence, "error": event.error})
            case Absent():
                first, last = event.segments
                self._lost_bytes += (last - first + 1) * self._scan.segment_bytes
                if event.last > self.knowledge.contained:
                    what = "no segment holds them, and not every queue's checkpoint contains them"
                    place = {"records": [event.first, event.last], "segments": [first, last]}
                    yield self.damage(place, what)
            case SegmentEnd():
                pass

    def _record(self, record: Whole, before: int) -> Iterator[Finding]:
        found = record.found
        sequence = found.head.sequence
        if sequence != before + 1:
            self.knowledge.missing(sequence - 1, self._lost_bytes)
            if self._hurt:
                yield Finding("gap", {"first": before + 1, "last": sequence - 1})
        self._lost_bytes, self._hurt = 0, False
        try:
            self.knowledge.take(sequence, decode(found.payload))
        except NewerDataError:
            raise
        except BrokerStopError as error:
            self.knowledge.missing(sequence, len(found.payload))
            yield self.damage({"file": segment_name(record.number), "byte": found.offset}, str(error))

    def _log_end(self, read: list[CheckpointRead], sequence: int) -> Iterator[Finding]:
        """The last whole record was read; was there another one?"""
        contained = max((section.sequence for one in read for section in one.sections), default=0)
        if self._lost_bytes:
            self.knowledge.missing(FOR_EVER, self._lost_bytes)
        if contained > sequence:
            self.knowledge.missing(contained, self._scan.segment_bytes)
            what = "a checkpoint contains them, but the log ends before them"
            yield self.damage({"records": [sequence + 1, contained]}, what)
