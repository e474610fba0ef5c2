"""The promise of the README, a test for each clause of it, against real processes that are killed.

Clauses of later features (expired, dropped by a limit, cancelled) get their tests with those features.
"""

import asyncio
import signal
from pathlib import Path

import grpc
import pytest

from kyogo.admin import Client, QueueSettings, RetryPolicy
from kyogo.v1 import broker_pb2
from kyogo.v1.broker_pb2_grpc import BrokerServiceStub
from tests.support.processes import Broker, Processes, until
from tests.support.queues import drained, make_queue, stats_of
from tests.support.raw_consumer import ACK, RETRY, RawConsumer, attached, publish
from tests.support.workers import Workers

QUEUE = "orders"
JSON = "application/json"


async def nothing_but_the_sentinel(broker: Broker) -> None:
    """Whatever else were deliverable would come first: its offset is lower."""
    [sentinel] = await publish(broker.address, QUEUE, b"sentinel")
    async with attached(broker.address, QUEUE) as consumer:
        delivery = await consumer.delivery()
        assert (delivery.offset, delivery.body) == (sentinel, b"sentinel")
        assert await consumer.settle(ACK, delivery.fence) == ["OK"]


async def publish_until_it_breaks(address: str, answered: dict[int, list[bytes]]) -> None:
    """Publish requests of 8 messages on one stream, noting what was answered, until the broker is gone."""
    async with grpc.aio.insecure_channel(address) as channel:
        stream = BrokerServiceStub(channel).PublishStream()
        sent: dict[int, list[bytes]] = {}

        async def read() -> None:
            while isinstance(answer := await stream.read(), broker_pb2.PublishResponse):
                [run] = answer.offsets
                answered[run.first_offset] = sent[answer.request_id]

        reading = asyncio.create_task(read())
        try:
            for number in range(1, 1_000_000):
                bodies = [b"%d-%d" % (number, index) for index in range(8)]
                messages = [broker_pb2.Message(body=body) for body in bodies]
                sent[number] = bodies
                await stream.write(broker_pb2.PublishRequest(destination=QUEUE, request_id=number, messages=messages))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        await asyncio.gather(reading, return_exceptions=True)


async def test_a_publish_that_was_answered_is_durable(broker: Broker) -> None:
    await make_queue(broker.address, QUEUE)
    answered: dict[int, list[bytes]] = {}
    publishing = asyncio.create_task(publish_until_it_breaks(broker.address, answered))
    await until(lambda: len(answered) >= 300, "300 answered requests")
    broker.kill()
    await publishing
    await broker.start()

    wanted = {first + index: body for first, bodies in answered.items() for index, body in enumerate(bodies)}
    found: dict[int, bytes] = {}
    async with attached(broker.address, QUEUE, prefetch=10_000) as consumer:
        while set(wanted) - set(found):
            delivery = await consumer.delivery()
            assert delivery.offset not in found
            found[delivery.offset] = delivery.body
    assert len(answered) >= 300
    assert {offset: found[offset] for offset in wanted} == wanted


async def test_it_is_delivered_until_it_is_acked_though_its_workers_are_killed(
    children: Processes, broker: Broker, tmp_path: Path
) -> None:
    await make_queue(broker.address, QUEUE)
    workers = Workers(children, broker, QUEUE)
    held = b'{"until": "%s"}' % str(tmp_path / "gate").encode()
    await workers.start("first", concurrency=1)
    offsets = await publish(broker.address, QUEUE, held, content_type=JSON)
    await workers.begun(1)
    workers.kill("first")
    await workers.start("second", concurrency=1)
    await workers.begun(2)
    workers.kill("second")
    (tmp_path / "gate").touch()
    await workers.start("third", concurrency=1)

    [done] = await workers.done(offsets)
    # A loss is charged for what the broker knew to have begun; a killed worker may not have said so yet.
    assert (done.worker, done.attempt) == ("third", 1)
    assert done.losses <= 2
    assert (await drained(broker.address, QUEUE)).finished == {"acked": 1}


