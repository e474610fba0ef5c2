"""Time in which the broker itself stood still is nobody's silence, wherever in the loop it happened."""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, cast

import pytest

from kyogo_broker.clock import Clock
from kyogo_broker.core.shard import Shard
from kyogo_broker.core.step import Step
from kyogo_broker.engine import SLEEP_MS_MAX, STALL_MS_MIN, THREADED_COMMITS, Engine
from kyogo_broker.journal.memory import MemoryJournal
from kyogo_broker.model.commands import Command, Heartbeat
from kyogo_broker.model.facts import FencesReserved
from kyogo_broker.model.now import Now

STALL_MS = 3_000


class ManualClock(Clock):
    """Stands still unless told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.ms = 1_000_000

    def now(self) -> Now:
        return Now(self.ms, self.ms)

    def seconds(self) -> float:
        return self.ms / 1000


class StubShard:
    """Notes what it is told of stalls, and may take its time."""

    def __init__(self, clock: ManualClock) -> None:
        self.stalled_ms = 0
        self.heartbeats = 0
        self.takes_ms = 0
        self.on_heartbeat: Callable[[], object] = lambda: None
        self.facts: list[FencesReserved] = []
        self.unread: list[Command] = []
        """What was said to have come, before the tick of a turn that did not get to it."""
        self._clock = clock

    def hear(self, commands: Iterable[Command], now: Now) -> Step:
        self.unread += commands
        return Step()

    def begin(self, *, position: int, now: Now, stalled_ms: int = 0) -> None:
        self.stalled_ms += stalled_ms

    def handle(self, command: Command, now: Now) -> Step:
        step = Step()
        if isinstance(command, Heartbeat):
            self.heartbeats += 1
            self.on_heartbeat()
            self._clock.ms += self.takes_ms
            step.facts += self.facts
        return step

    def next_wake_ms(self) -> int | None:
        return None

    def queue_ids(self) -> tuple[int, ...]:
        return ()

    def snapshot_shard(self) -> dict[str, Any]:
        return {}

    def live_bytes(self) -> tuple[tuple[int, int], ...]:
        return ()


class SlowJournal(MemoryJournal):
    """Its commits take time."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self.takes_ms = 0
        self.in_place: list[bool] = []
        self._clock = clock

    def append(self, sequence: int, parts: Any, *, in_place: bool = False) -> Future[None]:
        self.in_place.append(in_place)
        self._clock.ms += self.takes_ms
        return super().append(sequence, parts)


class Bench:
    """An engine on a clock of ours."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.shard = StubShard(self.clock)
        self.journal = SlowJournal(self.clock)
        self.journal.open()
        self.engine = Engine(cast("Shard", self.shard), self.journal, self.clock)

    async def turns(self, count: int) -> None:
        """So many turns with something to do."""
        for _ in range(count):
            wanted = self.shard.heartbeats + 1
            self.engine.submit_now(Heartbeat(1, 1, 0, 0, 0, 0.0, 0.0, 0))
            while self.shard.heartbeats < wanted:  # noqa: ASYNC110 - the loop under test has to run
                await asyncio.sleep(0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def stalled_by(bench: Bench, stall: str) -> int:
    """What the shard is told, once the loop goes on."""
    running = asyncio.create_task(bench.engine.run())
    await bench.turns(2)
    bench.shard.stalled_ms = 0
    if stall == "asleep":
        await asyncio.sleep(0.01)
        bench.clock.ms += STALL_MS
    elif stall == "in a turn":
        bench.shard.takes_ms = STALL_MS
        await bench.turns(1)
        bench.shard.takes_ms = 0
    elif stall == "in a commit":
        bench.shard.facts = [FencesReserved(1 << 21)]
        bench.journal.takes_ms = STALL_MS
        await bench.turns(1)
        bench.shard.facts, bench.journal.takes_ms = [], 0
    elif stall == "between turns":
        bench.engine.submit_now(Heartbeat(1, 1, 0, 0, 0, 0.0, 0.0, 0))
        await asyncio.sleep(0)
        bench.clock.ms += STALL_MS
    await bench.turns(3)
    told = bench.shard.stalled_ms
    await bench.engine.stop()
    await running
    return told


@pytest.mark.parametrize("stall", ["asleep", "in a turn", "in a commit", "between turns"])
async def test_a_stall_is_counted_once_wherever_it_happens(bench: Bench, stall: str) -> None:
    assert STALL_MS - SLEEP_MS_MAX <= await stalled_by(bench, stall) <= STALL_MS


async def test_ordinary_scheduling_is_none(bench: Bench) -> None:
    running = asyncio.create_task(bench.engine.run())
    bench.shard.takes_ms = STALL_MS_MIN - 1
    await bench.turns(5)
    assert bench.shard.stalled_ms == 0
    await bench.engine.stop()
    await running


async def committed_in_place(bench: Bench, *, sleeps_ms: int, takes_ms: list[int]) -> list[bool]:
    """Which commits were done on the spot, by a loop that has nothing to do for so long between them."""
    running = asyncio.create_task(bench.engine.run())
    await asyncio.sleep(0.01)
    bench.shard.facts = [FencesReserved(1 << 21)]
    for each in takes_ms:
        bench.journal.takes_ms = each
        bench.clock.ms += sleeps_ms
        await bench.turns(1)
        await asyncio.sleep(0)
    bench.shard.facts, bench.journal.takes_ms = [], 0
    await bench.engine.stop()
    await running
    return bench.journal.in_place[: len(takes_ms)]


async def test_an_idle_loop_commits_in_place(bench: Bench) -> None:
    assert await committed_in_place(bench, sleeps_ms=2, takes_ms=[1] * 5) == [True] * 5


async def test_a_busy_loop_reads_on_while_the_thread_commits(bench: Bench) -> None:
    """What it reads meanwhile shares the next commit."""
    assert await committed_in_place(bench, sleeps_ms=2, takes_ms=[3] * 5) == [True] + [False] * 4
    assert await committed_in_place(Bench(), sleeps_ms=0, takes_ms=[1] * 5) == [False] * 5


async def test_after_a_slow_commit_the_thread_does_them_for_a_while(bench: Bench) -> None:
    in_place = await committed_in_place(bench, sleeps_ms=2, takes_ms=[100] + [1] * (THREADED_COMMITS + 2))
    assert in_place == [True] + [False] * THREADED_COMMITS + [True] * 2


async def test_what_a_full_turn_leaves_in_the_inbox_was_heard(bench: Bench) -> None:
    bench.shard.takes_ms = STALL_MS
    commands = [Heartbeat(port, 1) for port in (1, 2, 3)]
    for command in commands:
        bench.engine.submit_now(command)
    running = asyncio.create_task(bench.engine.run())
    await bench.turns(1)
    bench.shard.takes_ms = 0
    assert bench.shard.unread[:2] == commands[1:]
    await bench.engine.stop()
    await running
