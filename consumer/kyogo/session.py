"""A consumer's side of one stream, without IO: frames in, actions out; wishes in, frames out.

The stream's life:

    NEW --attach taken--> ATTACHING --attached--> ATTACHED --detach taken--> LEAVING
     |                        |                      |                          |
     +------------------------+---- abandon ---------+--------------------------+--> ENDED

A delivery's life is drawn in `delivery.py`. Three rules hold the rest together:

* What is to be sent is kept as facts, and made into one frame when the stream can take it (`pending.py`), so that
  everything here is bounded by what the broker let this consumer hold.
* `started` is sent for what still runs when the frame is made. What began and ended in between needs no clock.
* A lost stream takes all with it: nothing unsettled, unsent or unanswered survives `abandon`.

It knows no clock, no handlers and no concurrency. Its caller is one thread, the loop's.
"""

from collections import deque
from collections.abc import Iterable
from enum import Enum, auto
from typing import Final

from kyogo import wire
from kyogo.actions import (
    Abandoned,
    Action,
    Answered,
    Arrived,
    Attached,
    Attachment,
    DrainAsked,
    Fault,
    Load,
    Rejected,
    Stop,
)
from kyogo.delivery import BUFFERED, GONE, PARKED, RUNNING, SETTLING, Delivery
from kyogo.errors import ProtocolError
from kyogo.message import Owner, Run
from kyogo.outcomes import ACK, RELEASE, Settlement
from kyogo.pending import Pending

CAPABILITIES: Final = ("started", "return", "cancel", "drain")


class Phase(Enum):
    """Where a stream stands."""

    NEW = auto()
    ATTACHING = auto()
    ATTACHED = auto()
    LEAVING = auto()
    ENDED = auto()


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
        self._pending = Pending()
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
        self._pending.started(delivery)
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
        self._pending.settled(delivery, settlement)
        return True

    def release(self, delivery: Delivery) -> None:
        """Give one back that has not begun. No effect on any other."""
        if delivery.state not in {BUFFERED, PARKED}:
            return
        self.parked -= delivery.state == PARKED
        delivery.state = SETTLING
        self.unanswered += 1
        self._pending.settled(delivery, RELEASE)
        self._dirty = True

    def park(self, delivery: Delivery) -> None:
        """Set one aside that nothing here can handle, to be released later."""
        assert delivery.state == BUFFERED
        delivery.state = PARKED
        self.parked += 1

    def extend(self, delivery: Delivery, extension_ms: int) -> None:
        """Ask for more time. No effect on what does not run."""
        if delivery.state == RUNNING:
            self._pending.extended(delivery, extension_ms)
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
            self._sequence += 1
            frame.heartbeat.CopyFrom(self._heartbeat(self._load))
            self._load = None
        self._pending.fill(frame)
        self._dirty = bool(self._pending)
        if self._detach and not self._dirty:
            frame.detach.SetInParent()
            self.phase = Phase.LEAVING
        return frame if frame.ByteSize() else None

    def _heartbeat(self, load: Load) -> wire.ConsumerHeartbeat:
        return wire.ConsumerHeartbeat(
            sequence=self._sequence,
            echo=self._echo,
            running=self.running,
            buffered=self.buffered,
            utilization=load.utilization,
            cpu=load.cpu,
            rss_bytes=load.rss_bytes,
        )

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
