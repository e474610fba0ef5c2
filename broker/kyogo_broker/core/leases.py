"""Deliveries that are not settled: a lease for each run, bits for its messages.

A lease covers consecutive fences and offsets of one queue, handed to one session. `live` has a bit for each message
that is still unsettled, `started` one for each whose handler has begun. Fences only grow, so the table of leases is a
sorted list that is appended to; ended ones are dropped together.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kyogo_broker.core.ranges import runs_of
from kyogo_broker.model.facts import Span
from kyogo_broker.model.states import RedeliveryReason

if TYPE_CHECKING:
    from kyogo_broker.core.consumers import Consumer, Member
    from kyogo_broker.core.queue import Queue

COMPACT_AT = 256
LEASE_MESSAGES_MAX = 512
"""Messages of one lease: beyond it the bit operations cost more than another lease."""


class Lease:
    """One run of deliveries."""

    __slots__ = (
        "base", "consumer", "consumer_id", "count", "deadlines", "ends", "first_fence", "first_offset",
        "leased_unix_ms", "live", "member", "queue", "reason", "session_id", "started", "timer_ms",
    )  # fmt: skip

    def __init__(
        self, queue: "Queue", span: Span, *, session_id: int, consumer_id: str, leased_unix_ms: int,
        reason: RedeliveryReason,
    ) -> None:  # fmt: skip
        self.queue = queue
        self.first_fence, self.first_offset, self.count = span
        self.session_id = session_id
        self.consumer_id = consumer_id
        self.leased_unix_ms = leased_unix_ms
        self.reason = reason
        """Of this delivery: what a repeated return of it keeps if it was never begun."""
        self.live = (1 << span.count) - 1
        self.started = 0
        self.consumer: Consumer | None = None
        """None in a replay, where sessions are only numbers."""
        self.member: Member | None = None
        self.ends: Sequence[int] = ()
        self.base = 0
        """Index of the first message in `ends`, which are those of the batch it was taken from."""
        self.deadlines: list[list[int]] = []
        """[bits, steady instant] of what must be settled by then."""
        self.timer_ms = 0

    def bits(self, first_fence: int, last_fence: int) -> int:
        """The mask of the fences from `first_fence` to `last_fence`, cut to this lease."""
        low = max(first_fence - self.first_fence, 0)
        high = min(last_fence - self.first_fence, self.count - 1)
        return ((1 << high - low + 1) - 1) << low if high >= low else 0

    def spans(self, mask: int) -> Iterator[Span]:
        """The runs of `mask` as spans."""
        for bit, length in runs_of(mask):
            yield Span(self.first_fence + bit, self.first_offset + bit, length)

    def size(self, bit: int, length: int) -> int:
        """Encoded bytes of the `length` messages from `bit` on; 0 in a replay."""
        if not self.ends:
            return 0
        first = self.base + bit
        return self.ends[first + length - 1] - (self.ends[first - 1] if first else 0)

    def start(self, mask: int, deadline_ms: int) -> int:
        """Handlers began on `mask`; returns the bits for which that is news."""
        news = mask & self.live & ~self.started
        if news:
            self.started |= news
            self.deadlines.append([news, deadline_ms])
        return news

    def extend(self, mask: int, deadline_ms: int) -> None:
        """Move the deadline of live messages; one that had not begun has begun by this."""
        for entry in self.deadlines:
            entry[0] &= ~mask
        self.deadlines = [entry for entry in self.deadlines if entry[0]]
        self.deadlines.append([mask, deadline_ms])
        self.started |= mask

    def next_deadline_ms(self, mask: int) -> int | None:
        """The earliest deadline of the messages of `mask`."""
        return min((at for bits, at in self.deadlines if bits & mask), default=None)

    def expired(self, now_ms: int) -> int:
        """Live messages whose deadline has passed."""
        mask = 0
        for bits, at in self.deadlines:
            if at <= now_ms:
                mask |= bits
        return mask & self.live


class Leases:
    """All leases of a shard, by fence."""

    __slots__ = ("_ended", "_firsts", "_leases")

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._leases: list[Lease] = []
        self._ended = 0

    def __len__(self) -> int:
        """Leases with something unsettled."""
        return len(self._leases) - self._ended

    def __iter__(self) -> Iterator[Lease]:
        """Leases with something unsettled, by fence."""
        return (lease for lease in self._leases if lease.live)

    def add(self, lease: Lease) -> None:
        """A new lease. Live, its fences are above all others; a replay adds those of each queue in their order."""
        if not self._firsts or lease.first_fence > self._firsts[-1]:
            self._firsts.append(lease.first_fence)
            self._leases.append(lease)
        else:
            index = bisect_right(self._firsts, lease.first_fence)
            self._firsts.insert(index, lease.first_fence)
            self._leases.insert(index, lease)

    def find(self, fence: int) -> Lease | None:
        """The lease that covers `fence` and still has something unsettled."""
        index = bisect_right(self._firsts, fence) - 1
        if index < 0:
            return None
        lease = self._leases[index]
        return lease if lease.live and fence < lease.first_fence + lease.count else None

    def next_first(self, fence: int) -> int | None:
        """The first fence of the first lease above `fence`."""
        index = bisect_right(self._firsts, fence)
        return self._firsts[index] if index < len(self._firsts) else None

    def ended(self) -> None:
        """A lease has nothing unsettled any more."""
        self._ended += 1
        if self._ended >= COMPACT_AT and self._ended * 2 >= len(self._leases):
            self._leases = [lease for lease in self._leases if lease.live]
            self._firsts = [lease.first_fence for lease in self._leases]
            self._ended = 0

    def check_invariants(self) -> None:
        """Sorted, not overlapping, ended ones counted."""
        end = 0
        for first, lease in zip(self._firsts, self._leases, strict=True):
            assert first == lease.first_fence >= end, "leases overlap"
            assert lease.live >> lease.count == 0, "a lease has bits beyond its end"
            end = first + lease.count
        assert self._ended == sum(1 for lease in self._leases if not lease.live), "ended leases are miscounted"
