"""The last settled fences and their outcomes, so that a repeated settlement gets the same answer.

Of each queue the last 65,536 fences that a consumer settled are remembered, restarts included. They are kept as bits
in blocks of 64 fences, found by fence alone, since whoever repeats a settlement may not know the queue.
"""

from array import array
from collections import deque
from collections.abc import Sequence
from itertools import chain

from kyogo_broker.model.column import Column, Pieces
from kyogo_broker.model.commands import Outcome

REMEMBERED = 65_536
BLOCK_BITS = 6
BLOCK = 1 << BLOCK_BITS


class SettledFences:
    """Outcomes of fences that consumers settled."""

    __slots__ = ("_blocks", "_counts", "_queues")

    def __init__(self) -> None:
        self._blocks: dict[int, list[int]] = {}
        self._queues: dict[int, deque[tuple[int, int, int]]] = {}
        self._counts: dict[int, int] = {}

    def add(self, queue_id: int, first: int, count: int, outcome: Outcome) -> None:
        """A consumer settled `count` fences from `first` on."""
        history = self._queues.get(queue_id)
        if history is None:
            history = self._queues[queue_id] = deque()
            self._counts[queue_id] = 0
        if history and history[-1][2] == outcome and history[-1][0] + history[-1][1] == first and count < BLOCK:
            history[-1] = (history[-1][0], history[-1][1] + count, outcome)
        else:
            history.append((first, count, outcome))
        self._mark(first, count, outcome, known=True)
        total = self._counts[queue_id] + count
        while total > REMEMBERED:
            old_first, old_count, old_outcome = history[0]
            surplus = min(old_count, total - REMEMBERED)
            self._mark(old_first, surplus, Outcome(old_outcome), known=False)
            total -= surplus
            if surplus == old_count:
                history.popleft()
            else:
                history[0] = (old_first + surplus, old_count - surplus, old_outcome)
        self._counts[queue_id] = total

    def outcome(self, fence: int) -> Outcome | None:
        """What a consumer said of `fence`, if that is still remembered."""
        block = self._blocks.get(fence >> BLOCK_BITS)
        if block is not None:
            bit = 1 << (fence & BLOCK - 1)
            for outcome in Outcome:
                if block[outcome - 1] & bit:
                    return outcome
        return None

    def forget_queue(self, queue_id: int) -> None:
        """A queue was deleted; its fences stay known as issued, their outcomes do not."""
        for first, count, outcome in self._queues.pop(queue_id, ()):
            self._mark(first, count, Outcome(outcome), known=False)
        self._counts.pop(queue_id, None)

    def snapshot(self, queue_id: int) -> Column:
        """First, count and outcome of each entry of a queue, oldest first."""
        return _column(tuple(self._queues.get(queue_id, ())))

    def freeze(self, queue_id: int) -> Pieces:
        """The same, for later."""
        return Pieces(tuple(self._queues.get(queue_id, ())), _column)

    def restore(self, queue_id: int, column: Column) -> None:
        """The inverse of `snapshot`."""
        for index in range(0, len(column), 3):
            self.add(queue_id, column[index], column[index + 1], Outcome(column[index + 2]))

    def _mark(self, first: int, count: int, outcome: Outcome, *, known: bool) -> None:
        last = first + count - 1
        for number in range(first >> BLOCK_BITS, (last >> BLOCK_BITS) + 1):
            start = number << BLOCK_BITS
            low, high = max(first - start, 0), min(last - start, BLOCK - 1)
            mask = ((1 << high - low + 1) - 1) << low
            block = self._blocks.get(number)
            if known:
                if block is None:
                    block = self._blocks[number] = [0, 0, 0, 0]
                block[outcome - 1] |= mask
            elif block is not None:
                block[outcome - 1] &= ~mask
                if not any(block):
                    del self._blocks[number]


def _column(entries: Sequence[tuple[int, int, int]]) -> Column:
    return array("Q", chain.from_iterable(entries))
