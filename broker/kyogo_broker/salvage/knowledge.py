"""What a journal with holes still says: of each queue its newest whole section, then every fact behind it.

The core replays a history in which every fact fits the one before, and stops where one does not. Here facts are
missing, so each is taken for what it says by itself: an offset that was acked is finished, whether or not its lease is
known. Nothing is assumed of what cannot be read. What follows from that:

- A message whose settlement stood in damage is not finished. It is *in doubt* as long as no whole record behind the
  damage speaks of it as of one that is there.
- A queue's next offset may have stood in damage. Then some are left out, as many as messages can have been there: an
  offset must not name two messages, since applications may keep it.
- Fences go on so far above all that are known that none can be issued again.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kyogo_broker.core.fences import SHARD_BITS
from kyogo_broker.core.producers import Producers, Stored
from kyogo_broker.core.queue import Trouble
from kyogo_broker.core.ranges import runs_of
from kyogo_broker.core.settled import SettledFences
from kyogo_broker.journal.base import Section
from kyogo_broker.journal.loading import runs
from kyogo_broker.journal.offsets import OffsetSet, offsets_of
from kyogo_broker.journal.scan import CheckpointRead
from kyogo_broker.model.commands import Outcome
from kyogo_broker.model.facts import (
    DeadLettered,
    Fact,
    FencesReserved,
    Finished,
    Leased,
    Lost,
    Moved,
    Opened,
    ProducersForgotten,
    Published,
    QueueCreated,
    QueueDeleted,
    QueuePaused,
    QueueUpdated,
    Retried,
    Returned,
    Settled,
    Span,
)
from kyogo_broker.model.settings import DLQ_SUFFIX, QueueSettings
from kyogo_broker.model.states import FinishReason, RedeliveryReason
from kyogo_broker.recovery import SHARD_SECTION, section_state

UNKNOWN_NAME = "salvaged-"
"""And the queue's id: what a queue is called whose name is lost."""
MESSAGE_BYTES_MIN = 2
"""Of the smallest message in a record: its tag and its length."""


