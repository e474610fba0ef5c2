"""The ready structure: what is served next."""

import random

import pytest

from kyogo_broker.core.standard import Ready, StandardReady
from kyogo_broker.model.states import RedeliveryReason

FRESH, RELEASE, RETRY = RedeliveryReason.UNSPECIFIED, RedeliveryReason.RELEASE, RedeliveryReason.RETRY


def served(ready: StandardReady) -> list[tuple[int, RedeliveryReason]]:
    """Everything, one by one from the head."""
    found = []
    while (head := ready.head()) is not None:
        found.append((head.first, ready.take(head.first, 1)))
    return found


def test_what_returned_comes_first_lowest_offset_first() -> None:
    ready = StandardReady()
    ready.add_fresh(10, 12)
    ready.add_returned(7, 7, RETRY)
    ready.add_returned(3, 4, RELEASE)
    assert served(ready) == [(3, RELEASE), (4, RELEASE), (7, RETRY), (10, FRESH), (11, FRESH), (12, FRESH)]
    assert ready.count == 0


def test_fresh_ranges_that_touch_are_one() -> None:
    ready = StandardReady()
    ready.add_fresh(1, 4)
    ready.add_fresh(5, 9)
    assert ready.head() == Ready(1, 9, FRESH)
    assert ready.take(1, 9) is FRESH
    assert ready.head() is None


def test_a_run_is_cut_off_the_head() -> None:
    ready = StandardReady()
    ready.add_returned(3, 9, RELEASE)
    assert ready.take(3, 4) is RELEASE
    assert ready.head() == Ready(7, 9, RELEASE)


@pytest.mark.parametrize(("first", "count"), [(3, 1), (5, 2), (8, 2), (2, 3), (1, 9), (4, 6)])
def test_taking_from_anywhere(first: int, count: int) -> None:
    ready = StandardReady()
    ready.add_returned(1, 3, RELEASE)
    ready.add_returned(4, 6, RETRY)
    ready.add_fresh(7, 12)
    ready.take(first, count)
    ready.check_invariants()
    assert ready.offsets() == [offset for offset in range(1, 13) if not first <= offset < first + count]


def test_taking_what_is_not_ready_is_caught() -> None:
    ready = StandardReady()
    ready.add_fresh(1, 3)
    ready.take(2, 1)
    with pytest.raises(AssertionError, match="not ready"):
        ready.take(2, 1)


def test_fresh_messages_that_were_passed_over_leave_no_gap_behind() -> None:
    """A replay leases past what was too large for its consumer; read-ahead relies on fresh offsets without holes."""
    ready = StandardReady()
    ready.add_fresh(1, 10)
    ready.take(3, 4)
    assert ready.fresh_from() == 7
    assert served(ready) == [(offset, FRESH) for offset in (1, 2, 7, 8, 9, 10)]


@pytest.mark.parametrize("seed", range(20))
def test_against_a_list(seed: int) -> None:
    chance = random.Random(seed)
    ready, fresh, returned = StandardReady(), list[int](), dict[int, RedeliveryReason]()
    out: list[int] = []
    following = 1
    for _ in range(200):
        match chance.randrange(3):
            case 0:
                count = chance.randint(1, 5)
                ready.add_fresh(following, following + count - 1)
                fresh += range(following, following + count)
                following += count
            case 1 if out:
                offset = out.pop(chance.randrange(len(out)))
                reason = chance.choice((RELEASE, RETRY))
                ready.add_returned(offset, offset, reason)
                returned[offset] = reason
            case _:
                expected = min(returned, default=None) or (fresh[0] if fresh else None)
                head = ready.head()
                assert (head.first if head else None) == expected
                if head is not None:
                    assert ready.take(head.first, 1) is returned.pop(head.first, FRESH)
                    fresh = [offset for offset in fresh if offset != head.first]
                    out.append(head.first)
        ready.check_invariants()
        again = StandardReady.restored(ready.snapshot())
        assert (again.offsets(), again.head(), again.count) == (ready.offsets(), ready.head(), ready.count)
