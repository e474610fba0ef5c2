"""The journal for people: what stands in a data directory, read without changing it, in use or damaged.

Findings come in the order of the log, then what its facts add up to. What is damaged is named with its place, and
reading goes on at the next record that can be found, so that one sees how much is whole.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from kyogo_broker.journal.checkpoint import checkpoint_name, checkpoint_number, parse_checkpoint
from kyogo_broker.journal.codec import decode
from kyogo_broker.journal.directory import Directory, Meta, read_meta
from kyogo_broker.journal.files import Files
from kyogo_broker.journal.recovery import opened, segment_numbers
from kyogo_broker.journal.segment_file import Found, Segment, Walk, look_behind, segment_name
from kyogo_broker.model.commands import Outcome
from kyogo_broker.model.errors import BrokerStopError
from kyogo_broker.model.facts import (
    DeadLettered,
    Fact,
    Finished,
    Moved,
    Published,
    QueueCreated,
    QueueDeleted,
    Settled,
)
from kyogo_broker.model.message import Batch

RANGES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One line about a data directory."""

    what: str
    """`directory`, `segment`, `record`, `fact`, `torn`, `damage`, `checkpoint`, `queue`, `total`."""
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def damaged(self) -> bool:
        """Whether the command that shows it should end with a status other than 0."""
        return self.what == "damage"

    def text(self) -> str:
        """For a terminal: one line, no control characters."""
        shown = " ".join(f"{name}={json.dumps(value)}" for name, value in self.fields.items())
        return f"{_INDENT.get(self.what, '')}{self.what} {shown}"

    def json(self) -> str:
        """For a program: one JSON object."""
        return json.dumps({"what": self.what, **self.fields})


_INDENT = {"record": "  ", "fact": "    ", "damage": "!! ", "torn": "? "}


def describe(directory: Path | str, *, facts: bool = False, files: Files | None = None) -> Iterator[Finding]:
    """What stands in a data directory.

    Args:
        directory: the data directory; a broker may be using it.
        facts: name every record and every fact, too; never their bodies.
        files: the file system.
    """
    yield from _Description(Path(directory), Files() if files is None else files, facts=facts).findings()


