"""What an operator says about a queue: frozen, typed, `None` for what is left alone.

In `create_queue` a `None` means the broker's default, in `update_queue` it means unchanged; what the broker
answers has every field filled in. Checks of values and of their relations are the broker's: it refuses with
`SETTINGS_INVALID` and names the field and its bounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class QueueMode(StrEnum):
    """How a queue is served; fixed at creation."""

    STANDARD = "STANDARD"
    """Priorities, then offset."""
    KEYED = "KEYED"
    """In rotation over keys, in order within a key."""


class BalancePolicy(StrEnum):
    """Who gets the next message of a queue; can be changed while it runs."""

    ROUND_ROBIN = "ROUND_ROBIN"
    WEIGHTED = "WEIGHTED"
    LEAST_IN_FLIGHT = "LEAST_IN_FLIGHT"
    LATENCY = "LATENCY"
    KEY_AFFINITY = "KEY_AFFINITY"


class RetryBackoff(StrEnum):
    """How the delay before a retry grows with the failures."""

    EXPONENTIAL = "EXPONENTIAL"
    LINEAR = "LINEAR"
    LIST = "LIST"


class RetryJitter(StrEnum):
    """How delays are spread, so that what failed together does not return together."""

    FULL = "FULL"
    """Uniform between 0 and the delay."""
    NONE = "NONE"
    """The delay as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed message comes again."""

    backoff: RetryBackoff | None = None
    """Default EXPONENTIAL."""
    initial_ms: int | None = None
    """Delay after the first failure, before jitter; for LINEAR also the step. Default 1,000."""
    multiplier: float | None = None
    """EXPONENTIAL: growth for each failure. Default 2."""
    max_ms: int | None = None
    """No delay is longer. Default 300,000."""
    delays_ms: tuple[int, ...] | None = None
    """LIST: the delay after each failure; the last one repeats."""
    jitter: RetryJitter | None = None
    """Default FULL."""
    non_retryable: tuple[str, ...] | None = None
    """Error types that are dead-lettered at the first failure. Default none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """How a queue behaves. All but `mode` can be changed under load."""

    mode: QueueMode | None = None
    """Default STANDARD. Fixed at creation."""
    balance_policy: BalancePolicy | None = None
    """Default LEAST_IN_FLIGHT."""
    visibility_timeout_ms: int | None = None
    """How long a handler may run before its message goes to another. Default 30,000, at least 100."""
    max_attempts: int | None = None
    """The failure that dead-letters. Default 5; 0: none does."""
    max_losses: int | None = None
    """The loss of a consumer that dead-letters what it ran. Default 10; 0: none does."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    dead_letter_queue: str | None = None
    """Where dead letters go. Default `<queue>.dlq`, made at the first letter; empty: nowhere."""
    max_consumers: int | None = None
    """Default 10,000."""
    labels: Mapping[str, str] | None = None
    """Free labels. In an update all of them are replaced; an empty mapping removes them."""
