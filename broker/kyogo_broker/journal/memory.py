"""The journal without a disk: for tests, and for brokers that may forget (`--ephemeral`).

Everything is durable at once, for as long as the process lives and the store is kept.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise

from kyogo_broker.journal.base import CheckpointWriter, JournalStats, Part, Record, Recovered, Section
from kyogo_broker.journal.freeing import Holding, plan_freeing
from kyogo_broker.model.errors import BrokerStopError

NUMBER_SHIFT = 32
SEGMENT_BYTES = 1 << 20
"""Records are freed in lots of about this size."""
RECORD_COST_BYTES = 32
"""Counted for each record beside its payload, so that no two stand at one position."""


@dataclass(slots=True)
class Lot:
    """Records that are freed together."""

    number: int
    records: list[Record] = field(default_factory=list)
    used: int = 0


@dataclass(slots=True)
class MemoryStore:
    """What outlives a `MemoryJournal`, as a disk would: hand it to the next one."""

    lots: list[Lot] = field(default_factory=lambda: [Lot(1)])
    sections: tuple[Section, ...] = ()
    sequence: int = 1
    epoch: int = 0
    in_use: bool = False


class MemoryJournal:
    """A journal in memory; see `Journal` for what its methods promise."""

    max_in_flight = 1
    stretch = 65_536
    durability = "MEMORY"

    def __init__(
        self,
        store: MemoryStore | None = None,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        max_record_bytes: int = 16 << 20,
    ) -> None:
        self.store = MemoryStore() if store is None else store
        self.max_record_bytes = max_record_bytes
        self._segment_bytes = segment_bytes
        self._opened = False

    def open(self) -> Recovered:
        """Take the store over."""
        if self.store.in_use or self._opened:
            raise BrokerStopError("the store is in use by another journal; close that one first")
        self.store.in_use = self._opened = True
        self.store.epoch += 1
        new = self.store.sequence == 1 and not self.store.sections
        return Recovered(self.store.epoch, self.store.sections, new)

    def replay(self, after: int) -> Iterator[Record]:
        """Every record above `after`, in order."""
        expected = after + 1
        for lot in list(self.store.lots):
            for record in list(lot.records):
                if record.sequence > after:
                    if record.sequence != expected:
                        break
                    expected += 1
                    yield record
        if expected != max(after + 1, self.store.sequence):
            raise BrokerStopError(f"record {expected} was freed; replay from a later checkpoint")

    @property
    def sequence(self) -> int:
        """Sequence that the next record will get."""
        return self.store.sequence

    @property
    def position(self) -> int:
        """Position that the next record will get."""
        lot = self.store.lots[-1]
        if lot.used >= self._segment_bytes:
            return (lot.number + 1) << NUMBER_SHIFT
        return lot.number << NUMBER_SHIFT | lot.used

    def append(self, sequence: int, parts: Sequence[Part], *, in_place: bool = False) -> Future[None]:  # noqa: ARG002
        """Keep one record."""
        payload = b"".join(parts)
        if sequence != self.sequence or len(payload) > self.max_record_bytes:
            raise ValueError(
                f"record {sequence} of {len(payload)} bytes: {self.sequence} is next, "
                f"with {self.max_record_bytes} at most"
            )
        position = self.position
        if position >> NUMBER_SHIFT != self.store.lots[-1].number:
            self.store.lots.append(Lot(position >> NUMBER_SHIFT))
        lot = self.store.lots[-1]
        lot.records.append(Record(sequence, position, memoryview(payload)))
        lot.used += RECORD_COST_BYTES + len(payload)
        self.store.sequence += 1
        return _done()

    def read_many(self, stretches: Sequence[tuple[int, int]]) -> list[Record]:
        """Records that begin within each (position, length), both ends included."""
        lots = {lot.number: lot.records for lot in list(self.store.lots)}
        found: list[Record] = []
        for position, length in stretches:
            records = lots.get(position >> NUMBER_SHIFT, [])
            first = bisect_left(records, position, key=lambda record: record.position)
            if first == len(records) or records[first].position != position:
                raise BrokerStopError(f"no record stands at position {position}")
            for record in records[first:]:
                if record.position > position + length:
                    break
                found.append(record)
        return found

    def begin_checkpoint(self) -> CheckpointWriter:
        """Start a checkpoint."""
        return _MemoryCheckpoint(self.store)

    def part_of(self, position: int) -> int:
        """The number of the lot."""
        return position >> NUMBER_SHIFT

    def free(self, *, below: int, live: Mapping[int, int]) -> list[tuple[int, int]]:
        """Forget records that nobody needs; name the ranges that hold little."""
        holdings = [
            Holding(lot.number, following.records[0].sequence - 1, lot.used)
            for lot, following in pairwise(self.store.lots)
        ]
        plan = plan_freeing(holdings, below=below, live=live, spare=self._segment_bytes)
        self.store.lots = [lot for lot in self.store.lots if lot.number not in plan.gone]
        return [(number << NUMBER_SHIFT, (number + 1) << NUMBER_SHIFT) for number in plan.sparse]

    def disk_low(self) -> bool:
        """Never: what memory holds is bounded by the memory limit."""
        return False

    def stats(self) -> JournalStats:
        """Figures as of now."""
        lots = self.store.lots
        return JournalStats(bytes_on_disk=sum(lot.used for lot in lots), segments=len(lots), free_bytes=0)

    def close(self) -> None:
        """Let the store go. Idempotent."""
        if self._opened:
            self.store.in_use = False


class _MemoryCheckpoint:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._sections: list[Section] = []

    def add(self, section: Section) -> None:
        self._sections.append(section)

    def commit(self) -> Future[None]:
        self._store.sections = tuple(self._sections)
        return _done()

    def abandon(self) -> None:
        self._sections.clear()


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future
