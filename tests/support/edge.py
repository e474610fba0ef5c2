"""A broker in the test's own loop: real gRPC on loopback, real shard and engine, a journal in memory.

Beside it, stand-ins for one side only: `FakeEngine` for tests of streams that decide themselves what is released, and
`FakeContext` for tests of streams without a network.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status  # type: ignore[import-untyped, unused-ignore]

from kyogo.v1 import admin_pb2_grpc, broker_pb2_grpc
from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.clock import Clock
from kyogo_broker.core.shard import CAPABILITIES, ShardConfig
from kyogo_broker.engine import Engine, Sink
from kyogo_broker.journal.memory import MemoryJournal
from kyogo_broker.model.commands import Command
from kyogo_broker.model.effects import Effect, Notice
from kyogo_broker.recovery import recover
from kyogo_broker.server.identity import Identity
from kyogo_broker.server.limits import Limits
from kyogo_broker.server.server import Server
from kyogo_broker.server.wire import BrokerFigures

LIMITS = Limits()
IDENTITY = Identity(
    node="test-node",
    version="0.0.1",
    capabilities=tuple(sorted(CAPABILITIES)),
    durability="MEMORY",
    started_unix_ms=1,
)
FIGURES = BrokerFigures(
    node="test-node",
    version="0.0.1",
    durability="MEMORY",
    started_unix_ms=1,
    now_unix_ms=2,
    publish_streams=0,
    journal_records=3,
    journal_written_bytes=4,
    journal_bytes=5,
    disk_free_bytes=6,
    disk_free_min_bytes=7,
    rss_bytes=8,
    memory_limit_bytes=9,
    commit_p50_ms=0.5,
    commit_p99_ms=0.75,
    stall_max_ms=1.5,
    draining=False,
)
WAIT_SECONDS = 10.0

_T = TypeVar("_T")


async def until(condition: Callable[[], _T | None], what: str, seconds: float = WAIT_SECONDS) -> _T:
    """Wait for a condition, not for a time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not (value := condition()):
        assert asyncio.get_running_loop().time() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.002)
    return value


