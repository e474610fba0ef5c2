"""Balance policies: a table each, and a seeded simulation of consumers that come, go, take and settle."""

import random
from collections.abc import Callable

import pytest

from kyogo_broker.model.settings import BalancePolicy
from kyogo_broker.policy.balance import POLICIES, Balance
from kyogo_broker.policy.balance.least_in_flight import LeastInFlight
from kyogo_broker.policy.balance.round_robin import RoundRobin


class Fake:
    """A candidate as plain as can be."""

    def __init__(self, name: str, *, load: int = 0, most: int = 1_000, weight: int = 1) -> None:
        self.name, self.load, self.most, self.weight, self.version = name, load, most, weight, 0

    def room(self) -> int:
        return max(0, self.most - self.load)


def allocate(policy: Balance, count: int) -> dict[str, int]:
    """One allocation, checked and taken."""
    found = policy.allocate(count)
    given: dict[str, int] = {}
    for candidate, portion in found:
        assert isinstance(candidate, Fake)
        assert candidate.name not in given, "a candidate stands once"
        assert 0 < portion <= candidate.room(), "never more than its room"
        given[candidate.name] = portion
    assert sum(given.values()) <= count
    for candidate, portion in found:
        assert isinstance(candidate, Fake)
        candidate.load += portion
        policy.changed(candidate)
    return given


def filled(kind: Callable[[], Balance], *candidates: Fake) -> Balance:
    policy = kind()
    for candidate in candidates:
        policy.add(candidate)
    return policy


@pytest.mark.parametrize(
    ("candidates", "count", "expected"),
    [
        ([], 5, {}),
        ([("a", 0, 9, 1)], 5, {"a": 5}),
        ([("a", 0, 9, 1), ("b", 0, 9, 1)], 5, {"a": 3, "b": 2}),
        ([("a", 0, 9, 9), ("b", 0, 9, 1)], 4, {"a": 2, "b": 2}),
        ([("a", 8, 9, 1), ("b", 0, 9, 1)], 4, {"a": 1, "b": 3}),
        ([("a", 9, 9, 1), ("b", 0, 9, 1)], 4, {"b": 4}),
        ([("a", 0, 1, 1), ("b", 0, 1, 1), ("c", 0, 1, 1)], 9, {"a": 1, "b": 1, "c": 1}),
        ([("a", 0, 9, 1), ("b", 0, 9, 1), ("c", 0, 9, 1)], 1, {"a": 1}),
    ],
)  # fmt: skip
def test_round_robin(candidates: list[tuple[str, int, int, int]], count: int, expected: dict[str, int]) -> None:
    fakes = [Fake(name, load=load, most=most, weight=weight) for name, load, most, weight in candidates]
    assert allocate(filled(RoundRobin, *fakes), count) == expected


@pytest.mark.parametrize(
    ("candidates", "count", "expected"),
    [
        ([], 5, {}),
        ([("a", 0, 9, 1)], 5, {"a": 5}),
        ([("a", 0, 9, 1), ("b", 0, 9, 1)], 4, {"a": 2, "b": 2}),
        ([("a", 3, 9, 1), ("b", 0, 9, 1)], 3, {"b": 3}),
        ([("a", 3, 9, 1), ("b", 0, 9, 1)], 5, {"a": 1, "b": 4}),
        ([("a", 0, 99, 3), ("b", 0, 99, 1)], 40, {"a": 30, "b": 10}),
        ([("a", 30, 99, 3), ("b", 0, 99, 1)], 10, {"b": 10}),
        ([("a", 30, 99, 3), ("b", 0, 99, 1)], 50, {"a": 30, "b": 20}),
        ([("a", 0, 99, 3), ("b", 0, 99, 1), ("c", 0, 99, 1)], 1, {"a": 1}),
        ([("a", 2, 99, 3), ("b", 0, 99, 1), ("c", 1, 99, 1)], 2, {"a": 1, "b": 1}),
        ([("a", 9, 9, 1), ("b", 5, 9, 1)], 3, {"b": 3}),
    ],
)  # fmt: skip
def test_least_in_flight_fills_by_what_is_held_for_the_weight(
    candidates: list[tuple[str, int, int, int]], count: int, expected: dict[str, int]
) -> None:
    fakes = [Fake(name, load=load, most=most, weight=weight) for name, load, most, weight in candidates]
    assert allocate(filled(LeastInFlight, *fakes), count) == expected


@pytest.mark.parametrize("kind", POLICIES.values())
def test_whoever_left_is_given_nothing(kind: Callable[[], Balance]) -> None:
    a, b = Fake("a"), Fake("b")
    policy = filled(kind, a, b)
    policy.remove(a)
    policy.changed(a)
    assert allocate(policy, 4) == {"b": 4}
    policy.add(a)
    assert "a" in allocate(policy, 2)


