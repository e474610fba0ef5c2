"""The new journal of a salvage: messages in the order in which they are found, then a checkpoint that says the rest.

What became of each message does not stand in the new journal's records, only in its checkpoint; so the journal begins
behind records that it does not have, and is not whole without the checkpoint. That holds for a salvage that broke off,
too: no broker starts with half of one.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter

from kyogo_broker.core.fences import BLOCK, SHARD_BITS
from kyogo_broker.core.limits import ShardConfig
from kyogo_broker.core.ranges import FinishedOffsets, offset_runs
from kyogo_broker.core.shard import Shard
from kyogo_broker.core.state import FACT_BYTES
from kyogo_broker.journal.base import Journal, Part, Section
from kyogo_broker.journal.codec import encode
from kyogo_broker.journal.columns import encode_section
from kyogo_broker.journal.offsets import OffsetSet
from kyogo_broker.model.column import Column
from kyogo_broker.model.errors import BrokerStopError
from kyogo_broker.model.facts import Fact, FencesReserved, Opened, Published, QueueCreated
from kyogo_broker.model.message import Batch
from kyogo_broker.model.settings import QueueSettings
from kyogo_broker.model.states import FinishReason, RedeliveryReason
from kyogo_broker.recovery import SHARD_SECTION, restore
from kyogo_broker.salvage.knowledge import Knowledge, QueueKnowledge

FENCE_GAP = 1 << 42
"""Fences left out: more than can have been issued without a trace, and few enough for 60 salvages of one shard."""
RECORD_BYTES = 256 << 10
"""Messages are put together to records of this size: enough for the disk, and not much to read for one of them."""
CHECKPOINTS = 2
"""As many as a journal keeps: there is no older state to go back to."""

_settings = TypeAdapter(QueueSettings)


class Copied:
    """The messages of one queue that were copied: where they stand now."""

    def __init__(self) -> None:
        self.offsets = OffsetSet()
        self._first = array("Q")
        self._count = array("Q")
        self._position = array("Q")
        self._size = array("Q")

    def add(self, first: int, count: int, *, position: int, size: int) -> None:
        """A batch was written."""
        self.offsets.add(first, first + count - 1)
        follows = self._first and self._first[-1] + self._count[-1] == first and self._position[-1] == position
        if follows:
            self._count[-1] += count
            self._size[-1] += size
        else:
            self._first.append(first)
            self._count.append(count)
            self._position.append(position)
            self._size.append(size)

    def extents(self, stretch: int) -> dict[str, Column]:
        """The same by offset, as columns of `core/extents`; neighbours in one stretch of the journal are one row."""
        first, span, position, length = array("Q"), array("Q"), array("Q"), array("I")
        size, live = array("Q"), array("I")
        for row in sorted(range(len(self._first)), key=self._first.__getitem__):
            behind = self._position[row] - position[-1] if position else -1
            if 0 <= behind <= stretch:
                span[-1] = self._first[row] + self._count[row] - first[-1]
                length[-1] = max(length[-1], behind)
                size[-1] += self._size[row]
                live[-1] += self._count[row]
            else:
                first.append(self._first[row])
                span.append(self._count[row])
                position.append(self._position[row])
                length.append(0)
                size.append(self._size[row])
                live.append(self._count[row])
        return {"first": first, "span": span, "position": position, "length": length, "bytes": size, "live": live}


class NewLog:
    """Writes the journal. It is whole when `finish` is done."""

    def __init__(self, journal: Journal, knowledge: Knowledge, *, shard: int, fences: int, now_unix_ms: int) -> None:
        """Begin.

        Args:
            journal: open, and empty.
            knowledge: all of it.
            shard: whose journal it is.
            fences: the first one to be issued.
            now_unix_ms: the wall clock.
        """
        self._journal = journal
        self._knowledge = knowledge
        self._config = ShardConfig(shard_number=shard)
        self.fences = fences
        self.copied = {queue_id: Copied() for queue_id in knowledge.queues}
        self._record_bytes = min(RECORD_BYTES, journal.max_record_bytes)
        self._parts: list[Part] = []
        self._bytes = 0
        self._batches: list[tuple[int, int, int, int]] = []
        """Queue, first offset, count and size of those in the record that is being put together."""
        self._add(Opened(knowledge.epoch, now_unix_ms), FencesReserved(self.fences))
        for queue in knowledge.queues.values():
            assert queue.name is not None
            assert queue.settings is not None
            self._add(QueueCreated(queue.queue_id, queue.name, queue.settings, queue.created_unix_ms))

    def add(self, fact: Published) -> None:
        """Copy messages."""
        self._add(fact)
        self._batches.append((fact.queue_id, fact.first_offset, fact.batch.count, len(fact.batch.wire) + FACT_BYTES))

    def finish(self) -> None:
        """Write what is left, and the checkpoints."""
        self._flush()
        sequence = self._journal.sequence - 1
        next_queue_id = max(self._knowledge.queues, default=0) + 1
        said = {"epoch": self._knowledge.epoch, "next_queue_id": next_queue_id, "fences_reserved": self.fences}
        queues = self._knowledge.queues.values()
        sections = [Section(SHARD_SECTION, sequence, encode_section(said))]
        sections += [Section(queue.queue_id, sequence, encode_section(self._state(queue))) for queue in queues]
        shard = Shard(self._config, seed=0, stretch=self._journal.stretch)
        restore(shard, tuple(sections))
        copied = sum(len(one.offsets) for one in self.copied.values())
        assert shard.messages() == copied, "what was copied is not what would be restored"
        for _ in range(CHECKPOINTS):
            writer = self._journal.begin_checkpoint()
            for section in sections:
                writer.add(section)
            writer.commit().result()

    def _add(self, *facts: Fact) -> None:
        parts = encode(facts)
        size = sum(map(len, parts))
        if self._bytes + size > self._record_bytes:
            self._flush()
        self._parts += parts
        self._bytes += size

    def _flush(self) -> None:
        parts, self._parts, self._bytes = self._parts, [], 0
        batches, self._batches = self._batches, []
        if parts:
            position = self._journal.position
            self._journal.append(self._journal.sequence, parts).result()
            for queue_id, first, count, size in batches:
                self.copied[queue_id].add(first, count, position=position, size=size)

    def _state(self, queue: QueueKnowledge) -> dict[str, Any]:
        """What the queue's own section would say."""
        assert queue.settings is not None
        copied = self.copied[queue.queue_id]
        next_offset = queue.go_on_at
        finished = FinishedOffsets()
        for first, last in copied.offsets.missing(1, next_offset - 1):
            finished.add(first, last)
        known = sum(queue.finished_by.values())
        lost = next_offset - 1 - len(copied.offsets) - known
        assert lost >= 0, "more is known to be finished than there was"
        finished_by = Counter(queue.finished_by)
        finished_by[FinishReason.LOST] += lost
        delayed = array("Q")
        for offset, (due_ms, reason) in sorted(queue.delayed.items()):
            if offset in copied.offsets:
                delayed.extend((due_ms, offset, reason))
        fresh, returned = _ready(copied.offsets, queue.returned, queue.delayed, next_offset)
        columns = copied.extents(self._journal.stretch)
        return {
            "settings": _settings.dump_python(queue.settings, mode="json"),
            "name": queue.name,
            "created_unix_ms": queue.created_unix_ms,
            "paused": queue.paused,
            "next_offset": next_offset,
            "accepted": next_offset - 1,
            "finished": finished.snapshot(),
            "finished_by": dict(+finished_by),
            "fresh": fresh,
            "returned": returned,
            "delayed": delayed,
            "troubles": [
                [offset, t.failures, t.losses, t.first_error, t.last_error, t.error_type, t.last_consumer_id,
                 t.first_delivered_unix_ms]
                for offset, t in sorted(queue.troubles.items()) if offset in copied.offsets
            ],
            "producers": queue.producers.snapshot(),
            "leases": [],
            "settled": self._knowledge.settled.snapshot(queue.queue_id),
            **{f"extents.{name}": column for name, column in columns.items()},
        }  # fmt: skip


