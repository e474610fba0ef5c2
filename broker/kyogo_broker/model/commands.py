"""What can be asked of a shard: imperative, frozen, already decoded and checked for form by the edge.

`port` names the connection that asked and that gets the answer; `tag` is the asker's own number, repeated in the
answer. The shard looks at neither beyond passing them on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from kyogo_broker.model.errors import Refusal
from kyogo_broker.model.message import Batch, DeadLetterInfo, FenceRange
from kyogo_broker.model.settings import QueueSettings


class Outcome(IntEnum):
    """What a consumer says of a delivery, with the wire's numbers."""

    ACK = 1
    RETRY = 2
    RELEASE = 3
    DEAD_LETTER = 4


@dataclass(frozen=True, slots=True)
class Publish:
    """Store a batch at the end of a queue: all or nothing."""

    port: int
    tag: int
    queue: str
    batch: Batch
    producer_id: str = ""
    """Empty: a resend cannot be recognised."""
    request_id: int = 0
    digest: int = 0
    """Of count, message ids and bodies (not headers), below 2^64: the same for a true resend."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One queue that a consumer wants messages of."""

    queue: str
    weight: int | None = None
    max_unsettled: int | None = None


@dataclass(frozen=True, slots=True)
class Client:
    """Who is calling: its build's name, version and language."""

    name: str = ""
    version: str = ""
    language: str = ""


@dataclass(frozen=True, slots=True)
class Attach:
    """Open a session on a stream. Answered by `Attached` or `AttachRefused`."""

    port: int
    session_id: int
    """Fresh and never used before: the edge takes it from its entropy (63 bits)."""
    session_token: str
    """Fresh secret for this session; the shard only stores and compares it."""
    consumer_id: str
    """Never empty: the edge fills one in."""
    subscriptions: tuple[Subscription, ...]
    client: Client = field(default_factory=Client)
    capabilities: frozenset[str] = frozenset()
    prefetch_messages: int = 16
    prefetch_bytes: int = 4 << 20
    weight: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    heartbeat_interval_ms: int = 0
    """0: the broker's default."""
    max_frame_bytes: int = 0
    """0: the default of the contract, 4 MiB less 64 KiB."""
    resumed_token: str = ""
    """The token that the consumer showed; empty: a new session."""
    resume_window_ms: int = 0
    held: tuple[FenceRange, ...] = ()


@dataclass(frozen=True, slots=True)
class SetPrefetch:
    """The most that a consumer will hold unsettled, over all its subscriptions; 0 messages pauses it."""

    port: int
    messages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The consumer lives. Every other command of its port says the same."""

    port: int
    sequence: int = 0
    echo: int = 0
    running: int = 0
    buffered: int = 0
    utilization: float = 0.0
    cpu: float = 0.0
    rss_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """Handlers began on these: the visibility clock starts."""

    port: int
    ranges: tuple[FenceRange, ...]


@dataclass(frozen=True, slots=True)
class Settlement:
    """One outcome for some fences; with publishes it is one unit."""

    outcome: Outcome
    ranges: tuple[FenceRange, ...]
    delay_ms: int | None = None
    """RETRY: instead of the queue's backoff."""
    reason: str = ""
    error_type: str = ""
    publishes: tuple[Publish, ...] = ()
    refusal: Refusal | None = None
    """Why one of its publishes cannot be accepted, found by the edge: the settlement is rejected whole."""


@dataclass(frozen=True, slots=True)
class Settle:
    """The settlements of one frame, in their order. Answered by `Settled`."""

    port: int
    settlements: tuple[Settlement, ...]


@dataclass(frozen=True, slots=True)
class Extend:
    """More time, from now, for what runs. Answered by `Extended`."""

    port: int
    ranges: tuple[FenceRange, ...]
    extension_ms: int


@dataclass(frozen=True, slots=True)
class Detach:
    """A polite leave: what is unsettled goes back uncharged."""

    port: int


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The stream is gone without a `Detach`: its consumer is lost."""

    port: int


@dataclass(frozen=True, slots=True)
class CreateQueue:
    """Make a queue. Answered by `AdminDone`."""

    port: int
    tag: int
    queue: str
    settings: QueueSettings


@dataclass(frozen=True, slots=True)
class UpdateQueue:
    """Replace a queue's settings. Answered by `AdminDone`."""

    port: int
    tag: int
    queue: str
    settings: QueueSettings


@dataclass(frozen=True, slots=True)
class DeleteQueue:
    """Remove a queue and all its messages. Answered by `AdminDone`."""

    port: int
    tag: int
    queue: str


@dataclass(frozen=True, slots=True)
class PurgeQueue:
    """Finish everything of a queue that is not in flight. Answered by `AdminDone` with the count."""

    port: int
    tag: int
    queue: str


@dataclass(frozen=True, slots=True)
class PauseQueue:
    """Stop (or go on with) deliveries; publishing is not touched. Answered by `AdminDone`."""

    port: int
    tag: int
    queue: str
    paused: bool


@dataclass(frozen=True, slots=True)
class LoadedBatch:
    """Consecutive messages read back, still in the form they came in."""

    offsets: range
    """One for each message of `batch`."""
    batch: Batch
    published_unix_ms: int
    dead_letter: DeadLetterInfo | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """The answer to the effect `Load`."""

    queue_id: int
    load_id: int
    batches: tuple[LoadedBatch, ...]


@dataclass(frozen=True, slots=True)
class CopyForward:
    """Write the live messages of the journal's positions `low` (included) to `high` anew, at its end."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class SetPressure:
    """Whether the machine can take more: publishes are refused while it cannot."""

    disk_low: bool
    memory_high: bool


@dataclass(frozen=True, slots=True)
class Drain:
    """The broker stops: nothing is delivered any more, consumers are told, settlements go on."""

    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has come to look at what is due, and to dispatch. Last in every turn of the engine."""


Command = (
    Publish | Attach | SetPrefetch | Heartbeat | Started | Settle | Extend | Detach | StreamEnded | CreateQueue
    | UpdateQueue | DeleteQueue | PurgeQueue | PauseQueue | Loaded | CopyForward | SetPressure | Drain | Tick
)  # fmt: skip
