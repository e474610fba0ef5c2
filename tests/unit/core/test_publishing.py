"""Publishing: dense offsets, resends recognised, refusals that store nothing."""

import pytest

from kyogo_broker.core.limits import ShardConfig
from kyogo_broker.core.producers import IDLE_MS_MAX, REQUESTS_KEPT, Producers, Stored
from kyogo_broker.model.commands import Drain, Publish, SetPressure
from kyogo_broker.model.effects import Effect, PublishDone
from kyogo_broker.model.errors import ErrorCode
from kyogo_broker.model.facts import ProducersForgotten, Published
from kyogo_broker.model.message import OffsetRun
from kyogo_broker.model.settings import QueueSettings
from tests.support.shards import Driver, batch_of, only


def answer(effects: list[Effect]) -> tuple[OffsetRun, ...] | ErrorCode:
    [done] = only(effects, PublishDone)
    return done.offsets if done.refusal is None else done.refusal.code


def as_producer(driver: Driver, request_id: int, *, digest: int = 1, producer: str = "p", queue: str = "q") -> object:
    fields = {"producer_id": producer, "request_id": request_id, "digest": digest}
    return answer(driver.publish(b"body", queue=queue, **fields))


def test_offsets_are_dense_from_one() -> None:
    driver = Driver()
    driver.create()
    assert answer(driver.publish(3)) == (OffsetRun(1, 3),)
    assert answer(driver.publish(1)) == (OffsetRun(4, 1),)


def test_without_a_producer_a_resend_is_stored_twice() -> None:
    driver = Driver()
    driver.create()
    for first in (1, 2):
        assert answer(driver.publish(b"same", request_id=7, digest=1)) == (OffsetRun(first, 1),)


def test_a_resend_is_answered_with_what_the_first_one_got() -> None:
    driver = Driver()
    driver.create()
    assert as_producer(driver, 5) == (OffsetRun(1, 1),)
    assert as_producer(driver, 9) == (OffsetRun(2, 1),)
    assert as_producer(driver, 5) == (OffsetRun(1, 1),)
    assert driver.queue().accepted == 2


def test_other_messages_under_a_kept_id_are_a_conflict() -> None:
    driver = Driver()
    driver.create()
    as_producer(driver, 5)
    assert as_producer(driver, 5, digest=2) is ErrorCode.REQUEST_CONFLICT
    more = driver.publish(b"one", b"two", producer_id="p", request_id=5, digest=1)
    assert answer(more) is ErrorCode.REQUEST_CONFLICT, "the same digest of another number of messages"
    assert driver.queue().accepted == 1


def test_producers_and_queues_are_told_apart() -> None:
    driver = Driver()
    driver.create("a")
    driver.create("b")
    for queue in ("a", "b"):
        for producer in ("p", "r"):
            assert isinstance(
                as_producer(driver, 5, digest=len(producer + queue), queue=queue, producer=producer), tuple
            )
    assert driver.queue("a").accepted == driver.queue("b").accepted == 2


def test_the_last_64_requests_are_kept_and_what_is_older_cannot_be_told() -> None:
    driver = Driver()
    driver.create()
    for number in range(1, REQUESTS_KEPT + 1):
        as_producer(driver, 10 * number)
    assert as_producer(driver, 10) == (OffsetRun(1, 1),)
    assert as_producer(driver, 5) == (OffsetRun(65, 1),), "below a stored one, above every dropped one: new"
    assert as_producer(driver, 10) is ErrorCode.REQUEST_TOO_OLD, "the first one stored made room"
    assert as_producer(driver, 7) is ErrorCode.REQUEST_TOO_OLD
    assert as_producer(driver, 11) == (OffsetRun(66, 1),)
    assert as_producer(driver, 5) == (OffsetRun(65, 1),)
    assert as_producer(driver, 641) == (OffsetRun(67, 1),)


def test_a_dropped_id_never_becomes_new_again() -> None:
    producers = Producers()
    order = [1_000, *range(1, 200)]
    for number, request_id in enumerate(order):
        producers.keep("p", Stored(request_id, number + 1, 1, 1), 0)
    window = producers.window("p")
    assert window is not None
    assert len(window.requests) == REQUESTS_KEPT
    assert window.dropped_id == 1_000


