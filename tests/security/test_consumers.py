"""Consumers that do not do their part: never read, never settle, read a little, or take more than they can want."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from typing import Any

import grpc
import pytest

from kyogo.v1 import admin_pb2 as admin
from kyogo.v1 import broker_pb2 as pb
from kyogo.v1.admin_pb2_grpc import AdminServiceStub
from kyogo.v1.broker_pb2_grpc import BrokerServiceStub
from kyogo_broker.server import session
from kyogo_broker.server.limits import MAX_UNREAD_BYTES, Limits
from tests.security.http2 import Connection, Kind, call, connected, data, message, window
from tests.security.sizes import SIZES
from tests.security.victim import MIB, Victim
from tests.support.edge import running_broker, until

CONSUME = "/kyogo.v1.BrokerService/Consume"
BODY_BYTES = 256 << 10
PREFETCH_BYTES = 64 << 20
BEAT_SECONDS = 0.2
SERVED_SECONDS = 30.0


@asynccontextmanager
async def backlog(victim: Victim, queue: str, octets: int = SIZES.unread_bytes) -> AsyncIterator[Any]:
    """A queue with so many bytes in it, and a stub; gone afterwards."""
    async with grpc.aio.insecure_channel(victim.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub, control = BrokerServiceStub(channel), AdminServiceStub(channel)
        await control.CreateQueue(admin.CreateQueueRequest(queue=queue))
        body = pb.Message(body=bytes(BODY_BYTES))
        for _ in range(octets // (8 * BODY_BYTES)):
            await stub.Publish(pb.PublishRequest(destination=queue, messages=[body] * 8))
        try:
            yield stub
        finally:
            await control.DeleteQueue(admin.DeleteQueueRequest(queue=queue, confirm=queue))


def attach(queue: str, **fields: Any) -> bytes:
    """A frame that asks for as much as there is."""
    prefetch = pb.Prefetch(messages=10_000, bytes=PREFETCH_BYTES)
    fields = {"prefetch": prefetch, **fields}
    asked = pb.Attach(subscriptions=[pb.Subscription(queue=queue)], **fields)
    return pb.ConsumeRequest(attach=asked).SerializeToString()


async def consume(connection: Connection, queue: str, stream: int = 1, **fields: Any) -> None:
    """Begin to consume, and leave the windows as they are: 64 KiB will be read, and then nothing."""
    await connection.send(call(CONSUME, stream) + data(stream, message(attach(queue, **fields))))


async def beat(connection: Connection, stream: int = 1) -> None:
    """As long as the connection lasts."""
    frame = data(stream, message(pb.ConsumeRequest(heartbeat=pb.ConsumerHeartbeat()).SerializeToString()))
    while await connection.send(frame):  # noqa: ASYNC110  # it is the sending that goes on
        await asyncio.sleep(BEAT_SECONDS)


@contextmanager
def beating(connection: Connection) -> Iterator[None]:
    """Heartbeats meanwhile."""
    task = asyncio.create_task(beat(connection))
    try:
        yield
    finally:
        task.cancel()


async def drained(stub: Any, queue: str, count: int) -> None:
    """An honest consumer gets and settles so many messages."""
    stream = stub.Consume()
    await stream.write(pb.ConsumeRequest.FromString(attach(queue)))
    acked = 0
    async with asyncio.timeout(SERVED_SECONDS):
        while acked < count:
            frame = await stream.read()
            assert frame is not grpc.aio.EOF, "the honest one was ended"
            ranges = [
                pb.FenceRange(first=run.first_fence, last=run.first_fence + len(run.messages) - 1)
                for run in frame.deliveries
            ]
            if ranges:
                await stream.write(
                    pb.ConsumeRequest(settlements=[pb.Settlement(outcome=pb.OUTCOME_ACK, ranges=ranges)])
                )
            assert all(result.status == pb.SETTLE_STATUS_OK for result in frame.settled)
            acked += sum(result.range.last - result.range.first + 1 for result in frame.settled)
    await stream.write(pb.ConsumeRequest(detach=pb.Detach()))
    while await stream.read() is not grpc.aio.EOF:
        pass


async def test_consumers_that_never_read_are_bounded_by_their_prefetch(victim: Victim) -> None:
    """They live, by their heartbeats. What waits for one of them is what it asked for, and for all of them a share."""
    count = SIZES.unread_consumers
    async with backlog(victim, "unread"), AsyncExitStack() as stack:
        bound = min(count * PREFETCH_BYTES, SIZES.unread_bytes, MAX_UNREAD_BYTES + PREFETCH_BYTES)
        attack = await stack.enter_async_context(
            victim.attacked(f"{count} consumers that never read", rss_mib=64 + 1.5 * bound / MIB)
        )
        connections = [await stack.enter_async_context(connected(victim.address)) for _ in range(count)]
        for each in connections:
            await consume(each, "unread")
        await attack.run(*(beat(each) for each in connections))


async def test_what_nobody_reads_goes_to_who_does(victim: Victim) -> None:
    """Silent, they are failed in a second, and all of it is somebody else's."""
    messages = SIZES.unread_bytes // BODY_BYTES
    async with backlog(victim, "given-back") as stub, AsyncExitStack() as stack:
        await stack.enter_async_context(victim.attacked("consumers that never read, silent", rss_mib=600))
        for _ in range(SIZES.unread_consumers):
            connection = await stack.enter_async_context(connected(victim.address))
            await consume(connection, "given-back", heartbeat_interval_ms=100)
        await until(lambda: victim.metrics()['kyogo_queue_messages{queue="given-back",state="in_flight"}'], "taken")
        await drained(stub, "given-back", messages)


