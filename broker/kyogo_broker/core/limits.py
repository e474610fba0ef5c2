"""What one shard admits, and how it hears of its consumers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """Limits and defaults of a shard; every one is reached in a test."""

    shard_number: int = 0
    """0 to 31: the top bits of its fences."""
    auto_create: bool = False
    """Whether a publish makes its queue: only on loopback without auth."""
    queues_max: int = 10_000
    producers_max: int = 100_000
    """Windows of (producer, queue): some 10 KB each when full."""
    prefetch_messages_max: int = 10_000
    prefetch_bytes_max: int = 64 << 20
    heartbeat_interval_ms: int = 1_000
    heartbeat_interval_ms_min: int = 100
    heartbeat_interval_ms_max: int = 60_000
    subscriptions_max: int = 64
    """Of one consumer."""
    weight_max: int = 1_000_000


CAPABILITIES = frozenset({"started", "drain"})
"""What this broker makes use of when a consumer declares it."""

ASIDE_MAX = 1_000
"""Messages of one queue set aside because they fit into nobody's frames who was in turn: some 200 B each. Beyond it
consumers of small frames wait, as they would behind any large message."""
DISPATCH_MESSAGES_MAX = 8_192
"""Of one queue in one tick: the loop must come back to its inbox within milliseconds."""
DISPATCH_RUNS_MAX = 256
"""The same for runs, at some 20 us each: messages that were published one by one are a run each while in memory."""
EXTENSION_MS_MAX = 12 * 3_600_000
FENCE_RANGE_MAX = 10_000
"""Fences in one range: nobody holds more, and each may need a look-up of its own."""
