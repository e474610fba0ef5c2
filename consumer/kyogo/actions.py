"""The values that go into a session and come out of it: what to attach with, and what to do about a frame."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from kyogo.delivery import Delivery
from kyogo.errors import KyogoError


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


# --- actions ---


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
