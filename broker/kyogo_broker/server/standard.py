"""Health and reflection: what every gRPC tool expects on the port.

Health is our own: the library's asyncio servicer forgets all watchers of a service when one of them leaves,
and answers garbage with a Python class. Reflection is the library's, behind our own decoding.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped, unused-ignore]
from grpc_reflection.v1alpha import reflection, reflection_pb2  # type: ignore[import-untyped, unused-ignore]

from kyogo_broker.model.errors import ErrorCode, Refusal, RefusedError
from kyogo_broker.server import wire
from kyogo_broker.server.limits import MAX_CONTROL_BYTES
from kyogo_broker.server.status import Context

HEALTH_SERVICE = "grpc.health.v1.Health"
REFLECTION_SERVICES = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")
"""The library knows the first one; the second has the same messages, and newer tools ask for it."""

_M = TypeVar("_M", bound=Message)


class Health:
    """Whether the broker serves, as a whole and by service: one state for all of them."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(("", *services))
        self._serving = False
        self._closed = False
        self._changed = asyncio.Event()

    def set_serving(self, *, serving: bool) -> None:
        """Say it, and tell everyone who watches."""
        self._serving = serving
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Let those who watch go."""
        self._closed = True
        self.set_serving(serving=False)

    async def check(self, raw: bytes, context: Context) -> bytes:
        """One answer."""
        service = _parse(health_pb2.HealthCheckRequest, raw).service
        if service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this broker has no such service")
        return self._answer(service)

    async def watch(self, raw: bytes, context: Context) -> None:
        """An answer now and at each change, until the broker stops."""
        service = _parse(health_pb2.HealthCheckRequest, raw).service
        while not self._closed:
            changed = self._changed
            await context.write(self._answer(service))
            await changed.wait()

    def _answer(self, service: str) -> bytes:
        if service not in self._services:
            status: health_pb2.HealthCheckResponse.ServingStatus.ValueType = (
                health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            )
        elif self._serving:
            status = health_pb2.HealthCheckResponse.SERVING
        else:
            status = health_pb2.HealthCheckResponse.NOT_SERVING
        encoded: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
        return encoded


class Reflection:
    """The services and their messages, for tools that have no proto files."""

    def __init__(self, services: Iterable[str]) -> None:
        self._servicer = reflection.aio.ReflectionServicer(tuple(services))

    async def serve(self, context: Context) -> None:
        """Answer questions until there are no more."""
        # Typed as a coroutine that returns an iterator, written as a generator.
        answers: Any = self._servicer.ServerReflectionInfo(_requests(context), context)
        async for answer in answers:
            await context.write(answer.SerializeToString())


async def _requests(context: Context) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    while (raw := await context.read()) is not grpc.aio.EOF:
        if len(raw) > MAX_CONTROL_BYTES:
            text = f"the question has {len(raw)} bytes, at most {MAX_CONTROL_BYTES} are accepted: ask for one thing"
            raise RefusedError(Refusal(ErrorCode.LIMIT_EXCEEDED, text))
        yield _parse(reflection_pb2.ServerReflectionRequest, raw)


def _parse(kind: type[_M], raw: bytes) -> _M:
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise wire.UndecodableError(kind.DESCRIPTOR.name) from None
