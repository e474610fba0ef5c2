"""A shard with clocks, records and an answerer of loads around it: what the engine is to it, without any waiting.

A turn is as in the engine: commands, then a tick, then one record with all of its facts. Time passes only by `wait`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar
from unittest.mock import patch

from kyogo_broker.core.limits import ShardConfig
from kyogo_broker.core.queue import Queue
from kyogo_broker.core.shard import Shard
from kyogo_broker.core.step import Step
from kyogo_broker.model.commands import (
    Attach,
    Command,
    CopyForward,
    CreateQueue,
    Loaded,
    LoadedBatch,
    Outcome,
    Publish,
    Settle,
    Settlement,
    Subscription,
    Tick,
)
from kyogo_broker.model.effects import Deliver, Delivery, Effect, Load, SettleDone
from kyogo_broker.model.facts import Fact, Moved, Opened, Published
from kyogo_broker.model.message import Batch, DeadLetterInfo, FenceRange
from kyogo_broker.model.now import Now
from kyogo_broker.model.settings import QueueSettings
from kyogo_broker.model.states import SettleStatus

BEGINNING_MS = 1_700_000_000_000
RECORD_STEP = 10
"""Positions from one record to the next."""
STRETCH = 100
FRAME_HEAD_BYTES = 4_096
"""What a consumer's frame keeps free for the head of a run."""

E = TypeVar("E")


def batch_of(*bodies: bytes) -> Batch:
    """Messages as they travel; the core never looks inside, so a body is its own encoding."""
    return Batch(b"".join(bodies), tuple(accumulate(map(len, bodies))))


def bodies_of(batch: Batch) -> list[bytes]:
    """The messages of a batch."""
    return [bytes(batch.part(index, index)) for index in range(batch.count)]


def fences(*ranges: int | tuple[int, int]) -> tuple[FenceRange, ...]:
    """Ranges from numbers and pairs."""
    return tuple(FenceRange(each, each) if isinstance(each, int) else FenceRange(*each) for each in ranges)


@dataclass(frozen=True, slots=True)
class Appended:
    """One record."""

    sequence: int
    position: int
    facts: tuple[Fact, ...]


@dataclass(slots=True)
class Stored:
    """A message as the journal has it."""

    body: bytes
    published_unix_ms: int
    letter: DeadLetterInfo | None


