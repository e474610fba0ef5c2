"""The table of a consumer's states, every pair of it, and what it holds."""

import pytest

from kyogo_broker.core.consumers import Consumer, ConsumerEvent, next_state
from kyogo_broker.model.commands import Attach, Subscription
from kyogo_broker.model.states import ConsumerState

IDLE, PROCESSING, SUSPECT, FAILED, DRAINING, STOPPED = ConsumerState
NEVER = None

# What must be, written from the design and not from the code: event, then the state after IDLE, PROCESSING, SUSPECT,
# FAILED, DRAINING, STOPPED.
TABLE = {
    ConsumerEvent.LEASED: (PROCESSING, PROCESSING, NEVER, NEVER, NEVER, NEVER),
    ConsumerEvent.EMPTIED: (IDLE, IDLE, SUSPECT, FAILED, DRAINING, STOPPED),
    ConsumerEvent.HEARD: (IDLE, PROCESSING, PROCESSING, PROCESSING, DRAINING, STOPPED),
    ConsumerEvent.SILENT: (SUSPECT, SUSPECT, SUSPECT, FAILED, SUSPECT, STOPPED),
    ConsumerEvent.GIVEN_UP: (FAILED, FAILED, FAILED, FAILED, FAILED, STOPPED),
    ConsumerEvent.DRAIN: (DRAINING, DRAINING, DRAINING, DRAINING, DRAINING, STOPPED),
    ConsumerEvent.LEFT: (STOPPED,) * 6,
}
PAIRS = [(state, event, after) for event, row in TABLE.items() for state, after in zip(ConsumerState, row, strict=True)]


def test_every_event_is_in_the_table() -> None:
    assert set(TABLE) == set(ConsumerEvent)


@pytest.mark.parametrize(("state", "event", "after"), PAIRS, ids=str)
def test_every_pair_of_state_and_event(state: ConsumerState, event: ConsumerEvent, after: ConsumerState | None) -> None:
    if after is None:
        with pytest.raises(AssertionError, match="cannot happen"):
            next_state(state, event)
    else:
        assert next_state(state, event) is after


def consumer(**fields: object) -> Consumer:
    attach = Attach(1, 2, "token", "me", (Subscription("q"),), **fields)  # type: ignore[arg-type]
    return Consumer(attach, interval_ms=1_000, heard_ms=0, attached_unix_ms=0)


@pytest.mark.parametrize("state", [SUSPECT, FAILED])
def test_one_that_holds_nothing_is_idle_when_it_is_heard_again(state: ConsumerState) -> None:
    silent = consumer()
    silent.state = state
    silent.happens(ConsumerEvent.HEARD)
    assert silent.state is IDLE


@pytest.mark.parametrize("state", [SUSPECT, FAILED, DRAINING, STOPPED])
def test_only_the_healthy_may_receive(state: ConsumerState) -> None:
    one = consumer()
    assert one.may_receive()
    one.state = state
    assert not one.may_receive()


def test_only_the_capability_counts_starts() -> None:
    assert consumer(capabilities=frozenset({"started"})).counts_start()
    assert not consumer(capabilities=frozenset({"drain"})).counts_start()


def test_frames_keep_room_for_the_head_of_a_run() -> None:
    assert consumer(max_frame_bytes=100_000).message_bytes_max() == 100_000 - 4_096
    assert consumer().message_bytes_max() == (4 << 20) - (64 << 10) - 4_096
