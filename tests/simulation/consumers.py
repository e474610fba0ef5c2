"""Simulated consumers: they hold, start, settle, extend, fall silent, come back, and show receipts that are long over."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from kyogo_broker.model.commands import (
    Attach,
    Command,
    Detach,
    Extend,
    Heartbeat,
    Outcome,
    Publish,
    SetPrefetch,
    Settle,
    Settlement,
    Started,
    Subscription,
)
from kyogo_broker.model.effects import AttachDone, Deliver, Effect, Revoke, SettleDone, TellDrain
from kyogo_broker.model.message import FenceRange
from kyogo_broker.model.states import RevokeMode, SettleStatus
from tests.simulation.clients import QUEUES, Client, Shared, as_command
from tests.simulation.ledger import Request
from tests.simulation.network import Link

FRAME_HEAD_BYTES = 4_096
SILENCE_MAX_US = 2_500_000
"""A client that hears nothing for so long opens another stream."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a consumer says of some fences; repeated in the same words."""

    outcome: Outcome
    fences: tuple[int, ...]
    error_type: str = ""
    delay_ms: int | None = None
    unit: Request | None = None


@dataclass(slots=True)
class Traits:
    """How a consumer is."""

    queues: tuple[str, ...]
    capabilities: frozenset[str]
    interval_ms: int
    prefetch: int
    octets: int
    frame_bytes: int
    concurrency: int
    most: int | None = None
    pace_us: int = 40_000
    careful: bool = False
    """Acks everything, soon."""
    shows_token: float = 0.6
    """How often it takes over from its own old stream."""
    stale: float = 0.3
    """How often it settles what its lost stream held."""


@dataclass(slots=True)
class Holding:
    """What a consumer has of one session."""

    buffer: deque[int] = field(default_factory=deque)
    running: set[int] = field(default_factory=set)
    started: list[int] = field(default_factory=list)
    """To be said."""
    said: list[Said] = field(default_factory=list)
    """To be sent."""
    waiting: dict[int, Said] = field(default_factory=dict)
    """Sent, by fence, without an answer."""
    answered: deque[Said] = field(default_factory=lambda: deque(maxlen=20))


