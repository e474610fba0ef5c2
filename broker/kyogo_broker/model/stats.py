"""Frozen pictures of the state: metrics, admin answers, logs and the dashboard read only these."""

from collections.abc import Mapping
from dataclasses import dataclass

from kyogo_broker.model.commands import Client
from kyogo_broker.model.settings import QueueSettings
from kyogo_broker.model.states import ConsumerState


@dataclass(frozen=True, slots=True)
class QueueStats:
    """One queue; counters run from its creation, restarts included, unless said."""

    queue_id: int
    name: str
    settings: QueueSettings
    paused: bool
    created_unix_ms: int
    next_offset: int
    ready: int
    delayed: int
    parked: int
    in_flight: int
    finished: Mapping[str, int]
    """By `FinishReason`."""
    accepted: int
    delivered: int
    """Since this broker started, repeated deliveries included."""
    settled: Mapping[str, int]
    """By outcome (`ACK`, `RETRY`, ...), since this broker started."""
    redelivered: Mapping[str, int]
    """By `RedeliveryReason` (`STREAM_LOSS`, ...), since this broker started."""
    consumers: int
    oldest_ready_offset: int
    """0: nothing is ready."""
    oldest_ready_age_ms: int | None = None
    """Since it was published; None: nothing is ready, or it is not in memory."""


@dataclass(frozen=True, slots=True)
class ConsumerStats:
    """One attached consumer."""

    consumer_id: str
    session_id: int
    port: int
    state: ConsumerState
    client: Client
    queues: tuple[str, ...]
    labels: Mapping[str, str]
    weight: int
    prefetch_messages: int
    prefetch_bytes: int
    in_flight: int
    in_flight_bytes: int
    delivered: int
    settled: int
    attached_unix_ms: int
    heard_ago_ms: int
    started: int = 0
    """Of those in flight: its handlers began on them."""


@dataclass(frozen=True, slots=True)
class ShardStats:
    """All queues and consumers of one journal."""

    queues: tuple[QueueStats, ...]
    consumers: tuple[ConsumerStats, ...]
    failovers: Mapping[str, int]
    """Consumers lost, by reason (`stream_loss`, `suspect`, `failed`), since this broker started."""
    producers: int
    window_bytes: int
    """Messages held in memory, encoded."""


COMMIT_BOUNDS_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper bounds of the buckets of commit times: from a good drive (60 us) to a disk that is in trouble."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often something took how long."""

    bounds: tuple[float, ...] = COMMIT_BOUNDS_SECONDS
    """Upper bounds of the buckets, increasing; a value on a bound belongs below it."""
    counts: tuple[int, ...] = (0,) * (len(COMMIT_BOUNDS_SECONDS) + 1)
    """Values in each bucket alone, not summed up; the last one holds what is above every bound."""
    sum: float = 0.0

    def __post_init__(self) -> None:
        """One bucket for each bound, and one beyond."""
        assert len(self.counts) == len(self.bounds) + 1, "a histogram has one count more than bounds"

    @property
    def count(self) -> int:
        """All values."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The loop and its journal, since this broker started."""

    turns: int
    commits: int
    commit_bytes: int
    commit_seconds: Histogram
    """From handing a record to the journal until it was durable."""
    inbox: int
    lag_seconds: float
    """How late the last turn was woken."""
    stalled_seconds: float
    copied_bytes: int = 0
    """Of `commit_bytes`: messages copied forward, so that an old part of the journal could be freed."""