async def test_it_is_delivered_until_it_is_acked_though_the_broker_is_killed(
    children: Processes, broker: Broker, tmp_path: Path
) -> None:
    await make_queue(broker.address, QUEUE)
    workers = Workers(children, broker, QUEUE)
    await workers.start("worker", concurrency=2)
    held = b'{"until": "%s"}' % str(tmp_path / "gate").encode()
    offsets = await publish(broker.address, QUEUE, *[held] * 6, content_type=JSON)
    await workers.begun(2)
    broker.kill()
    await broker.start()
    (tmp_path / "gate").touch()

    await workers.done(offsets)
    stats = await drained(broker.address, QUEUE)
    assert (stats.accepted, stats.finished) == (6, {"acked": 6})


async def test_or_dead_lettered_and_then_it_is_over(children: Processes, broker: Broker) -> None:
    retry = RetryPolicy(initial_ms=1, max_ms=1)
    await make_queue(broker.address, QUEUE, QueueSettings(max_attempts=3, retry=retry))
    workers = Workers(children, broker, QUEUE)
    await workers.start("worker")
    [failing, hopeless] = await publish(
        broker.address, QUEUE, b'{"do": "fail"}', b'{"do": "dead-letter"}', content_type=JSON
    )

    letters = {}
    await workers.begun(4)
    await drained(broker.address, QUEUE)
    async with attached(broker.address, f"{QUEUE}.dlq") as consumer:
        for _ in range(2):
            delivery = await consumer.delivery()
            assert delivery.dead_letter is not None
            letters[delivery.dead_letter.offset] = delivery.dead_letter
    assert (letters[failing].reason, letters[failing].attempts) == ("max_attempts", 3)
    assert (letters[failing].error_type, letters[failing].last_error) == ("ValueError", "told to fail")
    assert letters[hopeless].reason == "told to give up"
    attempts = [entry.attempt for entry in workers.entries("begin") if entry.offset == failing]
    assert attempts == [1, 2, 3]
    assert (await stats_of(broker.address, QUEUE)).finished == {"dead_lettered": 2}
    assert await workers.by_name["worker"].stop() == 0
    broker.kill()
    await broker.start()
    await nothing_but_the_sentinel(broker)


async def test_or_purged_and_then_it_is_over(broker: Broker) -> None:
    await make_queue(broker.address, QUEUE)
    await publish(broker.address, QUEUE, *[b"x"] * 10)
    async with attached(broker.address, QUEUE, prefetch=2) as consumer:
        held = [await consumer.delivery() for _ in range(2)]
        async with Client(broker.address) as admin:
            assert await admin.purge_queue(QUEUE, confirm=QUEUE) == 8
        # What was in somebody's hands is theirs to settle.
        assert await consumer.settle(ACK, *(delivery.fence for delivery in held)) == ["OK", "OK"]
    assert (await stats_of(broker.address, QUEUE)).finished == {"purged": 8, "acked": 2}
    broker.kill()
    await broker.start()
    await nothing_but_the_sentinel(broker)


async def test_after_an_ack_was_answered_ok_never_again_restarts_included(broker: Broker) -> None:
    await make_queue(broker.address, QUEUE)
    bodies = [b"%d" % number for number in range(100)]
    await publish(broker.address, QUEUE, *bodies)
    async with attached(broker.address, QUEUE, prefetch=100) as consumer:
        fences = [(await consumer.delivery()).fence for _ in bodies]
        assert await consumer.settle(ACK, *fences) == ["OK"] * 100
        broker.kill()
    await broker.start()
    await nothing_but_the_sentinel(broker)
    stats = await stats_of(broker.address, QUEUE)
    assert (stats.accepted, stats.finished, stats.ready) == (101, {"acked": 101}, 0)


async def test_after_an_ack_was_answered_ok_its_worker_may_die(broker: Broker) -> None:
    await make_queue(broker.address, QUEUE)
    await publish(broker.address, QUEUE, b"x")
    async with attached(broker.address, QUEUE) as consumer:
        assert await consumer.settle(ACK, (await consumer.delivery()).fence) == ["OK"]
        consumer.cut()
    await nothing_but_the_sentinel(broker)


async def settle_late(late: RawConsumer, fence: int) -> None:
    """No settlement of a delivery that is over has any effect."""
    for outcome in (ACK, RETRY):
        assert await late.settle(outcome, fence) == ["STALE"]
    assert await late.extend(60_000, fence) == ["STALE"]


