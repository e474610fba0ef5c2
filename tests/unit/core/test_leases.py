"""Leases: bits, deadlines, and the table by fence."""

import pytest

from kyogo_broker.core import leases
from kyogo_broker.core.leases import Lease, Leases
from kyogo_broker.core.queue import Queue
from kyogo_broker.core.window import WindowBudget
from kyogo_broker.model.facts import Span
from kyogo_broker.model.settings import QueueSettings
from kyogo_broker.model.states import RedeliveryReason

QUEUE = Queue(1, "q", QueueSettings(), created_unix_ms=0, stretch=100, budget=WindowBudget())


def lease(first_fence: int, count: int, first_offset: int = 1) -> Lease:
    return Lease(
        QUEUE, Span(first_fence, first_offset, count), session_id=1, consumer_id="c", leased_unix_ms=0,
        reason=RedeliveryReason.UNSPECIFIED,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("first", "last", "mask"),
    [(10, 13, 0b1111), (11, 12, 0b0110), (5, 10, 0b0001), (13, 99, 0b1000), (14, 20, 0), (1, 9, 0)],
)
def test_bits_are_cut_to_the_lease(first: int, last: int, mask: int) -> None:
    assert lease(10, 4).bits(first, last) == mask


def test_spans_of_bits() -> None:
    assert list(lease(10, 8, 100).spans(0b10110011)) == [Span(10, 100, 2), Span(14, 104, 2), Span(17, 107, 1)]


def test_a_handler_begins_once() -> None:
    one = lease(10, 4)
    one.live = 0b1110
    assert one.start(0b0011, 500) == 0b0010
    assert one.start(0b0110, 900) == 0b0100
    assert (one.expired(499), one.expired(500), one.expired(900)) == (0, 0b0010, 0b0110)
    assert (one.next_deadline_ms(one.live), one.next_deadline_ms(0b0100)) == (500, 900)


def test_extending_replaces_the_deadline_and_begins_what_had_not() -> None:
    one = lease(10, 3)
    one.start(0b011, 500)
    one.extend(0b110, 2_000)
    assert one.started == 0b111
    assert (one.expired(500), one.expired(1_999), one.expired(2_000)) == (0b001, 0b001, 0b111)
    one.extend(0b001, 300)
    assert one.next_deadline_ms(one.live) == 300


def test_what_is_settled_has_no_deadline() -> None:
    one = lease(10, 2)
    one.start(0b11, 500)
    one.live = 0b10
    assert one.expired(600) == 0b10
    one.live = 0
    assert one.next_deadline_ms(one.live) is None


def test_sizes_are_those_of_the_batch_it_was_cut_from() -> None:
    one = lease(10, 3)
    assert one.size(0, 3) == 0
    one.ends, one.base = (5, 15, 30, 50, 75), 1
    assert (one.size(0, 1), one.size(1, 2), one.size(0, 3)) == (10, 35, 45)


def test_found_by_fence() -> None:
    table = Leases()
    one, two, three = lease(10, 3), lease(13, 1), lease(20, 5)
    for each in (three, one, two):
        table.add(each)
    table.check_invariants()
    assert [table.find(fence) for fence in (9, 10, 12, 13, 14, 19, 20, 24, 25)] == [
        None, one, one, two, None, None, three, three, None,
    ]  # fmt: skip
    assert [table.next_first(fence) for fence in (1, 10, 13, 20)] == [10, 13, 20, None]
    two.live = 0
    table.ended()
    assert table.find(13) is None
    assert (len(table), list(table)) == (2, [one, three])


def test_ended_ones_are_dropped_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "COMPACT_AT", 3)
    table = Leases()
    all_of_them = [lease(10 * number, 5) for number in range(1, 7)]
    for each in all_of_them:
        table.add(each)
    for each in all_of_them[:3]:
        each.live = 0
        table.ended()
        table.check_invariants()
    assert table._firsts == [40, 50, 60]
    assert table.find(41) is all_of_them[3]
