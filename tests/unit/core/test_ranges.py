"""Finished offsets against a set, and runs of bits and numbers."""

import random

import pytest

from kyogo_broker.core.ranges import FinishedOffsets, runs_of


def test_in_order_only_the_mark_moves() -> None:
    finished = FinishedOffsets()
    finished.add(1, 10)
    finished.add(11, 11)
    assert (finished.low, finished.above) == (12, 0)
    assert list(finished.snapshot()) == [12]


def test_a_gap_keeps_the_mark_until_it_is_closed() -> None:
    finished = FinishedOffsets()
    finished.add(2, 3)
    finished.add(5, 6)
    assert (finished.low, finished.above) == (1, 4)
    assert list(finished.unfinished(1, 8)) == [(1, 1), (4, 4), (7, 8)]
    finished.add(1, 1)
    assert (finished.low, finished.above) == (4, 2)
    finished.add(4, 4)
    assert (finished.low, finished.above) == (7, 0)


@pytest.mark.parametrize(
    ("add", "ranges"),
    [
        ((6, 6), [4, 6, 8, 9]),
        ((7, 7), [4, 5, 7, 9]),
        ((6, 7), [4, 9]),
        ((2, 2), [2, 2, 4, 5, 8, 9]),
        ((11, 12), [4, 5, 8, 9, 11, 12]),
    ],
)
def test_neighbours_join(add: tuple[int, int], ranges: list[int]) -> None:
    finished = FinishedOffsets()
    finished.add(4, 5)
    finished.add(8, 9)
    finished.add(*add)
    finished.check_invariants()
    assert list(finished.snapshot()) == [1, *ranges]


@pytest.mark.parametrize("again", [(1, 1), (3, 3), (5, 6), (6, 7), (8, 9), (4, 5)])
def test_finishing_twice_is_caught(again: tuple[int, int]) -> None:
    finished = FinishedOffsets()
    finished.add(1, 3)
    finished.add(5, 5)
    finished.add(7, 8)
    with pytest.raises(AssertionError, match="finished twice"):
        finished.add(*again)


@pytest.mark.parametrize("seed", range(20))
def test_against_a_set(seed: int) -> None:
    chance = random.Random(seed)
    finished, plain = FinishedOffsets(), set[int]()
    open_offsets = list(range(1, 200))
    while open_offsets:
        first = chance.choice(open_offsets[:20])
        last = first
        while last + 1 in open_offsets and chance.random() < 0.6:
            last += 1
        finished.add(first, last)
        plain |= set(range(first, last + 1))
        open_offsets = [offset for offset in open_offsets if offset not in plain]
        finished.check_invariants()
        assert {offset for offset in range(1, 210) if offset in finished} == plain
        low, high = sorted((chance.randint(1, 205), chance.randint(1, 205)))
        ranges = list(finished.unfinished(low, high))
        assert [o for a, b in ranges for o in range(a, b + 1)] == [o for o in range(low, high + 1) if o not in plain]
        again = FinishedOffsets.restored(finished.snapshot())
        again.check_invariants()
        assert (list(again.snapshot()), again.above) == (list(finished.snapshot()), finished.above)
    assert finished.low == 200


@pytest.mark.parametrize(
    ("mask", "runs"),
    [(0, []), (1, [(0, 1)]), (0b1011, [(0, 2), (3, 1)]), (0b110, [(1, 2)]), ((1 << 512) - 1, [(0, 512)])],
)
def test_runs_of_bits(mask: int, runs: list[tuple[int, int]]) -> None:
    assert list(runs_of(mask)) == runs
