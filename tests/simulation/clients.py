"""Simulated publishers and operators, and what all clients have in common: a stream that is opened again when it is lost."""

from collections.abc import Sequence

from kyogo_broker.model.commands import (
    Command,
    CreateQueue,
    DeleteQueue,
    PauseQueue,
    Publish,
    PurgeQueue,
    UpdateQueue,
)  # fmt: skip
from kyogo_broker.model.effects import AdminDone, Effect, PublishDone
from kyogo_broker.model.errors import ErrorCode
from kyogo_broker.model.settings import Backoff, BalancePolicy, QueueSettings, RetrySettings
from tests.simulation.broker import Broker
from tests.simulation.ledger import Ledger, Request
from tests.simulation.limits import MESSAGE_BYTES_MAX, REQUEST_BYTES_MAX
from tests.simulation.network import Link
from tests.simulation.world import Actor, World

QUEUES = ("plain", "strict", "quick", "scratch")
COUNTED_EVERY_US = 20_000
QUICK = RetrySettings(initial_ms=40, max_ms=1_500)
SETTINGS = {
    "plain": QueueSettings(visibility_timeout_ms=1_500, retry=QUICK),
    "strict": QueueSettings(
        visibility_timeout_ms=600, max_attempts=2, max_losses=2, retry=QUICK, balance_policy=BalancePolicy.ROUND_ROBIN
    ),
    "quick": QueueSettings(
        visibility_timeout_ms=400, max_attempts=3, max_losses=3, dead_letter_queue="grave",
        retry=RetrySettings(Backoff.LIST, delays_ms=(0, 200), jitter=False, non_retryable=("Hopeless",)),
    ),
    "scratch": QueueSettings(visibility_timeout_ms=800, dead_letter_queue="", max_attempts=2, retry=QUICK),
}  # fmt: skip
"""Of the queues that a history begins with."""


class Shared:
    """What all clients of a history share."""

    def __init__(self, world: World, broker: Broker, ledger: Ledger) -> None:
        self.world = world
        self.broker = broker
        self.ledger = ledger
        self.cover = ledger.cover
        self.operations = 0
        """That clients sent: requests and parts of consumers' frames, heartbeats aside."""
        self.backlog = 0
        """Messages that wait, with which producers pause: a deep backlog is another history than a shallow one."""
        self.calm = False
        """From then on everybody behaves, and nothing new is begun."""
        self._tags = 0
        self._messages = 0
        self._counted_at = self._waiting = 0

    def has_enough(self) -> bool:
        """Whether producers pause."""
        engine, now = self.broker.engine, self.world.now
        if engine is not None and now >= self._counted_at + COUNTED_EVERY_US:
            self._counted_at, self._waiting = now, engine._shard.messages()
        return self._waiting >= self.backlog

    def request(self, queue: str) -> Request:
        """A new batch for a queue."""
        world = self.world
        kind = world.random.random()
        if kind < 0.5:
            sizes = (world.between(24, 200),)
        elif kind < 0.8:
            sizes = (world.between(24, 90),) * world.between(2, 6)
        elif kind < 0.97:
            sizes = tuple(world.between(24, 300) for _ in range(world.between(2, 6)))
        else:
            sizes = (
                world.between(1_000, MESSAGE_BYTES_MAX),
                *(world.between(24, 400) for _ in range(world.between(0, 4))),
            )
        assert sum(sizes) <= REQUEST_BYTES_MAX
        self._tags += 1
        request = Request(self._tags, queue, self._messages + 1, sizes)
        self._messages += len(sizes)
        self.ledger.created(request)
        return request


