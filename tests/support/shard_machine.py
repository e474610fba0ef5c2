"""Random histories of a shard, step by step against the model: a hypothesis state machine that tests build on.

Instants at which two things could be due at once are kept apart: commands come at multiples of 10 ms, visibility
timeouts and extensions end in other digits.
"""

from collections import Counter
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kyogo_broker.core.limits import ShardConfig
from kyogo_broker.core.step import Step
from kyogo_broker.model.commands import (
    Attach,
    Command,
    CopyForward,
    CreateQueue,
    DeleteQueue,
    Detach,
    Extend,
    Heartbeat,
    Outcome,
    PauseQueue,
    Publish,
    PurgeQueue,
    SetPrefetch,
    Settle,
    Settlement,
    Started,
    StreamEnded,
    Subscription,
    Tick,
    UpdateQueue,
)
from kyogo_broker.model.effects import (
    AdminDone,
    AttachDone,
    AttachRefused,
    Deliver,
    EndStream,
    ExtendDone,
    Notice,
    PublishDone,
    Revoke,
    SettleDone,
)
from kyogo_broker.model.errors import ErrorCode
from kyogo_broker.model.facts import Lost, Retried
from kyogo_broker.model.message import FenceRange
from kyogo_broker.model.now import Now
from kyogo_broker.model.settings import Backoff, BalancePolicy, QueueSettings, RetrySettings
from kyogo_broker.model.states import RevokeMode, SettleStatus
from tests.support.model import Model, Queue
from tests.support.shards import FRAME_HEAD_BYTES, Driver, batch_of, fences, offsets, small_limits

NAMES = ("a", "b")
OTHERS = ("a.dlq", "b.dlq", "grave", "nowhere")
INTERVAL_MS = 1_000
STEADY = RetrySettings(initial_ms=1_000, max_ms=3_000, jitter=False)
SETTINGS = (
    QueueSettings(visibility_timeout_ms=4_003, max_attempts=2, max_losses=2, retry=STEADY),
    QueueSettings(visibility_timeout_ms=703, max_attempts=3, max_losses=1, retry=STEADY,
                  balance_policy=BalancePolicy.ROUND_ROBIN),
    QueueSettings(visibility_timeout_ms=703, retry=RetrySettings(Backoff.LIST, delays_ms=(0, 500), jitter=False),
                  dead_letter_queue="", max_attempts=3, max_losses=3),
    QueueSettings(visibility_timeout_ms=4_003, retry=RetrySettings(Backoff.LINEAR, 400, max_ms=1_000, jitter=True),
                  max_attempts=3, dead_letter_queue="grave", balance_policy=BalancePolicy.ROUND_ROBIN),
    QueueSettings(visibility_timeout_ms=703, max_attempts=1,
                  retry=RetrySettings(jitter=True, non_retryable=("Hopeless",))),
)  # fmt: skip
SMALL_FRAME = FRAME_HEAD_BYTES + 60



class Kind(NamedTuple):
    """What kind of consumer it is."""

    capabilities: tuple[str, ...] = ("started",)
    messages: int = 5
    octets: int = 4 << 20
    frame: int = 4 << 20
    most: int | None = None


kinds = st.builds(
    Kind, st.sampled_from((("started",), ("started",), (), ("drain",))), st.sampled_from((5, 16, 1, 2, 0)),
    st.sampled_from((4 << 20, 100, 50, 1_000)), st.sampled_from((4 << 20, 4 << 20, SMALL_FRAME)),
    st.sampled_from((None, None, 1, 3)),
)  # fmt: skip
names = st.sampled_from(NAMES)
any_name = st.sampled_from(NAMES * 5 + OTHERS)
which_settings = st.integers(0, len(SETTINGS) - 1)
sizes = st.lists(st.sampled_from((20, 20, 20, 40, 90, 400)), min_size=1, max_size=6)
picks = st.lists(st.integers(0, 50), min_size=1, max_size=4)
outcomes = st.sampled_from((Outcome.ACK, Outcome.ACK, Outcome.RETRY, Outcome.RELEASE, Outcome.DEAD_LETTER))
ends_turn = st.sampled_from((True, True, True, False))


