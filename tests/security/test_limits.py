"""What a client can make many of: queues, producers, streams, consumers, watches. Each ends at a clear error."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from kyogo.v1 import admin_pb2 as admin
from kyogo.v1 import broker_pb2 as pb
from kyogo.v1.admin_pb2_grpc import AdminServiceStub
from kyogo.v1.broker_pb2_grpc import BrokerServiceStub
from kyogo_broker.ops.metrics import QUEUES_MAX
from kyogo_broker.server.limits import MAX_WATCHES, Limits
from tests.security.sizes import SIZES
from tests.security.victim import STARVING_SECONDS, Victim
from tests.support.edge import Consumer, failure_of, until
from tests.support.processes import Broker

LIMITS = {"max_queues": 8, "max_producers": 6, "max_streams": 12, "max_streams_per_client": 5}
STREAMS_A_CONNECTION = Limits().max_streams_per_client


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that allows little of everything."""
    directory = Path(tmp_path_factory.mktemp("narrow"))
    settings = directory / "broker.toml"
    settings.write_text("".join(f"{name} = {value}\n" for name, value in LIMITS.items()))
    broker = Broker(directory, "--log-format", "json", "--config", str(settings), name="narrow")
    asyncio.run(broker.start())
    try:
        yield broker
    finally:
        broker.kill()


@asynccontextmanager
async def client(address: str) -> AsyncIterator[tuple[Any, Any]]:
    """Both stubs, on a connection of their own."""
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield BrokerServiceStub(channel), AdminServiceStub(channel)


def publish(queue: str, **fields: Any) -> pb.PublishRequest:
    return pb.PublishRequest(destination=queue, messages=[pb.Message(body=b"a")], **fields)


@contextmanager
def at_limit() -> Iterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "LIMIT_EXCEEDED" in str(caught.value.trailing_metadata())


async def test_queues_end_at_their_limit_whoever_makes_them(narrow: Broker) -> None:
    async with client(narrow.address) as (broker, control):
        for number in range(LIMITS["max_queues"]):
            await broker.Publish(publish(f"q{number}"))
        with at_limit():
            await broker.Publish(publish("one-more"))
        with at_limit():
            await control.CreateQueue(admin.CreateQueueRequest(queue="one-more"))
        await broker.Publish(publish("q0"))
        assert len((await control.ListQueues(admin.ListQueuesRequest())).queues) == LIMITS["max_queues"]
        await control.DeleteQueue(admin.DeleteQueueRequest(queue="q7", confirm="q7"))
        await control.CreateQueue(admin.CreateQueueRequest(queue="q7"))


async def test_producers_end_at_their_limit_and_those_known_go_on(narrow: Broker) -> None:
    async with client(narrow.address) as (broker, _):
        for number in range(LIMITS["max_producers"]):
            await broker.Publish(publish("q0", request_id=1, producer_id=f"p{number}"))
        with at_limit():
            await broker.Publish(publish("q0", request_id=1, producer_id="one-more"))
        first, again = [await broker.Publish(publish("q0", request_id=2, producer_id="p0")) for _ in range(2)]
        assert first.offsets[0].first_offset == again.offsets[0].first_offset


async def test_streams_end_at_their_limit_by_client_and_in_all(narrow: Broker) -> None:
    async with AsyncExitStack() as stack:
        for of_client in (5, 5, 2):
            broker, _ = await stack.enter_async_context(client(narrow.address))
            for number in range(of_client):
                stream = Consumer(broker.Consume())
                await stream.attach("q0", prefetch=pb.Prefetch(messages=0), consumer_id=f"{id(broker)}-{number}")
            refused = await failure_of(broker.Consume())
            assert refused.reason == "LIMIT_EXCEEDED"
            assert refused.metadata["name"] == ("max_streams_per_client" if of_client == 5 else "max_streams")
            assert refused.retry_after_ms is not None
        broker, _ = await stack.enter_async_context(client(narrow.address))
        refused = await failure_of(broker.PublishStream())
        assert refused.metadata["name"] == "max_streams"
        await broker.Publish(publish("q0"))


