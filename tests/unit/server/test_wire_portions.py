"""A frame's settlements are cut into commands of bounded weight, and nothing of them is lost or doubled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kyogo_broker.core.limits import FENCE_RANGE_MAX
from kyogo_broker.model.commands import Outcome, Publish, Settlement
from kyogo_broker.model.errors import ErrorCode, Refusal
from kyogo_broker.model.message import Batch, FenceRange
from kyogo_broker.server.wire.portions import WEIGHT_MAX, settles

PUBLISH = Publish(port=1, tag=0, queue="mails", batch=Batch(b"x", (1,)))


def settlement(outcome: Outcome, *ranges: tuple[int, int], **fields: object) -> Settlement:
    return Settlement(outcome=outcome, ranges=tuple(FenceRange(*each) for each in ranges), **fields)  # type: ignore[arg-type]


def said(settlements: tuple[Settlement, ...]) -> list[tuple[Outcome, int | None, str, list[int]]]:
    """Each fence with all that was said of it, neighbours with the same put together."""
    told: list[tuple[Outcome, int | None, str, list[int]]] = []
    for each in settlements:
        fences = [fence for r in each.ranges for fence in range(r.first, r.last + 1)]
        if told and told[-1][:3] == (each.outcome, each.delay_ms, each.reason):
            told[-1][3].extend(fences)
        else:
            told.append((each.outcome, each.delay_ms, each.reason, fences))
    return told


ranges = st.tuples(st.integers(1, 5000), st.integers(0, 1500)).map(lambda pair: (pair[0], pair[0] + pair[1]))
many = st.lists(
    st.builds(
        lambda outcome, each, delay: settlement(outcome, *each, delay_ms=delay),
        st.sampled_from(Outcome),
        st.lists(ranges, min_size=1, max_size=700),
        st.sampled_from((None, 5)),
    ),
    min_size=1,
    max_size=5,
).map(tuple)


@given(settlements=many)
def test_every_fence_is_settled_once_and_as_it_was_said(settlements: tuple[Settlement, ...]) -> None:
    commands = list(settles(7, settlements))
    assert {command.port for command in commands} == {7}
    assert said(tuple(s for command in commands for s in command.settlements)) == said(settlements)


@given(settlements=many)
def test_no_command_is_too_heavy(settlements: tuple[Settlement, ...]) -> None:
    for command in settles(7, settlements):
        failing = [s for s in command.settlements if s.outcome in (Outcome.RETRY, Outcome.DEAD_LETTER)]
        others = [s for s in command.settlements if s not in failing]
        weight = sum(r.last - r.first + 1 for s in failing for r in s.ranges) + sum(len(s.ranges) for s in others)
        assert weight <= WEIGHT_MAX


def test_a_light_frame_is_one_command() -> None:
    both = (settlement(Outcome.ACK, (1, 10_000)), settlement(Outcome.RETRY, (10_001, 10_005)))
    [command] = settles(7, both)
    assert command.settlements is both


@pytest.mark.parametrize(
    "whole",
    [
        settlement(Outcome.RETRY, (1, 1), (5, 4 + FENCE_RANGE_MAX + 1)),
        settlement(Outcome.ACK, *((n, n) for n in range(1, 2000, 2)), publishes=(PUBLISH,)),
        settlement(Outcome.RETRY, (1, 2000), refusal=Refusal(ErrorCode.MESSAGE_INVALID, "no")),
    ],
    ids=["a range too long", "with publishes", "refused"],
)
def test_what_is_done_or_refused_as_a_whole_stays_whole(whole: Settlement) -> None:
    commands = list(settles(7, (settlement(Outcome.RETRY, (9000, 9400)), whole)))
    assert whole in [s for command in commands for s in command.settlements]
