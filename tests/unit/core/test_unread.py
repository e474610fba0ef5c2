"""What has come and is not handled yet is no silence of whoever sent it."""

import pytest

from kyogo_broker.core.consumers import SUSPECT_INTERVALS
from kyogo_broker.model.commands import Command, Heartbeat, StreamEnded, Tick
from kyogo_broker.model.effects import Notice
from kyogo_broker.model.now import Now
from tests.support.shards import Driver

INTERVAL_MS = 1_000


def notices_of_a_tick(*, unread: list[Command]) -> list[str]:
    """Of the tick at which a consumer has been silent for long enough to be suspected."""
    driver = Driver()
    driver.create()
    driver.attach(heartbeat_interval_ms=INTERVAL_MS)
    later = driver.now.steady_ms + SUSPECT_INTERVALS * INTERVAL_MS
    now = Now(later, later)
    shard = driver.shard
    shard.begin(position=1_000, now=now)
    steps = [shard.hear(unread, now), shard.handle(Tick(), now)]
    return [effect.event for step in steps for effect in step.effects if isinstance(effect, Notice)]


def test_somebody_of_whom_nothing_has_come_is_suspected() -> None:
    assert notices_of_a_tick(unread=[]) == ["consumer_suspect"]


@pytest.mark.parametrize("others", [0, 5])
def test_somebody_whose_frame_waits_in_the_inbox_is_not(others: int) -> None:
    assert notices_of_a_tick(unread=[*[Heartbeat(9)] * others, Heartbeat(1)]) == []


def test_the_end_of_a_stream_is_no_sign_of_life() -> None:
    assert notices_of_a_tick(unread=[StreamEnded(1)]) == ["consumer_suspect"]
