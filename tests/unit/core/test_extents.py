"""Extents: what becomes a row, what is left of it, and where it goes."""

import random
from collections.abc import Iterator

import pytest

from kyogo_broker.core import extents
from kyogo_broker.core.extents import Extents


def rows(e: Extents) -> list[tuple[int, int, int, int, int, int]]:
    """(first, span, position, length, bytes, live) of every live row."""
    c = e.snapshot()
    return list(zip(c["first"], c["span"], c["position"], c["length"], c["bytes"], c["live"], strict=True))


def three_rows() -> Extents:
    """Offsets 1 to 30, ten in each row, far apart in the journal."""
    e = Extents(100)
    for number in range(3):
        e.append(first=1 + 10 * number, count=10, position=1_000 * (number + 1), size=500)
    return e


def test_batches_within_a_stretch_are_one_row() -> None:
    e = Extents(100)
    e.append(first=1, count=2, position=1_000, size=20)
    e.append(first=3, count=1, position=1_000, size=10)
    e.append(first=4, count=5, position=1_100, size=50)
    assert rows(e) == [(1, 8, 1_000, 100, 80, 8)]
    e.append(first=9, count=1, position=1_101, size=10)
    assert rows(e)[1:] == [(9, 1, 1_101, 0, 10, 1)]


def test_a_finished_row_is_not_extended() -> None:
    e = Extents(100)
    e.append(first=1, count=2, position=1_000, size=20)
    e.finish(1, 2)
    e.append(first=3, count=1, position=1_010, size=10)
    assert rows(e) == [(3, 1, 1_010, 0, 10, 1)]


def test_finishing_goes_over_rows() -> None:
    e = three_rows()
    e.finish(5, 24)
    assert rows(e) == [(1, 10, 1_000, 0, 500, 4), (21, 10, 3_000, 0, 500, 6)]
    assert e.total_live() == 10
    e.check_invariants()


def test_where_a_message_stands() -> None:
    e = three_rows()
    e.finish(11, 20)
    one, three = (1, 10, 1_000), (21, 30, 3_000)
    assert [e.row_of(offset) for offset in (1, 10, 11, 20, 21, 30, 31)] == [one, one, None, None, three, three, None]


def test_rows_from_an_offset_on() -> None:
    e = three_rows()
    assert list(e.rows_from(15)) == [(2_000, 0, 500, 20), (3_000, 0, 500, 30)]
    e.finish(11, 20)
    assert list(e.rows_from(15)) == [(3_000, 0, 500, 30)]
    assert list(e.rows_from(10)) == [(1_000, 0, 500, 10), (3_000, 0, 500, 30)]
    assert list(e.rows_from(31)) == []


def test_rows_between_positions() -> None:
    e = three_rows()
    assert list(e.rows_between(1_000, 3_000)) == [(1, 10, 1_000, 0), (11, 20, 2_000, 0)]
    e.finish(1, 10)
    assert list(e.rows_between(0, 2_000)) == []


def test_live_bytes_shrink_with_what_is_finished() -> None:
    e = three_rows()
    e.finish(1, 5)
    e.finish(11, 20)
    assert list(e.live_bytes()) == [(1_000, 250), (3_000, 500)]


def test_a_row_that_is_nearly_finished_still_counts() -> None:
    e = Extents(100)
    e.append(first=1, count=100, position=1_000, size=100)
    e.finish(1, 99)
    assert list(e.live_bytes()) == [(1_000, 1)]


def test_moving_after_a_part_was_finished() -> None:
    e = three_rows()
    e.finish(12, 14)
    e.finish(18, 18)
    e.move(range(11, 12), position=9_000, size=50)
    e.move(range(15, 18), position=9_000, size=150)
    e.move(range(19, 21), position=9_000, size=100)
    assert rows(e)[1] == (11, 10, 9_000, 0, 300, 6)
    assert e.total_live() == 26
    e.finish(11, 11)
    e.finish(15, 17)
    e.finish(19, 20)
    assert e.row_of(11) is None
    e.check_invariants()


def test_moving_parts_of_two_rows_at_once_is_caught() -> None:
    e = three_rows()
    with pytest.raises(AssertionError, match="two rows"):
        e.move(range(9, 13), position=9_000, size=100)


def test_what_is_published_after_a_move_extends_the_moved_row() -> None:
    e = Extents(100)
    e.append(first=1, count=2, position=1_000, size=20)
    e.move(range(1, 3), position=5_000, size=20)
    e.append(first=3, count=1, position=5_020, size=10)
    assert rows(e) == [(1, 3, 5_000, 20, 30, 3)]


def test_dead_rows_are_dropped_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "COMPACT_AT", 2)
    e = three_rows()
    e.finish(1, 10)
    assert len(e) == 3
    e.finish(21, 30)
    assert len(e) == 1
    e.check_invariants()
    assert rows(e) == [(11, 10, 2_000, 0, 500, 10)]


def test_dead_rows_stay_while_they_are_few() -> None:
    e = three_rows()
    e.finish(1, 10)
    e.finish(11, 20)
    assert len(e) == 3
    e.check_invariants()


def parts(low: int, high: int, chance: random.Random) -> Iterator[tuple[int, int]]:
    while low <= high:
        last = min(high, low + chance.randint(0, 6))
        yield low, last
        low = last + 1


@pytest.mark.parametrize("seed", range(20))
def test_every_live_message_stays_findable(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "COMPACT_AT", 2)
    chance = random.Random(seed)
    e = Extents(100)
    where: dict[int, int] = {}
    position, following = 1_000, 1
    for _ in range(150):
        position += chance.choice((10, 10, 60, 500))
        if chance.random() < 0.5 or not where:
            count = chance.randint(1, 8)
            e.append(first=following, count=count, position=position, size=10 * count)
            where |= dict.fromkeys(range(following, following + count), position)
            following += count
        elif chance.random() < 0.8:
            first = last = chance.choice(sorted(where))
            while last + 1 in where and chance.random() < 0.7:
                last += 1
            for low, high in parts(first, last, chance):
                e.finish(low, high)
            for offset in range(first, last + 1):
                del where[offset]
        else:
            first, last, _, _ = chance.choice(list(e.rows_between(0, position + 1)))
            for offset in range(first, last + 1):
                if offset in where:
                    e.move(range(offset, offset + 1), position=position, size=10)
                    where[offset] = position
        e.check_invariants()
        assert e.total_live() == len(where)
        for copy in (e, Extents.restored(100, {name: column[:] for name, column in e.snapshot().items()})):
            for offset, at in where.items():
                low, length, _, last = next(copy.rows_from(offset))
                assert low <= at <= low + length, f"message {offset} stands at {at}, not within {low} and {length}"
                assert last >= offset
