"""The counter of fences, and the shard's own chance."""

import pytest

from kyogo_broker.core.chance import Chance
from kyogo_broker.core.fences import BLOCK, FENCE_MAX, RESERVE_AT, Fences


def test_fences_count_up_from_one() -> None:
    fences = Fences()
    fences.reserve(1 + BLOCK)
    assert (fences.take(3), fences.take(1)) == (1, 4)


def test_a_new_process_begins_behind_everything_reserved() -> None:
    fences = Fences()
    fences.reserve(1 + BLOCK)
    fences.take(5)
    fences.begin_block()
    fences.reserve(1 + 2 * BLOCK)
    assert fences.take(1) == 1 + BLOCK


def test_a_block_is_reserved_in_time() -> None:
    fences = Fences()
    fences.reserve(1 + BLOCK)
    fences.take(BLOCK - RESERVE_AT)
    assert not fences.needs_block()
    fences.take(1)
    assert fences.needs_block()


def test_what_is_not_reserved_is_not_issued() -> None:
    fences = Fences()
    fences.reserve(1 + BLOCK)
    with pytest.raises(AssertionError, match="fences ran out"):
        fences.take(BLOCK + 1)


@pytest.mark.parametrize("shard", [0, 1, 31])
def test_shards_have_ranges_of_their_own(shard: int) -> None:
    fences = Fences(shard)
    fences.reserve(fences.reserved + BLOCK)
    first = fences.take(1)
    assert first >> 48 == shard
    assert first < FENCE_MAX
    with pytest.raises(AssertionError, match="no fences left"):
        fences.reserve(fences.limit + 1)


def test_a_seed_is_a_whole_history() -> None:
    one, other, third = Chance(7), Chance(7), Chance(8)
    numbers = [one.below(1_000) for _ in range(100)]
    assert numbers == [other.below(1_000) for _ in range(100)]
    assert numbers != [third.below(1_000) for _ in range(100)]


def test_numbers_are_below_their_bound_and_spread_evenly() -> None:
    chance = Chance(1)
    counts = [0] * 10
    for _ in range(20_000):
        counts[chance.below(10)] += 1
    assert min(counts) > 1_800
    assert max(counts) < 2_200
    assert {chance.below(1) for _ in range(10)} == {0}


def test_the_first_numbers_of_the_published_generator() -> None:
    """SplitMix64 with seed 0, as printed by the reference implementation."""
    chance = Chance(0)
    assert [chance.below(1 << 64) for _ in range(3)] == [
        0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F,
    ]  # fmt: skip
