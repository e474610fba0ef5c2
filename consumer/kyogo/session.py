"""A consumer's side of one stream, without IO: frames in, actions out; wishes in, frames out.

The stream's life:

    NEW --attach taken--> ATTACHING --attached--> ATTACHED --detach taken--> LEAVING
     |                        |                      |                          |
     +------------------------+---- abandon ---------+--------------------------+--> ENDED

A delivery's life is drawn in `delivery.py`. Three rules hold the rest together:

* What is to be sent is never queued as frames but kept as facts (fences that began, fences that ended) and made
  into one frame when the stream can take it. So a slow stream makes frames fuller, never more of them, and
  everything here is bounded by what the broker let this consumer hold.
* `started` is sent for what still runs when the frame is made. What began and ended in between needs no clock.
* A lost stream takes all with it: nothing unsettled, unsent or unanswered survives `abandon`.

It knows no clock, no handlers and no concurrency. Its caller is one thread, the loop's.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, TypeAlias

from kyogo import wire
from kyogo.delivery import BUFFERED, GONE, PARKED, RUNNING, SETTLING, Delivery
from kyogo.errors import KyogoError, ProtocolError
from kyogo.message import Owner, Run
from kyogo.outcomes import ACK, RELEASE, Settlement

CAPABILITIES: Final = ("started", "return", "cancel", "drain")

FENCES_PER_FRAME: Final = 4_096
"""Each of what began, was acked, and ended otherwise. All apart they are 12,288 ranges of some 200 KiB; a broker
takes 16,384 in a frame."""
SETTLEMENTS_PER_FRAME: Final = 1_024
"""A broker takes 4,096."""
FRAME_BYTES: Final = 1024 * 1024
"""A frame is filled with reasons and publishes up to this; a larger settlement goes without others of its kind."""
FRAME_BYTES_SPARE: Final = 256 * 1024
"""What stands in a frame beside its largest settlement."""


class Phase(Enum):
    """Where a stream stands."""

    NEW = auto()
    ATTACHING = auto()
    ATTACHED = auto()
    LEAVING = auto()
    ENDED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """What a consumer attaches with."""

    queues: tuple[str, ...]
    prefetch: int
    """In messages."""
    prefetch_bytes: int = 0
    """0: the broker's default, 4 MiB."""
    consumer_id: str = ""
    name: str = ""
    version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    weight: int | None = None
    heartbeat_interval_ms: int = 0
    max_frame_bytes: int = 0
    session_token: str = ""
    """Of the stream before this one: takes its consumer id over."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a heartbeat says beside what the session knows itself."""

    utilization: float
    cpu: float
    rss_bytes: int


# --- actions: what the caller is to do about a frame ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """The broker has granted the session."""

    consumer_id: str
    session_id: str
    session_token: str
    heartbeat_interval_ms: int
    failed_after_ms: int
    message_bytes_max: int
    """0: the broker did not say."""
    request_bytes_max: int
    visibility_timeouts_ms: Mapping[str, int]
    """By queue."""
    broker: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """Deliveries wait for `take`."""

    count: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop a running handler."""

    delivery: Delivery
    lost: bool
    """It is no longer ours, so that nothing can be settled; else settle once it has stopped."""
    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The broker could not store what was published with an ACK: settle it otherwise."""

    delivery: Delivery
    error: KyogoError


@dataclass(frozen=True, slots=True)
class Answered:
    """Settlements that the broker has dealt with."""

    ok: int
    stale: int
    """Came too late, or were never ours: what these handlers did is done again elsewhere."""


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """Finish, settle, detach."""

    reason: str
    deadline_ms: int | None


@dataclass(frozen=True, slots=True)
class Fault:
    """Something sent was not understood; the stream goes on."""

    error: KyogoError


Action: TypeAlias = Attached | Arrived | Stop | Rejected | Answered | DrainAsked | Fault


@dataclass(frozen=True, slots=True)
class Abandoned:
    """What a lost stream took with it."""

    running: tuple[Delivery, ...]
    buffered: int
    unanswered: int


