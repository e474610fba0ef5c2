"""The only reader of time and entropy. Everything below is handed what it needs of both.

Two clocks: *unix* is the wall clock and may jump; schedules and expiry go by it. *Steady* never jumps: it is the
monotonic clock, moved once at start so that it begins at the wall clock's value. A steady instant can therefore be
written down by one process and, up to the time in which no broker ran, be compared with by the next one.
"""

import secrets
import time
import uuid

from kyogo_broker.model.now import Now


class Clock:
    """The real clocks and the system's entropy."""

    def __init__(self) -> None:
        self._anchor_ns = time.time_ns() - time.monotonic_ns()

    def now(self) -> Now:
        """Both clocks, read together."""
        return Now((time.monotonic_ns() + self._anchor_ns) // 1_000_000, time.time_ns() // 1_000_000)

    def seconds(self) -> float:
        """Monotonic seconds, for measuring durations."""
        return time.perf_counter()


def fresh_session_id() -> int:
    """A number that no session had before: 63 bits of entropy, never 0."""
    return secrets.randbits(63) | 1


def fresh_token() -> str:
    """A secret of 128 bits for one session."""
    return secrets.token_urlsafe(16)


def fresh_name(prefix: str) -> str:
    """A name nobody else has, for what its owner did not name."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def fresh_seed() -> int:
    """A seed for the generator in the shard's state."""
    return secrets.randbits(64)
