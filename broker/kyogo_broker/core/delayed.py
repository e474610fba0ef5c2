"""What waits for its time: a heap of plain integers, `due << 64 | offset << 4 | reason`, 48 bytes a message.

`due` is a steady instant in milliseconds, `reason` a `RedeliveryReason`. Live, nothing is removed but from the top; a
purge clears the heap. A replay takes out what a lease names, whatever the clocks say, so meanwhile there is an index.
"""

from array import array
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush

from kyogo_broker.model.column import Column, Pieces
from kyogo_broker.model.states import RedeliveryReason


class Delayed:
    """The delayed messages of one queue."""

    __slots__ = ("_entries", "_heap")

    def __init__(self) -> None:
        self._heap: list[int] = []
        self._entries: dict[int, int] | None = None
        """In a replay, by offset, and true instead of the heap."""

    def __len__(self) -> int:
        """Messages that wait."""
        return len(self._heap) if self._entries is None else len(self._entries)

    def add(self, offset: int, due_ms: int, reason: RedeliveryReason) -> None:
        """`offset` is ready again from `due_ms` on."""
        entry = due_ms << 64 | offset << 4 | reason
        if self._entries is None:
            heappush(self._heap, entry)
        else:
            self._entries[offset] = entry

    def next_due_ms(self) -> int | None:
        """When the first is due."""
        self.replayed()
        return self._heap[0] >> 64 if self._heap else None

    def pop_due(self, now_ms: int, most: int | None = None) -> Iterator[tuple[int, RedeliveryReason]]:
        """Take what is due, up to `most`: (offset, reason)."""
        self.replayed()
        limit = now_ms + 1 << 64
        while self._heap and self._heap[0] < limit and most != 0:
            most = None if most is None else most - 1
            yield _unpack(heappop(self._heap))

    def discard(self, offset: int) -> RedeliveryReason | None:
        """Take out one message, if it is here: for a replay, which ends with `replayed`."""
        if self._entries is None:
            self._entries = {_unpack(entry)[0]: entry for entry in self._heap}
        entry = self._entries.pop(offset, None)
        return None if entry is None else _unpack(entry)[1]

    def replayed(self) -> None:
        """The replay is over: entries are taken from the top again."""
        if self._entries is not None:
            self._heap = list(self._entries.values())
            heapify(self._heap)
            self._entries = None

    def clear(self) -> None:
        """Take everything out."""
        self._heap.clear()
        self._entries = None

    def snapshot(self) -> Column:
        """Due, offset and reason of each, sorted."""
        self.replayed()
        return _column(sorted(self._heap))

    def freeze(self) -> Pieces:
        """The same, not sorted, for later."""
        self.replayed()
        return Pieces(self._heap[:], _column)

    @classmethod
    def restored(cls, column: Column) -> "Delayed":
        """The inverse of `snapshot`."""
        delayed = cls()
        delayed._heap = [
            column[index] << 64 | column[index + 1] << 4 | column[index + 2] for index in range(0, len(column), 3)
        ]
        heapify(delayed._heap)
        return delayed

    def offsets(self) -> list[int]:
        """All offsets that wait."""
        self.replayed()
        return [_unpack(entry)[0] for entry in self._heap]


def _column(entries: Sequence[int]) -> Column:
    column = array("Q")
    for entry in entries:
        column.extend((entry >> 64, (entry & (1 << 64) - 1) >> 4, entry & 15))
    return column


def _unpack(entry: int) -> tuple[int, RedeliveryReason]:
    return (entry & (1 << 64) - 1) >> 4, RedeliveryReason(entry & 15)
