"""A shard on a real segment log: an engine without a loop, for histories that are written to a disk and read back.

A turn is as in the engine: commands, a tick, one record with all facts, then the loads are answered from the journal.
Time is given; every record is remembered with its place, as the truth that a reader of the disk is compared with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from kyogo_broker.core.limits import ShardConfig
from kyogo_broker.core.shard import Shard
from kyogo_broker.journal.codec import encode
from kyogo_broker.journal.files import Files
from kyogo_broker.journal.lane import InlineLane
from kyogo_broker.journal.loading import load
from kyogo_broker.journal.segment_file import HEAD_BYTES, NUMBER_SHIFT
from kyogo_broker.journal.segments import SegmentJournal, SegmentSettings
from kyogo_broker.model.commands import Command, Tick
from kyogo_broker.model.effects import Effect, Load
from kyogo_broker.model.facts import Fact
from kyogo_broker.model.message import Batch
from kyogo_broker.model.now import Now
from kyogo_broker.recovery import queue_section, restore, shard_section

BEGINNING_MS = 1_700_000_000_000


@dataclass(frozen=True, slots=True)
class Written:
    """One record and its place."""

    sequence: int
    segment: int
    byte: int
    size: int
    facts: tuple[Fact, ...]


@dataclass
class LoggedShard:
    """One process after another on one directory."""

    path: Path
    settings: SegmentSettings
    files: Files = field(default_factory=Files)
    key: int = 9
    version: str = ""
    now_ms: int = BEGINNING_MS
    records: list[Written] = field(default_factory=list)
    on_effect: Callable[[Effect], None] = lambda _: None
    on_facts: Callable[[Sequence[Fact]], None] = lambda _: None

    shard: Shard = field(init=False)
    journal: SegmentJournal = field(init=False)

    def start(self) -> None:
        """Begin a process: recover, then open a new epoch."""
        self.journal = SegmentJournal(
            self.path, self.settings, key=self.key, version=self.version, files=self.files, lane=InlineLane
        )
        recovered = self.journal.open()
        self.shard = Shard(ShardConfig(auto_create=True), seed=1, stretch=self.journal.stretch)
        after = restore(self.shard, recovered.sections)
        written = {record.sequence: record for record in self.records}
        for record in self.journal.replay(after):
            self.shard.replay(record.sequence, record.position, list(written[record.sequence].facts))
        self.shard.begin(position=self.journal.position, now=self.now)
        self._append(self.shard.open(recovered.epoch, self.now).facts)

    def stop(self) -> None:
        """End it; what nobody waited for is written already."""
        self.journal.close()

    @property
    def now(self) -> Now:
        """Both clocks are one."""
        return Now(self.now_ms, self.now_ms)

    def do(self, *commands: Command) -> None:
        """A turn, and those that follow from it."""
        waiting: list[Command] = list(commands)
        for _ in range(1_000):
            self.shard.begin(position=self.journal.position, now=self.now)
            steps = [self.shard.handle(command, self.now) for command in (*waiting, Tick())]
            self._append([fact for step in steps for fact in step.facts])
            effects = [effect for step in steps for effect in step.effects]
            waiting = [load(self.journal, effect) for effect in effects if isinstance(effect, Load)]
            for effect in effects:
                self.on_effect(effect)
            if not waiting and self.shard.next_wake_ms() != 0:
                return
        raise AssertionError("the shard never comes to rest")

    def checkpoint(self, *, free: bool = True) -> list[tuple[int, int]]:
        """Take one; returns what should be copied forward."""
        sequence = self.journal.sequence - 1
        writer = self.journal.begin_checkpoint()
        writer.add(shard_section(self.shard, sequence))
        for queue_id in self.shard.queue_ids():
            section = queue_section(self.shard, queue_id, sequence)
            assert section is not None
            writer.add(section)
        writer.commit().result()
        live: dict[int, int] = {}
        for position, size in self.shard.live_bytes():
            part = self.journal.part_of(position)
            live[part] = live.get(part, 0) + size
        return self.journal.free(below=sequence, live=live) if free else []

    def _append(self, facts: Sequence[Fact]) -> None:
        if not facts:
            return
        parts = encode(facts)
        position = self.journal.position
        size = HEAD_BYTES + sum(map(len, parts))
        sequence = self.journal.sequence
        self.journal.append(sequence, parts).result()
        number, byte = position >> NUMBER_SHIFT, position & (1 << NUMBER_SHIFT) - 1
        self.records.append(Written(sequence, number, byte, size, tuple(facts)))
        self.on_facts(facts)


def batch_of(*bodies: bytes) -> Batch:
    """Messages as they travel; the core never looks inside."""
    return Batch(b"".join(bodies), tuple(accumulate(map(len, bodies))))
