"""restore(all records) == restore(checkpoint + tail) == live, through the journal's own encoding; and after a crash.

What may differ, because it is not durable or means the same: when a producer was used last; whether a message that is
due stands among the delayed or the ready; how offsets are spread over extents, as long as each is where it says.
"""

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kyogo_broker.core.extents import Extents
from kyogo_broker.core.limits import ShardConfig
from kyogo_broker.core.shard import Shard
from kyogo_broker.journal.base import Section
from kyogo_broker.journal.codec import decode, encode
from kyogo_broker.journal.columns import decode_section
from kyogo_broker.model.commands import Attach, Command, Outcome, PauseQueue, Settle, Settlement, Subscription
from kyogo_broker.model.facts import DeadLettered, Finished, QueueDeleted, Settled
from kyogo_broker.model.states import RedeliveryReason
from kyogo_broker.recovery import queue_section, restore, shard_section
from tests.support.shard_history import Program, ShardHistory
from tests.support.shards import STRETCH, Appended, Driver, fences, messages_in, runs

EXAMPLES = int(os.environ.get("KYOGO_EXAMPLES", "60"))
STEPS = int(os.environ.get("KYOGO_STEPS", "50"))
Places = dict[tuple[int, int], tuple[bytes, int]]
"""(queue, offset) of what is not finished: its body, and the position of the record it stands in."""


class RestoreHistory(ShardHistory):
    """Histories with checkpoints, queue by queue while things go on, and crashes."""

    WEIGHTS: ClassVar[Mapping[str, int]] = {**ShardHistory.WEIGHTS, "restore": 2, "crash": 1}

    def __init__(self, seed: int) -> None:
        self.sections: list[Section] = []
        """Of the checkpoint under way."""
        self.queues_left: list[int] | None = None
        self.checkpoint: tuple[Section, ...] = ()
        super().__init__(seed)

    def make_driver(self) -> Driver:
        return Driver(ShardConfig(), lazy=True)

    def end(self) -> None:
        super().end()
        self.restore()

    def turn(self, *commands: Command) -> None:
        """One checkpoint follows another, slice by slice."""
        super().turn(*commands)
        if not self.driver.in_turn and self.chance.random() < 0.5:
            self.take_a_slice_of_a_checkpoint(most=self.chance.randint(1, 3))

    def take_a_slice_of_a_checkpoint(self, most: int) -> None:
        """The next few sections, each as of now."""
        driver, shard = self.driver, self.driver.shard
        driver.flush()
        if self.queues_left is None:
            self.queues_left = list(shard.queue_ids())
            self.sections = [shard_section(shard, driver.sequence - 1)]
        for _ in range(min(most, len(self.queues_left))):
            section = queue_section(shard, self.queues_left.pop(0), driver.sequence - 1)
            if section is not None:
                self.sections.append(section)
        if not self.queues_left:
            self.queues_left = None
            self.checkpoint = tuple(self.sections)

    def restore(self) -> None:
        """What is restored is what lives."""
        self.driver.tick()
        self.driver.flush()
        live = picture(self.driver.shard, self.driver.now.steady_ms, self.driver.records)
        for restored in self.both(self.driver.records):
            assert picture(restored, self.driver.now.steady_ms, self.driver.records) == live

    def crash(self) -> None:
        """A broker that was killed some records ago begins again, and delivers everything that was not finished."""
        driver = self.driver
        driver.tick()
        driver.flush()
        back = self.chance.choice((0, 1, 3, 30))
        oldest = max((section.sequence for section in self.checkpoint), default=1)
        records = driver.records[: max(oldest, len(driver.records) - back)]
        one, other = self.both(records)
        now_ms = driver.now.steady_ms
        assert picture(one, now_ms, records) == picture(other, now_ms, records)
        for shard in (one, other):
            after = driver.restarted(shard, records)
            after.shard.check_invariants()
            wanted = unfinished(records)
            assert delivered(after) == {place: body for place, (body, _) in wanted.items()}

    def both(self, records: list[Appended]) -> tuple[Shard, Shard]:
        """Restored from every record, and from the newest checkpoint and the records after it."""
        restored = []
        for sections in ((), self.checkpoint):
            shard = Shard(self.driver.config, seed=1, stretch=STRETCH)
            after = restore(shard, sections)
            for record in records:
                if record.sequence > after:
                    facts = decode(b"".join(encode(record.facts)))
                    assert len(facts) == len(record.facts)
                    shard.replay(record.sequence, record.position, facts)
            restored.append(shard)
        return restored[0], restored[1]