@dataclass
class Driver:
    """Drives one shard."""

    config: ShardConfig = field(default_factory=ShardConfig)
    seed: int = 1
    on_step: Callable[[Command, Step, Now], None] | None = None
    lazy: bool = False
    """Append only when somebody waits for a fact, as the engine does."""

    shard: Shard = field(init=False)
    now: Now = field(init=False)
    records: list[Appended] = field(init=False)
    loads: list[Load] = field(init=False)
    """To be answered."""
    effects: list[Effect] = field(init=False)
    """All that there were."""
    pending: list[Fact] = field(init=False)
    """Not appended yet."""
    _turn_loads: list[Load] = field(init=False)
    in_turn: bool = field(init=False)
    _port: int = field(init=False)
    _stalled_ms: int = field(init=False)

    def __post_init__(self) -> None:
        self._begin_with([], Now(BEGINNING_MS, BEGINNING_MS))

    # Turns.

    @property
    def sequence(self) -> int:
        """Of the next record."""
        return len(self.records) + 1

    def begin(self) -> None:
        """Begin a turn, unless one is under way."""
        if not self.in_turn:
            self.in_turn = True
            self.shard.begin(position=self.sequence * RECORD_STEP, now=self.now, stalled_ms=self._stalled_ms)
            self._stalled_ms = 0

    def handle(self, command: Command) -> list[Effect]:
        """One command, its turn left open."""
        self.begin()
        step = self.shard.handle(command, self.now)
        effects = self._took(step)
        if self.on_step is not None:
            self.on_step(command, step, self.now)
        return effects

    def tick(self) -> list[Effect]:
        """End the turn."""
        effects = self.handle(Tick())
        self.in_turn = False
        if not self.lazy or any(fact.WAITED or type(fact) is Moved for fact in self.pending):
            self.flush()
        self.loads += self._turn_loads
        self._turn_loads = []
        return effects

    def flush(self) -> None:
        """Make durable what is pending."""
        if self.pending:
            self.records.append(Appended(self.sequence, self.sequence * RECORD_STEP, tuple(self.pending)))
            self.pending = []

    def do(self, *commands: Command) -> list[Effect]:
        """A whole turn, and what it leads to: loads are answered, and ticks follow until nothing is left to do."""
        effects = [effect for command in commands for effect in self.handle(command)]
        return effects + self.tick() + self.settle_down()

    def settle_down(self) -> list[Effect]:
        """Answer loads and tick until the shard waits for time or commands."""
        effects: list[Effect] = []
        for _ in range(10_000):
            if self.loads:
                effects += self.handle(self.answer(self.loads.pop(0)))
            elif self.shard.next_wake_ms() != 0:
                return effects
            effects += self.tick()
        raise AssertionError("the shard never comes to rest")

    def wait(self, duration_ms: int, *, unix_ms: int | None = None) -> list[Effect]:
        """Let time pass, turn by turn at the instants that the shard asks for."""
        until = self.now.steady_ms + duration_ms
        unix = self.now.unix_ms + (duration_ms if unix_ms is None else unix_ms)
        effects = self.settle_down()
        while True:
            wake = self.shard.next_wake_ms()
            at = until if wake is None else min(until, max(wake, self.now.steady_ms))
            done = at == until
            self.now = Now(at, unix if done else self.now.unix_ms + at - self.now.steady_ms)
            effects += self.tick() + self.settle_down()
            if done:
                return effects

    def stall(self, duration_ms: int) -> None:
        """The broker itself stands still."""
        self.now = Now(self.now.steady_ms + duration_ms, self.now.unix_ms + duration_ms)
        self._stalled_ms += duration_ms

    def restarted(self, shard: Shard | None = None, records: list["Appended"] | None = None) -> "Driver":
        """A broker that begins a second later from the records of this one; what was not appended is lost.

        Args:
            shard: restored already; else it replays all records.
            records: what the journal holds; else all of them.
        """
        after = Driver.__new__(Driver)
        after.config, after.seed, after.on_step, after.lazy = self.config, self.seed, None, self.lazy
        now = Now(self.now.steady_ms + 1_000, self.now.unix_ms + 1_000)
        after._begin_with(list(self.records if records is None else records), now, shard)
        after._port = self._port
        return after

    def _begin_with(self, records: list["Appended"], now: Now, shard: Shard | None = None) -> None:
        self.now = now
        self.records = records
        self.loads, self.effects, self.pending, self._turn_loads = [], [], [], []
        self.in_turn = False
        self._port = self._stalled_ms = 0
        if shard is None:
            shard = Shard(self.config, seed=self.seed, stretch=STRETCH)
            for record in records:
                shard.replay(record.sequence, record.position, list(record.facts))
        self.shard = shard
        self.begin()
        self._took(shard.open(1 + sum(isinstance(f, Opened) for r in records for f in r.facts), now))
        self.tick()

    def _took(self, step: Step) -> list[Effect]:
        self.pending += step.facts
        self.effects += step.effects
        self._turn_loads += [effect for effect in step.effects if isinstance(effect, Load)]
        return step.effects

    # The journal's part.

    def answer(self, load: Load, *, group: int = 1_000) -> Loaded:
        """Read what is wanted, only from the stretches that are named, in batches of at most `group`."""
        found: dict[int, Stored] = {}
        for record in self.records:
            if any(position <= record.position <= position + length for position, length in load.stretches):
                found |= {
                    offset: stored for queue, offset, stored in messages_in(record.facts) if queue == load.queue_id
                }
        wanted = [offset for first, last in load.ranges for offset in range(first, last + 1)]
        absent = [offset for offset in wanted if offset not in found]
        assert not absent, f"messages {absent} of queue {load.queue_id} do not stand where they should be"
        return Loaded(load.queue_id, load.load_id, tuple(_loaded(wanted, found, group)))

    # Short ways to say usual things.

    def port(self) -> int:
        """A fresh one."""
        self._port += 1
        return self._port

    def create(self, name: str = "q", settings: QueueSettings | None = None) -> Queue:
        """A queue."""
        self.do(CreateQueue(0, 0, name, QueueSettings() if settings is None else settings))
        return self.queue(name)

    def queue(self, name: str = "q") -> Queue:
        """A look inside."""
        return self.shard._state.names[name]

    def publish(self, *bodies: bytes | int, queue: str = "q", **fields: Any) -> list[Effect]:
        """One batch; a number stands for so many messages."""
        count = bodies[0] if isinstance(bodies[0], int) else 0
        texts = [b"body-%04d" % number for number in range(count)] or [b for b in bodies if isinstance(b, bytes)]
        return self.do(Publish(0, 0, queue, batch_of(*texts), **fields))

    def attach(self, *queues: str, name: str = "", **fields: Any) -> int:
        """A consumer; returns its port."""
        port = self.port()
        subscriptions = fields.pop("subscriptions", None) or tuple(map(Subscription, queues or ("q",)))
        token = fields.pop("session_token", f"token-{port}")
        fields["capabilities"] = frozenset(fields.get("capabilities", ()))
        self.do(Attach(port, 1_000 + port, token, name or f"consumer-{port}", subscriptions, **fields))
        return port

    def settle(self, port: int, outcome: Outcome, *ranges: int | tuple[int, int], **fields: Any) -> list[Effect]:
        """One settlement."""
        return self.do(Settle(port, (Settlement(outcome, fences(*ranges), **fields),)))

    def copy_rows_forward(self) -> None:
        """Everything is written anew, what was asked for in one record."""
        self.handle(CopyForward(0, self.sequence * RECORD_STEP))
        self.tick()
        loads, self.loads = self.loads, []
        for load in loads:
            self.handle(self.answer(load))
        self.tick()
        self.settle_down()

    def last_delivery(self, port: int) -> Delivery:
        """The newest run that a port got."""
        return runs(self.effects, port)[-1]


