"""Connections: thousands, silent ones, and calls that are begun and never finished."""

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from kyogo.v1 import broker_pb2 as pb
from kyogo.v1.broker_pb2_grpc import BrokerServiceStub
from kyogo_broker.server import handlers
from kyogo_broker.server import server as edge_server
from kyogo_broker.server.limits import MAX_CONNECTIONS, SPARE_FILES, STREAM_SLOTS_SPARE, Limits
from tests.security.http2 import PREFACE, Connection, Kind, call, connected, message, settings
from tests.security.sizes import SIZES
from tests.security.victim import Victim, raise_file_limit
from tests.support.edge import failure_of, running_broker, until
from tests.support.processes import Broker, Processes

PUBLISH = "/kyogo.v1.BrokerService/Publish"
SLOTS = Limits().max_streams_per_client + STREAM_SLOTS_SPARE


@asynccontextmanager
async def many(address: str, count: int, hello: bytes = PREFACE + settings()) -> AsyncIterator[list[Connection]]:
    """So many connections, as far as this process may open them."""
    async with AsyncExitStack() as stack:
        answer = hello.startswith(PREFACE)
        yield [await stack.enter_async_context(connected(address, hello=hello, answer=answer)) for _ in range(count)]


@asynccontextmanager
async def newcomer(address: str) -> AsyncIterator[Any]:
    """A client with a connection of its own."""
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield BrokerServiceStub(channel)


async def test_thousands_of_connections_are_carried(victim: Victim) -> None:
    count = min(SIZES.connections, raise_file_limit() - 200)
    async with victim.attacked(f"{count:,} connections", rss_mib=200), many(victim.address, count) as connections:
        await until(lambda: all(each.came[Kind.SETTINGS] for each in connections), "all of them are spoken to")
        assert not any(each.closed for each in connections)
        async with newcomer(victim.address) as stub:
            await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)


async def test_silent_connections_hold_up_nobody(victim: Victim) -> None:
    async with (
        victim.attacked(f"{SIZES.silent} silent connections, {SIZES.silent} half greetings"),
        many(victim.address, SIZES.silent, b""),
        many(victim.address, SIZES.silent, PREFACE[:10]),
        newcomer(victim.address) as stub,
    ):
        await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)


@pytest.mark.parametrize("hello", [b"", PREFACE[:10], PREFACE], ids=["nothing", "half a greeting", "no settings"])
async def test_who_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, hello: bytes) -> None:
    """After 15 s; here both times are a twentieth."""
    shorter = {
        name: edge_server.OPTIONS[name] // 20 for name in ("grpc.keepalive_time_ms", "grpc.http2.ping_timeout_ms")
    }
    monkeypatch.setattr(edge_server, "OPTIONS", {**edge_server.OPTIONS, **shorter})
    async with running_broker() as broker, connected(broker.address, hello=hello, answer=False) as connection:
        await until(lambda: connection.closed, "the silent one is gone")


async def test_connections_cannot_take_the_files_of_the_journal(children: Processes, tmp_path: Path) -> None:
    """They end where the journal's share of the files begins; else it cannot go on, and stops the broker."""
    broker = Starved(tmp_path, files=2 * SPARE_FILES)
    try:
        await broker.start()
        async with newcomer(broker.address) as stub:
            await stub.GetServerInfo(pb.GetServerInfoRequest())
            async with many(broker.address, 400) as connections:
                beyond = 400 - SPARE_FILES
                await until(lambda: sum(each.closed for each in connections) >= beyond, "those beyond are hung up on")
                for number in range(24):  # a file of the journal has 64 MiB
                    body = pb.Message(body=bytes(3 << 20)[number:-64])
                    await stub.Publish(pb.PublishRequest(destination="orders", messages=[body]))
            await newcomers_get_in(broker.address)
        assert await broker.stop() == 0, broker.log()
    finally:
        broker.kill()


class Starved(Broker):
    """A broker that may open few files."""

    def __init__(self, directory: Path, *, files: int) -> None:
        super().__init__(directory)
        self._files = files

    def launch(self) -> None:
        self.arguments = ["sh", "-c", f'ulimit -n {self._files} && exec "$@"', "sh", *self.arguments]
        super().launch()


async def newcomers_get_in(address: str) -> None:
    """Within some seconds: the broker has to see first that others have left."""
    async with newcomer(address) as stub:
        await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=20, wait_for_ready=True)


@pytest.mark.parametrize(
    ("soft", "expected"), [(1_024, 1_024 - SPARE_FILES), (100, 50), (1 << 20, MAX_CONNECTIONS), (-1, MAX_CONNECTIONS)]
)
def test_connections_follow_the_files_that_may_be_open(
    monkeypatch: pytest.MonkeyPatch, soft: int, expected: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, -1))
    assert edge_server._options(Limits())["grpc.max_allowed_incoming_connections"] == expected


async def test_calls_begun_on_one_connection_are_bounded(victim: Victim) -> None:
    """One connection has its slots, and others have theirs."""
    count = SIZES.calls_begun
    async with victim.attacked(f"{count:,} calls begun and left"), connected(victim.address) as connection:
        for number in range(count):
            await connection.send(call(PUBLISH, 2 * number + 1))
        await until(lambda: connection.came[Kind.RST_STREAM] >= count - SLOTS, "the others are refused", 30)
        async with newcomer(victim.address) as stub:
            await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)


async def test_after_many_cancelled_calls_the_connection_serves_on(victim: Victim) -> None:
    async with newcomer(victim.address) as stub:
        for _ in range(3):
            calls = [stub.Consume() for _ in range(SLOTS)]
            for each in calls:
                each.cancel()
        await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=20)


async def test_a_request_that_does_not_come_ends_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "REQUEST_SECONDS", 0.2)
    async with running_broker() as broker:
        for path in (PUBLISH, "/kyogo.v1.AdminService/WatchStats", "/grpc.health.v1.Health/Watch"):
            failure = await failure_of(broker.channel.stream_unary(path)())
            assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "send it again" in failure.text
        assert (await broker.publish("orders", b"in time")).offsets[0].count == 1


async def test_a_call_without_a_request_gets_a_clear_status(victim: Victim) -> None:
    async with grpc.aio.insecure_channel(victim.address) as channel:
        begun: Any = channel.stream_unary(PUBLISH)()
        await begun.done_writing()
        failure = await failure_of(begun)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FRAME_INVALID")


async def test_half_sent_messages_are_given_back_with_their_connection(victim: Victim) -> None:
    """While it lives a call may hold what a message may have, and a connection so much for each of its slots."""
    sent = 0

    async def half(connection: Connection, stream: int) -> None:
        nonlocal sent
        await connection.send(call(PUBLISH, stream))
        octets = await connection.send_data(stream, message(bytes(4 << 20))[: 3 << 20], seconds=5)
        sent += octets

    async with (
        victim.attacked(f"{SIZES.half_sent} messages of 4 MiB half sent", rss_mib=SIZES.half_sent * 4 + 160),
        connected(victim.address) as connection,
        asyncio.TaskGroup() as group,
    ):
        for number in range(SIZES.half_sent):
            group.create_task(half(connection, 2 * number + 1))
    assert sent > SIZES.half_sent << 20, "it was no attack"