class Consumer(Client):
    """One consumer, from stream to stream."""

    def __init__(self, shared: Shared, name: str, traits: Traits) -> None:
        super().__init__(shared)
        self.name = name
        self.traits = traits
        self.token = ""
        self.attached = False
        self.have = Holding()
        self._again: list[Said] = []
        """What the last stream left without an answer."""
        self._sent_at = 0
        self._flushing = False
        self._others: list[Command] = []
        self.world.after(self.world.between(0, 100_000), self.actor, self._beat)

    @property
    def calm(self) -> bool:
        """Whether it behaves."""
        return self.shared.calm or self.traits.careful

    # from the broker

    def receive(self, link: Link, effects: Sequence[Effect | str]) -> None:
        if link is not self.link:
            return
        self.heard_at = self.world.now
        for effect in effects:
            match effect:
                case Deliver():
                    for run in effect.runs:
                        self.have.buffer.extend(range(run.first_fence, run.first_fence + run.count))
                    self._begin()
                case SettleDone():
                    self._answered(effect)
                case AttachDone():
                    self._on_attached(effect)
                case Revoke() if effect.mode is RevokeMode.LOST:
                    self._revoked(effect)
                case TellDrain():
                    self.shared.cover["told to drain"] += 1
                    if self.world.chance(0.5):
                        self._leave()

    def lost(self, link: Link) -> None:
        if link is not self.link:
            return
        super().lost(link)
        self.attached = False
        have, self.have = self.have, Holding()
        unanswered = [*dict.fromkeys(have.waiting.values()), *have.said]
        self._again = [said for said in unanswered if self.world.chance(0.7)]
        held = [*have.running, *have.buffer]
        if held and self.world.chance(self.traits.stale):
            # It does not know, or does not care, that its leases are over.
            self._again.append(Said(Outcome.ACK, tuple(sorted(held))))

    # its work

    def _begin(self) -> None:
        have, world, traits = self.have, self.world, self.traits
        while have.buffer and len(have.running) < traits.concurrency:
            fence = have.buffer.popleft()
            have.running.add(fence)
            have.started.append(fence)
            if self.calm:
                duration = world.between(500, 5_000)
            elif world.chance(0.04):
                duration = world.between(300_000, 2_500_000)
            else:
                duration = int(world.random.random() * traits.pace_us)
            world.after(duration, self.actor, self._finish, have, fence)
        self._flush_soon()

    def _finish(self, have: Holding, fence: int) -> None:
        if have is not self.have or fence not in have.running:
            return
        if not self.calm and self.world.chance(0.05):
            self._extend(have, fence)
            return
        have.running.discard(fence)
        have.said.append(self._outcome(fence))
        self._begin()

    def _outcome(self, fence: int) -> Said:
        world = self.world
        roll = 0.0 if self.calm else world.random.random()
        if roll < 0.74:
            return Said(Outcome.ACK, (fence,))
        if roll < 0.82:
            unit = self.shared.request(QUEUES[world.between(0, 2)] if world.chance(0.9) else "nowhere.dlq")
            unit.fence = fence
            return Said(Outcome.ACK, (fence,), unit=unit)
        if roll < 0.9:
            delay = world.random.choice((None, None, 0, world.between(1, 600)))
            return Said(Outcome.RETRY, (fence,), world.random.choice(("", "E", "Hopeless")), delay)
        return Said(Outcome.RELEASE if roll < 0.96 else Outcome.DEAD_LETTER, (fence,))

    def _extend(self, have: Holding, fence: int) -> None:
        extension = self.world.between(50, 1_500)
        others = [other for other in have.answered if self.world.chance(0.1)]
        fences = [fence, *(other.fences[0] for other in others)]
        self._others.append(Extend(0, tuple(FenceRange(each, each) for each in fences), extension))
        self.world.after(self.world.between(1_000, 1_200_000), self.actor, self._finish, have, fence)
        self._flush_soon()

    def _answered(self, effect: SettleDone) -> None:
        have = self.have
        for result in effect.results:
            for fence in range(result.range.first, result.range.last + 1):
                said = have.waiting.pop(fence, None)
                if said is None:
                    continue
                if result.status is SettleStatus.OK:
                    have.answered.append(said)
                elif result.status is SettleStatus.REJECTED:
                    have.said.append(Said(Outcome.ACK, (fence,)))
                    self._flush_soon()
        if have.answered and not self.calm and self.world.chance(0.04):
            self._repeat(have)

    def _repeat(self, have: Holding) -> None:
        """Say it once more, or something else about the same delivery."""
        said = have.answered[-1]
        if any(fence in have.waiting for fence in said.fences) or any(
            said.fences[0] in other.fences for other in have.said
        ):
            return
        if said.unit is None and self.world.chance(0.3):
            other = Outcome.RELEASE if said.outcome is not Outcome.RELEASE else Outcome.ACK
            have.said.append(Said(other, said.fences))
            have.answered.remove(said)
        else:
            have.said.append(said)
        self._flush_soon()

    def _revoked(self, effect: Revoke) -> None:
        self.shared.cover[f"revoked: {effect.reason.name}"] += 1
        lost = {fence for each in effect.ranges for fence in range(each.first, each.last + 1)}
        have = self.have
        have.buffer = deque(fence for fence in have.buffer if fence not in lost)
        if self.world.chance(0.7):
            have.running -= lost
        self._begin()

    # to the broker

    def _beat(self) -> None:
        world, traits = self.world, self.traits
        interval = traits.interval_ms * 1_000
        if self.link is None:
            self._attach()
        elif world.now - self.heard_at > SILENCE_MAX_US:
            self.shared.cover["consumer gave a stream up"] += 1
            link = self.link
            self.lost(link)
            link.hang_up()
        elif self.attached:
            if world.now - self._sent_at >= interval * 3 // 4:
                self._sent_at = world.now
                self.link.send(lambda port: (Heartbeat(port, sequence=1),))
            if not self.shared.calm:
                self._change_its_mind()
        world.after(interval * 3 // 4 + int(world.random.random() * interval // 4), self.actor, self._beat)

    def _change_its_mind(self) -> None:
        world, traits = self.world, self.traits
        roll = world.random.random()
        if roll < 0.03:
            self._others.append(
                SetPrefetch(0, world.random.choice((0, 1, 4, 12)), world.random.choice((0, 300, 4_000)))
            )
            self._flush_soon()
        elif roll < 0.045:
            self._leave()
        elif roll < 0.06:
            self.shared.cover["hung up"] += 1
            link = self.link
            assert link is not None
            self.lost(link)
            link.hang_up()
        elif roll < 0.09:
            self._others.append(SetPrefetch(0, traits.prefetch, traits.octets))
            self._flush_soon()

    def become_calm(self) -> None:
        """Take what comes, as much as ever."""
        if self.attached:
            self._others.append(SetPrefetch(0, max(4, self.traits.prefetch), 0))
            self._flush_soon()

    def _attach(self) -> None:
        world, traits = self.world, self.traits
        self.connect()
        link = self.link
        assert link is not None
        shown = self.token if world.chance(traits.shows_token) else ""
        session, token = world.random.getrandbits(62) | 1, f"token-{world.random.getrandbits(40)}"
        self.shared.operations += 1
        subscriptions = tuple(Subscription(queue, max_unsettled=traits.most) for queue in traits.queues)
        prefetch = max(4, traits.prefetch) if self.calm else traits.prefetch
        self._sent_at = world.now

        def frame(port: int) -> Sequence[Command]:
            attach = Attach(
                port, session, token, self.name, subscriptions, capabilities=traits.capabilities,
                prefetch_messages=prefetch, prefetch_bytes=0x400000 if self.calm else traits.octets,
                heartbeat_interval_ms=traits.interval_ms, max_frame_bytes=traits.frame_bytes, resumed_token=shown,
            )  # fmt: skip
            return (attach,)

        link.send(frame)

    def _on_attached(self, effect: AttachDone) -> None:
        self.attached = True
        self.token = effect.session_token
        again, self._again = self._again, []
        if again:
            self.shared.cover["settled after a lost stream"] += 1
            self.have.said += again
        self._flush_soon()

    def _leave(self) -> None:
        """Detach politely; what was not settled goes back."""
        link = self.link
        if link is not None and self.attached:
            self._flush()
            self.shared.operations += 1
            link.send(lambda port: (Detach(port),))

    def _flush_soon(self) -> None:
        if not self._flushing and self.attached:
            self._flushing = True
            delay = int(self.world.random.random() ** 3 * 6_000)
            self.world.after(delay, self.actor, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        have, link = self.have, self.link
        if link is None or not self.attached:
            return
        announces = "started" in self.traits.capabilities
        started, have.started = tuple(have.started) if announces else (), []
        said, have.said = have.said, []
        others, self._others = self._others, []
        if not (started or said or others):
            return
        self._sent_at = self.world.now
        self.shared.operations += bool(started) + len({each.outcome for each in said}) + len(others)
        for each in said:
            have.waiting |= dict.fromkeys(each.fences, each)
        size = sum(len(each.unit.batch.wire) for each in said if each.unit is not None)

        def frame(port: int) -> Sequence[Command]:
            commands = [_for_port(command, port) for command in others]
            if started:
                commands.append(Started(port, _ranges(started)))
            if said:
                commands.append(Settle(port, tuple(_settlements(said, port))))
            return commands

        link.send(frame, size)


def _settlements(said: Sequence[Said], port: int) -> list[Settlement]:
    """Plain ones of one outcome travel together."""
    plain: dict[tuple[Outcome, str, int | None], list[int]] = {}
    settlements = []
    for each in said:
        if each.unit is None:
            plain.setdefault((each.outcome, each.error_type, each.delay_ms), []).extend(each.fences)
        else:
            publishes: tuple[Publish, ...] = (as_command(each.unit, port),)
            settlements.append(Settlement(each.outcome, _ranges(each.fences), publishes=publishes))
    for (outcome, error_type, delay_ms), fences in plain.items():
        settlements.append(Settlement(outcome, _ranges(fences), delay_ms, "why", error_type))
    return settlements


def _ranges(fences: Sequence[int]) -> tuple[FenceRange, ...]:
    """Sorted, neighbours together."""
    ranges: list[FenceRange] = []
    first = last = -1
    for fence in sorted(set(fences)):
        if fence == last + 1 and first > 0:
            last = fence
            continue
        if first > 0:
            ranges.append(FenceRange(first, last))
        first = last = fence
    if first > 0:
        ranges.append(FenceRange(first, last))
    return tuple(ranges)


def _for_port(command: Command, port: int) -> Command:
    match command:
        case SetPrefetch():
            return SetPrefetch(port, command.messages, command.bytes)
        case Extend():
            return Extend(port, command.ranges, command.extension_ms)
    raise AssertionError(command)