async def test_a_consumer_that_never_settles_keeps_what_it_was_granted_and_no_more(victim: Victim) -> None:
    granted = 16
    async with backlog(victim, "unsettled", 8 << 20) as stub, victim.attacked("a consumer that never settles"):
        hoarder = stub.Consume()
        asked = pb.Attach(
            subscriptions=[pb.Subscription(queue="unsettled")],
            prefetch=pb.Prefetch(messages=granted, bytes=PREFETCH_BYTES),
        )
        await hoarder.write(pb.ConsumeRequest(attach=asked))
        held = 0
        while held < granted:
            held += sum(len(run.messages) for run in (await hoarder.read()).deliveries)
        assert held == granted
        await drained(stub, "unsettled", (8 << 20) // BODY_BYTES - granted)
        hoarder.cancel()
        await drained(stub, "unsettled", granted)


async def test_a_consumer_that_reads_drop_by_drop_holds_up_nobody(victim: Victim) -> None:
    """It reads 1 KiB at a time, and says that it lives."""

    async def drip(connection: Connection) -> None:
        while await connection.send(window(0, 1_024) + window(1, 1_024)):  # noqa: ASYNC110  # it is the sending that goes on
            await asyncio.sleep(0.01)

    async with (
        backlog(victim, "dripping", 8 << 20),
        victim.attacked("a consumer that reads drop by drop") as attack,
        connected(victim.address) as connection,
    ):
        await consume(connection, "dripping")
        await attack.run(drip(connection), beat(connection))
        assert connection.came[Kind.DATA], "it was served, too"


async def test_consumers_come_and_go(victim: Victim) -> None:
    """Attached and cut at once, over and over: each is a session, a lease, a loss and a requeue."""

    async def churn() -> None:
        while True:
            async with connected(victim.address) as connection:
                for stream in range(1, 33, 2):
                    await consume(connection, "churned", stream, consumer_id="")
                await until(lambda: connection.came[Kind.HEADERS], "some are answered")

    async with backlog(victim, "churned", 4 << 20), victim.attacked("consumers that come and go") as attack:
        await attack.run(*(churn() for _ in range(4)))


async def test_its_work_is_back_before_its_stream_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream lingers for its last word, which may take half a minute; the work does not wait for that."""
    monkeypatch.setattr(session, "UNREAD_SECONDS", 0.3)
    monkeypatch.setattr(session, "HEARTBEAT_AFTER_SECONDS", 0.1)
    async with running_broker() as broker, connected(broker.address) as connection:
        await broker.publish("orders", *[bytes(BODY_BYTES)] * 8)
        await consume(connection, "orders", heartbeat_interval_ms=60_000)
        await until(lambda: broker.engine.in_flight() == 8, "delivered")
        await until(lambda: not broker.engine.in_flight(), "its work is back", 25)
        assert broker.server.stats().streams == 1


@pytest.mark.parametrize("heartbeats", [True, False], ids=["lively", "silent"])
async def test_who_does_not_read_is_lost_in_its_time(monkeypatch: pytest.MonkeyPatch, heartbeats: bool) -> None:
    """After a minute, heartbeats or not; here all times are shorter."""
    monkeypatch.setattr(session, "UNREAD_SECONDS", 0.3)
    monkeypatch.setattr(session, "HEARTBEAT_AFTER_SECONDS", 0.1)
    monkeypatch.setattr("kyogo_broker.server.stream.LAST_WORD_SECONDS", 0.2)
    async with running_broker(Limits()) as broker, connected(broker.address) as connection:
        await broker.publish("orders", *[bytes(BODY_BYTES)] * 8)
        await consume(connection, "orders")
        await until(lambda: broker.engine.in_flight() == 8, "delivered")
        with beating(connection) if heartbeats else nullcontext():
            await until(lambda: not broker.engine.in_flight(), "its work is back", 30)
            await until(lambda: broker.server.stats().streams == 0, "its stream is over", 30)
        honest = await broker.consumer("orders")
        assert len(await honest.delivered(8)) == 8


async def test_together_they_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes half of what may wait for all of them: the first is lost, and its share is the third one's."""
    monkeypatch.setattr("kyogo_broker.server.server.MAX_UNREAD_BYTES", 0)
    monkeypatch.setattr("kyogo_broker.server.server.UNREAD_PREFETCHES", 1)
    limits = Limits(max_message_bytes=1 << 20, max_prefetch_bytes=7 << 20)
    async with running_broker(limits) as broker, AsyncExitStack() as stack:
        for _ in range(12):
            await broker.publish("orders", *[bytes(BODY_BYTES)] * 4)
        for number in range(3):
            connection = await stack.enter_async_context(connected(broker.address))
            asked = pb.Prefetch(messages=15, bytes=7 << 20)
            await consume(connection, "orders", consumer_id=f"lazy-{number}", prefetch=asked)
            await until(lambda: broker.engine.in_flight() == min(15 * (number + 1), 30), "delivered")  # noqa: B023
            stack.enter_context(beating(connection))
        await until(lambda: broker.consumers() == ("lazy-1", "lazy-2"), "the first one is lost")
        honest = await broker.consumer("orders", prefetch=pb.Prefetch(messages=1))
        assert len(await honest.delivered(1)) == 1
