"""Disjoint ranges of integers with a low-water mark: which offsets of a queue are finished.

Offsets are dense and finish nearly in order, so almost everything lies below the mark, and above it there are about
as many ranges as there are messages in flight or waiting for a retry.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from kyogo_broker.model.column import Column


class FinishedOffsets:
    """All offsets below `low`, and the ranges above it."""

    __slots__ = ("_firsts", "_lasts", "above", "low")

    def __init__(self) -> None:
        self.low = 1
        """Everything below is finished; this one is not."""
        self.above = 0
        """Finished offsets above the mark."""
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def add(self, first: int, last: int) -> None:
        """Finish `first` to `last`, none of which may be finished already."""
        firsts, lasts = self._firsts, self._lasts
        if first == self.low and (not firsts or last < firsts[0] - 1):
            self.low = last + 1
            return
        index = bisect_left(firsts, first)
        assert first >= self.low, "finished twice: below the mark"
        assert index == 0 or lasts[index - 1] < first, "finished twice"
        assert index == len(firsts) or last < firsts[index], "finished twice"
        self.above += last - first + 1
        joins_before = index > 0 and lasts[index - 1] == first - 1
        joins_after = index < len(firsts) and firsts[index] == last + 1
        if joins_before and joins_after:
            lasts[index - 1] = lasts[index]
            del firsts[index], lasts[index]
        elif joins_before:
            lasts[index - 1] = last
        elif joins_after:
            firsts[index] = first
        else:
            firsts.insert(index, first)
            lasts.insert(index, last)
        if firsts[0] == self.low:
            self.above -= lasts[0] - firsts[0] + 1
            self.low = lasts[0] + 1
            del firsts[0], lasts[0]

    def __contains__(self, offset: int) -> bool:
        """Whether `offset` is finished."""
        if offset < self.low:
            return True
        index = bisect_right(self._firsts, offset) - 1
        return index >= 0 and offset <= self._lasts[index]

    def unfinished(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The ranges between `first` and `last` that are not finished, increasing."""
        first = max(first, self.low)
        index = bisect_right(self._firsts, first) - 1
        if index >= 0 and self._lasts[index] >= first:
            first = self._lasts[index] + 1
        index += 1
        while first <= last:
            if index == len(self._firsts) or self._firsts[index] > last:
                yield first, last
                return
            yield first, self._firsts[index] - 1
            first = self._lasts[index] + 1
            index += 1

    def snapshot(self) -> Column:
        """The mark, then first and last of each range."""
        column = array("Q", bytes(8 * (1 + 2 * len(self._firsts))))
        column[0] = self.low
        column[1::2] = array("Q", self._firsts)
        column[2::2] = array("Q", self._lasts)
        return column

    @classmethod
    def restored(cls, column: Column) -> "FinishedOffsets":
        """The inverse of `snapshot`."""
        finished = cls()
        finished.low = column[0]
        finished._firsts = list(column[1::2])
        finished._lasts = list(column[2::2])
        finished.above = sum(finished._lasts) - sum(finished._firsts) + len(finished._firsts)
        return finished

    def check_invariants(self) -> None:
        """Ranges are sorted, apart from each other, above the mark, and counted."""
        previous = self.low - 1
        total = 0
        for first, last in zip(self._firsts, self._lasts, strict=True):
            assert previous + 1 < first <= last, "ranges touch or are out of order"
            previous, total = last, total + last - first + 1
        assert total == self.above, "finished offsets are miscounted"


def runs_of(mask: int) -> Iterator[tuple[int, int]]:
    """(lowest bit, length) of each run of set bits, from the lowest on."""
    base = 0
    while mask:
        skip = (mask & -mask).bit_length() - 1
        mask >>= skip
        length = (~mask & (mask + 1)).bit_length() - 1
        yield base + skip, length
        mask >>= length
        base += skip + length


def offset_runs(offsets: Iterator[int] | list[int]) -> Iterator[tuple[int, int]]:
    """Increasing offsets as (first, last) of each consecutive run."""
    first = last = None
    for offset in offsets:
        if first is None or last is None:
            first = last = offset
        elif offset == last + 1:
            last = offset
        else:
            yield first, last
            first = last = offset
    if first is not None and last is not None:
        yield first, last
