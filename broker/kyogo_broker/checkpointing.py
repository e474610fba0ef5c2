"""When and how a checkpoint is taken, and what follows it: all of it in slices between turns.

    sections, a queue after the other -> commit -> what of the journal is live -> free what is not -> copy forward

Each queue's section is a picture of one moment, made into bytes later, so that the loop never stops for long, however
much a queue holds. Messages that are being read back may have been finished meanwhile, and what they stand in must not
go under the reader: so what was being read when the live ones were counted is waited for. What is asked for afterwards
stands in parts that count as live, or behind the checkpoint.

Only a checkpoint lets anything be freed, and draining a backlog writes little. So the next one comes soon when anything
has happened, and sooner while the disk is low: else a disk that a backlog has filled would stay full when it is gone.
"""

from collections import deque
from collections.abc import Callable, Collection, Generator
from concurrent.futures import Future, wait

from kyogo_broker.clock import Clock
from kyogo_broker.core.shard import Shard
from kyogo_broker.journal.base import Journal
from kyogo_broker.model.commands import CopyForward
from kyogo_broker.recovery import queue_section_in_slices, shard_section

CHECKPOINT_BYTES = 32 << 20
"""Journal written since the last checkpoint that makes the next one due: what a busy queue leaves on the disk although
nobody needs it, and a tail that is replayed in a fifth of a second."""
CHECKPOINT_FACTS = 40_000
"""The same for many small facts, at some 10 us a fact."""
PAUSE_SECONDS = 15.0
"""After it whatever happened is enough for another one."""
LOW_DISK_PAUSE_SECONDS = 2.0
"""The same while the disk is low."""
PAUSE_TIMES = 50
"""The pause is at least so many times what the last checkpoint took: 2% of the broker's time."""
SLICE_SECONDS = 0.004
"""Work on a checkpoint between two turns."""
COUNTED_ROWS = 500
"""Rows of extents between two looks at the clock."""


class Checkpointing:
    """Takes one checkpoint after another."""

    def __init__(self, shard: Shard, journal: Journal, clock: Clock) -> None:
        self._shard = shard
        self._journal = journal
        self._clock = clock
        self._bytes = 0
        self._facts = 0
        self._work: Generator[None, None, None] | None = None
        """A checkpoint and what follows it; yields when something else may have its turn."""
        self._waiting = False
        self._commit: Future[None] | None = None
        self._loads: Collection[int] = ()
        self._copy: deque[tuple[int, int]] = deque()
        self._disk_low = False
        self._began = self._took = 0.0

    def wrote(self, *, size: int, facts: int) -> None:
        """A record was appended."""
        self._bytes += size
        self._facts += facts

    def disk_is(self, *, low: bool) -> None:
        """Whether there is little room on the disk."""
        self._disk_low = low

    @property
    def under_way(self) -> bool:
        """Whether `advance` has something to do now."""
        return self._is_due() if self._work is None else not self._waiting

    def advance(self, *, loads: Collection[int]) -> None:
        """Do a slice. Everything that the shard holds must be in the journal.

        Args:
            loads: ids of the reads of the journal that are under way.
        """
        self._loads = loads
        if self._work is None:
            if not self._is_due():
                return
            self._work = self._take()
        until = self._clock.seconds() + SLICE_SECONDS
        while self._go_on() and not self._waiting and self._clock.seconds() < until:
            pass

    def finish(self) -> None:
        """Take a whole checkpoint now, and wait for it: before the broker stops, when nothing is read any more."""
        self._loads = ()
        self._complete()
        if self._facts:
            self._work = self._take()
            self._complete()

    def _complete(self) -> None:
        while self._go_on():
            if self._commit is not None:
                wait((self._commit,))

    def next_copy(self) -> CopyForward | None:
        """The next part of the journal to copy forward, when the one before is done."""
        return CopyForward(*self._copy.popleft()) if self._copy and not self._shard.copying else None

    def _is_due(self) -> bool:
        if self._bytes >= CHECKPOINT_BYTES or self._facts >= CHECKPOINT_FACTS:
            return True
        if not self._facts:
            return False
        pause = LOW_DISK_PAUSE_SECONDS if self._disk_low else max(PAUSE_SECONDS, PAUSE_TIMES * self._took)
        return self._clock.seconds() >= self._began + pause

    def _go_on(self) -> bool:
        """One step; whether there is another one."""
        if self._work is not None:
            try:
                next(self._work)
            except StopIteration:
                self._work = None
        return self._work is not None

    def _until(self, condition: Callable[[], bool]) -> Generator[None, None, None]:
        """Wait for something that happens elsewhere."""
        self._waiting = True
        while not condition():
            yield
        self._waiting = False

    def _take(self) -> Generator[None, None, None]:
        """A checkpoint, from its beginning to the end."""
        self._began = self._clock.seconds()
        self._bytes = self._facts = 0
        oldest = self._journal.sequence - 1
        writer = self._journal.begin_checkpoint()
        writer.add(shard_section(self._shard, oldest))
        for queue_id in self._shard.queue_ids():
            section = yield from queue_section_in_slices(self._shard, queue_id, self._journal.sequence - 1)
            if section is not None:
                writer.add(section)
            yield
        self._took = self._clock.seconds() - self._began
        commit = self._commit = writer.commit()
        yield from self._until(commit.done)
        self._commit = None
        failure = commit.exception()
        if failure is None:
            yield from self._free(oldest)
        elif not isinstance(failure, OSError):
            raise failure
        # Else the one before holds, and another one is tried later.

    def _free(self, below: int) -> Generator[None, None, None]:
        """Give back what the checkpoint made useless."""
        live: dict[int, int] = {}
        for count, (position, size) in enumerate(self._shard.live_bytes(), 1):
            part = self._journal.part_of(position)
            live[part] = live.get(part, 0) + size
            if count % COUNTED_ROWS == 0:
                yield
        reading = frozenset(self._loads)
        yield from self._until(lambda: reading.isdisjoint(self._loads))
        self._copy = deque(self._journal.free(below=below, live=live))
