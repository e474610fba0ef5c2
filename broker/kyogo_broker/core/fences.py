"""The counter of fences: one for each journal, never issued twice, reserved durably in blocks.

The top 5 of the 53 bits are the shard's number. A process issues only from blocks that it reserved itself, so what
an earlier one issued without a trace is never issued again.
"""

BLOCK = 1 << 20
RESERVE_AT = BLOCK // 4
"""Fences left at which the next block is reserved."""
SHARD_BITS = 48
FENCE_MAX = 1 << 53


class Fences:
    """What was issued, and up to where it may go on."""

    __slots__ = ("limit", "next", "reserved")

    def __init__(self, shard_number: int = 0) -> None:
        self.reserved = (shard_number << SHARD_BITS) + 1
        """Everything below may have been issued, by this process or one before."""
        self.next = self.reserved
        """The next fence of this process."""
        self.limit = (shard_number + 1) << SHARD_BITS

    def needs_block(self) -> bool:
        """Whether it is time to reserve."""
        return self.reserved - self.next < RESERVE_AT

    def reserve(self, until: int) -> None:
        """Record a reservation. A new process begins at the end of what was reserved before it."""
        assert self.reserved <= until <= self.limit, "this shard has no fences left"
        self.reserved = until

    def begin_block(self) -> None:
        """Leave everything that may have been issued behind."""
        self.next = self.reserved

    def take(self, count: int) -> int:
        """The first of `count` consecutive fences."""
        first = self.next
        self.next += count
        assert self.next <= self.reserved, "fences ran out: a block is reserved too late"
        return first

    def was_issued(self, fence: int) -> bool:
        """Whether `fence` was issued, or may have been by a process before this one."""
        return 0 < fence < self.next