@dataclass(slots=True)
class QueueKnowledge:
    """One queue."""

    queue_id: int
    name: str | None = None
    """None: no record and no section that is left says it."""
    settings: QueueSettings | None = None
    holds_letters: bool = False
    created_unix_ms: int = 0
    paused: bool = False
    base: int = 0
    """Sequence of the section that this began with; 0: none is whole."""
    next_offset: int = 1
    unseen_bytes: int = 0
    """Of damage in which further offsets may have been given away."""
    finished: OffsetSet = field(default_factory=OffsetSet)
    finished_by: Counter[str] = field(default_factory=Counter)
    in_flight: dict[int, int] = field(default_factory=dict)
    """When it was handed out (unix ms), by offset."""
    returned: dict[int, RedeliveryReason] = field(default_factory=dict)
    """Why it is to be delivered again, by offset."""
    delayed: dict[int, tuple[int, RedeliveryReason]] = field(default_factory=dict)
    """When it is due (steady ms), and why, by offset."""
    troubles: dict[int, Trouble] = field(default_factory=dict)
    producers: Producers = field(default_factory=Producers)
    damaged: bool = False
    """Whether records are missing that may have spoken of it."""
    sure: OffsetSet = field(default_factory=OffsetSet)
    """Offsets of which a record behind the last missing one says that they are not finished."""

    @property
    def go_on_at(self) -> int:
        """The first offset that no message can have been given."""
        return self.next_offset + self.unseen_bytes // MESSAGE_BYTES_MIN

    def reach(self, last: int) -> None:
        """Offsets up to `last` were given away."""
        self.next_offset = max(self.next_offset, last + 1)

    def finish(self, ranges: Iterable[tuple[int, int]], reason: FinishReason) -> None:
        """Messages ended."""
        for first, last in ranges:
            self.reach(last)
            self.finished_by[reason] += self.finished.add(first, last)
            for offset in self._within(first, last, self.in_flight):
                del self.in_flight[offset]
            for of_offset in (self.returned, self.delayed, self.troubles):
                for offset in self._within(first, last, of_offset):
                    del of_offset[offset]

    def lease(self, span: Span, leased_unix_ms: int) -> None:
        """Messages were handed out."""
        first, last = self._alive(span)
        for offset in range(first, last + 1):
            self.returned.pop(offset, None)
            self.delayed.pop(offset, None)
            self.in_flight[offset] = leased_unix_ms

    def give_back(self, span: Span, reason: RedeliveryReason, due_ms: int = 0) -> None:
        """Deliveries are over, their messages are not."""
        first, last = self._alive(span)
        for offset in range(first, last + 1):
            self.in_flight.pop(offset, None)
            if due_ms:
                self.delayed[offset] = (due_ms, reason)
            else:
                self.returned[offset] = reason

    def trouble(self, offset: int, consumer_id: str) -> Trouble:
        """The history of a message that failed or was lost just now."""
        trouble = self.troubles.setdefault(offset, Trouble())
        trouble.last_consumer_id = consumer_id
        trouble.first_delivered_unix_ms = trouble.first_delivered_unix_ms or self.in_flight.get(offset, 0)
        return trouble

    def missed(self, size: int) -> None:
        """Records are missing, `size` bytes of them."""
        self.damaged = True
        self.sure = OffsetSet()
        self.unseen_bytes += size

    def restarted(self) -> None:
        """What was in flight is over."""
        self.returned |= dict.fromkeys(self.in_flight, RedeliveryReason.BROKER_RESTART)
        self.in_flight.clear()

    def unfinished(self) -> OffsetSet:
        """All offsets that are not known to be finished."""
        return OffsetSet(self.finished.missing(1, self.next_offset - 1))

    def _alive(self, span: Span) -> tuple[int, int]:
        first, last = offsets_of(span)
        self.reach(last)
        self.sure.add(first, last)
        return first, last

    @staticmethod
    def _within(first: int, last: int, offsets: Mapping[int, object]) -> list[int]:
        """Those of `offsets` that lie between two, at the cost of whichever are fewer."""
        if last - first < len(offsets):
            return [offset for offset in range(first, last + 1) if offset in offsets]
        return [offset for offset in offsets if first <= offset <= last]


