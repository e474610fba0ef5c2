"""When and how a checkpoint is taken: section by section between turns, so that the loop never stops for long.

After it: what the journal no longer needs is freed, and parts that hold little are copied forward, one at a time.

Only a checkpoint lets anything be freed, and draining a backlog writes little. So while the disk is low they follow
each other for as long as anything happens: else a disk that a backlog has filled would stay full when it is gone.
"""

from collections import deque
from concurrent.futures import Future, wait

from kyogo_broker.clock import Clock
from kyogo_broker.core.shard import Shard
from kyogo_broker.journal.base import CheckpointWriter, Journal
from kyogo_broker.model.commands import CopyForward
from kyogo_broker.recovery import queue_section, shard_section

CHECKPOINT_BYTES = 192 << 20
"""Journal written since the last checkpoint that makes the next one due: a tail that is replayed in about a second."""
CHECKPOINT_FACTS = 40_000
"""The same for many small facts, at some 10 us a fact."""
SLICE_SECONDS = 0.004
"""Work on a checkpoint between two turns."""
LOW_DISK_PAUSE_SECONDS = 2.0
"""From one checkpoint to the next while the disk is low."""


class Checkpointing:
    """Takes one checkpoint after another."""

    def __init__(self, shard: Shard, journal: Journal, clock: Clock) -> None:
        self._shard = shard
        self._journal = journal
        self._clock = clock
        self._bytes = 0
        self._facts = 0
        self._writer: CheckpointWriter | None = None
        self._queues: deque[int] = deque()
        self._oldest = 0
        self._commit: Future[None] | None = None
        self._copy: deque[tuple[int, int]] = deque()
        self._disk_low = False
        self._began = 0.0

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
        return self._writer is not None or self._is_due()

    def advance(self, *, loads: int) -> None:
        """Do a slice. Everything that the shard holds must be in the journal.

        Args:
            loads: reads of the journal that are under way; what they read must not be freed under them.
        """
        if self._commit is not None:
            if self._commit.done() and not loads:
                self._committed(self._commit)
            return
        if self._writer is None:
            if not self._is_due():
                return
            self._begin()
        self._write(SLICE_SECONDS)

    def finish(self) -> None:
        """Take a whole checkpoint now, and wait for it: before the broker stops."""
        self._wait()
        if self._writer is None and self._facts:
            self._begin()
        if self._writer is not None:
            self._write(float("inf"))
        self._wait()

    def _committed(self, commit: Future[None]) -> None:
        """A checkpoint is durable, or could not be: then the one before holds, and another one is tried later."""
        self._commit = None
        failure = commit.exception()
        if failure is None:
            self._free()
        elif not isinstance(failure, OSError):
            raise failure

    def _wait(self) -> None:
        if self._commit is not None:
            wait((self._commit,))
            self._committed(self._commit)

    def next_copy(self) -> CopyForward | None:
        """The next part of the journal to copy forward, when the one before is done."""
        return CopyForward(*self._copy.popleft()) if self._copy else None

    def _is_due(self) -> bool:
        if self._commit is not None:
            return False
        if self._disk_low and self._facts:
            return self._clock.seconds() >= self._began + LOW_DISK_PAUSE_SECONDS
        return self._bytes >= CHECKPOINT_BYTES or self._facts >= CHECKPOINT_FACTS

    def _begin(self) -> None:
        self._bytes = self._facts = 0
        self._began = self._clock.seconds()
        self._writer = self._journal.begin_checkpoint()
        self._queues = deque(self._shard.queue_ids())
        self._oldest = self._journal.sequence - 1
        self._writer.add(shard_section(self._shard, self._oldest))

    def _write(self, seconds: float) -> None:
        assert self._writer is not None
        until = self._clock.seconds() + seconds
        while self._queues:
            section = queue_section(self._shard, self._queues.popleft(), self._journal.sequence - 1)
            if section is not None:
                self._writer.add(section)
            if self._clock.seconds() >= until:
                return
        self._commit = self._writer.commit()
        self._writer = None

    def _free(self) -> None:
        live: dict[int, int] = {}
        for position, size in self._shard.live_bytes():
            live[position] = live.get(position, 0) + size
        self._copy = deque(self._journal.free(below=self._oldest, live=live))
