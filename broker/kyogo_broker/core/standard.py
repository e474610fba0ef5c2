"""What is ready in a `STANDARD` queue: returned messages lowest offset first, then fresh ones in their order.

Fresh messages are ranges, and since offsets are dense there is one range in all but odd cases. Returned ones are
ranges in a heap, each with the reason for its next delivery; what was passed over, being too large for whoever was in
turn, stands among them without a reason. Nothing is kept for a message.
"""

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain
from typing import NamedTuple

from kyogo_broker.model.column import Column, Pieces
from kyogo_broker.model.states import RedeliveryReason


class Ready(NamedTuple):
    """Consecutive ready offsets with one reason (unspecified: fresh)."""

    first: int
    last: int
    reason: RedeliveryReason


class StandardReady:
    """The ready offsets of one queue."""

    __slots__ = ("_fresh", "_returned", "count")

    def __init__(self) -> None:
        self.count = 0
        """Messages that are ready."""
        self._fresh: deque[tuple[int, int]] = deque()
        self._returned: list[Ready] = []

    def add_fresh(self, first: int, last: int) -> None:
        """Messages that were never delivered, behind all others."""
        self.count += last - first + 1
        if self._fresh and self._fresh[-1][1] == first - 1:
            self._fresh[-1] = (self._fresh[-1][0], last)
        else:
            self._fresh.append((first, last))

    def add_returned(self, first: int, last: int, reason: RedeliveryReason) -> None:
        """Messages that come back to their original place; reason unspecified: passed over before any delivery."""
        self.count += last - first + 1
        heappush(self._returned, Ready(first, last, reason))

    def head(self) -> Ready | None:
        """The range that is next."""
        if self._returned:
            return self._returned[0]
        if self._fresh:
            return Ready(*self._fresh[0], RedeliveryReason.UNSPECIFIED)
        return None

    def fresh_from(self) -> int | None:
        """The first fresh offset."""
        return self._fresh[0][0] if self._fresh else None

    def returned_ranges(self, most: int) -> list[tuple[int, int]]:
        """Up to `most` returned ranges of those next in turn, sorted."""
        return sorted((ready.first, ready.last) for ready in self._returned[:most])

    def take(self, first: int, count: int) -> RedeliveryReason:
        """Take messages out, in the usual case from the head; returns the reason of their delivery."""
        self.count -= count
        head = self.head()
        if head is None or head.first != first or head.last < first + count - 1:
            return self._take_inner(first, first + count - 1)
        rest = first + count
        if self._returned:
            if rest > head.last:
                heappop(self._returned)
            else:
                heapreplace(self._returned, Ready(rest, head.last, head.reason))
        elif rest > head.last:
            self._fresh.popleft()
        else:
            self._fresh[0] = (rest, head.last)
        return head.reason

    def ranges(self) -> list[tuple[int, int]]:
        """All ready ranges, sorted."""
        return sorted([(ready.first, ready.last) for ready in self._returned] + list(self._fresh))

    def clear(self) -> None:
        """Take everything out."""
        self._returned.clear()
        self._fresh.clear()
        self.count = 0

    def snapshot(self) -> dict[str, Column]:
        """Fresh ranges as first and last; returned ones with their reason, sorted."""
        return {"fresh": _column(self._fresh), "returned": _column(sorted(self._returned))}

    def freeze(self, *, beside: Sequence[Ready]) -> tuple[Column, Pieces]:
        """The same, the returned ones not sorted and for later, and with those that are ready besides."""
        return _column(self._fresh), Pieces((*self._returned, *beside), _column)

    @classmethod
    def restored(cls, columns: dict[str, Column]) -> "StandardReady":
        """The inverse of `snapshot`."""
        ready = cls()
        fresh, returned = columns["fresh"], columns["returned"]
        for index in range(0, len(fresh), 2):
            ready.add_fresh(fresh[index], fresh[index + 1])
        for index in range(0, len(returned), 3):
            ready.add_returned(returned[index], returned[index + 1], RedeliveryReason(returned[index + 2]))
        return ready

    def __contains__(self, offset: int) -> bool:
        """Whether `offset` is ready (linear in the ranges: for people who ask)."""
        return any(r.first <= offset <= r.last for r in self._returned) or any(a <= offset <= b for a, b in self._fresh)

    def offsets(self) -> list[int]:
        """All ready offsets, sorted: for tests."""
        return sorted(offset for first, last in self.ranges() for offset in range(first, last + 1))

    def check_invariants(self) -> None:
        """Nothing stands here twice, and the count is right."""
        offsets = self.offsets()
        assert len(offsets) == len(set(offsets)) == self.count, "ready messages are miscounted or doubled"

    def _take_inner(self, first: int, last: int) -> RedeliveryReason:
        """Take from anywhere: what was passed over at the head, and what a restart replays in another order."""
        reason = RedeliveryReason.UNSPECIFIED
        wanted = last - first + 1
        returned: list[Ready] = []
        for ready in self._returned:
            rest = list(_without(ready.first, ready.last, first, last))
            taken = ready.last - ready.first + 1 - sum(high - low + 1 for low, high in rest)
            reason = ready.reason if taken else reason
            wanted -= taken
            returned += [Ready(low, high, ready.reason) for low, high in rest]
        heapify(returned)
        self._returned = returned
        if wanted:
            before = sum(high - low + 1 for low, high in self._fresh)
            rest = [part for low, high in self._fresh for part in _without(low, high, first, last)]
            wanted -= before - sum(high - low + 1 for low, high in rest)
            # What was passed over is served before all others; what is fresh has no holes, read-ahead relies on it.
            for low, high in rest:
                if high < first:
                    heappush(self._returned, Ready(low, high, RedeliveryReason.UNSPECIFIED))
            self._fresh = deque((low, high) for low, high in rest if low > last)
        assert wanted == 0, "took messages that were not ready"
        return reason


def _column(rows: Iterable[tuple[int, ...]]) -> Column:
    return array("Q", chain.from_iterable(rows))


def _without(low: int, high: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """What is left of `low` to `high` when `first` to `last` is taken out."""
    if high < first or low > last:
        yield low, high
        return
    if low < first:
        yield low, first - 1
    if high > last:
        yield last + 1, high
