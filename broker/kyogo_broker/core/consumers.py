"""Consumers: their states, what they hold, and how much more they may hold.

    event / state  IDLE        PROCESSING  SUSPECT     FAILED    DRAINING    STOPPED
    LEASED         PROCESSING  PROCESSING  -           -         -           -
    EMPTIED        IDLE        IDLE        SUSPECT     FAILED    DRAINING    STOPPED
    HEARD          IDLE        PROCESSING  PROCESSING  PROCESSING DRAINING   STOPPED
    SILENT         SUSPECT     SUSPECT     SUSPECT     FAILED    SUSPECT     STOPPED
    GIVEN_UP       FAILED      FAILED      FAILED      FAILED    FAILED      STOPPED
    DRAIN          DRAINING    DRAINING    DRAINING    DRAINING  DRAINING    STOPPED
    LEFT           STOPPED     STOPPED     STOPPED     STOPPED   STOPPED     STOPPED

`-` cannot happen: only the healthy are given messages. HEARD of one that holds nothing is followed by EMPTIED.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

from kyogo_broker.model.commands import Attach, Client
from kyogo_broker.model.states import ConsumerState

if TYPE_CHECKING:
    from kyogo_broker.core.leases import Lease
    from kyogo_broker.core.queue import Queue

SUSPECT_INTERVALS = 3
FAILED_INTERVALS = 10
END_INTERVALS = 13
"""Silence after which the stream of a failed consumer is ended."""
FRAME_BYTES_DEFAULT = (4 << 20) - (64 << 10)
FRAME_HEAD_BYTES = 4096
"""Kept free in a frame for what stands before a message: the run's head with its dead letter's history."""

_I, _P, _S = ConsumerState.IDLE, ConsumerState.PROCESSING, ConsumerState.SUSPECT
_F, _D, _X = ConsumerState.FAILED, ConsumerState.DRAINING, ConsumerState.STOPPED


class ConsumerEvent(StrEnum):
    """What can happen to a consumer."""

    LEASED = "LEASED"
    EMPTIED = "EMPTIED"
    HEARD = "HEARD"
    SILENT = "SILENT"
    GIVEN_UP = "GIVEN_UP"
    DRAIN = "DRAIN"
    LEFT = "LEFT"


STATES = (_I, _P, _S, _F, _D, _X)
TRANSITIONS: Mapping[ConsumerEvent, tuple[ConsumerState | None, ...]] = {
    ConsumerEvent.LEASED: (_P, _P, None, None, None, None),
    ConsumerEvent.EMPTIED: (_I, _I, _S, _F, _D, _X),
    ConsumerEvent.HEARD: (_I, _P, _P, _P, _D, _X),
    ConsumerEvent.SILENT: (_S, _S, _S, _F, _S, _X),
    ConsumerEvent.GIVEN_UP: (_F, _F, _F, _F, _F, _X),
    ConsumerEvent.DRAIN: (_D, _D, _D, _D, _D, _X),
    ConsumerEvent.LEFT: (_X, _X, _X, _X, _X, _X),
}


def next_state(state: ConsumerState, event: ConsumerEvent) -> ConsumerState:
    """The state after `event`; asserts that it can happen."""
    after = TRANSITIONS[event][STATES.index(state)]
    assert after is not None, f"{event} cannot happen to a consumer that is {state}"
    return after


class Member:
    """One consumer's subscription to one queue: what a balance policy chooses among."""

    __slots__ = (
        "consumer", "held_up", "in_flight", "index", "max_unsettled", "offered", "own_weight", "queue", "version",
        "weight",
    )  # fmt: skip

    def __init__(
        self, consumer: "Consumer", queue: "Queue", *, index: int, weight: int | None, max_unsettled: int | None
    ) -> None:
        self.consumer = consumer
        self.queue = queue
        self.index = index
        """Of the subscription in `attach`."""
        self.own_weight = weight
        """As said for this queue; None: its consumer's."""
        self.weight = consumer.weight if weight is None else weight
        self.max_unsettled = max_unsettled
        self.in_flight = 0
        """Of this queue."""
        self.offered = False
        """Whether the policy may choose it now."""
        self.held_up = False
        """The queue's next message does not fit into its bytes: it waits until it has settled something, or until
        another one has taken that message."""
        self.version = 0
        """Of its entry in a policy that keeps entries."""

    @property
    def load(self) -> int:
        """What it holds unsettled, over all its subscriptions."""
        return self.consumer.in_flight

    def room(self) -> int:
        """Messages that it may be given now."""
        consumer = self.consumer
        room = consumer.prefetch_messages - consumer.in_flight
        if self.max_unsettled is not None:
            room = min(room, self.max_unsettled - self.in_flight)
        return room if room > 0 and not self.held_up and consumer.may_receive() else 0


