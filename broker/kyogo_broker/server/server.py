"""The gRPC server: which rpc goes where, with which options, and how it ends.

start: bind -> serve          stop: refuse what is new -> end the streams -> wait for calls -> let go of
the port
"""

import asyncio
import resource
from collections.abc import Callable, Mapping

import grpc

from kyogo_broker.clock import Clock
from kyogo_broker.engine import Engine
from kyogo_broker.model.errors import BrokerStopError, ErrorCode, Refusal
from kyogo_broker.server import stream as streams
from kyogo_broker.server import wire
from kyogo_broker.server.admin import Admin
from kyogo_broker.server.admission import Admission, AdmissionStats
from kyogo_broker.server.calls import Calls
from kyogo_broker.server.handlers import Handler, Handlers
from kyogo_broker.server.identity import Identity
from kyogo_broker.server.limits import (
    MAX_CONNECTIONS,
    MAX_CONTROL_BYTES,
    MAX_FRAME_BYTES,
    MAX_RECEIVE_BYTES,
    MAX_UNREAD_BYTES,
    SPARE_FILES,
    STREAM_SLOTS_SPARE,
    Limits,
)
from kyogo_broker.server.publish import PublishCalls, PublishStream
from kyogo_broker.server.session import UNREAD_PREFETCHES, ConsumeStream
from kyogo_broker.server.standard import HEALTH_SERVICE, REFLECTION_SERVICES, Health, Reflection
from kyogo_broker.server.status import Context
from kyogo_broker.server.stream import Stream
from kyogo_broker.server.turnstile import Turnstile
from kyogo_broker.server.unread import Unread

BACK_IN_MS = 2_000
"""When a client is to come back to a broker that stops: a restart takes about as long."""
CALLS_BEYOND_LIMITS = 1_000
"""Room in gRPC's own limit for health checks, and for calls that are being refused."""
LAST_WORD_SECONDS = 0.5
"""For the status of calls that were not done within the grace."""
READERS_END_SECONDS = 2.0
"""Readers end a moment after their calls."""

OPTIONS: Mapping[str, int] = {
    # Two brokers on one port would both start and share its connections.
    "grpc.so_reuseport": 0,
    # The second net under the heartbeats: a peer that answers nothing is dropped after some 15 s.
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 5_000,
    # The timeout above is never armed in grpcio 1.85.1 (grpc#39239); this one is.
    "grpc.http2.ping_timeout_ms": 5_000,
    "grpc.keepalive_permit_without_calls": 1,
    # The default of 5 minutes ends the connections of clients with a keepalive of their own (too_many_pings).
    "grpc.http2.min_ping_interval_without_data_ms": 5_000,
    "grpc.max_receive_message_length": MAX_RECEIVE_BYTES,
    "grpc.max_send_message_length": MAX_FRAME_BYTES,
}