@dataclass
class Broker:
    """A running broker and a client of it."""

    address: str
    engine: Engine
    server: Server
    journal: MemoryJournal
    channel: grpc.aio.Channel
    notices: list[Notice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stub = broker_pb2_grpc.BrokerServiceStub(self.channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(self.channel)

    async def publish(self, queue: str, *bodies: bytes, **fields: Any) -> pb.PublishResponse:
        messages = [pb.Message(body=body) for body in bodies]
        return await self.stub.Publish(pb.PublishRequest(destination=queue, messages=messages, **fields))

    def raw(self, service: str, rpc: str, kind: str = "stream_stream") -> Any:
        """A callable that sends and gets bytes."""
        return getattr(self.channel, kind)(f"/kyogo.v1.{service}/{rpc}")

    async def consumer(self, *queues: str, **attach: Any) -> "Consumer":
        consumer = Consumer(self.stub.Consume())
        await consumer.attach(*queues, **attach)
        return consumer

    def consumers(self) -> tuple[str, ...]:
        return tuple(each.consumer_id for each in self.engine.shard_stats().consumers)


class Consumer:
    """A hand-made client of a Consume stream."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.frames: list[pb.ConsumeResponse] = []
        self.attached = pb.Attached()
        self.runs: list[pb.DeliveryRun] = []
        """That arrived and were not asked for yet."""

    async def send(self, **parts: Any) -> None:
        await self.call.write(pb.ConsumeRequest(**parts))

    async def attach(self, *queues: str, **attach: Any) -> pb.Attached:
        subscriptions = [pb.Subscription(queue=queue) for queue in queues]
        await self.send(attach=pb.Attach(subscriptions=subscriptions, **attach))
        frame = await self.frame()
        assert frame is not None
        assert frame.HasField("attached"), f"first frame: {frame}"
        self.attached = frame.attached
        return frame.attached

    async def frame(self) -> pb.ConsumeResponse | None:
        """The next frame; None: the stream ended OK."""
        async with asyncio.timeout(WAIT_SECONDS):
            frame: Any = await self.call.read()
        if frame is grpc.aio.EOF:
            return None
        response: pb.ConsumeResponse = frame
        self.frames.append(response)
        self.runs += response.deliveries
        return response

    async def until(self, wanted: Callable[[pb.ConsumeResponse], Any]) -> pb.ConsumeResponse:
        """The next frame that has what is wanted; frames before it are passed over."""
        while True:
            frame = await self.frame()
            assert frame is not None, "the stream ended"
            if wanted(frame):
                return frame

    async def delivered(self, count: int) -> list[tuple[int, pb.Message]]:
        """So many messages or more, with their fences; each is given once."""
        while sum(len(run.messages) for run in self.runs) < count:
            await self.until(lambda frame: frame.deliveries)
        runs, self.runs = self.runs, []
        return [(run.first_fence + n, message) for run in runs for n, message in enumerate(run.messages)]

    async def settle(
        self, *fences: int, outcome: pb.Outcome.ValueType = pb.OUTCOME_ACK, **fields: Any
    ) -> list[pb.SettleResult]:
        ranges = [pb.FenceRange(first=fence, last=fence) for fence in fences]
        await self.send(settlements=[pb.Settlement(outcome=outcome, ranges=ranges, **fields)])
        return list((await self.until(lambda frame: frame.settled)).settled)


@asynccontextmanager
async def running_broker(limits: Limits = LIMITS, **shard: Any) -> AsyncIterator[Broker]:
    """A broker that serves, and a channel to it; queues are made by publishing, as on loopback."""
    clock = Clock()
    journal = MemoryJournal()
    config = ShardConfig(**{"auto_create": True, **shard})
    recovered, _ = recover(journal, config, seed=1, clock=clock)
    notices: list[Notice] = []
    engine = Engine(recovered, journal, clock, on_notice=notices.append)
    running = asyncio.create_task(engine.run())
    server = Server(engine, clock, IDENTITY, limits, lambda: FIGURES)
    port = await server.start("127.0.0.1:0")
    address = f"127.0.0.1:{port}"
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            yield Broker(address, engine, server, journal, channel, notices)
        finally:
            await server.stop(0)
            await engine.stop()
            await running


@dataclass(frozen=True)
class Failure:
    """How a call ended, as a client sees it."""

    code: grpc.StatusCode
    text: str
    reason: str
    retry_after_ms: int | None
    metadata: dict[str, str]


async def failure_of(call: Any) -> Failure:
    """The status of a call that is expected to fail; a stream is read to its end first."""
    try:
        if hasattr(call, "read"):
            while await call.read() is not grpc.aio.EOF:
                pass
            raise AssertionError("the call ended OK")
        await call
    except grpc.aio.AioRpcError as error:
        return failure_from(error)
    raise AssertionError("the call succeeded")


def failure_from(error: Any) -> Failure:
    """A status with the details that the broker adds to each."""
    status = rpc_status.from_call(_Finished(error))
    assert status is not None, f"no details: {error}"
    info, retry = ErrorInfo(), RetryInfo()
    found = [detail.Unpack(info) for detail in status.details]
    assert any(found), "every status has an ErrorInfo"
    assert info.domain == "kyogo"
    wait = [detail for detail in status.details if detail.Unpack(retry)]
    delay = retry.retry_delay.ToMilliseconds() if wait else None
    return Failure(error.code(), error.details(), info.reason, delay, dict(info.metadata))


class _Finished:
    """What `rpc_status` wants of a synchronous call."""

    def __init__(self, error: Any) -> None:
        self.code = error.code
        self.details = error.details
        self.trailing_metadata = error.trailing_metadata


class FakeEngine(Engine):
    """Notes what is submitted; releases what the test says."""

    def __init__(self) -> None:
        self.sinks: dict[int, Sink] = {}
        self.submitted: list[Command] = []
        self.sizes: list[int] = []
        self.closed: list[int] = []
        self.gate: asyncio.Event | None = None
        """Submits wait for it, if there is one."""

    def open_port(self, sink: Sink) -> int:
        self.sinks[len(self.sinks) + 1] = sink
        return len(self.sinks)

    def close_port(self, port: int) -> None:
        self.closed.append(port)

    async def submit(self, command: Command, *, port: int, size: int = 0) -> None:
        self.submitted.append(command)
        assert port not in self.closed, "a command of a closed port"
        self.sizes.append(size)
        if self.gate is not None:
            await self.gate.wait()

    def submit_now(self, command: Command) -> None:
        self.submitted.append(command)

    def release(self, port: int, *effects: Effect) -> None:
        for effect in effects:
            self.sinks[port].take(effect)

    def kinds(self) -> list[str]:
        return [type(command).__name__ for command in self.submitted]


class FakeContext:
    """A call without a network: the test feeds what is read and sees what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.writable = asyncio.Event()
        self.writable.set()
        self.reads = 0
        self._incoming: asyncio.Queue[Any] = asyncio.Queue()
        self._writing = False

    def feed(self, *frames: Any) -> None:
        for frame in frames:
            self._incoming.put_nowait(frame if isinstance(frame, bytes) else frame.SerializeToString())

    def end(self) -> None:
        self._incoming.put_nowait(grpc.aio.EOF)

    async def read(self) -> Any:
        self.reads += 1
        return await self._incoming.get()

    async def write(self, frame: bytes) -> None:
        assert not self._writing, "two writes at once"
        self._writing = True
        await self.writable.wait()
        self._writing = False
        self.written.append(frame)

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def parsed(self, kind: Any = pb.ConsumeResponse) -> Sequence[Any]:
        return [kind.FromString(frame) for frame in self.written]


async def settle_down(turns: int = 20) -> None:
    """Let every task that can go on do so."""
    for _ in range(turns):
        await asyncio.sleep(0)
