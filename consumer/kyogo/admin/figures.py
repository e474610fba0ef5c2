"""What the broker shows of itself: frozen pictures of one moment.

Mappings of counts have the contract's words in lower case as keys ("acked", "stream_loss"); what is zero is
left out. A word that this client does not know yet, of a newer broker, is its number.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kyogo.admin.settings import QueueSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """Figures of one queue; counts run since it was made, restarts included, unless said otherwise."""

    queue: str
    ready: int
    """Could be delivered now."""
    delayed: int
    """Wait for a delay or a backoff."""
    parked: int
    """Held back by a breaker or for isolation."""
    in_flight: int
    """Delivered and unsettled."""
    accepted: int
    """Ever accepted: the sum of the four above and of all in `finished`."""
    finished: Mapping[str, int]
    """By reason."""
    delivered: int
    """Deliveries, repeated ones included."""
    settled: Mapping[str, int]
    """By outcome."""
    redelivered: Mapping[str, int]
    """By reason."""
    next_offset: int
    """The offset of the message that is accepted next."""
    oldest_ready_age_ms: int | None
    """None: nothing is ready."""
    ready_bytes: int
    unfinished_bytes: int
    consumers: int
    """Subscribed now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """One queue, its settings in force and its figures."""

    name: str
    settings: QueueSettings
    paused: bool
    created_unix_ms: int
    stats: QueueStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """One attached consumer."""

    consumer_id: str
    session_id: str
    state: str
    """`idle`, `processing`, `suspect`, `failed`, `draining` or `stopped`."""
    client_name: str
    client_version: str
    client_language: str
    queues: tuple[str, ...]
    prefetch_messages: int
    prefetch_bytes: int
    in_flight: int
    started: int
    """Of those in flight: its handlers began on them."""
    in_flight_bytes: int
    weight: int
    labels: Mapping[str, str]
    connected_unix_ms: int
    delivered: int
    """In this session."""
    settled: Mapping[str, int]
    """In this session, by outcome."""
    peer: str
    """Its network address, as the broker sees it."""
    silent_ms: int
    """How long ago it was last heard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerStats:
    """The broker's own figures; counts run since it started."""

    node: str
    version: str
    started_unix_ms: int
    now_unix_ms: int
    durability: str
    """What an answered publish has survived: `memory`, `fsync` or `replicated`."""
    queues: int
    consumers: Mapping[str, int]
    """Now, by state."""
    publish_streams: int
    accepted: int
    delivered: int
    settled: int
    journal_records: int
    journal_written_bytes: int
    journal_bytes: int
    """On disk, now."""
    disk_free_bytes: int
    disk_free_min_bytes: int
    """Publishes are refused below so many free bytes."""
    rss_bytes: int
    memory_limit_bytes: int
    """Publishes are refused above so much resident memory."""
    commit_p50_ms: float
    commit_p99_ms: float
    stall_max_ms: float
    draining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The broker and its queues, all of one moment."""

    broker: BrokerStats
    queues: tuple[QueueStats, ...]
    """By name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """Who the broker is and what it allows."""

    version: str
    node: str
    capabilities: tuple[str, ...]
    durability: str
    """What an answered publish has survived: `memory`, `fsync` or `replicated`."""
    max_message_bytes: int
    max_request_bytes: int
    max_prefetch_messages: int
    max_prefetch_bytes: int
