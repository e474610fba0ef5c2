"""The last settled fences of each queue."""

import random
from collections import deque

import pytest

from kyogo_broker.core import settled
from kyogo_broker.core.settled import REMEMBERED, SettledFences
from kyogo_broker.model.commands import Outcome

ACK, RETRY, RELEASE, DEAD_LETTER = Outcome


def test_each_queue_remembers_65536() -> None:
    fences = SettledFences()
    fences.add(1, 1, 10_000, ACK)
    fences.add(2, 10_001, 1, ACK)
    for number in range(60):
        fences.add(1, 20_000 + 1_000 * number, 1_000, RETRY)
    assert REMEMBERED == 65_536
    forgotten = 10_000 + 60_000 - REMEMBERED
    assert fences.outcome(forgotten) is None
    assert fences.outcome(forgotten + 1) is ACK
    assert fences.outcome(10_001) is ACK
    assert fences.outcome(20_000 + 59_999) is RETRY


def test_one_by_one_the_oldest_goes() -> None:
    fences = SettledFences()
    for fence in range(1, REMEMBERED + 4):
        fences.add(1, fence, 1, ACK)
    assert [fences.outcome(fence) for fence in (1, 3, 4, REMEMBERED + 3)] == [None, None, ACK, ACK]


def test_a_deleted_queue_is_forgotten_and_no_other() -> None:
    fences = SettledFences()
    fences.add(1, 10, 5, ACK)
    fences.add(2, 15, 5, RELEASE)
    fences.forget_queue(1)
    assert [fences.outcome(fence) for fence in (10, 14, 15, 19)] == [None, None, RELEASE, RELEASE]
    assert list(fences.snapshot(1)) == []


@pytest.mark.parametrize("seed", range(10))
def test_against_a_deque(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settled, "REMEMBERED", 300)
    chance = random.Random(seed)
    fences = SettledFences()
    plain: dict[int, deque[tuple[int, Outcome]]] = {1: deque(maxlen=300), 2: deque(maxlen=300)}
    following = 1
    for _ in range(80):
        queue, count, outcome = (
            chance.choice((1, 2)),
            chance.choice((1, 1, 3, 63, 64, 65, 200)),
            chance.choice((*Outcome,)),
        )
        following += chance.choice((0, 0, 1, 70))
        fences.add(queue, following, count, outcome)
        plain[queue].extend((fence, outcome) for fence in range(following, following + count))
        following += count
    known = {fence: outcome for each in plain.values() for fence, outcome in each}
    again = SettledFences()
    for queue in plain:
        again.restore(queue, fences.snapshot(queue))
        assert list(again.snapshot(queue)) == list(fences.snapshot(queue))
    for fence in range(following + 10):
        assert fences.outcome(fence) is again.outcome(fence) is known.get(fence)
    for queue in plain:
        fences.forget_queue(queue)
    assert not fences._blocks
