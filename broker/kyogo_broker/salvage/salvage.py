"""The whole of it: read everything once to learn what is finished, then once more to copy what is not.

The old directory is opened for reading only, and its lock is held, so that no broker changes it meanwhile.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kyogo_broker.clock import Clock, fresh_seed
from kyogo_broker.journal.codec import decode
from kyogo_broker.journal.directory import Meta, lock_holder
from kyogo_broker.journal.files import Files
from kyogo_broker.journal.inspect import Finding
from kyogo_broker.journal.lane import Lane, ThreadLane
from kyogo_broker.journal.loading import runs
from kyogo_broker.journal.offsets import OffsetSet
from kyogo_broker.journal.recovery import segment_numbers
from kyogo_broker.journal.scan import Event, PatientFiles, Scan, SegmentEnd, Whole, identify
from kyogo_broker.journal.segment_file import segment_name
from kyogo_broker.journal.segments import SegmentJournal, SegmentSettings
from kyogo_broker.model.errors import BrokerStopError, NewerDataError
from kyogo_broker.model.facts import Moved, Published
from kyogo_broker.salvage.knowledge import Knowledge, QueueKnowledge
from kyogo_broker.salvage.learning import Learning
from kyogo_broker.salvage.new_log import NewLog, fences_above, part_of

PROGRESS_BYTES = 16 << 20
"""Read between two words about how far it is."""

Progress = Callable[[int, int], None]
"""Told bytes read, and bytes to be read in all."""


class Salvage:
    """Copies what is whole of one directory to another.

    Args:
        source: the damaged directory; nothing is written to it.
        target: a directory that is empty, or not there yet.
        version: of this Kyogo.
        settings: sizes of the new journal.
        files: the file system, of both.
        lane: as in `SegmentJournal`.
        progress: is told how far it is.
    """

    def __init__(
        self,
        source: Path,
        target: Path,
        *,
        version: str = "",
        settings: SegmentSettings | None = None,
        files: Files | None = None,
        lane: Callable[[str], Lane] = ThreadLane,
        progress: Progress = lambda *_: None,
    ) -> None:
        self._files = PatientFiles() if files is None else files
        self._source = source.absolute()
        self._target = target.absolute()
        self._version = version
        self._settings = SegmentSettings() if settings is None else settings
        self._lane = lane
        self._progress = progress
        self._read = self._told = self._total = 0

    def run(self) -> Iterator[Finding]:
        """Do it; what was found comes as it is found.

        Raises:
            BrokerStopError: it cannot be done; says why, and what to do.
        """
        self._check_target()
        with self._source_held():
            meta, error = identify(self._files, self._source)
            yield Finding("directory", {"path": str(self._source), "written_by": meta.version, "epoch": meta.epoch})
            self._total = 2 * sum(map(self._size, segment_numbers(self._files, self._source)))
            learning = Learning(self._files, self._source, meta, went_on=self._went_on)
            if error is not None:
                yield learning.damage({"file": "meta"}, error)
            try:
                yield from learning.findings()
            except NewerDataError as newer:
                raise newer.by(meta.version) from None
            log, lost = self._copy(meta, learning)
            queues = [
                _queue_finding(queue, log.copied[queue_id].offsets, lost[queue_id])
                for queue_id, queue in sorted(learning.knowledge.queues.items())
            ]
            yield from queues
            sums = {name: sum(one.fields[name] for one in queues) for name in ("copied", "lost", "in_doubt")}
            rest = {"damaged": learning.damaged, "fences_from": log.fences}
            yield Finding("total", {"path": str(self._target), "queues": len(queues), **sums, **rest})

    def _check_target(self) -> None:
        source, target = self._source.resolve(), self._target.resolve()
        if source == target or source in target.parents:
            raise BrokerStopError(f"{self._target} lies in {self._source}, to which nothing is written; name another")
        try:
            there = self._files.names(self._target)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise BrokerStopError(f"{self._target} is no directory; name another one") from None
        if there:
            raise BrokerStopError(f"{self._target} is not empty; name a new directory")

    @contextmanager
    def _source_held(self) -> Iterator[None]:
        try:
            file = self._files.open(self._source / "lock", write=False)
        except FileNotFoundError:
            yield  # a copy without it, or no data directory: `identify` tells
            return
        try:
            if not self._files.lock(file):
                holder = lock_holder(self._files, file)
                raise BrokerStopError(f"{self._source} is in use by {holder}; stop that broker first")
            yield
        finally:
            self._files.close(file)

    def _copy(self, meta: Meta, learning: Learning) -> tuple[NewLog, dict[int, OffsetSet]]:
        """The second reading; returns the new log, and what was not found by queue."""
        knowledge: Knowledge = learning.knowledge
        wanted = {queue_id: queue.unfinished() for queue_id, queue in knowledge.queues.items()}
        number, sequence = learning.end
        fences = fences_above(knowledge.fences, shard=meta.shard)
        journal = SegmentJournal(
            self._target, self._settings, shard=meta.shard, key=fresh_seed() >> 1, version=self._version,
            begin_after=(max(number, 1), max(sequence, 1)), files=self._files, lane=self._lane,
        )  # fmt: skip
        try:
            journal.open()
            log = NewLog(journal, knowledge, shard=meta.shard, fences=fences, now_unix_ms=Clock().now().unix_ms)
            for event in Scan(self._files, self._source, meta):
                if isinstance(event, Whole):
                    _copy_record(event, wanted, log)
                self._went_on(event)
            log.finish()
        except (OSError, BrokerStopError) as error:
            raise BrokerStopError(f"the copy broke off: {error}. Remove {self._target}, then salvage again") from error
        finally:
            journal.close()
        return log, wanted

    def _size(self, number: int) -> int:
        file = self._files.open(self._source / segment_name(number), write=False)
        try:
            return self._files.size(file)
        finally:
            self._files.close(file)

    def _went_on(self, event: Event) -> None:
        if isinstance(event, SegmentEnd):
            self._read += event.bytes
            self._progress(self._read, self._total)
        elif isinstance(event, Whole):
            here = self._read + event.found.offset
            if here >= self._told + PROGRESS_BYTES:
                self._told = here
                self._progress(here, self._total)


def _copy_record(record: Whole, wanted: dict[int, OffsetSet], log: NewLog) -> None:
    """Copy what is wanted of a record; it is wanted no more."""
    try:
        facts = decode(record.found.payload)
    except BrokerStopError:
        return  # told in the first reading
    for fact in facts:
        if isinstance(fact, Published | Moved) and fact.queue_id in wanted:
            left = wanted[fact.queue_id]
            for index, first, last in runs(fact):
                for low, high in left.within(first, last):
                    left.remove(low, high)
                    part = part_of(fact.batch, index + low - first, index + high - first)
                    letter = fact.dead_letter
                    log.add(Published(fact.queue_id, low, part, fact.published_unix_ms, dead_letter=letter))


def _queue_finding(queue: QueueKnowledge, copied: OffsetSet, lost: OffsetSet) -> Finding:
    doubt = copied.without(queue.sure) if queue.damaged else OffsetSet()
    return Finding("queue", {
        "queue_id": queue.queue_id, "name": queue.name, "copied": len(copied),
        "lost": len(lost), "lost_offsets": [list(one) for one in lost],
        "in_doubt": len(doubt), "in_doubt_offsets": [list(one) for one in doubt],
        "next_offset": queue.go_on_at,
        "skipped_offsets": [queue.next_offset, queue.go_on_at - 1] if queue.go_on_at > queue.next_offset else [],
        "checkpoint_known": queue.base > 0,
    })  # fmt: skip