class Session:
    """One stream's state, from `attach` to its end."""

    def __init__(self, attachment: Attachment, owner: Owner) -> None:
        self.phase = Phase.NEW
        self.running = 0
        self.parked = 0
        self.unanswered = 0
        self.taking = True
        """Whether deliveries are still welcome."""
        self._attachment = attachment
        self._owner = owner
        self._held: dict[int, Delivery] = {}
        self._ready: deque[Delivery] = deque()
        # What is to be sent.
        self._dirty = False
        self._started: list[Delivery] = []
        self._acks: list[int] = []
        self._others: dict[Settlement, list[int]] = {}
        self._units: deque[Delivery] = deque()
        self._extends: dict[int, list[int]] = {}
        self._prefetch: int | None = None
        self._prefetch_asked = attachment.prefetch
        self._load: Load | None = None
        self._sequence = 0
        self._echo = 0
        self._detach = False

    @property
    def buffered(self) -> int:
        """Held and not begun, what is parked included."""
        return len(self._held) - self.running - self.unanswered

    @property
    def prefetch(self) -> int:
        """As last asked for, in messages."""
        return self._prefetch_asked

    # --- deliveries, from the caller ---

    def take(self) -> Delivery | None:
        """The next delivery to begin; None: nothing waits."""
        ready = self._ready
        while ready:
            delivery = ready.popleft()
            if delivery.state == BUFFERED:  # else it was given back or lost meanwhile
                return delivery
        return None

    def begin(self, delivery: Delivery) -> None:
        """Its handler begins now."""
        assert delivery.state == BUFFERED
        delivery.state = RUNNING
        self.running += 1
        self._started.append(delivery)
        self._dirty = True

    def finish(self, delivery: Delivery, settlement: Settlement) -> bool:
        """Its handler has ended.

        Returns:
            False: it was no longer ours, so nothing is sent.
        """
        if delivery.state != RUNNING:
            return False
        delivery.state = SETTLING
        self.running -= 1
        self.unanswered += 1
        self._dirty = True
        if settlement is not ACK:
            delivery.drop_publishes()
            self._others.setdefault(settlement, []).append(delivery.fence)
        elif delivery.publishes:
            self._units.append(delivery)
        else:
            self._acks.append(delivery.fence)
        return True

    def release(self, delivery: Delivery) -> None:
        """Give one back that has not begun. No effect on any other."""
        if delivery.state not in {BUFFERED, PARKED}:
            return
        self.parked -= delivery.state == PARKED
        delivery.state = SETTLING
        self.unanswered += 1
        self._others.setdefault(RELEASE, []).append(delivery.fence)
        self._dirty = True

    def park(self, delivery: Delivery) -> None:
        """Set one aside that nothing here can handle, to be released later."""
        assert delivery.state == BUFFERED
        delivery.state = PARKED
        self.parked += 1

    def extend(self, delivery: Delivery, extension_ms: int) -> None:
        """Ask for more time. No effect on what does not run."""
        if delivery.state == RUNNING:
            self._extends.setdefault(extension_ms, []).append(delivery.fence)
            self._dirty = True

    # --- the stream, from the caller ---

    def set_prefetch(self, messages: int) -> None:
        """The most to hold from now on. No effect once nothing more is taken."""
        if self.taking and messages != self._prefetch_asked:
            self._prefetch = self._prefetch_asked = messages
            self._dirty = True

    def beat(self, load: Load) -> None:
        """A heartbeat goes with the next frame."""
        self._load = load
        self._dirty = True

    def stop_taking(self) -> None:
        """No new work: what has not begun goes back, now and whenever more comes."""
        if not self.taking:
            return
        self.set_prefetch(0)
        self.taking = False
        for delivery in [d for d in self._held.values() if d.state in {BUFFERED, PARKED}]:
            self.release(delivery)

    def detach(self) -> None:
        """Leave, after everything that waits to be sent."""
        self._detach = True
        self._dirty = True

    def abandon(self) -> Abandoned:
        """The stream is over: whatever was held is another's from now on."""
        held = self._held.values()
        lost = Abandoned(
            running=tuple(d for d in held if d.state == RUNNING), buffered=self.buffered, unanswered=self.unanswered
        )
        for delivery in held:
            delivery.state = GONE
        self._held.clear()
        self._ready.clear()
        self.running = self.parked = self.unanswered = 0
        self.phase = Phase.ENDED
        self.taking = False
        return lost

    # --- frames out ---

    def next_frame(self) -> wire.ConsumeRequest | None:
        """All that waits, as one frame; None: nothing waits, or nothing may be sent now."""
        if self.phase is Phase.NEW:
            self.phase = Phase.ATTACHING
            return wire.ConsumeRequest(attach=_attach(self._attachment))
        if self.phase is not Phase.ATTACHED or not self._dirty:
            return None
        frame = wire.ConsumeRequest()
        if self._prefetch is not None:
            frame.prefetch.messages = self._prefetch
            frame.prefetch.bytes = self._attachment.prefetch_bytes
            self._prefetch = None
        if self._load is not None:
            self._add_heartbeat(frame, self._load)
            self._load = None
        self._add_started(frame)
        self._add_settlements(frame)
        if self._extends:
            extension_ms, fences = self._extends.popitem()
            frame.extend.extension_ms = extension_ms
            frame.extend.ranges.extend(wire.fence_ranges(fences))
        self._dirty = bool(self._started or self._acks or self._others or self._units or self._extends)
        if self._detach and not self._dirty:
            frame.detach.SetInParent()
            self.phase = Phase.LEAVING
        return frame if frame.ByteSize() else None

    def _add_heartbeat(self, frame: wire.ConsumeRequest, load: Load) -> None:
        self._sequence += 1
        heartbeat = frame.heartbeat
        heartbeat.sequence = self._sequence
        heartbeat.echo = self._echo
        heartbeat.running = self.running
        heartbeat.buffered = self.buffered
        heartbeat.utilization = load.utilization
        heartbeat.cpu = load.cpu
        heartbeat.rss_bytes = load.rss_bytes

    def _add_started(self, frame: wire.ConsumeRequest) -> None:
        if not self._started:
            return
        now, self._started = self._started[:FENCES_PER_FRAME], self._started[FENCES_PER_FRAME:]
        fences = [delivery.fence for delivery in now if delivery.state == RUNNING]
        if fences:
            frame.started.extend(wire.fence_ranges(fences))

    def _add_settlements(self, frame: wire.ConsumeRequest) -> None:
        if self._acks:
            fences, self._acks = self._acks[:FENCES_PER_FRAME], self._acks[FENCES_PER_FRAME:]
            frame.settlements.add(outcome=ACK.outcome.value, ranges=wire.fence_ranges(fences))
        room = _Room(FENCES_PER_FRAME, SETTLEMENTS_PER_FRAME, FRAME_BYTES)
        while self._others and room.left:
            settlement, fences = self._others.popitem()
            if len(fences) > room.fences:
                self._others[settlement] = fences[room.fences :]
                del fences[room.fences :]
            room.take(frame.settlements.add(), _settlement(settlement, fences), len(fences))
        while self._units and room.left:
            delivery = self._units[0]
            unit = _settlement(ACK, [delivery.fence])
            unit.publish.extend(_requests(delivery.publishes or ()))
            if room.is_used and unit.ByteSize() > room.bytes:
                break
            self._units.popleft()
            room.take(frame.settlements.add(), unit, 1)

    # --- frames in ---

    def receive(self, frame: wire.ConsumeResponse) -> list[Action]:
        """What a frame of the broker asks for.

        Raises:
            ProtocolError: a frame that must not come now; the stream cannot go on.
        """
        actions: list[Action] = []
        if self.phase is not Phase.ATTACHED or frame.HasField("attached"):
            self._check_order(frame)
        if frame.HasField("attached"):
            actions.append(self._attached(frame.attached))
        if frame.settled:
            self._settled(frame.settled, actions)
        if frame.extended:
            self._extended(frame.extended, actions)
        if frame.revokes:
            self._revoked(frame.revokes, actions)
        if frame.deliveries:
            self._delivered(frame.deliveries, actions)
        if frame.HasField("heartbeat"):
            self._echo = frame.heartbeat.sequence
        if frame.HasField("drain"):
            deadline_ms = frame.drain.deadline_ms
            actions.append(DrainAsked(frame.drain.reason, deadline_ms if deadline_ms > 0 else None))
        actions.extend(Fault(wire.error_from(error)) for error in frame.errors)
        return actions

    def _check_order(self, frame: wire.ConsumeResponse) -> None:
        attached = frame.HasField("attached")
        if self.phase in {Phase.NEW, Phase.ENDED}:
            raise ProtocolError(f"a frame came while the session was {self.phase.name}: this is a bug of the SDK")
        if attached and self.phase is not Phase.ATTACHING:
            raise ProtocolError("the broker answered `attach` twice: is it a Kyogo broker of a matching version?")
        if not attached and self.phase is Phase.ATTACHING:
            raise ProtocolError("the broker sent frames before it answered `attach`: is it a Kyogo broker?")

    def _attached(self, attached: wire.Attached) -> Attached:
        self.phase = Phase.ATTACHED
        return Attached(
            consumer_id=attached.consumer_id,
            session_id=attached.session_id,
            session_token=attached.session_token,
            heartbeat_interval_ms=attached.heartbeat_interval_ms,
            failed_after_ms=attached.failed_after_ms,
            message_bytes_max=attached.limits.max_message_bytes,
            request_bytes_max=attached.limits.max_request_bytes,
            visibility_timeouts_ms={s.queue: s.visibility_timeout_ms for s in attached.subscriptions},
            broker=f"{attached.node} {attached.broker_version}".strip(),
        )

    def _delivered(self, runs: Iterable[wire.DeliveryRun], actions: list[Action]) -> None:
        if self.phase is not Phase.ATTACHED:
            return  # crossed our detach, which gives them back
        arrived: list[Delivery] = []
        queues = self._attachment.queues
        for run in runs:
            if run.subscription >= len(queues):
                raise ProtocolError(f"a delivery for subscription {run.subscription} of {len(queues)}")
            shared = Run(queues[run.subscription], run, self._owner)
            fence, offset = run.first_fence, run.first_offset
            for number, message in enumerate(run.messages):
                arrived.append(Delivery(message, shared, fence + number, offset + number))
        self._held.update((delivery.fence, delivery) for delivery in arrived)
        if not self.taking:
            for delivery in arrived:
                self.release(delivery)
            return
        self._ready.extend(arrived)
        actions.append(Arrived(len(arrived)))

    def _settled(self, results: Iterable[wire.SettleResult], actions: list[Action]) -> None:
        ok = stale = 0
        for result in results:
            status = result.status
            for delivery in self._of_range(result.range, SETTLING):
                self.unanswered -= 1
                if status == wire.STATUS_REJECTED:
                    delivery.state = RUNNING  # the lease is kept, and its handler's work is yet to be settled
                    self.running += 1
                    actions.append(Rejected(delivery, wire.error_from(result.error)))
                    continue
                delivery.state = GONE
                del self._held[delivery.fence]
                if status == wire.STATUS_OK:
                    ok += 1
                else:
                    stale += 1
        if ok or stale:
            actions.append(Answered(ok, stale))

    def _extended(self, results: Iterable[wire.ExtendResult], actions: list[Action]) -> None:
        for result in results:
            if result.status == wire.STATUS_REJECTED:
                actions.append(Fault(wire.error_from(result.error)))
            elif result.status != wire.STATUS_OK:
                for delivery in self._of_range(result.range, RUNNING):
                    self._lose(delivery, "it was extended too late", actions)

    def _revoked(self, revokes: Iterable[wire.Revoke], actions: list[Action]) -> None:
        for revoke in revokes:
            reason = wire.revoke_reason(revoke.reason)
            for fences in revoke.ranges:
                for delivery in self._of_range(fences):
                    if revoke.mode == wire.REVOKE_LOST:
                        self._lose(delivery, reason, actions)
                        continue
                    self.release(delivery)  # RETURN and CANCEL alike, if it has not begun
                    if revoke.mode == wire.REVOKE_CANCEL and delivery.state == RUNNING:
                        actions.append(Stop(delivery, lost=False, reason=reason))

    def _lose(self, delivery: Delivery, reason: str, actions: list[Action]) -> None:
        if delivery.state == SETTLING:
            return  # the answer to its settlement says what became of it
        if delivery.state == RUNNING:
            self.running -= 1
            actions.append(Stop(delivery, lost=True, reason=reason))
        self.parked -= delivery.state == PARKED
        delivery.state = GONE
        del self._held[delivery.fence]

    def _of_range(self, fences: wire.FenceRange, state: int | None = None) -> list[Delivery]:
        """What is held of a range; work is bounded by what is held, whatever the range says."""
        held = self._held
        first, last = fences.first, fences.last
        numbers: Iterable[int] = range(first, last + 1)
        if last - first >= len(held):
            numbers = [fence for fence in held if first <= fence <= last]
        found = [held[fence] for fence in numbers if fence in held]
        return found if state is None else [delivery for delivery in found if delivery.state == state]

    def check_invariants(self) -> None:
        """The counters are what the deliveries' states add up to. For tests."""
        states = [delivery.state for delivery in self._held.values()]
        assert states.count(RUNNING) == self.running
        assert states.count(SETTLING) == self.unanswered
        assert states.count(PARKED) == self.parked
        assert GONE not in states
        assert self.buffered == states.count(BUFFERED) + states.count(PARKED)
        assert all(fence == delivery.fence for fence, delivery in self._held.items())


