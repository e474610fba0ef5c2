"""Copying forward: live messages of an old part of the journal are written anew, so that the part can be freed.

A row of the extents is moved as a whole: its live messages are read, and facts that stand in one record say where they
are now. What finishes in between is left out; a row that was moved otherwise or has grown in between is left alone.
"""

from typing import NamedTuple

from kyogo_broker.core.state import State
from kyogo_broker.model.commands import CopyForward, Loaded, LoadedBatch
from kyogo_broker.model.effects import Load
from kyogo_broker.model.facts import Moved
from kyogo_broker.model.message import Batch


class Row(NamedTuple):
    """A row of extents on its way."""

    queue_id: int
    first: int
    last: int
    position: int


class Copying:
    """Rows that are being moved."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._under_way: dict[int, Row] = {}
        """By load."""

    def copy_forward(self, command: CopyForward) -> None:
        """Read every live row that begins in the range."""
        for queue in self._state.queues.values():
            for first, last, position, length in list(queue.extents.rows_between(command.low, command.high)):
                wanted = tuple(queue.live_ranges(first, last))
                self._state.loads += 1
                self._under_way[self._state.loads] = Row(queue.id, first, last, position)
                self._state.emit(Load(queue.id, self._state.loads, ((position, length),), wanted))

    def loaded(self, command: Loaded) -> bool:
        """Write anew what was read; False: it was read for something else."""
        row = self._under_way.pop(command.load_id, None)
        if row is None:
            return False
        queue = self._state.queues.get(row.queue_id)
        if queue is None or queue.extents.row_of(row.first) != (row.first, row.last, row.position):
            return True
        for loaded in command.batches:
            for first, last in list(queue.live_ranges(loaded.offsets[0], loaded.offsets[-1])):
                batch = _part(loaded, first, last)
                offsets = range(first, last + 1)
                self._state.record(Moved(queue.id, offsets, batch, loaded.published_unix_ms, loaded.dead_letter))
        return True


def _part(loaded: LoadedBatch, first: int, last: int) -> Batch:
    """The messages `first` to `last` of a batch that was read."""
    origin = loaded.offsets[0]
    if first == origin and last == loaded.offsets[-1]:
        return loaded.batch
    low, high = first - origin, last - origin
    start = loaded.batch.ends[low - 1] if low else 0
    return Batch(bytes(loaded.batch.part(low, high)), tuple(end - start for end in loaded.batch.ends[low : high + 1]))
