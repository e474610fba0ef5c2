"""A frame's settlements as commands that are each handled within milliseconds.

A frame may fail ten thousand messages, at some 15 us each: as one command it would hold the loop, and everybody else,
for as long as all of them take. The engine looks up between commands; a settlement with publishes stays whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from kyogo_broker.core.limits import FENCE_RANGE_MAX
from kyogo_broker.model.commands import Outcome, Settle, Settlement
from kyogo_broker.model.message import FenceRange

WEIGHT_MAX = 512
"""Ranges of one command, and deliveries that fail by it: some 8 ms."""
FAILING = (Outcome.RETRY, Outcome.DEAD_LETTER)


def settles(port: int, settlements: tuple[Settlement, ...]) -> Iterator[Settle]:
    """The settlements of one frame, in their order."""
    if sum(map(_weight, settlements)) <= WEIGHT_MAX:
        yield Settle(port, settlements)
        return
    group: list[Settlement] = []
    weight = 0
    for settlement in settlements:
        for portion in _portions(settlement):
            if group and weight + _weight(portion) > WEIGHT_MAX:
                yield Settle(port, tuple(group))
                group, weight = [], 0
            group.append(portion)
            weight += _weight(portion)
    yield Settle(port, tuple(group))


def _weight(settlement: Settlement) -> int:
    if settlement.outcome in FAILING:
        return sum(fences.last - fences.first + 1 for fences in settlement.ranges)
    return len(settlement.ranges)


def _portions(settlement: Settlement) -> Iterator[Settlement]:
    """A settlement in parts that are no heavier than a command may be; one that is whole or refused stays whole."""
    absurd = any(fences.last - fences.first >= FENCE_RANGE_MAX for fences in settlement.ranges)
    whole = settlement.publishes or settlement.refusal is not None
    if _weight(settlement) <= WEIGHT_MAX or whole or absurd:
        yield settlement
        return
    ranges: Sequence[FenceRange] = settlement.ranges
    if settlement.outcome in FAILING:
        ranges = [part for fences in ranges for part in _cut(fences)]
    portion: list[FenceRange] = []
    weight = 0
    for fences in ranges:
        more = fences.last - fences.first + 1 if settlement.outcome in FAILING else 1
        if portion and weight + more > WEIGHT_MAX:
            yield replace(settlement, ranges=tuple(portion))
            portion, weight = [], 0
        portion.append(fences)
        weight += more
    yield replace(settlement, ranges=tuple(portion))


def _cut(fences: FenceRange) -> Iterator[FenceRange]:
    for first in range(fences.first, fences.last + 1, WEIGHT_MAX):
        yield FenceRange(first, min(fences.last, first + WEIGHT_MAX - 1))