def _attach(attachment: Attachment) -> wire.Attach:
    return wire.Attach(
        subscriptions=[wire.Subscription(queue=queue) for queue in attachment.queues],
        consumer_id=attachment.consumer_id,
        client=wire.ClientInfo(name=attachment.name, version=attachment.version, language="python"),
        capabilities=CAPABILITIES,
        prefetch=wire.Prefetch(messages=attachment.prefetch, bytes=attachment.prefetch_bytes),
        weight=attachment.weight,
        labels=attachment.labels,
        heartbeat_interval_ms=attachment.heartbeat_interval_ms,
        max_frame_bytes=attachment.max_frame_bytes,
        session_token=attachment.session_token,
    )


@dataclass(slots=True)
class _Room:
    """What still goes into a frame."""

    fences: int
    settlements: int
    bytes: int
    is_used: bool = False

    @property
    def left(self) -> bool:
        return self.fences > 0 and self.settlements > 0 and self.bytes > 0

    def take(self, place: wire.Settlement, settlement: wire.Settlement, fences: int) -> None:
        place.CopyFrom(settlement)
        self.fences -= fences
        self.settlements -= 1
        self.bytes -= settlement.ByteSize()
        self.is_used = True


def _settlement(settlement: Settlement, fences: list[int]) -> wire.Settlement:
    return wire.Settlement(
        outcome=settlement.outcome.value,
        ranges=wire.fence_ranges(fences),
        delay_ms=settlement.delay_ms,
        reason=settlement.reason,
        error_type=settlement.error_type,
    )


def _requests(publishes: Iterable[tuple[str, bytes]]) -> list[wire.PublishRequest]:
    """Publishes as requests, one for each destination, in the order of its publishes."""
    grouped: dict[str, list[bytes]] = {}
    for destination, message in publishes:
        grouped.setdefault(destination, []).append(message)
    return [
        wire.PublishRequest.FromString(wire.publish_request(destination, number, "", messages))
        for number, (destination, messages) in enumerate(grouped.items(), start=1)
    ]