def picture(shard: Shard, now_ms: int, records: list[Appended]) -> dict[str, Any]:
    """All that is durable, what means the same made equal."""
    state_of = shard._state
    found: dict[str, Any] = {
        "shard": shard.snapshot_shard(),
        "settled": {fence: said for fence in range(1, 500) if (said := state_of.settled.outcome(fence)) is not None},
        "leases": [(lease.first_fence, lease.first_offset, lease.live) for lease in state_of.leases],
    }
    places = unfinished(records)
    for queue_id in shard.queue_ids():
        section = queue_section(shard, queue_id, 0)
        assert section is not None
        state = decode_section(section.state)
        ready = {offset: 0 for first, last in pairs(state.pop("fresh"), 2) for offset in range(first, last + 1)}
        ready |= {o: reason for first, last, reason in pairs(state.pop("returned"), 3) for o in range(first, last + 1)}
        delayed = {offset: (due, reason) for due, offset, reason in pairs(state.pop("delayed"), 3)}
        ready |= {offset: reason for offset, (due, reason) in delayed.items() if due <= now_ms}
        state["ready"] = dict(sorted(ready.items()))
        state["delayed"] = {offset: entry for offset, entry in delayed.items() if entry[0] > now_ms}
        state["producers"] = sorted([producer, dropped, kept] for producer, dropped, _, kept in state["producers"])
        columns = ("first", "span", "position", "length", "bytes", "live")
        extents = Extents.restored(STRETCH, {name: state.pop(f"extents.{name}") for name in columns})
        mine = {offset: position for (queue, offset), (_, position) in places.items() if queue == queue_id}
        assert extents.total_live() == len(mine)
        for offset, at in mine.items():
            position, length, _, last = next(extents.rows_from(offset))
            assert position <= at <= position + length
            assert offset <= last
        found[str(queue_id)] = state
    return found


def pairs(column: Any, width: int) -> list[tuple[int, ...]]:
    """The rows of a flat column."""
    return [tuple(column[index : index + width]) for index in range(0, len(column), width)]


def unfinished(records: list[Appended]) -> Places:
    """A fold of facts that knows nothing of a shard."""
    places: Places = {}
    for record in records:
        for fact in record.facts:
            for queue, offset, stored in messages_in([fact]):
                places[queue, offset] = stored.body, record.position
            gone: list[tuple[int, int]] = []
            match fact:
                case Settled(outcome=Outcome.ACK, spans=spans):
                    gone = [(span.first_offset, span.first_offset + span.count - 1) for span in spans]
                case DeadLettered(span=span):
                    gone = [(span.first_offset, span.first_offset)]
                case Finished(ranges=ranges):
                    gone = list(ranges)
                case QueueDeleted(queue_id=queue_id):
                    gone = [(offset, offset) for queue, offset in places if queue == queue_id]
            for first, last in gone:
                for offset in range(first, last + 1):
                    del places[fact.queue_id, offset]  # type: ignore[union-attr]  # those above have one
    return places


def delivered(driver: Driver) -> dict[tuple[int, int], bytes]:
    """Everything that a broker delivers to one who takes and acks all of it."""
    queues = dict(driver.shard._state.names)
    got: dict[tuple[int, int], bytes] = {}
    for name in queues:
        driver.do(PauseQueue(0, 0, name, paused=False))
    port = driver.port()
    subscriptions = tuple(map(Subscription, queues))
    if not subscriptions:
        return {}
    driver.do(Attach(port, 77, "token", "last", subscriptions, prefetch_messages=10_000, prefetch_bytes=1 << 26))
    seen = 0
    for _ in range(50):
        given = runs(driver.effects, port)
        for run in given[seen:]:
            queue = queues[list(queues)[run.subscription]]
            assert run.reason in RedeliveryReason
            at = 0
            for number in range(run.count):
                held = driver.shard._state.leases.find(run.first_fence + number)
                assert held is not None
                size = held.size(run.first_offset + number - held.first_offset, 1)
                place = queue.id, run.first_offset + number
                assert place not in got, "delivered twice"
                got[place] = bytes(run.wire)[at : at + size]
                at += size
            driver.do(
                Settle(port, (Settlement(Outcome.ACK, fences((run.first_fence, run.first_fence + run.count - 1))),))
            )
        seen = len(given)
        driver.shard.check_invariants()
        dues = [due for queue in queues.values() if (due := queue.delayed.next_due_ms()) is not None]
        if seen == len(runs(driver.effects, port)) and not dues:
            break
        if dues:
            driver.stall(max(0, min(dues) - driver.now.steady_ms))
            driver.tick()
            driver.settle_down()
    return got


@settings(max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck),
          report_multiple_bugs=False)  # fmt: skip
@given(seed=st.integers(0, 1 << 20), program=RestoreHistory.programs(steps=STEPS))
def test_what_is_restored_is_what_lives(seed: int, program: Program) -> None:
    RestoreHistory.run(seed, program)
