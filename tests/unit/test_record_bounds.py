"""However much waits, a record stays below the journal's limit."""

import asyncio

from kyogo_broker.clock import Clock
from kyogo_broker.core.letters import TURN_BYTES_MAX
from kyogo_broker.core.shard import Shard, ShardConfig
from kyogo_broker.engine import Engine
from kyogo_broker.journal.memory import MemoryJournal
from kyogo_broker.model.commands import Attach, Command, Outcome, Publish, Settle, Settlement, Subscription, Tick
from kyogo_broker.model.effects import Deliver, Effect, PublishDone, SettleDone
from kyogo_broker.model.facts import Fact, Published
from kyogo_broker.model.message import Batch, FenceRange
from kyogo_broker.model.now import Now
from kyogo_broker.model.states import SettleStatus
from kyogo_broker.recovery import recover

MIB = 1 << 20
REQUESTS = 10
NOW = Now(1_000, 1_000)


class Answers:
    def __init__(self) -> None:
        self.count = 0
        self.all = asyncio.Event()

    def take(self, effect: Effect) -> None:
        assert isinstance(effect, PublishDone)
        assert effect.refusal is None
        self.count += 1
        if self.count == REQUESTS:
            self.all.set()


async def test_many_connections_with_large_requests_share_several_records() -> None:
    clock = Clock()
    journal = MemoryJournal(max_record_bytes=8 * MIB)
    shard, _ = recover(journal, ShardConfig(auto_create=True), seed=1, clock=clock)
    engine = Engine(shard, journal, clock)
    answers = Answers()
    batch = Batch(bytes(4 * MIB), range(4 * MIB, 4 * MIB + 1))
    for _ in range(REQUESTS):
        port = engine.open_port(answers)
        engine.submit_now(Publish(port, 1, "orders", batch))
    running = asyncio.create_task(engine.run())
    async with asyncio.timeout(20):
        await answers.all.wait()
    await engine.stop()
    await running


def test_large_dead_letters_are_written_over_several_turns() -> None:
    shard = Shard(ShardConfig(auto_create=True), seed=1, stretch=65_536)
    shard.begin(position=0, now=NOW)
    shard.open(1, NOW)
    size, count = MIB, 6
    ends = range(size, size * count + 1, size)
    shard.handle(Publish(1, 1, "orders", Batch(bytes(size * count), ends)), NOW)
    shard.handle(Attach(2, 5, "token", "worker", (Subscription("orders"),), prefetch_bytes=64 * MIB), NOW)
    step = shard.handle(Tick(), NOW)
    assert sum(run.count for e in step.effects if isinstance(e, Deliver) for run in e.runs) == count
    settle = Settle(2, (Settlement(Outcome.DEAD_LETTER, (FenceRange(1, count),), reason="bad"),))
    answered: list[int] = []
    turns: list[list[Fact]] = []
    commands: list[Command] = [settle]
    while len(answered) < count:
        shard.begin(position=1 + len(turns), now=NOW)
        steps = [shard.handle(command, NOW) for command in (*commands, Tick())]
        shard.check_invariants()
        commands = []
        turns.append([fact for step in steps for fact in step.facts])
        for done in (e for step in steps for e in step.effects if isinstance(e, SettleDone)):
            for result in done.results:
                assert result.status is SettleStatus.OK
                answered += range(result.range.first, result.range.last + 1)
        assert len(turns) < 20, "letters must go on by themselves"
        assert len(answered) == count or shard.next_wake_ms() == 0
    assert sorted(answered) == list(range(1, count + 1))
    written = [sum(len(fact.batch.wire) for fact in facts if isinstance(fact, Published)) for facts in turns]
    assert sum(written) == size * count
    assert max(written) <= TURN_BYTES_MAX + size
