"""Which segments nobody needs any more, and which hold so little that it is worth copying forward.

Copying is a second write of what was written before, so nothing is copied while the journal is no larger than
`TIMES_LIVE` of what is live in it; then the segments that hold the least go first, and only as many as bring it there.
A segment that holds a third or more is never copied, which is enough: a journal of such segments is small enough.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

TIMES_LIVE = 3
"""How many times what is live in them the segments may take. Smaller: less disk, more copying."""


class Holding(NamedTuple):
    """A segment that is no longer appended to."""

    number: int
    last_sequence: int
    """No record in it has a higher one."""
    used: int
    """Bytes."""


class FreeingPlan(NamedTuple):
    """Numbers of segments."""

    gone: list[int]
    sparse: list[int]
    """Those that hold the least first."""


def plan_freeing(
    holdings: Iterable[Holding], *, below: int, live: Mapping[int, int], spare: int, disk_low: bool = False
) -> FreeingPlan:
    """Judge each segment by what of it is live.

    Args:
        holdings: the segments.
        below: as in `Journal.free`.
        live: bytes of messages that are still needed, by number of the segment.
        spare: bytes that segments up to there may take beyond `TIMES_LIVE` of what is live in them.
        disk_low: copy whatever is worth it, but one segment only: what is copied takes room before it gives any back.
    """
    old = [holding for holding in holdings if holding.last_sequence <= below]
    gone = [holding.number for holding in old if not live.get(holding.number)]
    kept = [(live[holding.number], holding) for holding in old if live.get(holding.number)]
    surplus = sum(holding.used - TIMES_LIVE * size for size, holding in kept) - spare
    sparse: list[int] = []
    for size, holding in sorted(kept, key=lambda one: one[0] / one[1].used):
        if size * TIMES_LIVE >= holding.used or (sparse if disk_low else surplus <= 0):
            break
        sparse.append(holding.number)
        surplus -= holding.used - size
    return FreeingPlan(gone, sparse)
