"""Limits so small that a history of a thousand operations reaches all of them, in the proportions of the real ones."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from unittest.mock import patch

REQUEST_BYTES_MAX = 7 << 10
MESSAGE_BYTES_MAX = 5 << 10
RECORD_BYTES_SOFT = 4 << 10
MAX_RECORD_BYTES = 40 << 10
STRETCH = 2 << 10

SMALL = {
    "engine.PORT_COMMANDS_MAX": 6,
    "engine.PORT_BYTES_MAX": 8 << 10,
    "engine.RECORD_BYTES_SOFT": RECORD_BYTES_SOFT,
    "engine.PENDING_FACTS_MAX": 24,
    "engine.PRESSURE_CHECK_MS": 50,
    "checkpointing.CHECKPOINT_BYTES": 40 << 10,
    "checkpointing.CHECKPOINT_FACTS": 400,
    "core.dispatch.DISPATCH_MESSAGES_MAX": 32,
    "core.dispatch.LEASE_MESSAGES_MAX": 8,
    "core.extents.COMPACT_AT": 2,
    "core.copying.ROW_BYTES_MAX": 12 << 10,
    "core.fences.BLOCK": 4096,
    "core.fences.RESERVE_AT": 1024,
    "core.shard.BLOCK": 4096,
    "core.shard.IDLE_CHECK_MS": 500,
    "core.leases.COMPACT_AT": 8,
    "core.letters.TURN_BYTES_MAX": 4 << 10,
    "core.producers.REQUESTS_KEPT": 16,
    "core.reading.LOAD_BYTES_MAX": 4 << 10,
    "core.reading.LOAD_RANGES_MAX": 4,
    "core.reading.READ_AHEAD_MESSAGES": 16,
    "core.timers.COMPACT_AT": 16,
    "core.window.ENTRY_BYTES": 40,
    "journal.checkpoint.SPARE_BYTES_MIN": 8 << 10,
    "journal.checkpoint.SYNC_BYTES": 4 << 10,
    "journal.loading.MERGED_BYTES_MAX": 2 << 10,
    "journal.segments.READ_AHEAD_BYTES": 128,
    "journal.segment_file.CHUNK_BYTES": 16 << 10,
    "policy.balance.least_in_flight.COMPACT_AT": 4,
}


def varied(random: Random) -> dict[str, float]:
    """Those that differ from history to history."""
    window = random.choice((4 << 10, 16 << 10))
    return {
        "checkpointing.SLICE_SECONDS": random.choice((0.0, 0.004)),
        "core.settled.REMEMBERED": random.choice((128, 65_536)),
        "core.window.QUEUE_BYTES_MAX": window,
        "core.window.SHARD_BYTES_MAX": 3 * window,
        "core.window.QUEUE_BYTES_LOW": window // 4,
    }


@contextmanager
def limits(values: dict[str, float]) -> Iterator[None]:
    """Let these hold for a while."""
    with ExitStack() as stack:
        for name, value in values.items():
            stack.enter_context(patch(f"kyogo_broker.{name}", value))
        yield
