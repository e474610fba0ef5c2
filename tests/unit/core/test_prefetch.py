"""What a consumer may hold: messages, bytes, for one subscription and for all."""

from kyogo_broker.model.commands import (
    Outcome,
    SetPrefetch,
    Subscription,
)
from kyogo_broker.model.effects import AttachRefused
from kyogo_broker.model.errors import ErrorCode
from kyogo_broker.model.settings import BalancePolicy, QueueSettings
from kyogo_broker.model.states import ConsumerState
from tests.support.shards import Driver, offsets, only, runs


def refused(driver: Driver) -> ErrorCode:
    """Why the last attach was refused."""
    return only(driver.effects, AttachRefused)[-1].refusal.code


def state_of(driver: Driver, port: int) -> ConsumerState:
    return driver.shard._state.consumers[port].state


# Prefetch.


def test_prefetch_is_absolute_and_lowering_takes_nothing_back() -> None:
    driver = Driver()
    driver.create()
    port = driver.attach(prefetch_messages=4)
    driver.publish(10)
    assert len(offsets(driver.effects, port)) == 4
    driver.do(SetPrefetch(port, 2, 0))
    assert driver.queue().in_flight == 4
    fence = driver.last_delivery(port).first_fence
    driver.settle(port, Outcome.ACK, (fence, fence + 1))
    assert len(offsets(driver.effects, port)) == 4
    driver.settle(port, Outcome.ACK, fence + 2)
    assert len(offsets(driver.effects, port)) == 5
    driver.do(SetPrefetch(port, 0, 0))
    driver.settle(port, Outcome.ACK, fence + 3)
    assert len(offsets(driver.effects, port)) == 5


def test_prefetch_zero_bytes_means_the_default() -> None:
    driver = Driver()
    driver.create()
    port = driver.attach()
    driver.do(SetPrefetch(port, 5, 0))
    assert driver.shard._state.consumers[port].prefetch_bytes == 4 << 20


def test_prefetch_counts_bytes_and_one_larger_message_goes_alone() -> None:
    driver = Driver()
    driver.create()
    port = driver.attach(prefetch_bytes=100)
    driver.publish(b"a" * 60, b"b" * 40, b"c" * 500, b"d" * 10)
    assert offsets(driver.effects, port) == [1, 2]
    first = driver.last_delivery(port).first_fence
    driver.settle(port, Outcome.ACK, first)
    assert offsets(driver.effects, port) == [1, 2], "500 bytes do not fit beside 40"
    driver.settle(port, Outcome.ACK, first + 1)
    assert offsets(driver.effects, port) == [1, 2, 3]
    driver.settle(port, Outcome.ACK, driver.last_delivery(port).first_fence)
    assert offsets(driver.effects, port) == [1, 2, 3, 4]


def test_whoever_waits_for_bytes_gets_on_when_another_took_the_large_message() -> None:
    driver = Driver()
    driver.create(settings=QueueSettings(balance_policy=BalancePolicy.ROUND_ROBIN))
    narrow = driver.attach(prefetch_bytes=100)
    driver.publish(b"a" * 60)
    driver.publish(b"b" * 90)
    wide = driver.attach()
    driver.publish(b"c" * 10)
    driver.publish(b"d" * 10)
    assert offsets(driver.effects, wide)[0] == 2
    assert 3 in offsets(driver.effects, narrow) or 4 in offsets(driver.effects, narrow)


def test_a_large_message_of_one_queue_does_not_keep_a_consumer_from_another_queue() -> None:
    driver = Driver()
    driver.create("a")
    driver.create("b")
    port = driver.attach("a", "b", prefetch_bytes=100)
    driver.publish(b"x" * 60, queue="a")
    driver.publish(b"y" * 90, queue="a")
    driver.publish(b"z" * 10, queue="b")
    assert [(run.subscription, run.first_offset) for run in runs(driver.effects, port)] == [(0, 1), (1, 1)]


def test_max_unsettled_bounds_one_subscription_and_prefetch_all_of_them() -> None:
    driver = Driver()
    driver.create("a")
    driver.create("b")
    port = driver.attach(subscriptions=(Subscription("a", max_unsettled=2), Subscription("b")), prefetch_messages=5)
    driver.publish(9, queue="a")
    driver.publish(9, queue="b")
    given = [(run.subscription, run.count) for run in runs(driver.effects, port)]
    assert given == [(0, 2), (1, 3)]
    driver.settle(port, Outcome.ACK, runs(driver.effects, port)[0].first_fence)
    assert driver.queue("a").in_flight + driver.queue("b").in_flight == 5
    assert driver.queue("a").in_flight <= 2
