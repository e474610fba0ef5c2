"""Copying forward: live messages of an old part of the journal are written anew, so that the part can be freed.

A row of the extents is moved as a whole: its live messages are read, and facts that stand in one record say where they
are now. What finishes in between is left out; a row that was moved otherwise or has grown in between is left alone.
Rows follow each other a little at a time: reading and writing them must not hold up what consumers wait for.
"""

from collections import deque
from typing import NamedTuple

from kyogo_broker.core.state import State
from kyogo_broker.model.commands import CopyForward, Loaded, LoadedBatch
from kyogo_broker.model.effects import Load
from kyogo_broker.model.facts import Moved
from kyogo_broker.model.message import Batch

ROW_BYTES_MAX = 8 << 20
"""A row is moved by one record, whose size has a limit; a larger one stays where it is until its messages end."""
BYTES_AT_ONCE = 512 << 10
"""Of the journal, being read to be copied: some milliseconds of a disk, and less of the loop."""


class Row(NamedTuple):
    """A row of extents on its way."""

    queue_id: int
    first: int
    last: int
    position: int
    length: int


class Copying:
    """Rows that are being moved."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._waiting: deque[Row] = deque()
        self._reading: dict[int, Row] = {}
        """By load."""

    @property
    def under_way(self) -> bool:
        """Whether there are rows that are still to be moved."""
        return bool(self._waiting or self._reading)

    def copy_forward(self, command: CopyForward) -> None:
        """Move every live row that begins in the range."""
        for queue in self._state.queues.values():
            self._waiting.extend(Row(queue.id, *row) for row in queue.extents.rows_between(command.low, command.high))
        self._go_on()

    def loaded(self, command: Loaded) -> bool:
        """Write anew what was read; False: it was read for something else."""
        row = self._reading.pop(command.load_id, None)
        if row is None:
            return False
        if self._stands(row) and sum(len(loaded.batch.wire) for loaded in command.batches) <= ROW_BYTES_MAX:
            queue = self._state.queues[row.queue_id]
            for loaded in command.batches:
                for first, last in list(queue.live_ranges(loaded.offsets[0], loaded.offsets[-1])):
                    batch = _part(loaded, first, last)
                    offsets = range(first, last + 1)
                    self._state.record(Moved(queue.id, offsets, batch, loaded.published_unix_ms, loaded.dead_letter))
        self._go_on()
        return True

    def _go_on(self) -> None:
        """Read the next rows."""
        size = sum(row.length for row in self._reading.values())
        while self._waiting and (not self._reading or size < BYTES_AT_ONCE):
            row = self._waiting.popleft()
            if self._stands(row):
                wanted = tuple(self._state.queues[row.queue_id].live_ranges(row.first, row.last))
                self._state.loads += 1
                self._reading[self._state.loads] = row
                size += row.length
                self._state.emit(Load(row.queue_id, self._state.loads, ((row.position, row.length),), wanted))

    def _stands(self, row: Row) -> bool:
        """Whether it is where it was, with something live in it."""
        queue = self._state.queues.get(row.queue_id)
        return queue is not None and queue.extents.row_of(row.first) == (row.first, row.last, row.position)


def _part(loaded: LoadedBatch, first: int, last: int) -> Batch:
    """The messages `first` to `last` of a batch that was read."""
    origin = loaded.offsets[0]
    if first == origin and last == loaded.offsets[-1]:
        return loaded.batch
    low, high = first - origin, last - origin
    start = loaded.batch.ends[low - 1] if low else 0
    return Batch(bytes(loaded.batch.part(low, high)), tuple(end - start for end in loaded.batch.ends[low : high + 1]))
