"""The contract of a journal: one ordered, durable sequence of records, a way to read them back, and a checkpoint.

A record is the facts of one commit, encoded by `journal/codec`; the journal does not look inside. It has a sequence
(1, 2, 3 ...) and a *position*: an integer that grows with the sequence and that the state keeps, so that messages can
be read back without an index in memory. Both are known before the append, because only one append is in flight.

Every adapter passes the same suite, `tests/conformance`.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Part = bytes | bytearray | memoryview


class Record(NamedTuple):
    """One commit as it was read back."""

    sequence: int
    position: int
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a checkpoint: the state of one queue (or of the shard itself, `queue_id` 0) after `sequence`."""

    queue_id: int
    sequence: int
    """The last record that the state contains."""
    state: bytes


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a journal holds when it is opened."""

    epoch: int
    """Of this opening: one more than the last."""
    sections: tuple[Section, ...]
    """The newest whole checkpoint; empty if there is none."""
    new: bool
    """Nothing was there before."""
    notes: tuple[str, ...] = ()
    """What was found and put right, for the operator: a torn record cut off, an older checkpoint used."""
    written_by: str = ""
    """The newest Kyogo that opened it before; empty: nobody said."""


@dataclass(frozen=True, slots=True)
class JournalStats:
    """Figures for metrics and for people."""

    bytes_on_disk: int
    """Of segments, those that lie ready included."""
    segments: int
    """With records in them."""
    free_bytes: int
    """Of the file system; 0 where there is none."""


class CheckpointWriter(Protocol):
    """Takes a checkpoint in slices; nothing of it counts until `commit` is done."""

    def add(self, section: Section) -> None:
        """Hand over a section; returns at once, the writing happens elsewhere."""

    def commit(self) -> Future[None]:
        """Make the checkpoint the newest one, durably. The one before stays valid until then."""

    def abandon(self) -> None:
        """Forget it."""


class Journal(Protocol):
    """Where facts become durable. Used from one thread, but for `read_many`."""

    max_in_flight: int
    """Appends that may be under way together; 1 lets only the last record be torn."""
    max_record_bytes: int
    """Largest payload of a record."""
    stretch: int
    """How far apart two positions may lie so that the records between them are read in one go."""
    durability: str
    """`MEMORY`, `FSYNC` or `REPLICATED`: what an answered publish survives."""

    @property
    def sequence(self) -> int:
        """Sequence that the next record will get."""

    @property
    def position(self) -> int:
        """Position that the next record will get, however large it is."""

    def open(self) -> Recovered:
        """Take the journal over, find its end and its checkpoint. Blocking; called once.

        Raises:
            BrokerStopError: in use by another process, or damaged: says where, and what to do.
        """

    def replay(self, after: int) -> Iterator[Record]:
        """Every record with a sequence above `after`, in order; called after `open`, before the first append."""

    def append(self, sequence: int, parts: Sequence[Part], *, in_place: bool = False) -> Future[None]:
        """Write one record; durable when the future is done. A failed one means that the process must stop.

        Args:
            sequence: of the record, which is the next one.
            parts: its payload.
            in_place: the caller may be held up for a small write and its sync.
        """

    def read_many(self, stretches: Sequence[tuple[int, int]]) -> list[Record]:
        """Records that begin within each (position, length), both ends included. Blocking; from any thread."""

    def begin_checkpoint(self) -> CheckpointWriter:
        """Start a checkpoint."""

    def part_of(self, position: int) -> int:
        """The part of the journal, freed as a whole, in which the record at a position stands."""

    def free(self, *, below: int, live: Mapping[int, int]) -> list[tuple[int, int]]:
        """Give back what nobody needs. What is being read back may not be live any more: wait for that before.

        Args:
            below: records up to this sequence are contained in the newest checkpoint.
            live: bytes of messages that are still needed, by the part they stand in.

        Returns:
            Ranges of positions (first included, last not) that should be copied forward, since the journal is large
            for what it holds, and they hold the least.
        """

    def disk_low(self) -> bool:
        """Whether publishes must be refused so that settling and trimming can go on."""

    def stats(self) -> JournalStats:
        """Figures as of now."""

    def close(self) -> None:
        """Finish what is under way and let go. Idempotent."""
