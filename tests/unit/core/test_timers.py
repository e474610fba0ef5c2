"""Reminders: at most one for each object, never late."""

import pytest

from kyogo_broker.core import timers
from kyogo_broker.core.timers import Timers


class Thing:
    def __init__(self) -> None:
        self.timer_ms = 0


def test_reminded_once_at_the_earliest_instant() -> None:
    table, thing = Timers(), Thing()
    table.remind(thing, 500)
    table.remind(thing, 900)
    table.remind(thing, 300)
    assert table.next_ms() == 300
    assert list(table.due(299)) == []
    assert list(table.due(300)) == [thing]
    assert list(table.due(1_000)) == []


def test_a_stale_entry_does_not_remind_for_the_new_one() -> None:
    table, thing = Timers(), Thing()
    table.remind(thing, 500)
    table.remind(thing, 300)
    assert list(table.due(300)) == [thing]
    table.remind(thing, 700)
    assert list(table.due(500)) == []
    assert list(table.due(700)) == [thing]


def test_a_stale_entry_at_the_very_same_instant_reminds_once() -> None:
    table, thing = Timers(), Thing()
    table.remind(thing, 500)
    table.remind(thing, 300)
    list(table.due(300))
    table.remind(thing, 500)
    assert list(table.due(500)) == [thing]


def test_in_the_order_of_time_and_then_of_asking() -> None:
    table, things = Timers(), [Thing() for _ in range(4)]
    for thing, at in zip(things, (30, 10, 20, 10), strict=True):
        table.remind(thing, at)
    assert list(table.due(100)) == [things[1], things[3], things[2], things[0]]


def test_who_is_reminded_may_ask_again_meanwhile() -> None:
    table, thing = Timers(), Thing()
    table.remind(thing, 10)
    seen = []
    for due in table.due(100):
        seen.append(due)
        if len(seen) < 3:
            table.remind(thing, 50 + len(seen))
    assert len(seen) == 3


def test_what_is_gone_is_dropped_once_it_is_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "COMPACT_AT", 10)
    table = Timers()
    things = [Thing() for _ in range(9)]
    for thing in things:
        table.remind(thing, 100)
    table.compact(lambda thing: thing is things[0])
    assert len(table._heap) == 9
    for extra in (Thing() for _ in range(timers.COMPACT_AT)):
        table.remind(extra, 50)
    table._watermark = 10
    table.compact(lambda thing: thing is things[0])
    assert list(table.due(200)) == [things[0]]