def only(effects: Iterable[Effect], kind: type[E]) -> list[E]:
    """Those of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def runs(effects: Iterable[Effect], port: int | None = None) -> list[Delivery]:
    """Delivered runs, of one port or of all."""
    return [run for effect in only(effects, Deliver) if port in (None, effect.port) for run in effect.runs]


def offsets(effects: Iterable[Effect], port: int | None = None) -> list[int]:
    """Delivered offsets, in their order."""
    return [run.first_offset + number for run in runs(effects, port) for number in range(run.count)]


def statuses(effects: Iterable[Effect]) -> dict[int, SettleStatus]:
    """What each fence was answered."""
    return {
        fence: result.status
        for effect in only(effects, SettleDone)
        for result in effect.results
        for fence in range(result.range.first, result.range.last + 1)
    }


def messages_in(facts: Iterable[Fact]) -> Iterator[tuple[int, int, Stored]]:
    """(queue, offset, message) of everything that stands in some facts."""
    for fact in facts:
        if isinstance(fact, Published | Moved):
            places: Sequence[int] = (
                fact.offsets if isinstance(fact, Moved)
                else range(fact.first_offset, fact.first_offset + fact.batch.count)
            )  # fmt: skip
            for offset, body in zip(places, bodies_of(fact.batch), strict=True):
                yield fact.queue_id, offset, Stored(body, fact.published_unix_ms, fact.dead_letter)


def _loaded(wanted: list[int], found: dict[int, Stored], group: int) -> Iterator[LoadedBatch]:
    """As the journal's reader does it: letters alone, others together when they were published together."""
    several: list[int] = []
    for offset in [*wanted, 0]:
        head = found[several[0]] if several else None
        here = found.get(offset) if offset else None
        joins = (
            head is not None and here is not None and head.letter is None and here.letter is None
            and head.published_unix_ms == here.published_unix_ms and len(several) < group
            and several[-1] + 1 == offset
        )  # fmt: skip
        if several and head is not None and not joins:
            batch = batch_of(*(found[each].body for each in several))
            yield LoadedBatch(range(several[0], several[-1] + 1), batch, head.published_unix_ms, head.letter)
            several = []
        several.append(offset)


@contextmanager
def small_limits(**changes: int) -> Iterator[None]:
    """Limits so small that a short history reaches them."""
    small = {
        "window.QUEUE_BYTES_MAX": 2_500,
        "window.SHARD_BYTES_MAX": 6_000,
        "window.QUEUE_BYTES_LOW": 1_300,
        "reading.LOAD_BYTES_MAX": 900,
        "reading.READ_AHEAD_MESSAGES": 8,
        "dispatch.DISPATCH_MESSAGES_MAX": 24,
        "dispatch.LEASE_MESSAGES_MAX": 4,
        "leases.COMPACT_AT": 4,
        "extents.COMPACT_AT": 2,
        "timers.COMPACT_AT": 8,
        "policy.balance.least_in_flight.COMPACT_AT": 2,
    } | {name.replace("__", "."): value for name, value in changes.items()}
    with ExitStack() as stack:
        for name, value in small.items():
            path = name if name.startswith("policy.") else f"core.{name}"
            stack.enter_context(patch(f"kyogo_broker.{path}", value))
        yield
