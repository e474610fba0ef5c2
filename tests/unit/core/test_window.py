"""What is kept in memory of a queue."""

import pytest

from kyogo_broker.core import window
from kyogo_broker.core.window import ENTRY_BYTES, Held, Window, WindowBudget
from tests.support.shards import batch_of


def held(first: int, last: int, *, pinned: bool = False, size: int = 10) -> Held:
    return Held(first, last, batch_of(*[b"x" * size] * (last - first + 1)), 0, None, pinned=pinned)


def filled(*ranges: tuple[int, int]) -> Window:
    w = Window(WindowBudget())
    for first, last in ranges:
        w.add(held(first, last))
    w.check_invariants()
    return w


def test_batches_are_found_in_whatever_order_they_came() -> None:
    w = filled((10, 12), (1, 3), (20, 20), (13, 15))
    found = {offset: w.find(offset) for offset in range(25)}
    assert {offset for offset, batch in found.items() if batch} == {1, 2, 3, 10, 11, 12, 13, 14, 15, 20}
    assert [batch.first for batch in w] == [1, 10, 13, 20]


def test_overlapping_batches_are_caught() -> None:
    w = filled((1, 5))
    w.add(held(4, 6))
    with pytest.raises(AssertionError, match="overlap"):
        w.check_invariants()


@pytest.mark.parametrize(("offset", "after"), [(1, 4), (2, 4), (4, 4), (10, 16), (13, 16), (25, 25), (20, 21)])
def test_up_to_where_it_is_here(offset: int, after: int) -> None:
    assert filled((1, 3), (10, 12), (13, 15), (20, 20)).loaded_after(offset) == after


@pytest.mark.parametrize(
    ("wanted", "missing"),
    [((1, 3), []), ((1, 4), [(4, 4)]), ((0, 11), [(0, 0), (4, 9)]), ((5, 7), [(5, 7)]), ((11, 30), [(13, 30)])],
)
def test_what_is_missing(wanted: tuple[int, int], missing: list[tuple[int, int]]) -> None:
    assert list(filled((1, 3), (10, 12)).missing(*wanted)) == missing


def test_only_what_lies_wholly_below_is_dropped() -> None:
    w = filled((1, 3), (4, 6), (7, 9))
    w.drop_below(6)
    assert [batch.first for batch in w] == [4, 7]
    w.check_invariants()


def test_room_is_made_oldest_first_and_never_of_what_is_pinned_or_not_yet_given_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window, "QUEUE_BYTES_MAX", 5 * (ENTRY_BYTES + 10))
    w = Window(WindowBudget())
    for offset in range(1, 6):
        w.add(held(offset, offset, pinned=offset == 2))
    w.make_room(2 * (ENTRY_BYTES + 10), below=5)
    assert [batch.first for batch in w] == [2, 4, 5]
    w.make_room(10 * (ENTRY_BYTES + 10), below=5)
    assert [batch.first for batch in w] == [2, 5]
    w.check_invariants()


def test_when_the_shard_is_full_a_queue_keeps_less() -> None:
    budget = WindowBudget()
    one, other = Window(budget), Window(budget)
    assert one.has_room(window.QUEUE_BYTES_MAX)
    budget.used = window.SHARD_BYTES_MAX
    assert not one.has_room(window.QUEUE_BYTES_LOW + 1)
    assert other.has_room(window.QUEUE_BYTES_LOW)


def test_all_windows_count_into_one_budget() -> None:
    budget = WindowBudget()
    one, other = Window(budget), Window(budget)
    one.add(held(1, 2))
    other.add(held(1, 1))
    assert budget.used == one.bytes + other.bytes == 2 * ENTRY_BYTES + 30
    one.clear()
    assert budget.used == other.bytes