async def test_at_most_one_delivery_is_valid_and_a_late_settlement_is_stale(broker: Broker) -> None:
    await make_queue(
        broker.address,
        QUEUE,
        QueueSettings(visibility_timeout_ms=300, retry=RetryPolicy(initial_ms=1, max_ms=1)),
    )
    [offset] = await publish(broker.address, QUEUE, b"x")
    async with attached(broker.address, QUEUE, prefetch=1) as slow:
        first = await slow.delivery()
        await slow.started(first.fence)
        async with attached(broker.address, QUEUE, prefetch=1) as quick:
            second = await quick.delivery()
            assert (second.offset, second.attempt, second.reason) == (offset, 2, "VISIBILITY_TIMEOUT")
            assert second.fence > first.fence
            await settle_late(slow, first.fence)
            assert (await stats_of(broker.address, QUEUE)).in_flight == 1
            assert await quick.settle(ACK, second.fence) == ["OK"]
            # Also once it is over, and "done" said twice stays done.
            await settle_late(slow, first.fence)
            assert await quick.settle(ACK, second.fence) == ["OK"]
    assert (await stats_of(broker.address, QUEUE)).finished == {"acked": 1}


@pytest.mark.parametrize("reason", ["BROKER_RESTART", "UNSPECIFIED"])
async def test_a_settlement_of_a_delivery_from_before_a_crash_is_stale(broker: Broker, reason: str) -> None:
    await make_queue(broker.address, QUEUE)
    [offset] = await publish(broker.address, QUEUE, b"x")
    async with attached(broker.address, QUEUE, consumer_id="worker", prefetch=1) as consumer:
        before = await consumer.delivery()
        if reason == "BROKER_RESTART":  # a lease is on disk with the next record; without one nobody remembers it
            await publish(broker.address, "other", b"y")
        broker.kill()
    await broker.start()
    async with attached(broker.address, QUEUE, consumer_id="worker", prefetch=1) as consumer:
        after = await consumer.delivery()
        assert (after.offset, after.attempt, after.losses) == (offset, 1, 0)
        assert after.reason == reason
        assert after.fence > before.fence
        await settle_late(consumer, before.fence)
        assert await consumer.settle(ACK, after.fence) == ["OK"]
    assert (await stats_of(broker.address, QUEUE)).finished == {"acked": 1}


async def test_a_frozen_worker_that_wakes_up_changes_nothing(
    children: Processes, broker: Broker, tmp_path: Path
) -> None:
    """Not promised is that two never overlap; promised is that only one of them counts."""
    await make_queue(
        broker.address,
        QUEUE,
        QueueSettings(visibility_timeout_ms=500, retry=RetryPolicy(initial_ms=1, max_ms=1)),
    )
    workers = Workers(children, broker, QUEUE)
    await workers.start("frozen", concurrency=1)
    held = b'{"until": "%s"}' % str(tmp_path / "gate").encode()
    offsets = await publish(broker.address, QUEUE, held, content_type=JSON)
    await workers.begun(1)
    workers.by_name["frozen"].send(signal.SIGSTOP)
    await workers.start("other", concurrency=1)
    [first, second] = await workers.begun(2)
    (tmp_path / "gate").touch()
    await workers.done(offsets)
    workers.by_name["frozen"].send(signal.SIGCONT)

    stats = await drained(broker.address, QUEUE)
    assert (first.worker, second.worker) == ("frozen", "other")
    assert second.fence > first.fence
    assert (stats.finished, stats.delivered) == ({"acked": 1}, 2)
    assert await workers.by_name["frozen"].stop() == 0
    assert (await stats_of(broker.address, QUEUE)).settled.get("ack") == 1


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "stopped"])
async def test_what_waits_is_there_after_a_restart(broker: Broker, *, kill: bool) -> None:
    await make_queue(broker.address, QUEUE)
    offsets = await publish(broker.address, QUEUE, *(b"%d" % number for number in range(1_000)))
    if kill:
        broker.kill()
    else:
        assert await broker.stop() == 0
    await broker.start()
    async with attached(broker.address, QUEUE, prefetch=1_000) as consumer:
        found = [await consumer.delivery() for _ in offsets]
    assert [(delivery.offset, delivery.body) for delivery in found] == [
        (offset, b"%d" % number) for number, offset in enumerate(offsets)
    ]
