"""A set of offsets is a set."""

from hypothesis import given
from hypothesis import strategies as st

from kyogo_broker.journal.offsets import OffsetSet

ranges = st.tuples(st.integers(1, 30), st.integers(1, 30))
steps = st.lists(st.tuples(st.sampled_from(["add", "remove"]), ranges), max_size=40)


def members(offsets: OffsetSet) -> set[int]:
    return {offset for first, last in offsets for offset in range(first, last + 1)}


@given(steps, ranges)
def test_it_holds_what_was_put_in_and_not_taken_out(
    steps: list[tuple[str, tuple[int, int]]], look: tuple[int, int]
) -> None:
    offsets, model = OffsetSet(), set[int]()
    for step, (first, last) in steps:
        span = set(range(first, last + 1))
        if step == "add":
            assert offsets.add(first, last) == len(span - model)
            model |= span
        else:
            offsets.remove(first, last)
            model -= span
        assert members(offsets) == model
        assert len(offsets) == len(model)
        assert all(high + 1 < low for (_, high), (low, _) in zip(list(offsets), list(offsets)[1:], strict=False))
    first, last = look
    span = set(range(first, last + 1))
    assert members(OffsetSet(offsets.within(first, last))) == model & span
    assert members(OffsetSet(offsets.missing(first, last))) == span - model
    assert (first in offsets) is (first in model)


@given(st.lists(ranges), st.lists(ranges))
def test_without_another_one(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    assert members(OffsetSet(some).without(OffsetSet(others))) == members(OffsetSet(some)) - members(OffsetSet(others))