class Client:
    """Someone with a stream."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.world = shared.world
        self.actor = Actor()
        self.link: Link | None = None
        self.heard_at = 0

    def connect(self) -> None:
        """Open a stream."""
        self.link = Link(self.world, self.shared.broker, self)
        self.heard_at = self.world.now

    def receive(self, link: Link, effects: Sequence[Effect | str]) -> None:
        """A frame has come."""
        raise NotImplementedError

    def lost(self, link: Link) -> None:
        """The stream is over."""
        if link is self.link:
            self.link = None


class Publisher(Client):
    """A producer with a window of requests; it sends those without an answer again, on every new stream."""

    def __init__(self, shared: Shared, number: int, pace_us: int) -> None:
        super().__init__(shared)
        self.producer_id = "" if number == 0 else f"producer-{number}"
        self.window = self.world.between(1, 6)
        self.pace_us = pace_us
        self.outstanding: dict[int, Request] = {}
        self._done: list[Request] = []
        self._next_id = 1
        self.world.after(self.world.between(0, pace_us), self.actor, self._turn)

    def receive(self, link: Link, effects: Sequence[Effect | str]) -> None:
        self.heard_at = self.world.now
        for effect in effects:
            if isinstance(effect, PublishDone):
                if effect.refusal is None:
                    request = self.outstanding.pop(effect.tag, None)
                    if request is not None and self.producer_id:
                        self._done.append(request)
                elif effect.refusal.retry_after_ms is None:
                    self._refused(effect)
                else:
                    self.world.after(self.world.between(20_000, 200_000), self.actor, self._send_again, effect.tag)

    def lost(self, link: Link) -> None:
        super().lost(link)
        if not self.producer_id:
            # Whether these were stored nobody will know; sent again they might be stored twice.
            self.outstanding.clear()

    def _turn(self) -> None:
        world = self.world
        if self.link is None:
            self.connect()
            for request in list(self.outstanding.values()):
                self._send(request)
        elif self.outstanding and world.now - self.heard_at > 2_000_000:
            self.shared.cover["publisher gave a stream up"] += 1
            link = self.link
            link.hang_up()
            self.lost(link)
        elif not self.shared.calm:
            if self._done and world.chance(0.04):
                self.shared.cover["resend of what was answered"] += 1
                self._send(self._done[-world.between(1, min(4, len(self._done)))])
            elif len(self.outstanding) < self.window and not self.shared.has_enough():
                self._publish()
        world.after(self.pace_us // 2 + int(world.random.random() * self.pace_us), self.actor, self._turn)

    def _publish(self) -> None:
        world = self.world
        roll = world.random.random()
        request = self.shared.request(QUEUES[0 if roll < 0.4 else 1 if roll < 0.7 else 2 if roll < 0.92 else 3])
        if self.producer_id:
            request.producer_id, request.request_id = self.producer_id, self._next_id
            self._next_id += world.between(1, 3)
        self.outstanding[request.tag] = request
        self._send(request)

    def _send_again(self, tag: int) -> None:
        request = self.outstanding.get(tag)
        if request is not None and self.link is not None:
            self._send(request)

    def _send(self, request: Request) -> None:
        assert self.link is not None
        self.shared.operations += 1
        self.link.send(lambda port: (as_command(request, port),), len(request.batch.wire))

    def _refused(self, effect: PublishDone) -> None:
        assert effect.refusal is not None
        # Sent again after so many others that the broker cannot tell any more: only of what was answered before.
        if effect.refusal.code is not ErrorCode.REQUEST_TOO_OLD:
            raise AssertionError(f"a good request was refused: {effect.refusal}")
        self.outstanding.pop(effect.tag, None)


def as_command(request: Request, port: int) -> Publish:
    """A request on its way."""
    return Publish(
        port, request.tag, request.queue, request.batch, request.producer_id, request.request_id, request.digest
    )


class Operator(Client):
    """Makes queues, and meddles with them."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self._wanted: dict[int, str] = {}
        self._tag = 0
        self.paused: set[str] = set()
        self.connect()
        self._make_queues()
        self.world.after(50_000, self.actor, self._turn)

    def receive(self, link: Link, effects: Sequence[Effect | str]) -> None:
        self.heard_at = self.world.now
        for effect in effects:
            if isinstance(effect, AdminDone):
                outcome = "done" if effect.refusal is None else effect.refusal.code.name
                self.shared.cover[f"{self._wanted.pop(effect.tag, '?')}: {outcome}"] += 1

    def _make_queues(self) -> None:
        for name, settings in SETTINGS.items():
            self._ask("create", CreateQueue(0, 0, name, settings))

    def _turn(self) -> None:
        if self.link is not None and self._wanted and self.world.now - self.heard_at > 2_000_000:
            self._wanted.clear()
            self.link.hang_up()
            self.link = None
        if self.link is None:
            self.connect()
            self._make_queues()
        if self.shared.calm:
            for name in QUEUES:
                self._ask("pause", PauseQueue(0, 0, name, paused=False))
        elif self.world.chance(0.3):
            self._meddle()
        self.world.after(self.world.between(100_000, 600_000), self.actor, self._turn)

    def _meddle(self) -> None:
        world = self.world
        name = QUEUES[world.between(0, 3)]
        roll = world.random.random()
        if roll < 0.4:
            self._ask("pause", PauseQueue(0, 0, name, paused=world.chance(0.5)))
        elif roll < 0.8:
            self._ask("update", UpdateQueue(0, 0, name, self._settings(name)))
        elif roll < 0.9:
            self._ask("purge", PurgeQueue(0, 0, name))
        else:
            self._ask("delete", DeleteQueue(0, 0, "scratch"))
            self._ask("create", CreateQueue(0, 0, "scratch", SETTINGS["scratch"]))

    def _settings(self, name: str) -> QueueSettings:
        before = SETTINGS[name]
        return QueueSettings(
            visibility_timeout_ms=self.world.between(300, 2_000), max_attempts=self.world.between(1, 4),
            max_losses=self.world.between(1, 4), retry=before.retry, dead_letter_queue=before.dead_letter_queue,
            balance_policy=self.world.random.choice((BalancePolicy.ROUND_ROBIN, BalancePolicy.LEAST_IN_FLIGHT)),
        )  # fmt: skip

    def _ask(self, what: str, command: Command) -> None:
        self._tag += 1
        tag = self._tag
        self._wanted[tag] = what
        self.shared.operations += 1
        assert self.link is not None
        self.link.send(lambda port: (_with(command, port, tag),))


def _with(command: Command, port: int, tag: int) -> Command:
    match command:
        case CreateQueue():
            return CreateQueue(port, tag, command.queue, command.settings)
        case UpdateQueue():
            return UpdateQueue(port, tag, command.queue, command.settings)
        case PauseQueue():
            return PauseQueue(port, tag, command.queue, command.paused)
        case PurgeQueue():
            return PurgeQueue(port, tag, command.queue)
        case DeleteQueue():
            return DeleteQueue(port, tag, command.queue)
    raise AssertionError(command)