class Knowledge:
    """All of it. Sections first, then events in their order."""

    def __init__(self, shard: int) -> None:
        self.queues: dict[int, QueueKnowledge] = {}
        self.settled = SettledFences()
        self.fences = (shard << SHARD_BITS) + 1
        """Above every one that is known to have been reserved or issued."""
        self.epoch = 0
        self.base = 0
        """Sequence of the shard's section that this began with."""
        self._gone: set[int] = set()
        """Queues that were deleted."""
        self._missing_bytes = 0
        self._mutators: dict[type[Fact], Callable[[QueueKnowledge, Any], None]] = {
            QueueUpdated: self._queue_updated, QueuePaused: self._queue_paused, Published: self._published,
            Moved: self._moved, Leased: self._leased, Settled: self._settled, Returned: self._returned,
            Lost: self._lost, Retried: self._retried, DeadLettered: self._dead_lettered, Finished: self._finished,
            ProducersForgotten: self._producers_forgotten, QueueCreated: lambda *_: None,
        }  # fmt: skip

    # Sections.

    def begin_with(self, checkpoints: Iterable[CheckpointRead]) -> None:
        """Take in the newest whole section of each queue."""
        newest: dict[int, Section] = {}
        for read in checkpoints:
            for section in read.sections:
                if section.queue_id not in newest or section.sequence >= newest[section.queue_id].sequence:
                    newest[section.queue_id] = section
            if read.error is None:
                self._leave_out_deleted(read)
        for queue_id, section in sorted(newest.items()):
            if queue_id == SHARD_SECTION:
                state, _ = section_state(section)
                self.base, self.epoch = section.sequence, state["epoch"]
                self.fences = max(self.fences, state["fences_reserved"])
            elif queue_id not in self._gone:
                self.queues[queue_id] = self._queue(section)

    def _leave_out_deleted(self, read: CheckpointRead) -> None:
        """A whole checkpoint has a section of every queue that there was."""
        there = {section.queue_id for section in read.sections}
        for section in read.sections:
            if section.queue_id == SHARD_SECTION:
                self._gone = set(range(1, section_state(section)[0]["next_queue_id"])) - there

    def _queue(self, section: Section) -> QueueKnowledge:
        state, settings = section_state(section)
        queue = QueueKnowledge(section.queue_id, state["name"], settings)
        queue.created_unix_ms, queue.paused = state["created_unix_ms"], state["paused"]
        queue.base, queue.next_offset = section.sequence, state["next_offset"]
        low, *above = state["finished"]
        queue.finished.update([(1, low - 1), *zip(above[::2], above[1::2], strict=True)])
        queue.finished_by.update(state["finished_by"])
        queue.delayed = {offset: (due, RedeliveryReason(reason)) for due, offset, reason in _rows(state["delayed"])}
        for first, last, reason in _rows(state["returned"]):
            if reason != RedeliveryReason.UNSPECIFIED:
                queue.returned |= dict.fromkeys(range(first, last + 1), RedeliveryReason(reason))
        queue.troubles = {row[0]: Trouble(*row[1:]) for row in state["troubles"]}
        queue.producers = Producers.restored(state["producers"])
        for first_fence, first_offset, count, _, _, live, leased_unix_ms, _ in state["leases"]:
            self._issued(first_fence, count)
            for bit, length in runs_of(int(live, 16)):
                offsets = range(first_offset + bit, first_offset + bit + length)
                queue.in_flight |= dict.fromkeys(offsets, leased_unix_ms)
        for first_fence, count, _ in _rows(state["settled"]):
            self._issued(first_fence, count)
        self.settled.restore(section.queue_id, state["settled"])
        return queue

    # Records.

    @property
    def contained(self) -> int:
        """Every section contains the records up to here."""
        return min([self.base, *(queue.base for queue in self.queues.values())])

    def missing(self, last: int, size: int) -> None:
        """Records up to `last` are missing, `size` bytes of them."""
        self._missing_bytes += size
        for queue in self.queues.values():
            if queue.base < last:
                queue.missed(size)

    def take(self, sequence: int, facts: Iterable[Fact]) -> None:
        """A whole record."""
        for fact in facts:
            match fact:
                case Opened():
                    self._opened(sequence, fact)
                case FencesReserved(until=until):
                    self.fences = max(self.fences, until)
                case QueueCreated(queue_id=queue_id) if queue_id not in self._gone:
                    self._queue_created(fact)
                case QueueDeleted(queue_id=queue_id):
                    self._gone.add(queue_id)
                    self.queues.pop(queue_id, None)
                case _ if fact.queue_id not in self._gone:
                    queue = self.queues.get(fact.queue_id) or self._unknown(fact.queue_id)
                    if type(fact) is Leased:
                        self._issued(fact.span.first_fence, fact.span.count)
                    if sequence > queue.base:
                        self._mutators[type(fact)](queue, fact)

    def _unknown(self, queue_id: int) -> QueueKnowledge:
        """A queue whose making is in none of the records before."""
        queue = self.queues[queue_id] = QueueKnowledge(queue_id)
        queue.missed(self._missing_bytes)
        return queue

    def _opened(self, sequence: int, fact: Opened) -> None:
        self.epoch = max(self.epoch, fact.epoch)
        for queue in self.queues.values():
            if sequence > queue.base:
                queue.restarted()

    def _queue_created(self, fact: QueueCreated) -> None:
        for other in [q for q in self.queues.values() if q.name == fact.name and q.queue_id < fact.queue_id]:
            # Two queues of one name there are never: the record that deleted the older one is missing.
            self._gone.add(other.queue_id)
            del self.queues[other.queue_id]
        queue = self.queues.setdefault(fact.queue_id, QueueKnowledge(fact.queue_id))
        if queue.name is None:
            queue.name, queue.settings, queue.created_unix_ms = fact.name, fact.settings, fact.created_unix_ms

    def _queue_updated(self, queue: QueueKnowledge, fact: QueueUpdated) -> None:
        queue.settings = fact.settings

    def _queue_paused(self, queue: QueueKnowledge, fact: QueuePaused) -> None:
        queue.paused = fact.paused

    def _published(self, queue: QueueKnowledge, fact: Published) -> None:
        count = fact.batch.count
        queue.reach(fact.first_offset + count - 1)
        queue.unseen_bytes = 0
        queue.holds_letters = queue.holds_letters or fact.dead_letter is not None
        queue.sure.add(fact.first_offset, fact.first_offset + count - 1)
        if fact.producer_id:
            stored = Stored(fact.request_id, fact.first_offset, count, fact.digest)
            queue.producers.keep(fact.producer_id, stored, fact.published_unix_ms)

    def _moved(self, queue: QueueKnowledge, fact: Moved) -> None:
        for _, first, last in runs(fact):
            queue.reach(last)
            queue.sure.add(first, last)

    def _leased(self, queue: QueueKnowledge, fact: Leased) -> None:
        queue.lease(fact.span, fact.leased_unix_ms)

    def _settled(self, queue: QueueKnowledge, fact: Settled) -> None:
        for span in fact.spans:
            self._issued(span.first_fence, span.count)
            self.settled.add(queue.queue_id, span.first_fence, span.count, fact.outcome)
            if fact.outcome is Outcome.ACK:
                queue.finish([offsets_of(span)], FinishReason.ACKED)
            else:
                queue.give_back(span, RedeliveryReason.RELEASE)

    def _returned(self, queue: QueueKnowledge, fact: Returned) -> None:
        for span in fact.spans:
            queue.give_back(span, fact.reason)

    def _lost(self, queue: QueueKnowledge, fact: Lost) -> None:
        for span in fact.spans:
            first, last = offsets_of(span)
            for offset in range(first, last + 1):
                queue.trouble(offset, fact.consumer_id).losses += 1
            queue.give_back(span, fact.reason, fact.due_ms)

    def _retried(self, queue: QueueKnowledge, fact: Retried) -> None:
        if fact.reason is RedeliveryReason.RETRY:
            self.settled.add(queue.queue_id, fact.span.first_fence, 1, fact.outcome)
        trouble = queue.trouble(fact.span.first_offset, fact.consumer_id)
        trouble.failures += 1
        trouble.first_error = trouble.first_error or fact.error
        trouble.last_error, trouble.error_type = fact.error, fact.error_type
        queue.give_back(fact.span, fact.reason, fact.due_ms)

    def _dead_lettered(self, queue: QueueKnowledge, fact: DeadLettered) -> None:
        if fact.outcome is not None:
            self.settled.add(queue.queue_id, fact.span.first_fence, 1, fact.outcome)
        queue.finish([offsets_of(fact.span)], FinishReason.DEAD_LETTERED)

    def _finished(self, queue: QueueKnowledge, fact: Finished) -> None:
        queue.finish(fact.ranges, fact.reason)

    def _producers_forgotten(self, queue: QueueKnowledge, fact: ProducersForgotten) -> None:
        queue.producers.forget(fact.producer_ids)

    # The end.

    def end(self) -> None:
        """Everything was taken in: deliveries are over, and queues whose making stood in damage get a name."""
        taken = {queue.name for queue in self.queues.values()}
        for queue in [queue for queue in self.queues.values() if queue.name is None]:
            if queue.next_offset == 1:
                del self.queues[queue.queue_id]
                continue
            suffix = DLQ_SUFFIX if queue.holds_letters else ""
            name = f"{UNKNOWN_NAME}{queue.queue_id}"
            while name + suffix in taken:
                name += "-"
            queue.name = name + suffix
            if queue.settings is None:
                queue.settings = QueueSettings(max_attempts=0, max_losses=0) if suffix else QueueSettings()
        for queue in self.queues.values():
            queue.restarted()

    def _issued(self, first: int, count: int) -> None:
        self.fences = max(self.fences, first + count)


def _rows(column: Any) -> Iterator[tuple[int, int, int]]:  # noqa: ANN401 - a column or a list, by the codec
    """A column of triples."""
    return zip(column[::3], column[1::3], column[2::3], strict=True)
