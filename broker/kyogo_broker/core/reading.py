"""Which messages to read back, and what to do with them when they come.

One load at a time for each queue. First come the messages of dead letters that wait for their body, then what is to be
redelivered, then the backlog ahead of the consumers, so that a drain does not wait for the disk.
"""

from kyogo_broker.core.queue import Queue
from kyogo_broker.core.state import State
from kyogo_broker.core.window import Held
from kyogo_broker.model.commands import Loaded
from kyogo_broker.model.effects import Load

LOAD_BYTES_MAX = 2 << 20
"""Of the journal, read for one load."""
LOAD_RANGES_MAX = 256
READ_AHEAD_MESSAGES = 4_096
"""Fresh messages in memory below which the next part of the backlog is read."""


class Reading:
    """Loads of all queues."""

    def __init__(self, state: State) -> None:
        self._state = state

    def want_dying(self, queue: Queue) -> None:
        """Dead letters wait for their messages."""
        if queue.loading is None:
            missing = sorted(offset for offset in queue.dying if queue.window.find(offset) is None)
            if missing:
                self._load(queue, [(offset, offset) for offset in missing[:LOAD_RANGES_MAX]])

    def want_returned(self, queue: Queue) -> None:
        """What is to be redelivered next is not in memory."""
        if queue.loading is None:
            ranges = queue.ready.returned_ranges(LOAD_RANGES_MAX)
            self._load(queue, [gap for first, last in ranges for gap in queue.window.missing(first, last)])

    def want_fresh(self, queue: Queue) -> None:
        """Read ahead of the consumers, if there is a backlog beyond what is in memory."""
        fresh = queue.ready.fresh_from()
        if fresh is None or queue.loading is not None:
            return
        start = queue.loaded_to = max(queue.loaded_to, fresh)
        last = queue.next_offset - 1
        if start > last or start - fresh >= READ_AHEAD_MESSAGES:
            return
        if not queue.window.has_room(LOAD_BYTES_MAX):
            queue.window.make_room(LOAD_BYTES_MAX, below=fresh)
            if start > fresh and not queue.window.has_room(LOAD_BYTES_MAX):
                return
        queue.loading_to = self._load(queue, [(start, last)])

    def _load(self, queue: Queue, ranges: list[tuple[int, int]]) -> int:
        """Ask for as much of `ranges` as fits; returns the last offset asked for."""
        stretches: dict[int, int] = {}
        wanted: list[tuple[int, int]] = []
        size = 0
        for first, last in ranges:
            upto = first - 1
            for position, length, row_bytes, row_last in queue.extents.rows_from(first):
                if upto >= last or (stretches and size >= LOAD_BYTES_MAX):
                    break
                # Rows that were moved by one record begin at one position, and the last one may go on behind it.
                if position not in stretches:
                    size += row_bytes
                stretches[position] = max(length, stretches.get(position, 0))
                upto = min(last, row_last)
            if upto >= first:
                wanted.extend(queue.live_ranges(first, upto))
            if upto < last:
                break
        self._state.loads += 1
        queue.loading = self._state.loads
        self._state.emit(Load(queue.id, queue.loading, tuple(sorted(stretches.items())), tuple(wanted)))
        return wanted[-1][1] if wanted else 0

    def loaded(self, command: Loaded) -> Queue | None:
        """Take in what was read; the queue, if it still waits for it."""
        queue = self._state.queues.get(command.queue_id)
        if queue is None or queue.loading != command.load_id:
            return None
        fresh = queue.ready.fresh_from()
        for loaded in command.batches:
            first, last = loaded.offsets[0], loaded.offsets[-1]
            assert last - first + 1 == loaded.batch.count, "a loaded batch has consecutive offsets"
            if not any(queue.live_ranges(first, last)):
                continue
            pinned = fresh is None or last < fresh
            queue.window.add(
                Held(first, last, loaded.batch, loaded.published_unix_ms, loaded.dead_letter, pinned=pinned)
            )
        queue.loading = None
        queue.loading_to = 0
        queue.loaded_to = queue.window.loaded_after(max(queue.loaded_to, fresh or 0))
        self._state.dirty[queue.id] = queue
        return queue
