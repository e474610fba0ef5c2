"""Bytes that are no messages, to every rpc: a clear status, no traceback, nothing lost, the broker lives."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped, unused-ignore]

from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.server import wire
from kyogo_broker.server.standard import HEALTH_SERVICE, REFLECTION_SERVICES
from tests.support.edge import Broker, failure_of, until

UNDECODABLE = [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe", b"\x0b" * 200]
"""No message: a broken tag, a length beyond the end, a name that is not UTF-8, groups without an end."""
RPCS = [
    (service, rpc.name, ("stream" if rpc.client_streams else "unary", "stream" if rpc.server_streams else "unary"))
    for service in (wire.BROKER_SERVICE, wire.ADMIN_SERVICE)
    for rpc in wire.rpcs(service)
]
STANDARD = [
    (HEALTH_SERVICE, "Check", ("unary", "unary")),
    (HEALTH_SERVICE, "Watch", ("unary", "stream")),
    *((name, "ServerReflectionInfo", ("stream", "stream")) for name in REFLECTION_SERVICES),
]
SHOWN = ("Traceback", "kyogo_broker", "google.", "DecodeError", "<class", "Error parsing", ".py")
"""What a client never gets to see."""


async def send(edge: Broker, service: str, rpc: str, kind: tuple[str, str], raw: bytes) -> Any:
    call = getattr(edge.channel, "_".join(kind))(f"/{service}/{rpc}")
    if kind[0] == "unary":
        return call(raw)
    started = call()
    await started.write(raw)
    return started


@pytest.mark.parametrize(("service", "rpc", "kind"), [*RPCS, *STANDARD], ids=str)
async def test_garbage_gets_a_clear_status(edge: Broker, service: str, rpc: str, kind: tuple[str, str]) -> None:
    for raw in UNDECODABLE:
        if rpc == "GetServerInfo" and raw.startswith(b"\x0a\x02"):
            continue  # It has no fields, so this is one of a later release.
        failure = await failure_of(await send(edge, service, rpc, kind, raw))
        assert failure.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED), raw
        assert not any(word in failure.text for word in SHOWN), failure.text
    await edge.publish("orders", b"alive")


@contextmanager
def suppress_refusals() -> Iterator[None]:
    """A status is an answer, unless it speaks of a fault in the broker."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.code() in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
            raise


@pytest.mark.parametrize("seed", range(5))
async def test_random_bytes_do_no_harm(edge: Broker, seed: int) -> None:
    chance = random.Random(seed)
    await edge.publish("orders", b"kept")
    for service, rpc, kind in [*RPCS, *STANDARD]:
        if rpc in ("WatchStats", "Watch"):
            continue  # Bytes that happen to be a request would be watched for ever.
        raw = chance.randbytes(chance.randrange(0, 60))
        call = await send(edge, service, rpc, kind, raw)
        with suppress_refusals():
            if kind[0] == "stream":
                await call.done_writing()
            if kind[1] == "stream":
                while await call.read() is not grpc.aio.EOF:
                    pass
            else:
                await call
    await until(lambda: edge.server.stats().streams == 0, "all streams are gone")
    consumer = await edge.consumer("orders")
    assert (await consumer.delivered(1))[0][1].body == b"kept"


async def test_garbage_in_a_running_session_returns_its_work(edge: Broker) -> None:
    await edge.publish("orders", b"a")
    first = await edge.consumer("orders")
    await first.delivered(1)
    second = await edge.consumer("orders")
    third = await send(edge, wire.BROKER_SERVICE, "Consume", ("stream", "stream"), b"\xff")
    assert (await failure_of(third)).code == grpc.StatusCode.INVALID_ARGUMENT
    first.call.cancel()
    assert (await second.delivered(1))[0][1].body == b"a"


async def test_an_unknown_method_is_unimplemented(edge: Broker) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (await send(edge, wire.BROKER_SERVICE, "Nothing", ("unary", "unary"), b""))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_unknown_fields_and_capabilities_are_passed_over(edge: Broker) -> None:
    later = b"\xf2\x3f\x03new"
    request = pb.PublishRequest(destination="orders", messages=[pb.Message(body=b"a")]).SerializeToString()
    unary = ("unary", "unary")
    await (await send(edge, wire.BROKER_SERVICE, "Publish", unary, request + later))
    await edge.consumer("orders", capabilities=["time-travel"])
    check = health_pb2.HealthCheckRequest().SerializeToString()
    await (await send(edge, HEALTH_SERVICE, "Check", unary, check + later))
