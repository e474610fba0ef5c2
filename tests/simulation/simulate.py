"""One seed, one history: a thousand operations with faults, then none, and everything must drain."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from kyogo_broker.core import settled
from tests.simulation.broker import Broker
from tests.simulation.check import Check
from tests.simulation.clients import QUEUES, Client, Operator, Publisher, Shared
from tests.simulation.consumers import FRAME_HEAD_BYTES, Consumer, Traits
from tests.simulation.faults import Faults
from tests.simulation.limits import STRETCH, limits, varied
from tests.simulation.machine import PowerLossError
from tests.simulation.world import ViolationError, World

OPERATIONS = 1_000
CALM_AFTER = 0.875
"""Of the operations; the rest of them, and more, is what it takes to drain."""
SAFETY_US_MAX = 300_000_000
DRAIN_US_MAX = 60_000_000
"""Of virtual time: longer than any backoff, silence and restart one after the other."""
LOOK_US = 100_000


@dataclass(frozen=True, slots=True)
class History:
    """What became of a seed."""

    seed: int
    operations: int
    digest: int
    virtual_seconds: float
    cover: Counter[str] = field(default_factory=Counter)
    violation: str = ""


def simulate(seed: int, operations: int = OPERATIONS) -> History:
    """Live through the history of a seed."""
    world = World(seed)
    with limits(varied(world.random)):
        history = _History(world, operations)
        violation = ""
        try:
            history.run()
        except (ViolationError, AssertionError) as error:
            violation = f"{type(error).__name__}: {error}" if isinstance(error, AssertionError) else str(error)
            if isinstance(error, AssertionError):
                violation += _place(error)
        finally:
            history.broker.dispose()
            asyncio._set_running_loop(None)
    return History(seed, history.shared.operations, history.check.digest, world.now / 1e6, history.cover, violation)


class _History:
    def __init__(self, world: World, operations: int) -> None:
        self.world = world
        self.cover = Counter[str]()
        self.check = Check(world, self.cover, remembered=settled.REMEMBERED, stretch=STRETCH)
        self.broker = Broker(world, self.check, self.cover)
        self.shared = Shared(world, self.broker, self.check.ledger)
        self._operations = operations

    def run(self) -> None:
        world, shared, broker = self.world, self.shared, self.broker
        broker.start()
        pace_us = world.random.choice((2_000, 6_000, 15_000, 50_000))
        shared.backlog = world.random.choice((40, 120, 120, 600))
        self.publishers = [Publisher(shared, number, pace_us) for number in range(4)]
        self.consumers = [Consumer(shared, f"consumer-{number}", self._traits(number)) for number in range(5)]
        twin = Consumer(shared, "consumer-1", self._traits(1))
        self.operator = Operator(shared)
        clients: list[Client] = [*self.publishers, *self.consumers, twin, self.operator]
        faults = Faults(shared, broker, clients)
        while shared.operations < self._operations * CALM_AFTER and world.now < SAFETY_US_MAX:
            self._live(world.now + LOOK_US)
        faults.end()
        twin.actor.dead = True
        if twin.link is not None:
            twin.link.hang_up()
        self._drain()
        self._end()

    def _live(self, until: int) -> None:
        while self.world.now < until:
            try:
                self.world.run(until)
                self.world.now = until
            except PowerLossError:
                self.broker.power_lost()

    def _drain(self) -> None:
        """Without faults everything comes to an end."""
        world, shared = self.world, self.shared
        shared.calm, self.check.faulty = True, False
        for consumer in self.consumers:
            consumer.become_calm()
        deadline = world.now + DRAIN_US_MAX
        drainers: dict[int, Consumer] = {}
        while not self._is_drained():
            if world.now > deadline:
                raise ViolationError(f"I17: not drained after {DRAIN_US_MAX // 1_000_000} s: {self._left()}")
            self._live(world.now + LOOK_US)
            if self.broker.engine is not None:
                for queue in self.broker.engine.shard_stats().queues:
                    if queue.queue_id not in drainers:
                        drainers[queue.queue_id] = self._drainer(queue.name, queue.queue_id)

    def _end(self) -> None:
        """Stop, and look once more at what the disk holds."""
        broker = self.broker
        broker.restarts = False
        broker.stop()
        deadline = self.world.now + DRAIN_US_MAX
        while broker.engine is not None:
            if self.world.now > deadline:
                raise ViolationError("I17: the broker does not stop")
            self._live(self.world.now + LOOK_US)
        broker.start()
        self.check.check_end()
        broker.crash("killed")

    def _is_drained(self) -> bool:
        if self.broker.engine is None or any(publisher.outstanding for publisher in self.publishers):
            return False
        if any(consumer.have.waiting or consumer.have.said or consumer._again for consumer in self.consumers):
            return False
        stats = self.broker.engine.shard_stats()
        return all(queue.ready + queue.delayed + queue.in_flight == 0 for queue in stats.queues)

    def _left(self) -> str:
        outstanding = {p.producer_id: list(p.outstanding) for p in self.publishers if p.outstanding}
        if self.broker.engine is None:
            return f"the broker is down; {outstanding}"
        stats = self.broker.engine.shard_stats()
        queues = {
            queue.name: (queue.ready, queue.delayed, queue.in_flight, queue.consumers, queue.paused)
            for queue in stats.queues if queue.ready + queue.delayed + queue.in_flight
        }  # fmt: skip
        waiting = {c.name: (len(c.have.waiting), len(c.have.said), len(c._again), c.attached) for c in self.consumers}
        return (
            f"ready, delayed, in flight, consumers, paused: {queues}; publishers: {outstanding}; consumers: {waiting}"
        )

    def _drainer(self, queue: str, number: int) -> Consumer:
        traits = Traits((queue,), frozenset(), 400, 16, 4 << 20, 0, 16, careful=True, shows_token=1.0)
        return Consumer(self.shared, f"drainer-{number}", traits)

    def _traits(self, number: int) -> Traits:
        random = self.world.random
        capabilities = ((), ("started",), ("started", "drain"), ("drain",))[random.randrange(4)]
        return Traits(
            queues=QUEUES[:3] if number == 0 else tuple(random.sample(QUEUES, random.randint(1, 3))),
            capabilities=frozenset(capabilities),
            interval_ms=random.choice((120, 250, 400)),
            prefetch=random.choice((1, 2, 5, 12)),
            octets=random.choice((300, 2_000, 4 << 20, 4 << 20)),
            frame_bytes=random.choice((0, 0, FRAME_HEAD_BYTES + 600)) if number else 0,
            concurrency=random.choice((1, 2, 6)),
            most=random.choice((None, None, 1, 3)),
            pace_us=random.choice((3_000, 15_000, 60_000)),
            shows_token=random.choice((0.1, 0.6, 1.0)),
        )  # fmt: skip


def _place(error: AssertionError) -> str:
    """Where in the broker it broke."""
    trace, places = error.__traceback__, []
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return " in " + " < ".join(reversed(places[-4:]))