def fences_above(known: int, *, shard: int) -> int:
    """The first fence that can have been issued by nobody.

    Raises:
        BrokerStopError: this shard has none left.
    """
    fences = known + FENCE_GAP
    if fences + BLOCK > (shard + 1) << SHARD_BITS:
        raise BrokerStopError("this shard has no fences left for another salvage; restore a backup")
    return fences


def part_of(batch: Batch, first: int, last: int) -> Batch:
    """The messages `first` to `last` of a batch, counted from 0."""
    if first == 0 and last == batch.count - 1:
        return batch
    start = batch.ends[first - 1] if first else 0
    return Batch(bytes(batch.part(first, last)), tuple(end - start for end in batch.ends[first : last + 1]))


def _ready(
    offsets: OffsetSet, reasons: Mapping[int, RedeliveryReason], delayed: Iterable[int], next_offset: int
) -> tuple[Column, Column]:
    """What is fresh, and what is to be delivered before it with a reason or without: what is fresh has no holes."""
    plain = offsets.without(OffsetSet((offset, offset) for offset in sorted({*reasons, *delayed})))
    rows = [(first, last, RedeliveryReason.UNSPECIFIED) for first, last in plain]
    fresh = array("Q")
    if rows and rows[-1][1] == next_offset - 1:
        fresh.extend(rows.pop()[:2])
    for reason in set(reasons.values()):
        again = offset_runs(sorted(offset for offset, said in reasons.items() if said is reason))
        rows += [(low, high, reason) for first, last in again for low, high in offsets.within(first, last)]
    returned = array("Q")
    for row in sorted(rows):
        returned.extend(row)
    return fresh, returned
