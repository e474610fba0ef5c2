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

from kyogo_broker.journal.checkpoint import checkpoint_name
from kyogo_broker.journal.codec import decode
from kyogo_broker.journal.directory import Meta
from kyogo_broker.journal.files import Files
from kyogo_broker.journal.loading import runs
from kyogo_broker.journal.offsets import OffsetSet, offsets_of
from kyogo_broker.journal.scan import (
    Absent,
    Damaged,
    PatientFiles,
    Scan,
    SegmentEnd,
    Torn,
    Whole,
    checkpoints,
    identify,
)
from kyogo_broker.journal.segment_file import segment_name
from kyogo_broker.model.commands import Outcome
from kyogo_broker.model.errors import BrokerStopError, NewerDataError
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
TORN = "torn by a crash, or just being written"


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
    yield from _Description(Path(directory), PatientFiles() if files is None else files, facts=facts).findings()


class _Description:
    def __init__(self, path: Path, files: Files, *, facts: bool) -> None:
        self._files = files
        self._path = path
        self._each = facts
        self._queues: dict[int, _Queue] = {}
        self._kinds: Counter[str] = Counter()
        self._absent: list[Absent] = []
        """Freed, if a checkpoint contains their records."""
        self._contained = 0
        """Records up to here are contained in the newest whole checkpoint."""

    def findings(self) -> Iterator[Finding]:
        path = self._path
        try:
            meta, what = identify(self._files, path)
        except (OSError, BrokerStopError) as error:
            yield Finding("damage", {"path": str(path), "error": str(error)})
            return
        if what is not None:
            yield Finding("damage", {"file": "meta", "error": what})
        said = {"format": meta.format, "shard": meta.shard, "epoch": meta.epoch, "written_by": meta.version}
        yield Finding("directory", {"path": str(path), **said})
        scan = Scan(self._files, path, meta)
        try:
            yield from self._log(scan)
            yield from self._checkpoints(meta)
        except NewerDataError as error:
            yield Finding("damage", {"path": str(path), "error": str(error.by(meta.version))})
            return
        for absent in self._absent:
            if absent.last > self._contained:
                what = "no segment holds them, and no checkpoint contains them"
                yield Finding("damage", {"records": [absent.first, absent.last], "error": what})
        for queue_id, queue in sorted(self._queues.items()):
            yield queue.finding(queue_id)
        yield Finding("total", {"last_sequence": scan.sequence, "facts": dict(self._kinds)})

    def _log(self, scan: Scan) -> Iterator[Finding]:
        kinds: Counter[str] = Counter()
        for event in scan:
            match event:
                case Whole():
                    yield from self._record(event, kinds)
                case Damaged() | Torn():
                    what = "damage" if isinstance(event, Damaged) else "torn"
                    place = {"file": segment_name(event.number), "byte": event.byte, "sequence": event.sequence}
                    why = event.error if isinstance(event, Damaged) else f"{event.error}: {TORN}"
                    yield Finding(what, {**place, "error": why})
                case Absent():
                    self._absent.append(event)
                case SegmentEnd(sequences=sequences):
                    sizes = {"bytes": event.bytes, "used": event.used, "records": event.records}
                    self._kinds += kinds
                    shown = {"sequences": list(sequences) if sequences else [], "facts": dict(kinds)}
                    yield Finding("segment", {"file": segment_name(event.number), **sizes, **shown})
                    kinds.clear()

    def _record(self, record: Whole, kinds: Counter[str]) -> Iterator[Finding]:
        found = record.found
        place = {"file": segment_name(record.number), "byte": found.offset, "sequence": found.head.sequence}
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
            case Published() | Moved():
                queue.stored.update((first, last) for _, first, last in runs(fact))
            case Settled(outcome=Outcome.ACK, spans=spans):
                queue.finished.update(map(offsets_of, spans))
            case DeadLettered(span=span):
                queue.finished.update((offsets_of(span),))
            case Finished(ranges=ranges):
                queue.finished.update(ranges)

    def _checkpoints(self, meta: Meta) -> Iterator[Finding]:
        for read in checkpoints(self._files, self._path, meta):
            name = checkpoint_name(read.number)
            if read.error is not None:
                yield Finding("damage", {"file": name, "error": read.error})
                continue
            sequences = [section.sequence for section in read.sections]
            self._contained = min(sequences, default=0)
            yield Finding(
                "checkpoint",
                {
                    "file": name,
                    "sections": len(read.sections),
                    "bytes": sum(len(section.state) for section in read.sections),
                    "sequences": [min(sequences), max(sequences)] if sequences else [],
                },
            )


@dataclass(slots=True)
class _Queue:
    name: str | None = None
    """None: created before the first record that is left."""
    stored: OffsetSet = field(default_factory=OffsetSet)
    finished: OffsetSet = field(default_factory=OffsetSet)

    def finding(self, queue_id: int) -> Finding:
        left = self.stored.without(self.finished)
        ranges = [f"{first}-{last}" for first, last in left]
        shown = ranges[:RANGES_SHOWN]
        if len(ranges) > RANGES_SHOWN:
            shown.append(f"and {len(ranges) - RANGES_SHOWN} more")
        return Finding(
            "queue", {"queue_id": queue_id, "name": self.name, "unfinished": len(left), "unfinished_offsets": shown}
        )


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