class _Description:
    def __init__(self, path: Path, files: Files, *, facts: bool) -> None:
        self._files = files
        self._directory = Directory(files, path)
        self._each = facts
        self._queues: dict[int, _Queue] = {}
        self._kinds: Counter[str] = Counter()
        self._number = 0
        self._sequence = 0
        """Segment and sequence of the last record met with."""
        self._follows = True
        """Whether the next record should follow that one: not behind damage."""
        self._gaps: list[tuple[int, int]] = []
        """Records missing between segments: freed, if a checkpoint contains them."""
        self._contained = 0
        """Records up to here are contained in the newest whole checkpoint."""
        self._doubt: dict[str, Any] | None = None
        """A place that is damage if any record follows, else the torn end of the log."""

    def findings(self) -> Iterator[Finding]:
        path = self._directory.path
        try:
            meta = read_meta(self._files, path)
            numbers = segment_numbers(self._files, path)
        except (OSError, BrokerStopError) as error:
            yield Finding("damage", {"path": str(path), "error": str(error)})
            return
        yield Finding("directory", {"path": str(path), "format": meta.format, "shard": meta.shard, "epoch": meta.epoch})
        for number in numbers:
            try:
                with opened(self._files, self._directory, meta, number) as segment:
                    yield from self._segment(segment)
            except FileNotFoundError:
                continue  # freed just now by the broker that uses the directory
            except BrokerStopError as error:
                yield Finding("damage", {"file": segment_name(number), "byte": 0, "error": str(error)})
                self._follows = False
        if self._doubt is not None:
            yield Finding("torn", self._doubt)
        yield from self._checkpoints(meta)
        for first, last in self._gaps:
            if last > self._contained:
                what = "no segment holds them, and no checkpoint contains them"
                yield Finding("damage", {"records": [first, last], "error": what})
        for queue_id, queue in sorted(self._queues.items()):
            yield queue.finding(queue_id)
        yield Finding("total", {"last_sequence": self._sequence, "facts": dict(self._kinds)})

    def _segment(self, segment: Segment) -> Iterator[Finding]:
        name, before, records = segment_name(segment.header.number), self._sequence, 0
        kinds: Counter[str] = Counter()
        walk = Walk(self._files, segment, chain=segment.header.anchor)
        while True:
            for found in walk:
                yield from self._place(segment.header.number, found)
                yield from self._facts(name, found, kinds)
                records += 1
            tail = look_behind(self._files, segment, walk.end, self._sequence + 1)
            if walk.fault is None and tail.dirty_until <= walk.end:
                break
            what = walk.fault or "there are bytes, but no record"
            place = {"file": name, "byte": walk.end, "sequence": self._sequence + 1}
            if tail.later is None:
                self._doubt = {**place, "error": f"{what}: torn by a crash, or just being written"}
                break
            yield Finding("damage", {**place, "error": f"{what}; the next record begins at byte {tail.later}"})
            self._follows = False
            walk = Walk(self._files, segment, start=tail.later, chain=None)
        self._kinds += kinds
        sizes = {"bytes": self._files.size(segment.file), "used": walk.end}
        sequences = [before + 1, self._sequence] if records else []
        yield Finding(
            "segment",
            {"file": name, **sizes, "records": records, "sequences": sequences, "facts": dict(kinds)},
        )

    def _place(self, number: int, found: Found) -> Iterator[Finding]:
        """Judge a record by the one before."""
        sequence = found.head.sequence
        if self._doubt is not None:
            yield Finding("damage", self._doubt)
            self._doubt, self._follows = None, False
        if self._follows and sequence != self._sequence + 1:
            if number > self._number + 1:
                self._gaps.append((self._sequence + 1, sequence - 1))
            else:
                missing = f"records {self._sequence + 1} to {sequence - 1} are missing before it"
                yield Finding("damage", {"file": segment_name(number), "byte": found.offset, "error": missing})
        self._number, self._sequence, self._follows = number, sequence, True

    def _facts(self, name: str, found: Found, kinds: Counter[str]) -> Iterator[Finding]:
        place = {"file": name, "byte": found.offset, "sequence": found.head.sequence}
        if self._each:
            yield Finding("record", {**place, "epoch": found.head.epoch, "bytes": len(found.payload)})
        try:
            facts = decode(found.payload)
        except BrokerStopError as error:
            yield Finding("damage", {**place, "error": str(error)})
            return
        for fact in facts:
            kinds[type(fact).__name__] += 1
            self._count(fact)
            if self._each:
                yield Finding("fact", {"kind": type(fact).__name__, **_shown_fields(fact)})

    def _count(self, fact: Fact) -> None:
        queue_id = getattr(fact, "queue_id", None)
        if queue_id is None:
            return
        queue = self._queues.setdefault(queue_id, _Queue())
        match fact:
            case QueueCreated(name=name):
                queue.name = name
            case QueueDeleted():
                del self._queues[queue_id]
            case Published(first_offset=first, batch=batch):
                queue.stored.append((first, first + batch.count - 1))
            case Moved(offsets=offsets):
                queue.stored += [(offset, offset) for offset in offsets]
            case Settled(outcome=Outcome.ACK, spans=spans):
                queue.finished += [(span.first_offset, span.first_offset + span.count - 1) for span in spans]
            case DeadLettered(span=span):
                queue.finished.append((span.first_offset, span.first_offset + span.count - 1))
            case Finished(ranges=ranges):
                queue.finished += ranges

    def _checkpoints(self, meta: Meta) -> Iterator[Finding]:
        for name in self._files.names(self._directory.path):
            number = checkpoint_number(name)
            if number is None:
                continue
            try:
                file = self._files.open(self._directory.of(checkpoint_name(number)), write=False)
            except FileNotFoundError:
                continue
            try:
                data = self._files.read(file, self._files.size(file), 0)
                sections = parse_checkpoint(data, key=meta.key, number=number)
            except (ValueError, BrokerStopError) as error:
                yield Finding("damage", {"file": name, "error": str(error)})
                continue
            finally:
                self._files.close(file)
            sequences = [section.sequence for section in sections]
            self._contained = min(sequences, default=0)
            yield Finding(
                "checkpoint",
                {
                    "file": name,
                    "sections": len(sections),
                    "bytes": sum(len(section.state) for section in sections),
                    "sequences": [min(sequences), max(sequences)] if sequences else [],
                },
            )


@dataclass(slots=True)
class _Queue:
    name: str | None = None
    """None: created before the first record that is left."""
    stored: list[tuple[int, int]] = field(default_factory=list)
    finished: list[tuple[int, int]] = field(default_factory=list)

    def finding(self, queue_id: int) -> Finding:
        left = _subtract(_joined(self.stored), _joined(self.finished))
        shown = [f"{first}-{last}" for first, last in left[:RANGES_SHOWN]]
        if len(left) > RANGES_SHOWN:
            shown.append(f"and {len(left) - RANGES_SHOWN} more")
        count = sum(last - first + 1 for first, last in left)
        return Finding(
            "queue", {"queue_id": queue_id, "name": self.name, "unfinished": count, "unfinished_offsets": shown}
        )


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same offsets in as few ranges as there can be, in order."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def _subtract(ranges: list[tuple[int, int]], taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of `ranges` is not in `taken`; both joined."""
    left: list[tuple[int, int]] = []
    at = 0
    for first, last in ranges:
        begin = first
        while at < len(taken) and taken[at][1] < begin:
            at += 1
        for low, high in taken[at:]:
            if low > last:
                break
            if low > begin:
                left.append((begin, low - 1))
            begin = high + 1
        if begin <= last:
            left.append((begin, last))
    return left


def _shown_fields(value: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass
    return {one.name: _shown(getattr(value, one.name)) for one in fields(value)}


def _shown(value: Any) -> Any:  # noqa: ANN401 - what facts are made of
    if isinstance(value, Batch):
        return {"messages": value.count, "bytes": len(value.wire)}
    if is_dataclass(value):
        return _shown_fields(value)
    if isinstance(value, range):
        return [f"{value[0]}-{value[-1]}"]
    if isinstance(value, tuple):
        return [_shown(one) for one in value]
    return value
