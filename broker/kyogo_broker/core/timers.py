"""Instants at which something must be looked at: one heap for the whole shard, at most an entry an object.

An entry is a reminder, not a truth: whoever is reminded looks at its own deadline and, if that has moved, asks to be
reminded again. So settling, extending and hearing of a consumer cost nothing here.
"""

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Protocol

COMPACT_AT = 1024


class Timed(Protocol):
    """An object with a reminder."""

    timer_ms: int
    """When its entry is due; 0: it has none."""


class Timers:
    """Reminders in the order of their instants."""

    __slots__ = ("_heap", "_sequence", "_watermark")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timed]] = []
        self._sequence = 0
        self._watermark = COMPACT_AT

    def remind(self, timed: Timed, at_ms: int) -> None:
        """Remind of `timed` at `at_ms`, unless it is reminded of earlier anyway."""
        if timed.timer_ms and timed.timer_ms <= at_ms:
            return
        timed.timer_ms = at_ms
        self._sequence += 1
        heappush(self._heap, (at_ms, self._sequence, timed))

    def due(self, now_ms: int) -> Iterator[Timed]:
        """Objects whose instant has come; each loses its entry first."""
        while self._heap and self._heap[0][0] <= now_ms:
            at_ms, _, timed = heappop(self._heap)
            if timed.timer_ms == at_ms:
                timed.timer_ms = 0
                yield timed

    def next_ms(self) -> int | None:
        """When the first is due."""
        return self._heap[0][0] if self._heap else None

    def compact(self, is_live: Callable[[Timed], bool]) -> None:
        """Drop entries of objects that are gone, once they are most of the heap."""
        if len(self._heap) < self._watermark:
            return
        self._heap = [entry for entry in self._heap if entry[2].timer_ms == entry[0] and is_live(entry[2])]
        heapify(self._heap)
        self._watermark = max(COMPACT_AT, 2 * len(self._heap))
