"""What gRPC does in this release that the broker relies on, or guards against."""

import asyncio
import os
import signal
import sys
from typing import Any

import grpc
import pytest

from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.model.errors import BrokerStopError
from kyogo_broker.server.server import Server
from tests.support.edge import FIGURES, IDENTITY, LIMITS, Broker, Consumer, until

CLIENT = """
import sys, time, grpc
from kyogo.v1 import broker_pb2 as pb, broker_pb2_grpc
channel = grpc.insecure_channel(sys.argv[1])
stub = broker_pb2_grpc.BrokerServiceStub(channel)
def frames():
    if sys.argv[2] == "consume":
        yield pb.ConsumeRequest(attach=pb.Attach(subscriptions=[pb.Subscription(queue="orders")], consumer_id="child"))
    else:
        yield pb.PublishRequest(destination="orders", request_id=1, messages=[pb.Message(body=b"a")])
    time.sleep(600)
call = stub.Consume(frames()) if sys.argv[2] == "consume" else stub.PublishStream(frames())
for answer in call:
    print("answered", flush=True)
"""


async def child(edge: Broker, what: str) -> asyncio.subprocess.Process:
    """A client in a process of its own, once it was answered."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, edge.address, what, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"answered\n"
    return process


async def test_a_killed_consumer_is_a_lost_one(edge: Broker) -> None:
    await edge.publish("orders", b"a")
    process = await child(edge, "consume")
    assert edge.consumers() == ("child",)
    process.kill()
    await process.wait()
    await until(lambda: edge.consumers() == (), "its session is over")
    assert [notice.event for notice in edge.notices if notice.event.startswith("consumer_")] == [
        "consumer_attached",
        "consumer_lost",
    ]


@pytest.mark.slow
async def test_a_frozen_peer_is_dropped_and_a_pinging_one_is_not(edge: Broker) -> None:
    """Without `http2.ping_timeout_ms` the first takes a minute, without the ping interval the second is sent away."""
    await edge.publish("orders", b"a")
    options = [
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    process = await child(edge, "publish")
    async with grpc.aio.insecure_channel(edge.address, options=options) as channel:
        call: Any = channel.stream_stream("/kyogo.v1.BrokerService/PublishStream")()
        await call.write(pb.PublishRequest(destination="orders", messages=[pb.Message()]).SerializeToString())
        await call.read()
        assert edge.server.stats().streams == 2
        os.kill(process.pid, signal.SIGSTOP)
        try:
            await until(lambda: edge.server.stats().streams == 1, "the frozen one is gone", 30)
            await call.write(pb.PublishRequest(destination="orders", messages=[pb.Message()]).SerializeToString())
            assert await call.read() is not grpc.aio.EOF
        finally:
            process.kill()
            await process.wait()
        call.cancel()


async def test_a_port_is_not_shared(edge: Broker) -> None:
    second = Server(edge.engine, edge.engine._clock, IDENTITY, LIMITS, lambda: FIGURES)
    with pytest.raises(BrokerStopError, match="--listen"):
        await second.start(edge.address)
    await second.stop(0)


async def test_a_compression_bomb_is_refused(edge: Broker) -> None:
    raw = pb.PublishRequest(destination="orders", messages=[pb.Message(body=bytes(64 << 20))]).SerializeToString()
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(edge.address, options, grpc.Compression.Gzip) as channel:
        publish: Any = channel.unary_unary("/kyogo.v1.BrokerService/Publish")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await publish(raw)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    await edge.publish("orders", b"a")


async def test_huge_metadata_is_refused(edge: Broker) -> None:
    publish: Any = edge.channel.unary_unary("/kyogo.v1.BrokerService/Publish")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await publish(b"", metadata=[("x-big", "y" * 100_000)])
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    await edge.publish("orders", b"a")


async def test_two_writes_at_once_are_an_error(edge: Broker) -> None:
    """Which is why each stream has one writer; seen from the client, whose rule is the same."""
    call = edge.stub.PublishStream()
    large = pb.PublishRequest(destination="orders", messages=[pb.Message(body=bytes(2 << 20))])
    writes = [asyncio.ensure_future(call.write(large)) for _ in range(8)]
    ended = await asyncio.gather(*writes, return_exceptions=True)
    assert any(isinstance(each, BaseException) for each in ended)
    call.cancel()


async def test_a_consumer_that_never_reads_costs_its_prefetch_at_most(edge: Broker) -> None:
    for _ in range(40):
        await edge.publish("orders", *[bytes(100_000)] * 20)
    consumer = Consumer(edge.stub.Consume())
    await consumer.attach("orders", prefetch=pb.Prefetch(messages=10_000, bytes=8 << 20))
    await until(lambda: edge.engine.shard_stats().consumers[0].in_flight > 0, "it was sent something")
    [stats] = edge.engine.shard_stats().consumers
    assert stats.in_flight_bytes <= 8 << 20
    other = await edge.consumer("orders")
    assert await other.delivered(10), "others are served meanwhile"
    consumer.call.cancel()
