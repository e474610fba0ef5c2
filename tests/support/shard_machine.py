"""Random histories of a shard, step by step against the model: a hypothesis state machine that tests build on.

Instants at which two things could be due at once are kept apart: commands come at multiples of 10 ms, visibility
timeouts and extensions end in other digits.
"""

from typing import NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kyogo_broker.core.limits import ShardConfig
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
    UpdateQueue,
)
from kyogo_broker.model.message import Batch, FenceRange
from kyogo_broker.model.now import Now
from kyogo_broker.model.settings import Backoff, BalancePolicy, QueueSettings, RetrySettings
from tests.support.shard_watch import ShardWatch
from tests.support.shards import FRAME_HEAD_BYTES, Driver, batch_of, fences, small_limits

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
        self.bodies = 0
        self.driver = self.make_driver()
        self.watch = ShardWatch(self.driver)
        self.model = self.watch.model

    def make_driver(self) -> Driver:
        """The shard and what is around it."""
        return Driver(ShardConfig(auto_create=False))

    def teardown(self) -> None:
        """In the end everything comes to rest."""
        try:
            self.watch.rest()
        finally:
            self.limits.__exit__(None, None, None)

    def turn(self, *commands: Command, end: bool = True) -> None:
        """Commands, and usually the tick after them."""
        for command in commands:
            self.driver.handle(command)
        if end:
            self.driver.tick()
        while self.watch.ended:
            # As the edge does: a stream that was ended is over.
            self.driver.handle(StreamEnded(self.watch.ended.pop()))
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
                commands += [Started(port, half)] * begin + [
                    Settle(port, (Settlement(outcome, half, None, "why", "E"),))
                ]
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
    @rule(which=st.integers(0, 9), gone=st.booleans(), end=ends_turn)
    def detach(self, which: int, gone: bool, end: bool) -> None:
        port = self.consumer(which)
        self.turn(Detach(port), *[StreamEnded(port)] * gone, end=end)

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
        self.watch.rest()

    @rule(low=st.integers(0, 60), records=st.integers(1, 20))
    def copy_forward(self, low: int, records: int) -> None:
        """A part of the journal is to be emptied; never its end, where still is written."""
        last = len(self.driver.records) - 12
        if last > 1:
            begin = low % last
            self.turn(CopyForward(begin * 10, min(begin + records, last) * 10))

    # What to pick from.

    def batch(self, lengths: list[int]) -> Batch:
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
