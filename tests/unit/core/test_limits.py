"""Every limit of a shard is reached once."""

import pytest

from kyogo_broker.core import fences, leases
from kyogo_broker.core.fences import BLOCK, RESERVE_AT
from kyogo_broker.core.limits import DISPATCH_MESSAGES_MAX, DISPATCH_RUNS_MAX, ShardConfig
from kyogo_broker.core.sessions import LOST_TOLD_MAX
from kyogo_broker.model.commands import CreateQueue, Heartbeat, Outcome, PauseQueue
from kyogo_broker.model.effects import AdminDone, AttachDone, AttachRefused, PublishDone, Revoke
from kyogo_broker.model.errors import ErrorCode
from kyogo_broker.model.facts import FencesReserved
from kyogo_broker.model.settings import QueueSettings
from tests.support.shards import Driver, batch_of, offsets, only, runs


def test_queues() -> None:
    driver = Driver(ShardConfig(queues_max=2, auto_create=True))
    driver.create("a")
    driver.create("b")
    refusal = only(driver.do(CreateQueue(0, 0, "c", QueueSettings())), AdminDone)[0].refusal
    assert refusal is not None
    assert refusal.code is ErrorCode.LIMIT_EXCEEDED
    published = only(driver.publish(1, queue="c"), PublishDone)[0].refusal
    assert published is not None
    assert published.code is ErrorCode.LIMIT_EXCEEDED


def test_letters_are_kept_also_beyond_the_limit_of_queues() -> None:
    driver = Driver(ShardConfig(queues_max=1))
    driver.create()
    port = driver.attach()
    driver.publish(1)
    driver.settle(port, Outcome.DEAD_LETTER, 1)
    assert driver.queue("q.dlq").accepted == 1


def test_producers() -> None:
    driver = Driver(ShardConfig(producers_max=2))
    driver.create("a")
    driver.create("b")
    driver.publish(1, queue="a", producer_id="p", request_id=1)
    driver.publish(1, queue="b", producer_id="p", request_id=1)
    refusal = only(driver.publish(1, queue="a", producer_id="r", request_id=1), PublishDone)[0].refusal
    assert refusal is not None
    assert refusal.code is ErrorCode.LIMIT_EXCEEDED
    assert only(driver.publish(1, queue="a", producer_id="p", request_id=2), PublishDone)[0].refusal is None
    assert only(driver.publish(1, queue="a"), PublishDone)[0].refusal is None


def test_consumers_of_a_queue() -> None:
    driver = Driver()
    driver.create(settings=QueueSettings(max_consumers=2))
    for _ in range(3):
        driver.attach()
    assert [e.refusal.code for e in only(driver.effects, AttachRefused)] == [ErrorCode.LIMIT_EXCEEDED]


@pytest.mark.parametrize("asked", [9_999, 10_000, 10_001])
def test_prefetch_in_messages(asked: int) -> None:
    driver = Driver()
    driver.create()
    port = driver.attach(prefetch_messages=asked)
    driver.publish(*[b"x"] * 10_500)
    granted = min(asked, 10_000)
    assert only(driver.effects, AttachDone)[0].prefetch_messages == granted
    assert len(offsets(driver.effects, port)) == granted


def test_a_lease_and_a_turn_of_one_queue() -> None:
    driver = Driver()
    driver.create()
    port = driver.attach(prefetch_messages=10_000)
    driver.handle(PauseQueue(0, 0, "q", paused=True))
    driver.publish(*[b"x"] * 9_000)
    driver.handle(PauseQueue(0, 0, "q", paused=False))
    effects = driver.tick()
    assert len(offsets(effects, port)) == DISPATCH_MESSAGES_MAX
    assert driver.shard.next_wake_ms() == 0, "the rest follows at once"
    assert {run.count for run in runs(effects)} == {leases.LEASE_MESSAGES_MAX}
    assert len(offsets(driver.tick(), port)) == 9_000 - DISPATCH_MESSAGES_MAX


def test_runs_of_one_queue_in_a_turn_are_shared_by_its_consumers() -> None:
    driver = Driver()
    driver.create()
    ports = [driver.attach(prefetch_messages=1_000) for _ in range(2)]
    driver.handle(PauseQueue(0, 0, "q", paused=True))
    for _ in range(DISPATCH_RUNS_MAX + 100):
        driver.publish(b"x")
    driver.handle(PauseQueue(0, 0, "q", paused=False))
    effects = driver.tick()
    assert [len(offsets(effects, port)) for port in ports] == [DISPATCH_RUNS_MAX // 2] * 2
    assert driver.shard.next_wake_ms() == 0, "the rest follows at once"
    assert len(offsets(driver.tick())) == 100


def test_fences_are_reserved_before_they_run_out() -> None:
    driver = Driver()
    driver.create()
    port = driver.attach(prefetch_messages=10_000)
    counter = driver.shard._state.fences
    counter.next = counter.reserved - RESERVE_AT
    driver.publish(*[b"x"] * 10)
    driver.settle(
        port, Outcome.ACK, (driver.last_delivery(port).first_fence, driver.last_delivery(port).first_fence + 9)
    )
    driver.publish(1)
    reserved = [fact.until for record in driver.records for fact in record.facts if isinstance(fact, FencesReserved)]
    assert reserved == [1 + BLOCK, 1 + 2 * BLOCK]


def test_fences_do_not_run_out_when_many_queues_deliver_in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fences, "RESERVE_AT", 20_000)
    driver = Driver()
    names = [f"q{number}" for number in range(6)]
    for name in names:
        driver.create(name)
        driver.do(PauseQueue(0, 0, name, paused=True))
        driver.attach(name, prefetch_messages=10_000)
        driver.publish(*[b"x"] * DISPATCH_MESSAGES_MAX, queue=name)
    counter = driver.shard._state.fences
    counter.next = counter.reserved - 20_000
    for name in names:
        driver.handle(PauseQueue(0, 0, name, paused=False))
    driver.tick()
    assert len(offsets(driver.effects)) == 6 * DISPATCH_MESSAGES_MAX


def test_ranges_that_one_is_told_of() -> None:
    driver = Driver()
    driver.create()
    port = driver.attach(prefetch_messages=10_000, capabilities=("started",))
    for _ in range(3):
        driver.publish(*[b"x"] * 10)
    consumer = driver.shard._state.consumers[port]
    driver.wait(3_000)
    consumer.lost += [(1, 1)] * (LOST_TOLD_MAX + 5)
    [revoke] = only(driver.do(Heartbeat(port)), Revoke)
    assert len(revoke.ranges) == LOST_TOLD_MAX
    assert batch_of(b"x").count == 1
