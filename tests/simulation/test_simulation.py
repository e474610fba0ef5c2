"""Whole histories of the broker with faults: seeds that are always lived through, and fresh ones for a while.

KYOGO_SIMULATION_SECONDS says how long the fresh ones take (10; CI runs 60 s). A seed that fails is printed with the command
that repeats it; once it is understood, it is added to `SEEDS`, if it still shows what it showed.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from kyogo_broker.core.settled import SettledFences
from kyogo_broker.core.standard import StandardReady
from kyogo_broker.engine import Engine
from tests.simulation.coverage import KINDS, seen, unseen
from tests.simulation.run import simulating
from tests.simulation.simulate import OPERATIONS, History, simulate
from tests.support.faulty_disk import FaultyDisk

SECONDS = float(os.environ.get("KYOGO_SIMULATION_SECONDS", "10"))
SEEDS = (518, 1002, 0)
"""Always lived through; once they showed a file left open, a consumer suspected behind a full inbox, and an
answer for a queue that was deleted in the same turn."""
KINDS_WITHIN = 60
"""Histories within which every kind of fault happens: the rarest one in every tenth."""
TEST_SECONDS = 240
"""For a machine with much else to do."""
MUTANT_SEEDS = range(1, 25)

pytestmark = pytest.mark.timeout(TEST_SECONDS + SECONDS)


@pytest.fixture(autouse=True)
def small_limits() -> Iterator[None]:
    with simulating():
        yield


def lived(seed: int) -> History:
    history = simulate(seed)
    assert not history.violation, (
        f"seed {seed}: {history.violation}\nTo repeat it: python -m tests.simulation --seed {seed} --count 1"
    )
    return history


@pytest.mark.parametrize("seed", SEEDS)
def test_a_known_seed_keeps_every_promise(seed: int) -> None:
    assert lived(seed).operations >= OPERATIONS * 0.8


def test_every_kind_of_fault_takes_effect() -> None:
    cover = Counter[str]()
    for seed in range(KINDS_WITHIN):
        cover += lived(seed).cover
        if not unseen(cover):
            break
    print(", ".join(f"{kind} {count}" for kind, count in seen(cover).items()))
    assert unseen(cover) == []


def test_fresh_seeds_keep_every_promise() -> None:
    first = time.time_ns() // 1_000_000 % 1_000_000_000
    until = time.monotonic() + SECONDS
    count = 0
    cover = Counter[str]()
    while time.monotonic() < until:
        cover += lived(first + count).cover
        count += 1
    print(f"seeds {first} to {first + count - 1}; " + ", ".join(f"{kind} {n}" for kind, n in seen(cover).items()))
    assert count or not SECONDS


def test_a_seed_is_one_history() -> None:
    once, again = simulate(SEEDS[0]), simulate(SEEDS[0])
    assert once == again
    assert simulate(SEEDS[1]).digest != once.digest


def test_a_kind_that_was_not_met_is_named() -> None:
    assert unseen(Counter()) == list(KINDS)
    assert "EIO" not in unseen(Counter({"EIO in write": 1}))


# A broker, or a disk, that is broken on purpose is caught.


def violation() -> str:
    for seed in MUTANT_SEEDS:
        history = simulate(seed)
        if history.violation:
            return history.violation
    return ""


def test_a_disk_that_lies_about_syncs_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FaultyDisk, "_sync", lambda disk, call, inode: disk._change(call))
    assert violation()[:3] in {"I1:", "the"}


def test_answers_before_the_commit_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    append = Engine._append

    async def forgetful(engine: Engine, facts: list[Any], now: Any) -> None:
        await append(engine, [fact for fact in facts if type(fact).__name__ != "Settled"], now)

    monkeypatch.setattr(Engine, "_append", forgetful)
    assert violation().startswith(("I15", "I3", "AssertionError: took messages that were not ready"))


def test_a_settlement_that_is_forgotten_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SettledFences, "add", lambda *_: None)
    assert violation()


def test_a_message_that_loses_its_place_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    returned = StandardReady.add_returned

    def doubled(ready: StandardReady, first: int, last: int, reason: Any) -> None:
        returned(ready, first, last, reason)
        if last > first:
            returned(ready, last, last, reason)

    monkeypatch.setattr(StandardReady, "add_returned", doubled)
    assert "miscounted or doubled" in violation() or "accounted for" in violation()
