"""Offsets as disjoint ranges: what is known about a queue whose history may have holes, in any order, twice or not."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from kyogo_broker.model.facts import Span


class OffsetSet:
    """A set of offsets. Costs by its ranges, not by its members."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self.update(ranges)

    def __len__(self) -> int:
        """Offsets in it."""
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    def __contains__(self, offset: int) -> bool:
        """Whether one offset is in it."""
        index = bisect_right(self._firsts, offset) - 1
        return index >= 0 and offset <= self._lasts[index]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Its ranges, first and last included, increasing and apart from each other."""
        return zip(self._firsts, self._lasts, strict=True)

    def add(self, first: int, last: int) -> int:
        """Put `first` to `last` in; how many of them were not there."""
        firsts, lasts = self._firsts, self._lasts
        if first > last:
            return 0
        if not lasts or first > lasts[-1] + 1:
            firsts.append(first)
            lasts.append(last)
            return last - first + 1
        begin, end = bisect_left(lasts, first - 1), bisect_right(firsts, last + 1)
        touched = list(zip(firsts[begin:end], lasts[begin:end], strict=True))
        joined = min([first, *firsts[begin:end]]), max([last, *lasts[begin:end]])
        firsts[begin:end], lasts[begin:end] = [joined[0]], [joined[1]]
        return joined[1] - joined[0] + 1 - sum(high - low + 1 for low, high in touched)

    def update(self, ranges: Iterable[tuple[int, int]]) -> int:
        """Put all of these in; how many offsets of them were not there."""
        return sum(self.add(first, last) for first, last in ranges)

    def remove(self, first: int, last: int) -> None:
        """Take `first` to `last` out, as far as they are in."""
        begin, end = bisect_left(self._lasts, first), bisect_right(self._firsts, last)
        if first > last or begin >= end:
            return
        low, high = self._firsts[begin], self._lasts[end - 1]
        rest = [(low, first - 1)] if low < first else []
        rest += [(last + 1, high)] if high > last else []
        self._firsts[begin:end] = [one for one, _ in rest]
        self._lasts[begin:end] = [other for _, other in rest]

    def within(self, first: int, last: int) -> list[tuple[int, int]]:
        """What of `first` to `last` is in."""
        if first > last:
            return []
        begin, end = bisect_left(self._lasts, first), bisect_right(self._firsts, last)
        ranges = zip(self._firsts[begin:end], self._lasts[begin:end], strict=True)
        return [(max(first, low), min(last, high)) for low, high in ranges]

    def missing(self, first: int, last: int) -> list[tuple[int, int]]:
        """What of `first` to `last` is not in."""
        found, at = [], first
        for low, high in self.within(first, last):
            if low > at:
                found.append((at, low - 1))
            at = high + 1
        return [*found, (at, last)] if at <= last else found

    def without(self, other: "OffsetSet") -> "OffsetSet":
        """What is in this set and not in the other one."""
        return OffsetSet(part for first, last in self for part in other.missing(first, last))


def offsets_of(span: Span) -> tuple[int, int]:
    """First and last offset of some deliveries."""
    return span.first_offset, span.first_offset + span.count - 1
