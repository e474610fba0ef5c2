"""Health and reflection, as any gRPC tool uses them."""

from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped, unused-ignore]
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped, unused-ignore]

from kyogo_broker.server.limits import Limits
from kyogo_broker.server.standard import REFLECTION_SERVICES
from tests.support.edge import Broker, running_broker, until

Status = health_pb2.HealthCheckResponse


async def check(edge: Broker, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(edge.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


@pytest.mark.parametrize("service", ["", "kyogo.v1.BrokerService", "kyogo.v1.AdminService"])
async def test_a_broker_that_serves_is_healthy(edge: Broker, service: str) -> None:
    assert await check(edge, service) == Status.SERVING


async def test_an_unknown_service_is_not_found(edge: Broker) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(edge, "nothing")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_every_watcher_is_told_when_the_broker_stops(edge: Broker) -> None:
    stub = health_pb2_grpc.HealthStub(edge.channel)
    first, second, unknown = (
        stub.Watch(health_pb2.HealthCheckRequest(service=service)) for service in ("", "", "nothing")
    )
    for call, status in ((first, Status.SERVING), (second, Status.SERVING), (unknown, Status.SERVICE_UNKNOWN)):
        assert (await call.read()).status == status
    first.cancel()
    await until(lambda: edge.server.stats().streams == 2, "one watcher left")
    edge.server.refuse_new()
    assert (await second.read()).status == Status.NOT_SERVING
    assert await check(edge) == Status.NOT_SERVING


@pytest.mark.parametrize("service", REFLECTION_SERVICES)
async def test_reflection_shows_the_services_and_their_messages(edge: Broker, service: str) -> None:
    call: Any = edge.channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {each.name for each in (await call.read()).list_services_response.service}
    assert {"kyogo.v1.BrokerService", "kyogo.v1.AdminService", "grpc.health.v1.Health"} <= names
    await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol="kyogo.v1.BrokerService"))
    files = (await call.read()).file_descriptor_response.file_descriptor_proto
    assert "kyogo/v1/broker.proto" in {FileDescriptorProto.FromString(file).name for file in files}
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.OK


async def test_health_checks_are_answered_beyond_every_limit() -> None:
    async with running_broker(Limits(max_calls=1, max_streams=1)) as edge:
        for _ in range(20):
            assert await check(edge) == Status.SERVING
