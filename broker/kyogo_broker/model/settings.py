"""Settings of a queue: frozen, validated when built, relations included.

Every row of the contract's table is here, so that a value of a later capability is refused by name instead of
silently ignored. `None` means absent.
"""

import re
from dataclasses import dataclass, field, fields
from enum import StrEnum

from kyogo_broker.model.errors import ErrorCode, refuse

QUEUE_NAME = re.compile(r"[A-Za-z0-9._-]{1,116}")
DLQ_SUFFIX = ".dlq"
VISIBILITY_MS_MAX = 12 * 3600 * 1000
"""Longer work extends while it runs."""
DURATION_MS_MAX = 365 * 24 * 3600 * 1000
"""A year: longer waits are a scheduler's work."""
MULTIPLIER_MAX = 100.0
DLQ_RETENTION_MS = 30 * 24 * 3600 * 1000
DLQ_BYTES_MAX = 1 << 30


class QueueMode(StrEnum):
    """How a queue orders what is ready; fixed at creation."""

    STANDARD = "STANDARD"
    KEYED = "KEYED"


class BalancePolicy(StrEnum):
    """How a queue chooses the consumer for what is ready."""

    ROUND_ROBIN = "ROUND_ROBIN"
    WEIGHTED = "WEIGHTED"
    LEAST_IN_FLIGHT = "LEAST_IN_FLIGHT"
    LATENCY = "LATENCY"
    KEY_AFFINITY = "KEY_AFFINITY"


class Backoff(StrEnum):
    """How the delay before a retry grows."""

    EXPONENTIAL = "EXPONENTIAL"
    LINEAR = "LINEAR"
    LIST = "LIST"


class Overflow(StrEnum):
    """What a full queue does with a publish."""

    REJECT = "REJECT"
    DROP_OLDEST = "DROP_OLDEST"
    BACKPRESSURE = "BACKPRESSURE"


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """When a failed message is tried again."""

    backoff: Backoff = Backoff.EXPONENTIAL
    initial_ms: int = 1_000
    """Delay after the first failure, before jitter."""
    multiplier: float = 2.0
    """Growth a failure (exponential); linear adds `initial_ms` a failure."""
    max_ms: int = 300_000
    delays_ms: tuple[int, ...] = ()
    """The delays of `LIST`, the last one repeated."""
    jitter: bool = True
    """Full jitter: uniform between 0 and the delay."""
    non_retryable: tuple[str, ...] = ()
    """Error types that go to the dead letters at the first failure."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not 1 <= self.initial_ms <= self.max_ms <= DURATION_MS_MAX:
            raise refuse(
                ErrorCode.SETTINGS_INVALID,
                f"retry needs 1 <= initial_ms ({self.initial_ms}) <= max_ms ({self.max_ms}) <= {DURATION_MS_MAX}",
            )
        if not 1.0 <= self.multiplier <= MULTIPLIER_MAX:
            raise refuse(ErrorCode.SETTINGS_INVALID, "retry.multiplier must lie between 1 and 100")
        if self.backoff is Backoff.LIST and not self.delays_ms:
            raise refuse(ErrorCode.SETTINGS_INVALID, "retry.backoff LIST needs at least one entry in delays_ms")
        if any(not 0 <= delay <= DURATION_MS_MAX for delay in self.delays_ms):
            raise refuse(ErrorCode.SETTINGS_INVALID, f"retry.delays_ms must lie between 0 and {DURATION_MS_MAX}")


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """What an operator says about one queue. All but `mode` can change while it runs."""

    mode: QueueMode = QueueMode.STANDARD
    balance_policy: BalancePolicy = BalancePolicy.LEAST_IN_FLIGHT
    visibility_timeout_ms: int = 30_000
    """From the handler's start (level 1: from delivery) until the message is given to another."""
    max_attempts: int = 5
    """The failure that dead-letters; 0: never (dead-letter queues)."""
    max_losses: int = 10
    """The loss that dead-letters; 0: never (dead-letter queues)."""
    retry: RetrySettings = field(default_factory=RetrySettings)
    dead_letter_queue: str | None = None
    """Name of the queue for dead letters; None: `<queue>.dlq`; empty: none, finished with an event."""
    max_consumers: int = 10_000
    labels: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the field and its bounds."""
        _within("visibility_timeout_ms", self.visibility_timeout_ms, 100, VISIBILITY_MS_MAX)
        _within("max_attempts", self.max_attempts, 0, 10_000)
        _within("max_losses", self.max_losses, 0, 10_000)
        _within("max_consumers", self.max_consumers, 1, 10_000)
        _within("number of labels", len(self.labels), 0, 64)
        if self.dead_letter_queue and not valid_queue_name(self.dead_letter_queue):
            raise refuse(ErrorCode.SETTINGS_INVALID, f"dead_letter_queue: {NAME_RULE}")


NAME_RULE = "a queue's name is 1 to 116 characters of A-Z a-z 0-9 . _ -; only the broker appends '.dlq'"


def valid_queue_name(name: str) -> bool:
    """Whether a queue may be called `name`; a dead-letter suffix stands beyond the 116 characters."""
    return QUEUE_NAME.fullmatch(name.removesuffix(DLQ_SUFFIX)) is not None


def changed_fields(before: QueueSettings, after: QueueSettings) -> tuple[str, ...]:
    """Names of the settings in which the two differ."""
    return tuple(f.name for f in fields(QueueSettings) if getattr(before, f.name) != getattr(after, f.name))


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise refuse(ErrorCode.SETTINGS_INVALID, f"{name} is {value}; it must lie between {low} and {high}")
