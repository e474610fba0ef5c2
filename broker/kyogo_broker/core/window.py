"""The messages of a queue that are in memory: a window at the head of its backlog, and what was read back.

Everything else is on the journal only, so memory does not grow with a backlog. A batch that was just published is
kept when all of the backlog before it is kept too and the budget allows; a batch that was handed out stays, for a
quick redelivery, until the room is wanted or its messages are finished.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass

from kyogo_broker.model.message import Batch, DeadLetterInfo

QUEUE_BYTES_MAX = 8 << 20
"""Of one queue: some 100 ms of a full-speed consumer of 1 KiB messages."""
SHARD_BYTES_MAX = 48 << 20
"""Of all queues; above it each queue keeps `QUEUE_BYTES_LOW` only."""
QUEUE_BYTES_LOW = 512 << 10
ENTRY_BYTES = 600
"""What Python needs for a batch beside its bytes: counted, so that small batches do not fill the memory."""


class WindowBudget:
    """Bytes in the windows of all queues of a shard."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used = 0

    def queue_max(self) -> int:
        """What one queue may keep now."""
        return QUEUE_BYTES_MAX if self.used < SHARD_BYTES_MAX else QUEUE_BYTES_LOW


@dataclass(slots=True)
class Held:
    """Consecutive messages in memory."""

    first: int
    last: int
    batch: Batch
    published_unix_ms: int
    dead_letter: DeadLetterInfo | None
    pinned: bool
    """Read back for a redelivery that is still to come."""

    @property
    def cost(self) -> int:
        """Bytes of memory."""
        return len(self.batch.wire) + ENTRY_BYTES


class Window:
    """Batches in memory, sorted by offset, not overlapping."""

    __slots__ = ("_budget", "_firsts", "_held", "bytes")

    def __init__(self, budget: WindowBudget) -> None:
        self._budget = budget
        self._firsts: list[int] = []
        self._held: list[Held] = []
        self.bytes = 0

    def find(self, offset: int) -> Held | None:
        """The batch that holds `offset`."""
        index = bisect_right(self._firsts, offset) - 1
        if index >= 0:
            held = self._held[index]
            if offset <= held.last:
                return held
        return None

    def has_room(self, size: int) -> bool:
        """Whether `size` bytes more fit into the budget."""
        return self.bytes + size <= self._budget.queue_max()

    def add(self, held: Held) -> None:
        """Keep a batch; nothing of it may be here already."""
        if not self._firsts or held.first > self._firsts[-1]:
            self._firsts.append(held.first)
            self._held.append(held)
        else:
            insort(self._firsts, held.first)
            self._held.insert(bisect_left(self._firsts, held.first), held)
        self._count(held.cost)

    def drop_below(self, low: int) -> None:
        """Forget batches that lie wholly below `low`."""
        count = 0
        for held in self._held:
            if held.last >= low:
                break
            self._count(-held.cost)
            count += 1
        if count:
            del self._held[:count], self._firsts[:count]

    def make_room(self, size: int, *, below: int) -> None:
        """Forget batches below offset `below` that are not pinned, oldest first, until `size` bytes fit."""
        index = 0
        while index < len(self._held) and not self.has_room(size):
            held = self._held[index]
            if held.last >= below:
                return
            if held.pinned:
                index += 1
                continue
            self._count(-held.cost)
            del self._held[index], self._firsts[index]

    def loaded_after(self, offset: int) -> int:
        """The first offset from `offset` on that is not here, as far as the batches are consecutive."""
        index = bisect_right(self._firsts, offset) - 1
        if index < 0:
            return offset
        while index < len(self._held) and self._held[index].first <= offset <= self._held[index].last:
            offset = self._held[index].last + 1
            index += 1
        return offset

    def missing(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The parts of `first` to `last` that are not here."""
        index = max(0, bisect_right(self._firsts, first) - 1)
        while first <= last:
            if index == len(self._held) or self._held[index].first > last:
                yield first, last
                return
            held = self._held[index]
            if held.first > first:
                yield first, held.first - 1
            first = max(first, held.last + 1)
            index += 1

    def clear(self) -> None:
        """Forget everything."""
        self._count(-self.bytes)
        self._held.clear()
        self._firsts.clear()

    def __iter__(self) -> Iterator[Held]:
        """The batches, by offset."""
        return iter(self._held)

    def check_invariants(self) -> None:
        """Sorted, apart, and counted."""
        end = 0
        for first, held in zip(self._firsts, self._held, strict=True):
            assert first == held.first > end, "window batches overlap"
            assert held.last - held.first + 1 == held.batch.count, "a window batch is miscounted"
            end = held.last
        assert self.bytes == sum(held.cost for held in self._held), "window bytes are miscounted"

    def _count(self, size: int) -> None:
        self.bytes += size
        self._budget.used += size