async def test_consumers_of_a_queue_end_at_its_limit(narrow: Broker) -> None:
    settings = admin.QueueSettings(max_consumers=2)
    async with client(narrow.address) as (broker, control):
        update = admin.UpdateQueueRequest(queue="q1", settings=settings)
        update.update_mask.paths.append("max_consumers")
        await control.UpdateQueue(update)
        attached = [Consumer(broker.Consume()) for _ in range(2)]
        for each in attached:
            await each.attach("q1")
        one_more = broker.Consume()
        await one_more.write(pb.ConsumeRequest(attach=pb.Attach(subscriptions=[pb.Subscription(queue="q1")])))
        refused = await failure_of(one_more)
        assert (refused.reason, refused.code) == ("LIMIT_EXCEEDED", grpc.StatusCode.RESOURCE_EXHAUSTED)
        for each in attached:
            each.call.cancel()


async def test_watches_end_at_their_limit(victim: Victim) -> None:
    async with victim.attacked(f"{MAX_WATCHES} watches"), client(victim.address) as (_, control):
        request = admin.WatchStatsRequest(queue="bystander", interval_ms=100)
        watches = [control.WatchStats(request) for _ in range(MAX_WATCHES)]
        for each in watches:
            await each.read()
        refused = await failure_of(control.WatchStats(request))
        assert refused.reason == "LIMIT_EXCEEDED"
        for each in watches:
            each.cancel()


async def test_many_queues_are_carried_and_not_all_are_labels(victim: Victim) -> None:
    names = [f"many-{number}" for number in range(SIZES.queues - 10)]
    async with victim.attacked(f"{len(names):,} queues", rss_mib=250), client(victim.address) as (broker, control):
        for at in range(0, len(names), 64):
            await asyncio.gather(*(broker.Publish(publish(name)) for name in names[at : at + 64]))
        await control.GetStats(admin.GetStatsRequest())
        labels = {line.split('"')[1] for line in victim.metrics() if line.startswith("kyogo_queue_consumers{")}
        assert min(len(names), QUEUES_MAX) <= len(labels) <= QUEUES_MAX + 1
        for at in range(0, len(names), 64):
            part = names[at : at + 64]
            await asyncio.gather(
                *(control.DeleteQueue(admin.DeleteQueueRequest(queue=name, confirm=name)) for name in part)
            )


async def test_many_consumers_of_one_queue_are_carried(victim: Victim) -> None:
    """They attach, and half of them are cut at once."""
    async with (
        victim.attacked(f"{SIZES.consumers:,} consumers") as attack,
        AsyncExitStack() as stack,
        client(victim.address) as (broker, control),
    ):
        await broker.Publish(publish("crowded"))
        attached: list[Consumer] = []
        while len(attached) < SIZES.consumers:
            crowd, _ = await stack.enter_async_context(client(victim.address))
            part = [
                Consumer(crowd.Consume()) for _ in range(min(STREAMS_A_CONNECTION, SIZES.consumers - len(attached)))
            ]
            await asyncio.gather(*(each.attach("crowded", heartbeat_interval_ms=60_000) for each in part))
            attached += part
        for each in attached[::2]:
            each.call.cancel()
        figures = await control.GetQueue(admin.GetQueueRequest(queue="crowded"))
        stats = figures.queue.stats
        assert stats.ready + stats.delayed + stats.in_flight == 1
        await until(lambda: not attack.goes_on(), "the bystander is served", STARVING_SECONDS + 1)
        for each in attached:
            each.call.cancel()
        await until(lambda: victim.metrics()['kyogo_queue_consumers{queue="crowded"}'] == 0, "all are gone", 30)
        await control.DeleteQueue(admin.DeleteQueueRequest(queue="crowded", confirm="crowded"))