@pytest.mark.parametrize("kind", POLICIES.values())
@pytest.mark.parametrize("count", [1, 3, 50, 1_000])
def test_everything_is_shared_out_while_there_is_room(kind: Callable[[], Balance], count: int) -> None:
    fakes = [Fake(str(n), most=1 + n % 7, weight=1 + n % 3) for n in range(40)]
    room = sum(fake.room() for fake in fakes)
    policy = filled(kind, *fakes)
    given = 0
    while given < count:
        portion = sum(allocate(policy, count - given).values())
        if not portion:
            break
        given += portion
    assert given == min(count, room)


@pytest.mark.parametrize("kind", POLICIES.values())
def test_one_who_was_allocated_all_its_room_and_took_nothing_is_chosen_again(kind: Callable[[], Balance]) -> None:
    """What was allocated may turn out not to fit. The core says `changed`; nobody may starve by that."""
    fakes = [Fake(str(n), most=1 if n == 0 else 10, weight=10 if n == 0 else 1) for n in range(5)]
    policy = filled(kind, *fakes)
    for _ in range(3):
        for candidate, _ in policy.allocate(4):
            policy.changed(candidate)
    assert {c.name for c, _ in policy.allocate(5)} == {"0", "1", "2", "3", "4"}  # type: ignore[attr-defined]


def test_the_registry_has_the_policies_that_are_built() -> None:
    assert dict(POLICIES) == {
        BalancePolicy.ROUND_ROBIN: RoundRobin, BalancePolicy.LEAST_IN_FLIGHT: LeastInFlight,
    }  # fmt: skip


# Simulations.


@pytest.mark.parametrize("seed", range(10))
def test_round_robin_keeps_those_who_always_have_room_within_one(seed: int) -> None:
    chance = random.Random(seed)
    fakes = [Fake(str(n), most=10**9) for n in range(chance.randint(2, 12))]
    policy = filled(RoundRobin, *fakes)
    for _ in range(200):
        allocate(policy, chance.choice((1, 1, 2, 7, 30)))
        counts = [fake.load for fake in fakes]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("seed", range(10))
def test_least_in_flight_keeps_everyone_at_one_level(seed: int) -> None:
    chance = random.Random(seed)
    fakes = [Fake(str(n), most=10**9, weight=chance.choice((1, 1, 2, 5))) for n in range(chance.randint(2, 12))]
    policy = filled(LeastInFlight, *fakes)
    for _ in range(200):
        allocate(policy, chance.choice((1, 1, 2, 7, 30)))
        for one in fakes:
            for other in fakes:
                assert (one.load - 1) / one.weight <= (other.load + 1) / other.weight


@pytest.mark.parametrize("seed", range(10))
def test_least_in_flight_chooses_whoever_holds_least_for_its_weight(seed: int) -> None:
    chance = random.Random(seed)
    fakes = [Fake(str(n), most=30, weight=chance.choice((1, 1, 2, 5))) for n in range(12)]
    policy = filled(LeastInFlight, *fakes)
    for _ in range(300):
        for fake in fakes:
            if chance.random() < 0.3:
                fake.load = chance.randint(0, fake.load)
                policy.changed(fake)
        open_to = [fake.load / fake.weight for fake in fakes if fake.room()]
        before = {fake.name: fake.load / fake.weight for fake in fakes}
        for name in allocate(policy, 1):
            assert before[name] == min(open_to)
        allocate(policy, chance.randint(0, 40))


@pytest.mark.parametrize("kind", POLICIES.values())
@pytest.mark.parametrize("seed", range(10))
def test_nobody_gets_more_than_its_room_nobody_starves(kind: Callable[[], Balance], seed: int) -> None:
    chance = random.Random(seed)
    policy = kind()
    inside: list[Fake] = []
    served: dict[str, int] = {}
    for number in range(600):
        match chance.randrange(6):
            case 0:
                fake = Fake(f"n{number}", most=chance.randint(1, 20), weight=chance.randint(1, 4))
                inside.append(fake)
                policy.add(fake)
            case 1 if len(inside) > 3:
                gone = inside.pop(chance.randrange(len(inside)))
                policy.remove(gone)
            case 2 | 3:
                for fake in inside:
                    fake.load -= chance.randint(0, fake.load)
                    policy.changed(fake)
            case _:
                count = chance.choice((1, 2, 10, 100))
                room = sum(fake.room() for fake in inside)
                given = allocate(policy, count)
                assert given or not room, "there was room, and nobody was chosen"
                for name, portion in given.items():
                    served[name] = served.get(name, 0) + portion
    for fake in inside:
        fake.load = 0
        policy.changed(fake)
    while allocate(policy, 50):
        pass
    assert all(fake.room() == 0 for fake in inside)
    assert served
