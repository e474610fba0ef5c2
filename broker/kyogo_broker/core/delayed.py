"""What waits for its time: a heap of plain integers, `due << 64 | offset << 4 | reason`, 48 bytes a message.

`due` is a steady instant in milliseconds, `reason` a `RedeliveryReason`. Nothing is removed but from the top; what
ends otherwise (purge) rebuilds the heap.
"""

from array import array
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from kyogo_broker.model.column import Column
from kyogo_broker.model.states import RedeliveryReason


class Delayed:
    """The delayed messages of one queue."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[int] = []

    def __len__(self) -> int:
        """Messages that wait."""
        return len(self._heap)

    def add(self, offset: int, due_ms: int, reason: RedeliveryReason) -> None:
        """`offset` is ready again from `due_ms` on."""
        heappush(self._heap, due_ms << 64 | offset << 4 | reason)

    def next_due_ms(self) -> int | None:
        """When the first is due."""
        return self._heap[0] >> 64 if self._heap else None

    def pop_due(self, now_ms: int) -> Iterator[tuple[int, RedeliveryReason]]:
        """Take what is due: (offset, reason)."""
        limit = now_ms + 1 << 64
        while self._heap and self._heap[0] < limit:
            yield _unpack(heappop(self._heap))

    def discard(self, offset: int) -> RedeliveryReason | None:
        """Take out one message, if it is here (linear: used when a restart replays its lease)."""
        for index, entry in enumerate(self._heap):
            if (entry & (1 << 64) - 1) >> 4 == offset:
                del self._heap[index]
                heapify(self._heap)
                return RedeliveryReason(entry & 15)
        return None

    def clear(self) -> None:
        """Take everything out."""
        self._heap.clear()

    def snapshot(self) -> Column:
        """Due, offset and reason of each, sorted."""
        column = array("Q")
        for entry in sorted(self._heap):
            offset, reason = _unpack(entry)
            column.extend((entry >> 64, offset, reason))
        return column

    @classmethod
    def restored(cls, column: Column) -> "Delayed":
        """The inverse of `snapshot`."""
        delayed = cls()
        delayed._heap = [
            column[index] << 64 | column[index + 1] << 4 | column[index + 2] for index in range(0, len(column), 3)
        ]
        return delayed

    def offsets(self) -> list[int]:
        """All offsets that wait."""
        return [_unpack(entry)[0] for entry in self._heap]


def _unpack(entry: int) -> tuple[int, RedeliveryReason]:
    return (entry & (1 << 64) - 1) >> 4, RedeliveryReason(entry & 15)