class Consumer:
    """One session on one stream."""

    __slots__ = (
        "attached_unix_ms", "capabilities", "client", "consumer_id", "delivered", "heard_ms", "heartbeat_interval_ms",
        "in_flight", "in_flight_bytes", "labels", "leases", "lost", "max_frame_bytes", "members", "own_weight", "port",
        "prefetch_bytes", "prefetch_messages", "session_id", "session_token", "settled", "state", "timer_ms", "weight",
    )  # fmt: skip

    def __init__(self, attach: Attach, *, interval_ms: int, heard_ms: int, attached_unix_ms: int) -> None:
        self.port = attach.port
        self.session_id = attach.session_id
        self.session_token = attach.session_token
        self.consumer_id = attach.consumer_id
        self.client: Client = attach.client
        self.labels = attach.labels
        self.capabilities = attach.capabilities
        self.members: list[Member] = []
        self.prefetch_messages = self.prefetch_bytes = 0
        self.own_weight = attach.weight
        """As said; None: its prefetch in messages."""
        self.weight = 1
        self.grant(attach.prefetch_messages, attach.prefetch_bytes)
        self.max_frame_bytes = attach.max_frame_bytes or FRAME_BYTES_DEFAULT
        self.heartbeat_interval_ms = interval_ms
        self.heard_ms = heard_ms
        """When it was last heard of, on the clock of patience."""
        self.attached_unix_ms = attached_unix_ms
        self.state = ConsumerState.IDLE
        self.leases: dict[int, Lease] = {}
        """What it holds, by first fence."""
        self.lost: list[tuple[int, int]] = []
        """Fences that were taken from it while it was silent: it is told when it is heard again."""
        self.in_flight = 0
        self.in_flight_bytes = 0
        self.delivered = 0
        self.settled = 0
        self.timer_ms = 0

    def grant(self, messages: int, octets: int) -> None:
        """The most that it may hold from now on."""
        self.prefetch_messages = messages
        self.prefetch_bytes = octets
        self.weight = max(1, messages) if self.own_weight is None else self.own_weight
        for member in self.members:
            member.weight = self.weight if member.own_weight is None else member.own_weight
        self.go_on()

    def may_receive(self) -> bool:
        """Whether anything may be given to it, room aside."""
        return self.state in (_I, _P)

    def counts_start(self) -> bool:
        """Whether it says when a handler begins; else everything delivered counts as begun."""
        return "started" in self.capabilities

    def message_bytes_max(self) -> int:
        """The largest message, encoded, that fits into its frames."""
        return self.max_frame_bytes - FRAME_HEAD_BYTES

    def happens(self, event: ConsumerEvent) -> None:
        """Go to the next state."""
        self.state = next_state(self.state, event)
        if event is ConsumerEvent.HEARD and self.state is _P and not self.in_flight:
            self.state = next_state(self.state, ConsumerEvent.EMPTIED)

    def took(self, member: Member, lease: "Lease", *, size: int) -> None:
        """It was given all of a lease."""
        self.leases[lease.first_fence] = lease
        self.in_flight += lease.count
        self.in_flight_bytes += size
        self.delivered += lease.count
        member.in_flight += lease.count
        self.happens(ConsumerEvent.LEASED)

    def gave_back(self, lease: "Lease", count: int, *, size: int) -> None:
        """`count` messages of a lease are its own no more."""
        self.in_flight -= count
        self.in_flight_bytes -= size
        self.go_on()
        if lease.member is not None:
            lease.member.in_flight -= count
        if not lease.live:
            self.leases.pop(lease.first_fence, None)
        if not self.in_flight:
            self.happens(ConsumerEvent.EMPTIED)

    def go_on(self) -> None:
        """It has more room: whatever held it up may fit now."""
        for member in self.members:
            member.held_up = False

    def check_invariants(self) -> None:
        """What it holds is counted."""
        assert self.in_flight == sum(lease.live.bit_count() for lease in self.leases.values()), "in flight miscounted"
        assert self.in_flight == sum(member.in_flight for member in self.members), "members disagree"
        assert (self.state is not _P) or self.in_flight > 0, "processing nothing"
        assert (self.state is not _I) or self.in_flight == 0, "idle with messages"
