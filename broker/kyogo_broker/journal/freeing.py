"""Which segments nobody needs any more, and which hold so little that it is worth copying forward."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

SPARSE = 4
"""A segment is sparse when less than one part in this many is live: copying it gives back at least three."""


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


def plan_freeing(holdings: Iterable[Holding], *, below: int, live: Mapping[int, int], number_shift: int) -> FreeingPlan:
    """Judge each segment by what of it is live; `below` and `live` as in `Journal.free`."""
    by_number: dict[int, int] = {}
    for position, size in live.items():
        if size > 0:
            number = position >> number_shift
            by_number[number] = by_number.get(number, 0) + size
    plan = FreeingPlan([], [])
    for holding in holdings:
        size = by_number.get(holding.number, 0)
        if holding.last_sequence > below:
            continue
        if size == 0:
            plan.gone.append(holding.number)
        elif size * SPARSE < holding.used:
            plan.sparse.append(holding.number)
    return plan
