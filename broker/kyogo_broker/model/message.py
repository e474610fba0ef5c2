"""Encoded messages as they travel: from the socket to the journal and back to a socket, never taken apart.

A batch is the wire form of `repeated Message messages = 15`, which is the same in `PublishRequest` and in
`DeliveryRun`. A slice of a batch between two ends is therefore a ready part of a delivery frame:

    wire   | tag len message 0 | tag len message 1 | tag len message 2 |
    ends                       ^ ends[0]           ^ ends[1]           ^ ends[2]
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages published together, encoded, with the place where each one ends."""

    wire: bytes
    """`(tag, length, message)` for each message, back to back."""
    ends: Sequence[int]
    """Where each message ends in `wire`, increasing; a `range` when all have one size. Never empty."""

    @property
    def count(self) -> int:
        """Messages in the batch."""
        return len(self.ends)

    def size(self, first: int, last: int) -> int:
        """Bytes on the wire of messages `first` to `last`, both included, counted from 0."""
        return self.ends[last] - (self.ends[first - 1] if first else 0)

    def part(self, first: int, last: int) -> memoryview:
        """The wire form of messages `first` to `last`, both included; not copied."""
        return memoryview(self.wire)[self.ends[first - 1] if first else 0 : self.ends[last]]


@dataclass(frozen=True, slots=True)
class FenceRange:
    """Consecutive fences, both ends included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class OffsetRun:
    """Consecutive offsets that one publish got."""

    first_offset: int
    count: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetterInfo:
    """How a message came to its dead-letter queue; it travels with every delivery from there."""

    queue: str
    offset: int
    reason: str
    attempts: int
    """Failures charged, the last one included."""
    losses: int
    first_error: str
    last_error: str
    error_type: str
    last_consumer_id: str
    first_delivered_unix_ms: int
    dead_lettered_unix_ms: int
