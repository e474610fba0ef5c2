"""What happened: past tense, frozen. The journal holds these and nothing else, and state is made of these alone.

Each fact belongs to one queue (or to the shard as a whole), so that a checkpoint can take every queue at its own
moment. `WAITED` says whether somebody waits for the fact to be durable; the others ride with the next record.
Times are steady or unix milliseconds, see `clock`.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from kyogo_broker.model.commands import Outcome
from kyogo_broker.model.message import Batch, DeadLetterInfo
from kyogo_broker.model.settings import QueueSettings
from kyogo_broker.model.states import FinishReason, RedeliveryReason


class Span(NamedTuple):
    """Consecutive deliveries: fences and offsets both count up from here."""

    first_fence: int
    first_offset: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls on a span


@dataclass(frozen=True, slots=True)
class Opened:
    """A broker took the journal over: every lease and session of before is over."""

    WAITED: ClassVar[bool] = True
    epoch: int
    opened_unix_ms: int


@dataclass(frozen=True, slots=True)
class FencesReserved:
    """Fences below `until` may have been issued."""

    WAITED: ClassVar[bool] = True
    until: int


@dataclass(frozen=True, slots=True)
class QueueCreated:
    """A queue exists from here on; its id is never used for another."""

    WAITED: ClassVar[bool] = True
    queue_id: int
    name: str
    settings: QueueSettings
    created_unix_ms: int


@dataclass(frozen=True, slots=True)
class QueueUpdated:
    """A queue has other settings from here on."""

    WAITED: ClassVar[bool] = True
    queue_id: int
    settings: QueueSettings


@dataclass(frozen=True, slots=True)
class QueuePaused:
    """Deliveries of a queue stopped or went on."""

    WAITED: ClassVar[bool] = True
    queue_id: int
    paused: bool


@dataclass(frozen=True, slots=True)
class QueueDeleted:
    """A queue and all its messages are gone."""

    WAITED: ClassVar[bool] = True
    queue_id: int


@dataclass(frozen=True, slots=True)
class Published:
    """A batch was accepted at the end of a queue."""

    WAITED: ClassVar[bool] = True
    queue_id: int
    first_offset: int
    batch: Batch
    published_unix_ms: int
    producer_id: str = ""
    request_id: int = 0
    digest: int = 0
    dead_letter: DeadLetterInfo | None = None
    """Set on dead letters; their batch holds one message."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Live messages of an old part of the journal, written anew so that it can be freed."""

    WAITED: ClassVar[bool] = False
    queue_id: int
    offsets: tuple[int, ...] | range
    batch: Batch
    published_unix_ms: int
    dead_letter: DeadLetterInfo | None = None


@dataclass(frozen=True, slots=True)
class Leased:
    """Messages were handed to a session."""

    WAITED: ClassVar[bool] = False
    queue_id: int
    session_id: int
    consumer_id: str
    span: Span
    leased_unix_ms: int


@dataclass(frozen=True, slots=True)
class Settled:
    """A consumer settled with ACK (finished) or RELEASE (back to the original place, uncharged)."""

    WAITED: ClassVar[bool] = True
    queue_id: int
    outcome: Outcome
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Returned:
    """The broker took deliveries back, uncharged, to their original place."""

    WAITED: ClassVar[bool] = False
    queue_id: int
    reason: RedeliveryReason
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """What had started went down with its consumer: one loss charged for each message."""

    WAITED: ClassVar[bool] = False
    queue_id: int
    reason: RedeliveryReason
    spans: tuple[Span, ...]
    consumer_id: str
    due_ms: int
    """Steady instant from which they are ready again; 0: at once."""


@dataclass(frozen=True, slots=True)
class Retried:
    """One delivery failed (RETRY or visibility timeout): one failure charged."""

    WAITED: ClassVar[bool] = True
    queue_id: int
    reason: RedeliveryReason
    span: Span
    """Of one message."""
    consumer_id: str
    due_ms: int
    """Steady instant from which it is ready again; 0: at once."""
    error_type: str
    error: str
    outcome: Outcome = Outcome.RETRY
    """What the consumer said, if it said anything (reason RETRY), for repeated settlements: in a dead-letter queue
    DEAD_LETTER comes back too."""


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """One delivery ended its message here; its letter is the `Published` beside it, if the queue keeps letters."""

    WAITED: ClassVar[bool] = True
    queue_id: int
    span: Span
    """Of one message."""
    outcome: Outcome | None
    """What the consumer said, for repeated settlements; None when the broker ended it."""
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Messages that were not in flight ended without a consumer (purged)."""

    WAITED: ClassVar[bool] = True
    queue_id: int
    reason: FinishReason
    ranges: tuple[tuple[int, int], ...]
    """First and last offset of each range, increasing."""


@dataclass(frozen=True, slots=True)
class ProducersForgotten:
    """Producers' windows that nobody used for an hour were dropped."""

    WAITED: ClassVar[bool] = False
    queue_id: int
    producer_ids: tuple[str, ...]


Fact = (
    Opened | FencesReserved | QueueCreated | QueueUpdated | QueuePaused | QueueDeleted | Published | Moved | Leased
    | Settled | Returned | Lost | Retried | DeadLettered | Finished | ProducersForgotten
)  # fmt: skip