class Server:
    """All rpcs on one port."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        identity: Identity,
        limits: Limits,
        figures: Callable[[], wire.BrokerFigures],
    ) -> None:
        """A server that is not bound yet.

        Args:
            engine: running, or about to.
            clock: for the broker's time in heartbeats.
            identity: what clients are told of this broker.
            limits: what is accepted.
            figures: the broker's own, for `GetStats`.
        """
        self._engine = engine
        self._clock = clock
        self._identity = identity
        self._limits = limits
        self._admission = Admission(limits)
        self._calls = Calls(engine)
        self._turnstile = Turnstile()
        self._unread = Unread(
            max(MAX_UNREAD_BYTES, UNREAD_PREFETCHES * (limits.max_prefetch_bytes + limits.max_message_bytes))
        )
        self._open: dict[int, tuple[Stream, str]] = {}
        self._stopping = False
        self._closing = asyncio.Event()
        services = (wire.BROKER_SERVICE, wire.ADMIN_SERVICE, HEALTH_SERVICE, *REFLECTION_SERVICES)
        self.health = Health(services)
        self._grpc = grpc.aio.server(
            options=tuple(_options(limits).items()),
            maximum_concurrent_rpcs=limits.max_streams + limits.max_calls + CALLS_BEYOND_LIMITS,
        )
        admin = Admin(engine, self._calls, figures, self._peers, self._closing)
        self._register(admin, Reflection(services))

    async def start(self, listen: str) -> int:
        """Bind and serve.

        Args:
            listen: `host:port`; port 0 takes a free one.

        Returns:
            The real port.

        Raises:
            BrokerStopError: the address cannot be had.
        """
        try:
            port = self._grpc.add_insecure_port(listen)
        except RuntimeError:
            raise BrokerStopError(
                f"cannot listen on {listen}: it is in use or not this machine's; stop the other process, or "
                "choose another address with --listen"
            ) from None
        await self._grpc.start()
        self.health.set_serving(serving=True)
        return port

    def refuse_new(self) -> None:
        """The broker stops: say so to health checks, and take no new streams."""
        self._stopping = True
        self.health.set_serving(serving=False)

    async def stop(self, grace_seconds: float) -> None:
        """End all streams and calls, those that are not done within the grace too. Idempotent."""
        self.refuse_new()
        self._closing.set()
        self.health.close()
        for stream, _ in list(self._open.values()):
            stream.close(_stopping())
        stopping = asyncio.create_task(self._grpc.stop(grace_seconds + LAST_WORD_SECONDS))
        await asyncio.wait({stopping}, timeout=grace_seconds)
        self._calls.close(_stopping())
        await stopping
        await streams.readers_ended(READERS_END_SECONDS)

    def stats(self) -> AdmissionStats:
        """What is open now."""
        return self._admission.stats()

    def publish_streams(self) -> int:
        """Open PublishStream streams."""
        return sum(isinstance(stream, PublishStream) for stream, _ in self._open.values())

    def _register(self, admin: Admin, reflection: Reflection) -> None:
        make = Handlers(self._admission)
        publish = PublishCalls(self._calls, self._limits, self._turnstile)
        broker = {
            "GetServerInfo": make.unary(self._server_info, MAX_CONTROL_BYTES),
            "Publish": make.unary(publish.publish),
            "PublishStream": make.bidi(self._publish_stream),
            "Consume": make.bidi(self._consume),
        }
        control = {name: make.unary(call, MAX_CONTROL_BYTES) for name, call in admin.calls().items()}
        control |= {name: make.watch(watch) for name, watch in admin.watches().items()}
        health = {"Check": make.unary_open(self.health.check), "Watch": make.watch(self.health.watch)}
        services = {
            wire.BROKER_SERVICE: _complete(wire.BROKER_SERVICE, broker, make),
            wire.ADMIN_SERVICE: _complete(wire.ADMIN_SERVICE, control, make),
            HEALTH_SERVICE: health,
            **{name: {"ServerReflectionInfo": make.bidi(reflection.serve)} for name in REFLECTION_SERVICES},
        }
        self._grpc.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(name, rpcs) for name, rpcs in services.items()]
        )

    async def _server_info(self, raw: bytes) -> bytes:
        wire.decode_empty(raw)
        return wire.server_info(self._identity, self._limits)

    async def _publish_stream(self, context: Context) -> None:
        await self._serve(PublishStream(self._engine, self._limits, self._turnstile), context)

    async def _consume(self, context: Context) -> None:
        stream = ConsumeStream(self._engine, self._limits, self._identity, self._clock, self._turnstile, self._unread)
        await self._serve(stream, context)

    async def _serve(self, stream: Stream, context: Context) -> None:
        self._open[stream.port] = stream, context.peer()
        if self._stopping:
            stream.close(_stopping())
        try:
            await stream.serve(context)
        finally:
            del self._open[stream.port]

    def _peers(self) -> Mapping[int, str]:
        return {port: peer for port, (_, peer) in self._open.items()}


def _options(limits: Limits) -> dict[str, int]:
    """What is fixed, and what follows from the limits and from the process's own."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_CONNECTIONS if files == resource.RLIM_INFINITY else max(files - SPARE_FILES, files // 2)
    return {
        **OPTIONS,
        # Above our own limit, whose error is the clearer one; what is beyond this costs a tenth.
        "grpc.max_concurrent_streams": limits.max_streams_per_client + STREAM_SLOTS_SPARE,
        # A journal that finds no file to write to stops the broker: connections may not take them all.
        "grpc.max_allowed_incoming_connections": min(MAX_CONNECTIONS, files),
    }


def _complete(service: str, built: Mapping[str, Handler], make: Handlers) -> dict[str, Handler]:
    """Handlers for every rpc of the contract, those that are not built included."""
    rpcs = {rpc.name: rpc for rpc in wire.rpcs(service)}
    assert set(built) <= set(rpcs), f"{set(built) - set(rpcs)} are no rpcs of {service}"
    return {name: built[name] if name in built else make.missing(rpc) for name, rpc in rpcs.items()}


def _stopping() -> Refusal:
    return Refusal(ErrorCode.BROKER_DRAINING, "the broker is stopping: come back in a moment", BACK_IN_MS)
