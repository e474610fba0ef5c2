"""Where a queue's messages stand in the journal: a row for each stretch of it, not for each message.

An extent is `(first offset, span, position, length, bytes, live)`: the offsets `first` to `first + span - 1` stand in
the records that begin at `position` to `position + length`. A published batch extends the last row as long as the row
stays within one `stretch` of the journal, so a row covers at least some 64 KiB of it, be the messages published
one by one or a thousand at a time: 10,000,000 messages of 100 B take some 20,000 rows of 36 bytes. To read a message
its stretch is scanned, which costs one read of that size.

Rows are sorted by offset and never overlap. A row without live messages is dead; dead rows are dropped together.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from typing import Any

from kyogo_broker.model.column import Column

COMPACT_AT = 64
"""Dead rows below which dropping them is not worth moving the columns."""


class Extents:
    """The rows of one queue, in columns."""

    __slots__ = ("_bytes", "_dead", "_first", "_length", "_live", "_position", "_span", "_stretch")

    def __init__(self, stretch: int) -> None:
        self._stretch = stretch
        self._first = array("Q")
        self._span = array("Q")
        self._position = array("Q")
        self._length = array("I")
        self._bytes = array("Q")
        self._live = array("I")
        self._dead = 0

    def __len__(self) -> int:
        """Rows, dead ones included."""
        return len(self._first)

    def append(self, *, first: int, count: int, position: int, size: int) -> None:
        """A batch of `count` messages from offset `first` on, `size` bytes, stands in the record at `position`."""
        if self._first and self._live[-1]:
            length = position - self._position[-1]
            if 0 <= length <= self._stretch:
                self._span[-1] = first + count - self._first[-1]
                self._length[-1] = length
                self._bytes[-1] += size
                self._live[-1] += count
                return
        self._first.append(first)
        self._span.append(count)
        self._position.append(position)
        self._length.append(0)
        self._bytes.append(size)
        self._live.append(count)

    def finish(self, first: int, last: int) -> None:
        """The messages `first` to `last`, all of them live, are needed no more."""
        index = bisect_right(self._first, first) - 1
        while first <= last:
            end = self._first[index] + self._span[index] - 1
            upto = min(last, end)
            self._live[index] -= upto - first + 1
            if self._live[index] == 0:
                self._dead += 1
            first = upto + 1
            index += 1
        if self._dead >= COMPACT_AT and self._dead * 2 >= len(self._first):
            self._drop_dead()

    def rows_from(self, offset: int) -> Iterator[tuple[int, int, int, int]]:
        """(position, length, bytes, last offset) of the live rows from the one that holds `offset` on."""
        for index in range(max(0, bisect_right(self._first, offset) - 1), len(self._first)):
            last = self._first[index] + self._span[index] - 1
            if self._live[index] and last >= offset:
                yield self._position[index], self._length[index], self._bytes[index], last

    def row_of(self, offset: int) -> tuple[int, int, int] | None:
        """(first, last, position) of the row that holds `offset`; None if it has no live message."""
        index = bisect_right(self._first, offset) - 1
        if index < 0 or not self._live[index] or offset >= self._first[index] + self._span[index]:
            return None
        return self._first[index], self._first[index] + self._span[index] - 1, self._position[index]

    def rows_between(self, low: int, high: int) -> Iterator[tuple[int, int, int, int]]:
        """(first, last, position, length) of the live rows that begin at positions `low` to below `high`."""
        for index, position in enumerate(self._position):
            if low <= position < high and self._live[index]:
                first = self._first[index]
                yield first, first + self._span[index] - 1, position, self._length[index]

    def move(self, offsets: tuple[int, ...] | range, *, position: int, size: int) -> None:
        """Live messages of one row stand at `position` now.

        All that is live of a row is moved by one record; the first call for the row empties it, the others add.
        """
        index = bisect_right(self._first, offsets[0]) - 1
        assert offsets[-1] < self._first[index] + self._span[index], "moved messages of two rows at once"
        if self._position[index] != position:
            self._position[index] = position
            self._length[index] = 0
            self._bytes[index] = 0
            self._live[index] = 0
        self._bytes[index] += size
        self._live[index] += len(offsets)

    def live_bytes(self) -> Iterator[tuple[int, int]]:
        """(position, bytes still needed) of each live row; bytes by the mean size of the row's messages.

        Rows may change between two of them: those that are live at the end were live when it came to them.
        """
        offset = 0
        while (index := bisect_left(self._first, offset)) < len(self._first):
            offset = self._first[index] + 1
            live = self._live[index]
            if live:
                span, size = self._span[index], self._bytes[index]
                yield self._position[index], min(size, max(1, size * live // span))

    def snapshot(self) -> dict[str, Column]:
        """The columns without dead rows."""
        self._drop_dead()
        return {
            "first": self._first[:],
            "span": self._span[:],
            "position": self._position[:],
            "length": self._length[:],
            "bytes": self._bytes[:],
            "live": self._live[:],
        }

    @classmethod
    def restored(cls, stretch: int, columns: Mapping[str, Any]) -> "Extents":
        """The inverse of `snapshot`."""
        extents = cls(stretch)
        extents._first = array("Q", columns["first"])
        extents._span = array("Q", columns["span"])
        extents._position = array("Q", columns["position"])
        extents._length = array("I", columns["length"])
        extents._bytes = array("Q", columns["bytes"])
        extents._live = array("I", columns["live"])
        return extents

    def total_live(self) -> int:
        """Messages that are still needed."""
        return sum(self._live)

    def check_invariants(self) -> None:
        """Rows are sorted, do not overlap, and hold no more than they span."""
        end = 0
        for index, first in enumerate(self._first):
            assert first > end, "extents overlap"
            assert self._live[index] <= self._span[index], "an extent holds more than it spans"
            end = first + self._span[index] - 1
        assert self._dead == sum(1 for live in self._live if live == 0), "dead extents are miscounted"

    def _drop_dead(self) -> None:
        if not self._dead:
            return
        keep = [index for index, live in enumerate(self._live) if live]
        for name in ("_first", "_span", "_position", "_length", "_bytes", "_live"):
            column = getattr(self, name)
            setattr(self, name, array(column.typecode, [column[index] for index in keep]))
        self._dead = 0
