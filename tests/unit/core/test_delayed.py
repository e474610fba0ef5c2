"""What waits for its time."""

import random

import pytest

from kyogo_broker.core.delayed import Delayed
from kyogo_broker.model.states import RedeliveryReason

RETRY, FAILED = RedeliveryReason.RETRY, RedeliveryReason.FAILED


def test_nothing_comes_early_and_everything_comes_in_the_order_of_its_time() -> None:
    delayed = Delayed()
    delayed.add(7, 1_000, RETRY)
    delayed.add(3, 2_000, FAILED)
    delayed.add(5, 1_000, RETRY)
    assert delayed.next_due_ms() == 1_000
    assert list(delayed.pop_due(999)) == []
    assert list(delayed.pop_due(1_000)) == [(5, RETRY), (7, RETRY)]
    assert (len(delayed), delayed.next_due_ms()) == (1, 2_000)
    assert list(delayed.pop_due(5_000)) == [(3, FAILED)]
    assert delayed.next_due_ms() is None


@pytest.mark.parametrize("seed", range(10))
def test_against_a_dict(seed: int) -> None:
    chance = random.Random(seed)
    delayed, plain, now = Delayed(), dict[int, tuple[int, RedeliveryReason]](), 1_000
    for offset in range(1, 300):
        match chance.randrange(4):
            case 0 if plain:
                gone = chance.choice(sorted(plain))
                assert delayed.discard(gone) == plain.pop(gone)[1]
            case 1:
                now += chance.randint(0, 50)
                due = sorted((at, o) for o, (at, _) in plain.items() if at <= now)
                assert [o for o, _ in delayed.pop_due(now)] == [o for _, o in due]
                for _, gone in due:
                    del plain[gone]
            case _:
                plain[offset] = now + chance.randint(1, 200), chance.choice((RETRY, FAILED))
                delayed.add(offset, *plain[offset])
        assert delayed.discard(10_000) is None
        assert len(delayed) == len(plain)
        assert sorted(delayed.offsets()) == sorted(plain)
        assert delayed.next_due_ms() == min((at for at, _ in plain.values()), default=None)
        assert list(Delayed.restored(delayed.snapshot()).snapshot()) == list(delayed.snapshot())
    assert list(Delayed.restored(delayed.snapshot()).pop_due(1 << 50)) == list(delayed.pop_due(1 << 50))
