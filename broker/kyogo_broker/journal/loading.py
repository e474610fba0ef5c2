"""Messages read back from the journal for a queue's window: what answers the effect `Load`.

Runs in a thread of its own, so that the loop never waits for the disk. A wanted message may stand in the journal twice,
where it was published and where it was moved to; both are the same, and any one will do.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from kyogo_broker.journal.base import Journal
from kyogo_broker.journal.codec import MERGED_BYTES_MAX, MERGED_MS_MAX, published
from kyogo_broker.model.commands import Loaded, LoadedBatch
from kyogo_broker.model.effects import Load
from kyogo_broker.model.errors import BrokerStopError
from kyogo_broker.model.facts import Moved, Published
from kyogo_broker.model.message import Batch, DeadLetterInfo


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive messages of one batch, in consecutive offsets."""

    first_offset: int
    batch: Batch
    first: int
    """Index of the first message in `batch`."""
    count: int
    published_unix_ms: int
    dead_letter: DeadLetterInfo | None

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return self.batch.size(self.first, self.first + self.count - 1)


def load(journal: Journal, effect: Load) -> Loaded:
    """Read the wanted messages.

    Raises:
        BrokerStopError: the journal is damaged, or a message is not where it should be.
    """
    missing = _Missing(effect.ranges)
    pieces: list[Piece] = []
    payloads = (record.payload for record in journal.read_many(effect.stretches))
    for fact in published(payloads, effect.queue_id):
        pieces += missing.take_from(fact)
    offset = missing.first()
    if offset is not None:
        raise BrokerStopError(
            f"message {offset} of queue {effect.queue_id} is not in the journal where it should be: it is damaged, or "
            "files were taken from it; run `broker inspect DIR` on the data directory and restore it from a backup"
        )
    pieces.sort(key=lambda piece: piece.first_offset)
    return Loaded(effect.queue_id, effect.load_id, tuple(map(_merge, _groups(pieces))))


class _Missing:
    """The offsets that have not been found yet, as ranges."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._firsts = [first for first, _ in ranges]
        self._lasts = [last for _, last in ranges]

    def first(self) -> int | None:
        """The lowest one; None when all were found."""
        return self._firsts[0] if self._firsts else None

    def take_from(self, fact: Published | Moved) -> Iterator[Piece]:
        """The parts of a fact that are missing; they are no more afterwards."""
        for index, low, high in runs(fact):
            for first, last in self._take(low, high):
                yield Piece(
                    first, fact.batch, index + first - low, last - first + 1, fact.published_unix_ms, fact.dead_letter
                )

    def _take(self, low: int, high: int) -> list[tuple[int, int]]:
        """Remove `low` to `high`; returns what of it was missing."""
        begin = at = max(bisect_right(self._firsts, low) - 1, 0)
        taken: list[tuple[int, int]] = []
        left: list[tuple[int, int]] = []
        while at < len(self._firsts) and self._firsts[at] <= high:
            first, last = self._firsts[at], self._lasts[at]
            if last >= low:
                taken.append((max(first, low), min(last, high)))
            left += [(a, b) for a, b in ((first, min(last, low - 1)), (max(first, high + 1), last)) if a <= b]
            at += 1
        if taken:
            self._firsts[begin:at] = [first for first, _ in left]
            self._lasts[begin:at] = [last for _, last in left]
        return taken


def runs(fact: Published | Moved) -> list[tuple[int, int, int]]:
    """(index in the batch, first offset, last offset) of each run of consecutive offsets."""
    if isinstance(fact, Published):
        return [(0, fact.first_offset, fact.first_offset + fact.batch.count - 1)]
    offsets = fact.offsets
    begins = [0, *(i for i, (a, b) in enumerate(pairwise(offsets), 1) if b != a + 1), len(offsets)]
    return [(begin, offsets[begin], offsets[end - 1]) for begin, end in pairwise(begins)]


def _groups(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Neighbours that make one batch of consecutive offsets; a dead letter stands alone."""
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        fits = (
            group
            and piece.first_offset == group[-1].first_offset + group[-1].count
            and piece.dead_letter is None
            and group[0].dead_letter is None
            and abs(piece.published_unix_ms - group[0].published_unix_ms) <= MERGED_MS_MAX
            and size + piece.size <= MERGED_BYTES_MAX
        )
        if group and not fits:
            yield group
            group, size = [], 0
        group.append(piece)
        size += piece.size
    if group:
        yield group


def _merge(group: list[Piece]) -> LoadedBatch:
    first = group[0]
    batch = _batch(group)
    offsets = range(first.first_offset, first.first_offset + batch.count)
    return LoadedBatch(offsets, batch, first.published_unix_ms, first.dead_letter)


def _batch(group: list[Piece]) -> Batch:
    first = group[0]
    if len(group) == 1 and first.count == first.batch.count:
        return first.batch
    sizes: list[int] = []
    for piece in group:
        ends, begin = piece.batch.ends, piece.first
        if piece.count == 1:
            sizes.append(piece.size)
        else:
            whole = [ends[begin - 1] if begin else 0, *ends[begin : begin + piece.count]]
            sizes += [b - a for a, b in pairwise(whole)]
    wire = b"".join([piece.batch.part(piece.first, piece.first + piece.count - 1) for piece in group])
    ends = range(sizes[0], len(wire) + 1, sizes[0])
    if len(ends) != len(sizes) or sizes.count(sizes[0]) != len(sizes):
        ends = array("I", accumulate(sizes))
    return Batch(wire, ends)
