"""Random histories of a shard, step by step beside the model.

A program is a list of (what, seed): what to do, and the seed of everything that it leaves open. So any part of a program
is a program, and hypothesis finds the shortest that fails.

Instants at which two things could be due at once are kept apart: commands come at multiples of 10 ms, visibility
timeouts and extensions end in other digits.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import ClassVar

from hypothesis import note
from hypothesis import strategies as st

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
from tests.support.shards import FRAME_HEAD_BYTES, RECORD_STEP, Driver, batch_of, fences, small_limits

Program = Sequence[tuple[str, int]]
NAMES = ("a", "b")
ANY_NAME = NAMES * 8 + ("a.dlq", "b.dlq", "grave", "nowhere")
SUBSCRIBED = (("a",), ("a",), ("b", "a"), ("b",), ("a.dlq", "b"), ("grave", "b.dlq"), ("a", "a.dlq"))
INTERVAL_MS = 1_000
SMALL_FRAME = FRAME_HEAD_BYTES + 60
SIZES = (20, 20, 20, 40, 90, 400)
STEADY = RetrySettings(initial_ms=1_000, max_ms=3_000, jitter=False)
SETTINGS = (
    QueueSettings(visibility_timeout_ms=4_003, max_attempts=2, max_losses=3, retry=STEADY),
    QueueSettings(visibility_timeout_ms=703, max_attempts=3, max_losses=1, retry=STEADY,
                  balance_policy=BalancePolicy.ROUND_ROBIN),
    QueueSettings(visibility_timeout_ms=703, retry=RetrySettings(Backoff.LIST, delays_ms=(0, 500), jitter=False),
                  dead_letter_queue="", max_attempts=3, max_losses=3),
    QueueSettings(visibility_timeout_ms=4_003, retry=RetrySettings(Backoff.LINEAR, 400, max_ms=1_000, jitter=True),
                  max_attempts=3, dead_letter_queue="grave", balance_policy=BalancePolicy.ROUND_ROBIN),
    QueueSettings(visibility_timeout_ms=703, max_attempts=1,
                  retry=RetrySettings(jitter=True, non_retryable=("Hopeless",))),
    QueueSettings(visibility_timeout_ms=30_003, retry=RetrySettings(initial_ms=10, max_ms=100, jitter=False)),
)  # fmt: skip
OUTCOMES = (Outcome.ACK, Outcome.ACK, Outcome.RETRY, Outcome.RETRY, Outcome.RELEASE, Outcome.DEAD_LETTER)


class ShardHistory:
    """One history: a driver, the model beside it, and the steps that a program can name."""

    WEIGHTS: ClassVar[Mapping[str, int]] = {
        "publish": 6, "publish_many": 2, "publish_as": 2, "attach": 3, "set_prefetch": 1, "start": 5, "settle": 5,
        "settle_all": 1, "work": 8, "settle_unit": 2, "extend": 2, "detach": 1, "stream_end": 3, "wait": 6, "stall": 1,
        "operate": 2, "answer_load": 8, "come_to_rest": 2, "copy_forward": 1,
    }  # fmt: skip

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.limits = small_limits()
        self.limits.__enter__()
        self.bodies = 0
        self.driver = self.make_driver()
        self.watch = ShardWatch(self.driver)
        self.model = self.watch.model
        self.turn(*(CreateQueue(0, 0, name, self.chance.choice(SETTINGS)) for name in NAMES))
        for _ in range(2):
            self.attach()

    def make_driver(self) -> Driver:
        """The shard and what is around it."""
        return Driver(ShardConfig())

    @classmethod
    def programs(cls, *, steps: int) -> st.SearchStrategy[Program]:
        """Programs of about so many steps; what is left out of one does nothing."""
        names = [name for name, weight in cls.WEIGHTS.items() for _ in range(weight)]
        step = st.tuples(st.sampled_from(["nothing", *names]), st.integers(0, 1 << 20))
        return st.lists(step, min_size=steps, max_size=steps)

    @classmethod
    def run(cls, seed: int, program: Program) -> None:
        """A whole history; in the end everything comes to rest."""
        history = cls(seed)
        try:
            for what, each in program:
                history.chance = Random(each)
                note(f"{what} {each}")
                getattr(history, what)()
            history.end()
        finally:
            history.limits.__exit__(None, None, None)

    def nothing(self) -> None:
        """What a left out step does."""

    def end(self) -> None:
        """The last thing in a history."""
        self.watch.rest()

    def turn(self, *commands: Command) -> None:
        """Commands, and usually the tick after them."""
        for command in commands:
            note(f"    {command}")
            self.driver.handle(command)
        if self.chance.random() < 0.8:
            self.driver.tick()
        while self.watch.ended:
            # As the edge does: a stream that was ended is over.
            self.driver.handle(StreamEnded(self.watch.ended.pop()))
            self.driver.tick()

    # Steps: publishing.

    def publish(self) -> None:
        lengths = self.chance.choices(SIZES, k=self.chance.randint(1, 6))
        self.turn(Publish(0, 0, self.chance.choice(ANY_NAME), self.batch(lengths)))

    def publish_many(self) -> None:
        self.turn(Publish(0, 0, self.chance.choice(NAMES), self.batch([30] * self.chance.randint(8, 40))))

    def publish_as(self) -> None:
        digest = self.chance.choice((1, 1, 2))
        batch = self.batch([30] * digest)
        name, producer, request = self.chance.choice(NAMES), self.chance.choice("xy"), self.chance.randint(1, 6)
        self.turn(Publish(0, 0, name, batch, producer, request, digest))

    # Sessions.

    def attach(self) -> None:
        chance, port = self.chance, self.driver.port()
        name = chance.choice(("", "", "", "ann", "bob"))
        before = [c for c in self.model.consumers.values() if c.attach.consumer_id == name]
        most = chance.choice((None, None, None, 1, 3))
        attach = Attach(
            port, 1_000 + port, f"token-{port}", name or f"consumer-{port}",
            tuple(Subscription(queue, max_unsettled=most) for queue in chance.choice(SUBSCRIBED)),
            capabilities=frozenset(chance.choice((("started",), ("started",), (), ("drain",)))),
            prefetch_messages=chance.choice((0, 1, 2, 5, 5, 16, 16)),
            prefetch_bytes=chance.choice((50, 100, 1_000, 4 << 20, 4 << 20)),
            max_frame_bytes=chance.choice((SMALL_FRAME, 4 << 20, 4 << 20)), heartbeat_interval_ms=INTERVAL_MS,
            resumed_token=before[0].attach.session_token if before and chance.random() < 0.7 else "",
        )  # fmt: skip
        self.turn(attach)

    def set_prefetch(self) -> None:
        for port in self.one_consumer():
            messages, octets = self.chance.choice((0, 1, 4, 20)), self.chance.choice((50, 200, 4 << 20))
            self.turn(SetPrefetch(port, messages, octets))

    def start(self) -> None:
        for port in self.one_consumer():
            self.turn(Started(port, self.some_fences(port, wild=False)))

    def detach(self) -> None:
        for port in self.one_consumer():
            self.turn(Detach(port), *[StreamEnded(port)] * self.chance.randint(0, 1))

    def stream_end(self) -> None:
        for port in self.one_consumer():
            self.turn(StreamEnded(port))

    # Settling.

    def settle(self) -> None:
        for port in self.one_consumer():
            ranges = self.some_fences(port, wild=self.chance.random() < 0.3)
            self.turn(Settle(port, (self.settlement(ranges),)))

    def settle_all(self) -> None:
        """Everything that one holds, and what it lost not long ago."""
        for port in self.one_consumer():
            mine = [lease.fence for lease in self.model.leases.values() if lease.consumer.attach.port == port]
            if mine:
                self.turn(Settle(port, (self.settlement(fences(*mine[-30:])),)))

    def work(self) -> None:
        """Everybody begins on what it holds and settles the first half of it."""
        commands: list[Command] = []
        begins, settles = self.chance.random() < 0.7, self.chance.random() < 0.8
        for port, consumer in self.model.consumers.items():
            held = [lease.fence for lease in self.model.held(consumer)]
            if held:
                commands += [Started(port, fences(*held))] * begins
                half = self.settlement(fences(*held[: (len(held) + 1) // 2]))
                commands += [Settle(port, (half,))] * settles
        self.turn(*commands)

    def settle_unit(self) -> None:
        for port in self.one_consumer():
            ranges = self.some_fences(port, wild=self.chance.random() < 0.3)
            apart = sorted({fence for each in ranges for fence in range(each.first, each.last + 1)})
            producer, request = self.chance.choice(("", "x")), self.chance.randint(1, 4)
            publish = Publish(0, 0, self.chance.choice(ANY_NAME), self.batch([30]), producer, request, 1)
            outcome = self.chance.choice((Outcome.ACK,) * 4 + (Outcome.RETRY,))
            unit = Settlement(outcome, fences(*apart), publishes=(publish,) * self.chance.choice((1, 1, 2)))
            if apart:
                self.turn(*[Settle(port, (unit,))] * self.chance.choice((1, 1, 2)))

    def extend(self) -> None:
        for port in self.one_consumer():
            ranges = self.some_fences(port, wild=self.chance.random() < 0.3)
            self.turn(Extend(port, ranges, self.chance.choice((507, 5_007))))

    # Time.

    def wait(self) -> None:
        """Time passes; the shard is woken whenever something is due, and has asked for it."""
        driver, model = self.driver, self.model
        alive = [port for port in model.consumers if self.chance.random() < 0.7]
        self.turn(*map(Heartbeat, alive))
        driver.tick()
        until = driver.now.steady_ms + self.chance.choice((10, 100, 700, 1_000, 2_000, 4_000))
        while driver.now.steady_ms < until:
            stalled = driver.now.steady_ms - model.patience_ms
            due = min([*model.instants(), *(at + stalled for at in model.silences())], default=None)
            wake = driver.shard.next_wake_ms()
            assert due is None or (wake is not None and wake <= due), f"it wants to be woken at {wake}, not at {due}"
            at = until if due is None else max(min(due, until), driver.now.steady_ms)
            model.patience_ms += at - driver.now.steady_ms
            driver.now = Now(at, driver.now.unix_ms + at - driver.now.steady_ms)
            self.turn()
            driver.tick()

    def stall(self) -> None:
        """The broker itself stands still: nobody is silent meanwhile."""
        self.driver.tick()
        self.driver.stall(self.chance.choice((500, 3_500, 20_000)))
        self.turn()

    # What operators and the journal do.

    def operate(self) -> None:
        name, settings = self.chance.choice(ANY_NAME), self.chance.choice(SETTINGS)
        commands: tuple[Command, ...] = (
            CreateQueue(0, 0, name if name in NAMES else "grave", settings), UpdateQueue(0, 0, name, settings),
            UpdateQueue(0, 0, name, settings), PauseQueue(0, 0, name, paused=True), PurgeQueue(0, 0, name),
            PurgeQueue(0, 0, name), DeleteQueue(0, 0, name),
            *(PauseQueue(0, 0, each, paused=False) for each in (*NAMES, *NAMES)),
        )  # fmt: skip
        self.turn(self.chance.choice(commands))

    def answer_load(self) -> None:
        """One load is answered; which one, and in what batches, is the reader's choice."""
        if self.driver.loads:
            self.driver.begin()
            load = self.driver.loads.pop(self.chance.randrange(len(self.driver.loads)))
            self.turn(self.driver.answer(load, group=self.chance.randint(1, 6)))

    def come_to_rest(self) -> None:
        self.watch.rest()

    def copy_forward(self) -> None:
        """A part of the journal is to be emptied; never its end, where is still written."""
        last = len(self.driver.records) - 12
        if last > 1:
            begin = self.chance.randrange(last)
            end = min(begin + self.chance.randint(1, 20), last)
            self.turn(CopyForward(begin * RECORD_STEP, end * RECORD_STEP))

    # What to choose from.

    def batch(self, lengths: Sequence[int]) -> Batch:
        """Messages that differ from all others."""
        bodies = []
        for length in lengths:
            self.bodies += 1
            bodies.append(b"%06d" % self.bodies + b"." * (length - 6))
        return batch_of(*bodies)

    def one_consumer(self) -> list[int]:
        """The port of one, if any is attached; of one that holds something, if there is one."""
        ports = list(self.model.consumers)
        busy = [port for port in ports if self.model.held(self.model.consumers[port])]
        return [self.chance.choice(busy or ports)] if ports else []

    def settlement(self, ranges: tuple[FenceRange, ...]) -> Settlement:
        """Some outcome for some fences."""
        outcome = self.chance.choice(OUTCOMES)
        delay = self.chance.choice((None, None, 0, 250)) if outcome is Outcome.RETRY else None
        why = f"why {self.chance.randint(1, 99)}"
        return Settlement(outcome, ranges, delay, why, self.chance.choice(("", "E", "F", "Hopeless")))

    def some_fences(self, port: int, *, wild: bool) -> tuple[FenceRange, ...]:
        """Ranges over what a consumer holds; wild ones touch what others hold, what is over and what never was."""
        own = [lease.fence for lease in self.model.held(self.model.consumers[port])]
        pool = list(range(max(1, self.model.last_fence - 40), self.model.last_fence + 4)) if wild else own
        ranges = []
        for _ in range(self.chance.randint(1, 4) if pool else 0):
            first = self.chance.choice(pool)
            last = first + self.chance.randint(0, 3)
            ranges.append(FenceRange(first, last if wild or last in own else first))
        return tuple(ranges)