def test_resends_are_recognised_after_a_restart() -> None:
    driver = Driver()
    driver.create()
    for number in range(1, 70):
        as_producer(driver, number)
    after = driver.restarted()
    assert as_producer(after, 5) is ErrorCode.REQUEST_TOO_OLD
    assert as_producer(after, 6) == (OffsetRun(6, 1),)
    assert as_producer(after, 6, digest=9) is ErrorCode.REQUEST_CONFLICT


def test_an_idle_hour_forgets_a_producer_and_a_resend_counts_as_use() -> None:
    driver = Driver()
    driver.create()
    as_producer(driver, 1, producer="idle")
    as_producer(driver, 1, producer="busy")
    for _ in range(6):
        driver.wait(IDLE_MS_MAX // 4)
        as_producer(driver, 1, producer="busy")
    assert driver.shard.stats().producers == 1
    forgotten = [f.producer_ids for r in driver.records for f in r.facts if isinstance(f, ProducersForgotten)]
    assert forgotten == [("idle",)]
    assert as_producer(driver, 1, producer="busy") == (OffsetRun(2, 1),)
    assert as_producer(driver, 1, producer="idle") == (OffsetRun(3, 1),)


@pytest.mark.parametrize("leap_ms", [2 * IDLE_MS_MAX, -2 * IDLE_MS_MAX])
def test_a_leap_of_the_wall_clock_forgets_nobody(leap_ms: int) -> None:
    driver = Driver()
    driver.create()
    as_producer(driver, 1)
    driver.wait(120_000, unix_ms=leap_ms)
    driver.wait(120_000)
    assert as_producer(driver, 1) == (OffsetRun(1, 1),)
    assert driver.queue().accepted == 1


def test_a_refusal_is_not_kept() -> None:
    driver = Driver()
    driver.create()
    driver.do(SetPressure(disk_low=True, memory_high=False))
    assert as_producer(driver, 1) is ErrorCode.DISK_LOW
    driver.do(SetPressure(disk_low=False, memory_high=False))
    assert as_producer(driver, 1) == (OffsetRun(1, 1),)


@pytest.mark.parametrize(
    ("pressure", "code"), [((True, False), ErrorCode.DISK_LOW), ((False, True), ErrorCode.MEMORY_HIGH)]
)
def test_under_pressure_nothing_is_stored_but_resends_are_answered(
    pressure: tuple[bool, bool], code: ErrorCode
) -> None:
    driver = Driver()
    driver.create()
    as_producer(driver, 1)
    driver.do(SetPressure(*pressure))
    assert as_producer(driver, 1) == (OffsetRun(1, 1),)
    [done] = only(driver.publish(1), PublishDone)
    assert done.refusal is not None
    assert done.refusal.code is code
    assert done.refusal.retry_after_ms is not None


def test_a_draining_broker_takes_nothing_new() -> None:
    driver = Driver()
    driver.create()
    as_producer(driver, 1)
    driver.do(Drain(9_000))
    assert as_producer(driver, 1) == (OffsetRun(1, 1),)
    assert answer(driver.publish(1)) is ErrorCode.BROKER_DRAINING


def test_an_unknown_queue_is_named_with_its_nearest_neighbour() -> None:
    driver = Driver()
    driver.create("orders")
    [done] = only(driver.publish(1, queue="order"), PublishDone)
    assert done.refusal is not None
    assert done.refusal.code is ErrorCode.QUEUE_NOT_FOUND
    assert done.refusal.metadata == {"queue": "order", "nearest": "orders"}


def test_auto_create_makes_a_queue_with_defaults_and_none_for_letters() -> None:
    driver = Driver(ShardConfig(auto_create=True))
    assert answer(driver.publish(1, queue="new")) == (OffsetRun(1, 1),)
    assert driver.queue("new").settings == QueueSettings()
    assert answer(driver.publish(1, queue="new.dlq")) is ErrorCode.QUEUE_NOT_FOUND
    assert answer(driver.publish(1, queue="no such/name")) is ErrorCode.MESSAGE_INVALID


def test_a_publish_is_one_fact_with_the_bytes_as_they_came() -> None:
    driver = Driver()
    driver.create()
    batch = batch_of(b"one", b"two")
    driver.begin()
    step = driver.shard.handle(Publish(0, 0, "q", batch), driver.now)
    [fact] = step.facts
    assert isinstance(fact, Published)
    assert fact.batch is batch
