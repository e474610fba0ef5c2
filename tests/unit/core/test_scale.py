"""What must not grow: work and memory, counted and not timed."""

import gc
import tracemalloc

import pytest

from kyogo_broker.core.consumers import Member
from kyogo_broker.model.commands import Attach, Outcome, Settle, Settlement, StreamEnded, Subscription, Tick
from kyogo_broker.model.effects import Deliver
from kyogo_broker.model.settings import BalancePolicy, QueueSettings
from tests.support.shards import Driver, fences, offsets, only, runs

POLICIES = [BalancePolicy.ROUND_ROBIN, BalancePolicy.LEAST_IN_FLIGHT]


def attach_many(driver: Driver, count: int, prefetch: int = 4) -> None:
    for _ in range(count):
        port = driver.port()
        driver.handle(
            Attach(port, 1_000 + port, f"token-{port}", f"consumer-{port}", (Subscription("q"),),
                   capabilities=frozenset({"started"}), prefetch_messages=prefetch)
        )  # fmt: skip
    driver.tick()


@pytest.mark.parametrize("at_once", [1, 250])
def test_failover_with_10_000_in_flight(at_once: int) -> None:
    driver = Driver()
    driver.create()
    port = driver.attach(prefetch_messages=10_000, capabilities=("started",))
    for _ in range(10_000 // at_once):
        driver.publish(*[b"x" * 20] * at_once)
    held = runs(driver.effects, port)
    assert sum(run.count for run in held) == 10_000
    driver.settle_down()
    other = driver.attach(prefetch_messages=10_000)
    driver.begin()
    step = driver.shard.handle(StreamEnded(port), driver.now)
    assert len(step.facts) == 1, "what had not begun goes back in one fact"
    driver.pending += step.facts
    driver.tick()
    driver.settle_down()
    assert sorted(offsets(driver.effects, other)) == list(range(1, 10_001))
    assert offsets(driver.effects, other) == list(range(1, 10_001)), "in their original order"
    driver.shard.check_invariants()


def operations(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often anybody was asked for its room or load while 50 messages were published and settled one by one."""
    asked = 0
    room = Member.room

    def counted_room(member: Member) -> int:
        nonlocal asked
        asked += 1
        return room(member)

    def counted_load(member: Member) -> int:
        nonlocal asked
        asked += 1
        return member.consumer.in_flight

    with monkeypatch.context() as patched:
        patched.setattr(Member, "room", counted_room)
        patched.setattr(Member, "load", property(counted_load))
        for _ in range(50):
            [deliver] = only(driver.publish(b"x"), Deliver)
            [run] = deliver.runs
            driver.do(Settle(deliver.port, (Settlement(Outcome.ACK, fences(run.first_fence)),)))
    return asked


@pytest.mark.parametrize("policy", POLICIES)
def test_the_cost_of_a_dispatch_does_not_grow_with_the_consumers(
    policy: BalancePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for consumers in (10, 10_000):
        driver = Driver()
        driver.create(settings=QueueSettings(balance_policy=policy))
        attach_many(driver, consumers)
        counts.append(operations(driver, monkeypatch))
    few, many = counts
    assert many <= 2 * few, f"{many} looks at consumers with 10,000 of them, {few} with 10"


@pytest.mark.parametrize("policy", POLICIES)
def test_10_000_consumers_get_their_share_of_a_large_batch(policy: BalancePolicy) -> None:
    driver = Driver()
    driver.create(settings=QueueSettings(balance_policy=policy))
    attach_many(driver, 10_000)
    driver.publish(*[b"x"] * 20_000)
    counts: dict[int, int] = {}
    for deliver in only(driver.effects, Deliver):
        counts[deliver.port] = counts.get(deliver.port, 0) + sum(run.count for run in deliver.runs)
    assert (len(counts), min(counts.values()), max(counts.values())) == (10_000, 2, 2)


def test_a_consumer_costs_less_than_3_kb() -> None:
    driver = Driver()
    driver.create()
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(2_000):
        port = driver.port()
        driver.begin()
        driver.shard.handle(
            Attach(port, (1 << 50) + port, f"{port:022d}", f"consumer-{port:012d}", (Subscription("q"),),
                   capabilities=frozenset({"started"})), driver.now,
        )  # fmt: skip
    driver.shard.handle(Tick(), driver.now)
    driver.shard._state.step.effects.clear()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    each = (after - before) / 2_000
    assert 500 < each < 3_000, f"{each:.0f} bytes"


def test_a_plain_backlog_costs_next_to_nothing() -> None:
    driver = Driver()
    queue = driver.create()
    gc.collect()
    batch = [b"x" * 100] * 1_000
    driver.publish(*batch)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    queue.window.clear()
    for _ in range(200):
        driver.publish(*batch)
        driver.records.clear()
        driver.effects.clear()
        queue.window.clear()
        driver.records += [None] * 200  # type: ignore[list-item]  # positions go on
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert queue.ready_count == 201_000
    assert (after - before) / 200_000 < 1, "bytes a waiting message"


def test_a_run_of_plain_messages_is_one_lease_one_fact_and_one_answer() -> None:
    driver = Driver()
    driver.create()
    port = driver.attach(prefetch_messages=500)
    driver.publish(*[b"x"] * 500)
    [run] = runs(driver.effects, port)
    assert len(driver.shard._state.leases) == 1
    driver.begin()
    step = driver.shard.handle(
        Settle(port, (Settlement(Outcome.ACK, fences((run.first_fence, run.first_fence + 499))),)), driver.now
    )
    assert (len(step.facts), len(step.effects)) == (1, 1)