class ShardMachine(RuleBasedStateMachine):
    """Commands in any order, each step checked."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = small_limits()
        self.limits.__enter__()
        self.model = Model()
        self.expected: dict[str, Any] = {}
        """What the command under way must be answered."""
        self.lost: set[tuple[int, int]] = set()
        """(port, fence) of what a consumer must be told that it lost."""
        self.bodies = 0
        self.ended: list[int] = []
        """Ports whose streams the broker ended."""
        self.driver = self.make_driver()
        self.driver.on_step = self.on_step
        self.model.patience_ms = self.driver.now.steady_ms

    def make_driver(self) -> Driver:
        """The shard and what is around it."""
        return Driver(ShardConfig(auto_create=False))

    def teardown(self) -> None:
        """In the end everything comes to rest."""
        try:
            self.rest()
        finally:
            self.limits.__exit__(None, None, None)

    # Every step.

    def on_step(self, command: Command, step: Step, now: Now) -> None:
        """The model takes part in every step, and all is compared after it."""
        model = self.model
        shard = self.driver.shard._state
        names_by_id = {queue.id: queue.name for queue in shard.queues.values()}
        model.dues = {}
        for fact in step.facts:
            if isinstance(fact, Retried | Lost):
                spans = (fact.span,) if isinstance(fact, Retried) else fact.spans
                for span in spans:
                    for offset in range(span.first_offset, span.first_offset + span.count):
                        model.dues[names_by_id[fact.queue_id], offset] = fact.due_ms
        self.expected = {}
        port = getattr(command, "port", 0)
        if not isinstance(command, StreamEnded | Attach):
            self.lost |= {(port, fence) for fence in model.heard(port)}
        self.anticipate(command, now)
        for effect in step.effects:
            self.effect(effect, now)
        assert not self.expected, f"not answered: {self.expected}"
        assert not self.lost, f"not told: {self.lost}"
        self.driver.shard.check_invariants()
        self.compare(now)

    def anticipate(self, command: Command, now: Now) -> None:
        """What the model makes of a command."""
        model = self.model
        match command:
            case Tick():
                for fence in model.tick(now):
                    holder = model.leases[fence].consumer
                    if holder.counts_start:
                        self.lost.add((holder.attach.port, fence))
            case Publish():
                self.expected["published"] = model.store(command, now)
            case Attach():
                self.attach_anticipated(command, now)
            case SetPrefetch() if command.port in model.consumers:
                consumer = model.consumers[command.port]
                consumer.messages, consumer.bytes = command.messages, command.bytes
            case Started() if command.port in model.consumers:
                model.started(command.port, command.ranges, now)
            case Settle() if command.port in model.consumers:
                for settlement in command.settlements:
                    if settlement.publishes:
                        self.expected["unit"] = model.unit(command.port, settlement, now)
                        if not self.expected["unit"]:
                            del self.expected["unit"]
                    else:
                        model.settle(command.port, settlement, now)
            case Extend() if command.port in model.consumers:
                self.expected["extended"] = model.extend(command.port, command.ranges, command.extension_ms, now)
            case Detach() if command.port in model.consumers:
                self.expected["ended"] = command.port
                model.detach(command.port, now)
            case StreamEnded():
                model.stream_end(command.port, now)
            case CreateQueue():
                queue = model.queues.get(command.queue)
                if queue is not None:
                    same = queue.settings == command.settings
                    self.expected["admin"] = (None if same else ErrorCode.QUEUE_EXISTS, 0)
                elif command.settings.dead_letter_queue == command.queue:
                    self.expected["admin"] = (ErrorCode.SETTINGS_INVALID, 0)
                else:
                    model.queues[command.queue] = Queue(command.queue, command.settings)
                    self.expected["admin"] = (None, 0)
            case UpdateQueue() | PauseQueue() | PurgeQueue() | DeleteQueue():
                self.admin(command)
            case _:
                pass

    def admin(self, command: UpdateQueue | PauseQueue | PurgeQueue | DeleteQueue) -> None:
        """What operators ask for."""
        queue = self.model.queues.get(command.queue)
        if queue is None:
            self.expected["admin"] = (ErrorCode.QUEUE_NOT_FOUND, 0)
            return
        count = 0
        match command:
            case UpdateQueue(settings=settings):
                if settings.dead_letter_queue == command.queue:
                    self.expected["admin"] = (ErrorCode.SETTINGS_INVALID, 0)
                    return
                queue.settings = settings
            case PauseQueue():
                queue.paused = command.paused
            case PurgeQueue():
                count = self.model.purge(command.queue)
            case DeleteQueue():
                count = len(queue.at("ready", "delayed", "in_flight", "ending"))
                for lease in self.model.leases.values():
                    if lease.live and lease.queue is queue and lease.consumer.attach.capabilities:
                        self.lost.add((lease.consumer.attach.port, lease.fence))
                self.model.delete(command.queue)
        self.expected["admin"] = (None, count)

    def effect(self, effect: object, now: Now) -> None:
        """What the broker says."""
        model = self.model
        match effect:
            case Deliver():
                model.deliver(effect, now)
            case PublishDone():
                told = effect.offsets if effect.refusal is None else effect.refusal.code
                assert told == self.expected.pop("published")
            case AttachDone() | AttachRefused():
                self.attached(effect)
            case SettleDone():
                for result in effect.results:
                    if result.published:
                        assert result.status is SettleStatus.OK
                        assert list(result.published) == self.expected.pop("unit")
                    assert (result.refusal is not None) == (result.status is SettleStatus.REJECTED)
                    model.answered(effect.port, result)
            case ExtendDone():
                found = Counter(
                    (fence, result.status)
                    for result in effect.results
                    for fence in range(result.range.first, result.range.last + 1)
                )
                assert found == self.expected.pop("extended")
            case AdminDone():
                code = None if effect.refusal is None else effect.refusal.code
                assert (code, effect.count) == self.expected.pop("admin")
            case EndStream():
                if self.expected.get("ended") == effect.port:
                    del self.expected["ended"]
                else:
                    self.ended.append(effect.port)
            case Revoke():
                assert effect.mode is RevokeMode.LOST
                for fences_lost in effect.ranges:
                    for fence in range(fences_lost.first, fences_lost.last + 1):
                        assert not model.leases[fence].live
                        self.lost.discard((effect.port, fence))
            case Notice("dead_letter", fields):
                model.died(str(fields["queue"]), int(fields["offset"]), str(fields["reason"]), now)
            case _:
                pass

    def attach_anticipated(self, command: Attach, now: Now) -> None:
        """Whether a session is opened, and whether another one ends by it."""
        model = self.model
        before = [c for c in model.consumers.values() if c.attach.consumer_id == command.consumer_id]
        shown = bool(before) and before[0].attach.session_token == command.resumed_token
        if any(subscription.queue not in model.queues for subscription in command.subscriptions):
            self.expected["attached"] = ErrorCode.QUEUE_NOT_FOUND
        elif before and not shown:
            self.expected["attached"] = ErrorCode.CONSUMER_ID_IN_USE
        else:
            self.expected["attached"] = command
            if before:
                model.stream_end(before[0].attach.port, now)

    def attached(self, effect: AttachDone | AttachRefused) -> None:
        """An attach was answered."""
        expected = self.expected.pop("attached")
        if isinstance(expected, Attach):
            assert isinstance(effect, AttachDone), effect
            self.model.attach(expected, effect.prefetch_messages, effect.prefetch_bytes)
        else:
            assert isinstance(effect, AttachRefused)
            assert effect.refusal.code is expected

    def compare(self, now: Now) -> None:
        """The model's queues and the shard's."""
        state = self.driver.shard._state
        assert set(state.names) == set(self.model.queues)
        letters_wait = bool(self.driver.loads or self.driver._turn_loads)
        for name, model in self.model.queues.items():
            queue = state.names[name]
            ready = {*queue.ready.offsets(), *queue.aside}
            delayed = {offset: due for due, offset in _dues(queue)}
            due = {offset for offset, at in delayed.items() if at <= now.steady_ms}
            assert ready | due == {m.offset for m in model.at("ready")}, f"ready in {name}"
            assert {o: at for o, at in delayed.items() if o not in due} == {
                m.offset: m.due_ms for m in model.at("delayed")
            }  # fmt: skip
            in_flight = {
                lease.first_offset + bit
                for lease in state.leases if lease.queue is queue
                for bit in range(lease.count) if lease.live >> bit & 1
            }  # fmt: skip
            assert in_flight == {m.offset for m in model.at("in_flight", "ending")}, f"in flight in {name}"
            assert set(queue.dying) == {m.offset for m in model.at("ending")}
            assert letters_wait or not queue.dying, "nobody reads the bodies of letters"
            counts = Counter(m.place for m in model.messages)
            for place in ("ready", "delayed", "in_flight", "ending"):
                counts.pop(place, None)
            assert dict(counts) == {str(reason): count for reason, count in queue.finished_by.items() if count}
            for message in model.at("ready", "delayed", "in_flight", "ending"):
                trouble = queue.troubles.get(message.offset)
                charged = (trouble.failures, trouble.losses) if trouble else (0, 0)
                assert charged == (message.failures, message.losses)

    def rest(self) -> None:
        """Let everything settle down and look whether anything waits for nothing."""
        self.driver.settle_down()
        self.model.check_rest()

    def turn(self, *commands: Command, end: bool = True) -> None:
        """Commands, and usually the tick after them."""
        for command in commands:
            self.driver.handle(command)
        if end:
            self.driver.tick()
        while self.ended:
            # As the edge does: a stream that was ended is over.
            self.driver.handle(StreamEnded(self.ended.pop()))
            self.driver.tick()

    # Rules.

    @initialize(first=which_settings, second=which_settings, one=kinds, other=kinds)
    def begin(self, first: int, second: int, one: "Kind", other: "Kind") -> None:
        """Most histories have queues and consumers."""
        self.turn(CreateQueue(0, 0, "a", SETTINGS[first]), CreateQueue(0, 0, "b", SETTINGS[second]))
        for kind in (one, other):
            self.attach(kind, ("a", "b"), "", shows=False, end=True)

    @rule(name=any_name, lengths=sizes, end=ends_turn)
    def publish(self, name: str, lengths: list[int], end: bool) -> None:
        self.turn(Publish(0, 0, name, self.batch(lengths)), end=end)

    @rule(name=names, count=st.integers(8, 40), end=ends_turn)
    def publish_many(self, name: str, count: int, end: bool) -> None:
        self.turn(Publish(0, 0, name, self.batch([30] * count)), end=end)

    @rule(name=names, producer=st.sampled_from("xy"), request=st.integers(1, 6), digest=st.integers(1, 2))
    def publish_as(self, name: str, producer: str, request: int, digest: int) -> None:
        self.turn(Publish(0, 0, name, self.batch([30] * digest), producer, request, digest))

    @rule(kind=kinds, queues=st.sampled_from((("a",), ("b",), ("b", "a"), ("a.dlq", "b"), ("grave",), ("a", "b.dlq"))),
          name=st.sampled_from(("", "", "", "ann", "bob")), shows=st.booleans(), end=ends_turn)  # fmt: skip
    def attach(self, kind: "Kind", queues: tuple[str, ...], name: str, shows: bool, end: bool) -> None:
        port = self.driver.port()
        before = [c for c in self.model.consumers.values() if c.attach.consumer_id == name]
        attach = Attach(
            port, 1_000 + port, f"token-{port}", name or f"consumer-{port}",
            tuple(Subscription(queue, max_unsettled=kind.most) for queue in queues),
            capabilities=frozenset(kind.capabilities), prefetch_messages=kind.messages, prefetch_bytes=kind.octets,
            max_frame_bytes=kind.frame, heartbeat_interval_ms=INTERVAL_MS,
            resumed_token=before[0].attach.session_token if before and shows else "",
        )  # fmt: skip
        self.turn(attach, end=end)

    @precondition(lambda self: self.model.consumers)
    @rule(which=st.integers(0, 9), messages=st.sampled_from((0, 1, 4, 20)), octets=st.sampled_from((50, 200, 4 << 20)))
    def set_prefetch(self, which: int, messages: int, octets: int) -> None:
        self.turn(SetPrefetch(self.consumer(which), messages, octets))

    @precondition(lambda self: self.model.consumers)
    @rule(which=st.integers(0, 9), picked=picks, end=ends_turn)
    def started(self, which: int, picked: list[int], end: bool) -> None:
        port = self.consumer(which)
        self.turn(Started(port, self.some_fences(port, picked, wild=False)), end=end)

    @precondition(lambda self: self.model.consumers)
    @rule(which=st.integers(0, 9), picked=picks, outcome=outcomes, wild=st.booleans(), end=ends_turn,
          delay=st.sampled_from((None, None, 0, 250)), error_type=st.sampled_from(("", "E", "Hopeless")))  # fmt: skip
    def settle(
        self, which: int, picked: list[int], outcome: Outcome, wild: bool, end: bool, delay: int | None, error_type: str
    ) -> None:
        port = self.consumer(which)
        ranges = self.some_fences(port, picked, wild=wild)
        settlement = Settlement(outcome, ranges, delay if outcome is Outcome.RETRY else None, "why", error_type)
        self.turn(Settle(port, (settlement,)), end=end)

    @precondition(lambda self: self.model.consumers)
    @rule(which=st.integers(0, 9), outcome=outcomes, end=ends_turn)
    def settle_all(self, which: int, outcome: Outcome, end: bool) -> None:
        """Everything that it holds, and what it lost not long ago."""
        port = self.consumer(which)
        held = [lease.fence for lease in self.model.leases.values() if lease.consumer is self.model.consumers[port]]
        settlement = Settlement(outcome, fences(*held[-30:]))
        self.turn(Settle(port, (settlement,) if held else ()), end=end)

    @rule(outcome=outcomes, begin=st.booleans(), end=ends_turn)
    def work(self, outcome: Outcome, begin: bool, end: bool) -> None:
        """Everybody settles the first half of what it holds."""
        commands: list[Command] = []
        for port, consumer in self.model.consumers.items():
            held = [lease.fence for lease in self.model.held(consumer)]
            half = fences(*held[: (len(held) + 1) // 2])
            if half:
                commands += [Started(port, half)] * begin + [Settle(port, (Settlement(outcome, half, None, "why", "E"),))]
        self.turn(*commands, end=end)

    @precondition(lambda self: self.model.consumers)
    @rule(which=st.integers(0, 9), picked=picks, outcome=st.sampled_from((Outcome.ACK,) * 4 + (Outcome.RETRY,)),
          wild=st.booleans(), to=any_name, producer=st.sampled_from(("", "x")), request=st.integers(1, 4),
          twice=st.booleans())  # fmt: skip
    def settle_unit(
        self, which: int, picked: list[int], outcome: Outcome, wild: bool, to: str, producer: str, request: int,
        twice: bool,
    ) -> None:  # fmt: skip
        port = self.consumer(which)
        ranges = self.some_fences(port, picked, wild=wild, apart=True)
        publishes = (Publish(0, 0, to, self.batch([30]), producer, request, 1),)
        settlement = Settlement(outcome, ranges, publishes=publishes)
        if ranges:
            self.turn(*[Settle(port, (settlement,))] * (1 + twice))

    @precondition(lambda self: self.model.consumers)
    @rule(which=st.integers(0, 9), picked=picks, wild=st.booleans(), length=st.sampled_from((507, 5_007)))
    def extend(self, which: int, picked: list[int], wild: bool, length: int) -> None:
        port = self.consumer(which)
        self.turn(Extend(port, self.some_fences(port, picked, wild=wild), length))

    @precondition(lambda self: self.model.consumers)
    @rule(which=st.integers(0, 9), end=ends_turn)
    def detach(self, which: int, end: bool) -> None:
        port = self.consumer(which)
        self.turn(Detach(port), StreamEnded(port), end=end)

    @precondition(lambda self: self.model.consumers)
    @rule(which=st.integers(0, 9), end=ends_turn)
    def stream_end(self, which: int, end: bool) -> None:
        self.turn(StreamEnded(self.consumer(which)), end=end)

    @rule(milliseconds=st.sampled_from((10, 100, 700, 1_000, 2_000, 4_000)), alive=st.booleans())
    def wait(self, milliseconds: int, alive: bool) -> None:
        """Time passes; the shard is woken whenever something is due, and has asked for it."""
        driver, model = self.driver, self.model
        if alive:
            self.turn(*(Heartbeat(port) for port in model.consumers))
        else:
            self.turn()
        until = driver.now.steady_ms + milliseconds
        while driver.now.steady_ms < until:
            stalled = driver.now.steady_ms - model.patience_ms
            due = min([*model.instants(), *(at + stalled for at in model.silences())], default=None)
            wake = driver.shard.next_wake_ms()
            assert due is None or (wake is not None and wake <= due), (
                f"the shard wants to be woken at {wake}, not {due}"
            )
            at = until if due is None else max(min(due, until), driver.now.steady_ms)
            model.patience_ms += at - driver.now.steady_ms
            driver.now = Now(at, driver.now.unix_ms + at - driver.now.steady_ms)
            self.turn()

    @rule(milliseconds=st.sampled_from((500, 3_500, 20_000)))
    def stall(self, milliseconds: int) -> None:
        """The broker itself stands still: nobody is silent meanwhile."""
        self.turn()
        self.driver.stall(milliseconds)
        self.turn()

    @rule(what=st.sampled_from(("create", "update", "pause", "unpause", "unpause", "purge", "delete")), name=any_name,
          chosen=which_settings, end=ends_turn)  # fmt: skip
    def operate(self, what: str, name: str, chosen: int, end: bool) -> None:
        """What operators do."""
        settings = SETTINGS[chosen]
        commands: dict[str, Command] = {
            "create": CreateQueue(0, 0, name if name in NAMES else "grave", settings),
            "update": UpdateQueue(0, 0, name, settings),
            "pause": PauseQueue(0, 0, name, paused=True),
            "unpause": PauseQueue(0, 0, name, paused=False),
            "purge": PurgeQueue(0, 0, name),
            "delete": DeleteQueue(0, 0, name),
        }
        self.turn(commands[what], end=end)

    @precondition(lambda self: self.driver.loads)
    @rule(which=st.integers(0, 9), group=st.integers(1, 6), end=ends_turn)
    def answer_load(self, which: int, group: int, end: bool) -> None:
        """One load is answered; which one, and in what batches, is the reader's choice."""
        self.driver.begin()
        load = self.driver.loads.pop(which % len(self.driver.loads))
        self.turn(self.driver.answer(load, group=group), end=end)

    @rule()
    def come_to_rest(self) -> None:
        self.rest()

    @rule(low=st.integers(0, 60), records=st.integers(1, 20))
    def copy_forward(self, low: int, records: int) -> None:
        """A part of the journal is to be emptied; never its end, where still is written."""
        last = len(self.driver.records) - 12
        if last > 1:
            begin = low % last
            self.turn(CopyForward(begin * 10, min(begin + records, last) * 10))

    # What to pick from.

    def batch(self, lengths: list[int]) -> Any:
        """Messages that differ from all others."""
        bodies = []
        for length in lengths:
            self.bodies += 1
            bodies.append(b"%06d" % self.bodies + b"." * (length - 6))
        return batch_of(*bodies)

    def consumer(self, which: int) -> int:
        """One that is attached."""
        ports = list(self.model.consumers)
        return ports[which % len(ports)]

    def some_fences(self, port: int, picked: list[int], *, wild: bool, apart: bool = False) -> tuple[FenceRange, ...]:
        """Ranges over what a consumer holds; wild ones touch what others hold, what is over and what never was."""
        own = [lease.fence for lease in self.model.held(self.model.consumers[port])]
        pool = list(range(max(1, self.model.last_fence - 40), self.model.last_fence + 4)) if wild else own
        if not pool:
            return ()
        ranges = []
        for pick in picked:
            first = pool[pick % len(pool)]
            last = first + pick % 4 if wild or first + pick % 4 in own else first
            ranges.append(FenceRange(first, last))
        if apart:
            chosen = sorted({fence for each in ranges for fence in range(each.first, each.last + 1)})
            return fences(*chosen)
        return tuple(ranges)


def _dues(queue: Any) -> list[tuple[int, int]]:
    column = queue.delayed.snapshot()
    return [(column[index], column[index + 1]) for index in range(0, len(column), 3)]


__all__ = ["ShardMachine", "offsets"]
