"""What a step asks the outside to do: imperative, frozen, released in order once the step's facts are durable."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kyogo_broker.model.errors import Refusal
from kyogo_broker.model.message import DeadLetterInfo, FenceRange, OffsetRun
from kyogo_broker.model.states import RedeliveryReason, RevokeMode, RevokeReason, SettleStatus


@dataclass(frozen=True, slots=True)
class PublishDone:
    """Answer to `Publish`: stored and durable, or refused."""

    port: int
    tag: int
    offsets: tuple[OffsetRun, ...] = ()
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """Consecutive messages with consecutive fences, all with the same history."""

    subscription: int
    first_fence: int
    first_offset: int
    count: int
    attempt: int
    losses: int
    reason: RedeliveryReason
    published_unix_ms: int
    dead_letter: DeadLetterInfo | None
    wire: memoryview
    """`repeated Message messages = 15`, encoded."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """Push to a consumer's stream; its prefetch has room for all of it."""

    port: int
    runs: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True)
class SubscriptionInfo:
    """What a consumer is told of a queue it subscribed to."""

    queue: str
    visibility_timeout_ms: int
    max_attempts: int
    balance_policy: str


@dataclass(frozen=True, slots=True)
class AttachDone:
    """Answer to `Attach`: the session is open; deliveries may follow."""

    port: int
    session_id: int
    session_token: str
    consumer_id: str
    prefetch_messages: int
    prefetch_bytes: int
    heartbeat_interval_ms: int
    suspect_after_ms: int
    failed_after_ms: int
    capabilities: tuple[str, ...]
    """Those declared that this broker will use."""
    subscriptions: tuple[SubscriptionInfo, ...]
    kept: tuple[FenceRange, ...] = ()
    lost: tuple[FenceRange, ...] = ()


@dataclass(frozen=True, slots=True)
class AttachRefused:
    """Answer to `Attach`: the call ends with this."""

    port: int
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class SettleResult:
    """What became of one range of fences."""

    range: FenceRange
    status: SettleStatus
    refusal: Refusal | None = None
    published: tuple[tuple[OffsetRun, ...], ...] = ()
    """Offsets of each publish of the settlement, in its first result."""


@dataclass(frozen=True, slots=True)
class SettleDone:
    """Answer to (a part of) `Settle`; every fence is answered once."""

    port: int
    results: tuple[SettleResult, ...]


@dataclass(frozen=True, slots=True)
class ExtendDone:
    """Answer to `Extend`."""

    port: int
    results: tuple[SettleResult, ...]


@dataclass(frozen=True, slots=True)
class Revoke:
    """Tell a consumer that deliveries are no longer its own, or are wanted back."""

    port: int
    ranges: tuple[FenceRange, ...]
    mode: RevokeMode
    reason: RevokeReason


@dataclass(frozen=True, slots=True)
class TellDrain:
    """Tell a consumer to finish, settle and detach."""

    port: int
    reason: str
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class PartRefused:
    """A part of a consumer's frame had bad content; its stream goes on."""

    port: int
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class EndStream:
    """End a stream after what was sent before: with OK (no refusal), by the refusal's code, or as UNAVAILABLE."""

    port: int
    refusal: Refusal | None = None
    unavailable: bool = False


@dataclass(frozen=True, slots=True)
class AdminDone:
    """Answer to an admin command."""

    port: int
    tag: int
    refusal: Refusal | None = None
    count: int = 0
    """Messages that a purge or a deletion finished."""


@dataclass(frozen=True, slots=True)
class Load:
    """Read messages back from the journal; answered by the command `Loaded`."""

    queue_id: int
    load_id: int
    stretches: tuple[tuple[int, int], ...]
    """(position, length): records that begin at `position` to `position + length`, both included."""
    ranges: tuple[tuple[int, int], ...]
    """First and last offset of each wanted range, increasing."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something an operator wants to know; never one for each plain message."""

    event: str
    """`queue_created`, `consumer_attached`, `consumer_suspect`, `consumer_lost`, `dead_letter`, ..."""
    fields: Mapping[str, str | int] = field(default_factory=dict)


Effect = (
    PublishDone | Deliver | AttachDone | AttachRefused | SettleDone | ExtendDone | Revoke | TellDrain | PartRefused
    | EndStream | AdminDone | Load | Notice
)  # fmt: skip
