"""A broker that does what a test says: records what comes, sends what it is told to.

For the SDK's edge cases, which a real broker does not produce on demand: lost answers, late ones, refusals, silence.
By itself it attaches consumers, answers settlements OK and stores publishes; each of these can be switched off or
replaced.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from kyogo.v1 import broker_pb2 as pb
from kyogo.v1 import broker_pb2_grpc

DEADLINE = 10.0
"""Seconds that a condition has to come true."""

Wanted = TypeVar("Wanted")


async def eventually(
    condition: Callable[[], Wanted | Awaitable[Wanted]], what: str = "", *, deadline: float = DEADLINE
) -> Wanted:
    """Waits until a condition holds; returns what it returned. Yields to the loop, does not sleep for a guess."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result  # type: ignore[return-value] # awaited above
        if loop.time() > end:
            raise AssertionError(f"not within {deadline} s: {what or condition}")
        await asyncio.sleep(0.001)


def fences(ranges: Iterable[pb.FenceRange]) -> list[int]:
    """Every fence of some ranges."""
    return [fence for r in ranges for fence in range(r.first, r.last + 1)]


def ranges(numbers: Iterable[int]) -> list[pb.FenceRange]:
    """Each fence as a range of one."""
    return [pb.FenceRange(first=n, last=n) for n in numbers]


async def abort(
    context: grpc.aio.ServicerContext[Any, Any],
    code: grpc.StatusCode,
    reason: str,
    message: str = "no",
    retry_after_ms: int | None = None,
) -> None:
    """Ends a call as the broker does: a status with ErrorInfo and RetryInfo."""
    details = [any_pb2.Any(), any_pb2.Any()]
    details[0].Pack(error_details_pb2.ErrorInfo(reason=reason, domain="kyogo", metadata={"queue": "orders"}))
    if retry_after_ms is None:
        details.pop()
    else:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(retry_after_ms)
        details[1].Pack(retry)
    status = status_pb2.Status(code=code.value[0], message=message, details=details)
    trailing = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(code, message, trailing)


class FakeSession:
    """One Consume stream, seen from the broker."""

    def __init__(self, broker: "FakeBroker", context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.broker = broker
        self.context = context
        self.attach = pb.Attach()
        self.metadata = dict(context.invocation_metadata() or ())
        self.frames: list[pb.ConsumeRequest] = []
        self.ended = asyncio.Event()
        self.answer_settlements = broker.answer_settlements
        self.answer_heartbeats = True
        self._outbox: asyncio.Queue[pb.ConsumeResponse | None] = asyncio.Queue()
        self._status: tuple[grpc.StatusCode, str, str, int | None] | None = None
        self._fence = 0

    # --- what came ---

    @property
    def started(self) -> list[int]:
        return [fence for frame in self.frames for fence in fences(frame.started)]

    @property
    def settlements(self) -> dict[int, pb.Settlement]:
        """The newest settlement of each fence."""
        return {f: s for frame in self.frames for s in frame.settlements for f in fences(s.ranges)}

    @property
    def outcomes(self) -> dict[int, str]:
        return {f: pb.Outcome.Name(s.outcome).removeprefix("OUTCOME_") for f, s in self.settlements.items()}

    @property
    def prefetch(self) -> int:
        """As last asked for."""
        asked = [self.attach.prefetch, *(f.prefetch for f in self.frames if f.HasField("prefetch"))]
        return asked[-1].messages

    @property
    def detached(self) -> bool:
        return any(frame.HasField("detach") for frame in self.frames)

    async def settled(self, *numbers: int) -> dict[int, str]:
        """Waits until these are settled; returns the outcomes of all that are."""
        await eventually(lambda: set(numbers) <= set(self.settlements), f"settlements of {numbers}: {self.outcomes}")
        return self.outcomes

    # --- what is sent ---

    def send(self, **parts: Any) -> None:
        self._outbox.put_nowait(pb.ConsumeResponse(**parts))

    def deliver(
        self, *messages: pb.Message | bytes, subscription: int = 0, first_fence: int | None = None, **run: Any
    ) -> list[int]:
        """One run of deliveries; returns their fences."""
        first = self._fence + 1 if first_fence is None else first_fence
        self._fence = first + len(messages) - 1
        run.setdefault("attempt", 1)
        run.setdefault("first_offset", first)
        made = [m if isinstance(m, pb.Message) else pb.Message(body=m) for m in messages]
        self.send(deliveries=[pb.DeliveryRun(subscription=subscription, first_fence=first, messages=made, **run)])
        return list(range(first, self._fence + 1))

    def revoke(self, mode: str, *numbers: int, reason: str = "REBALANCE") -> None:
        self.send(
            revokes=[
                pb.Revoke(
                    ranges=ranges(numbers),
                    mode=pb.RevokeMode.Value(f"REVOKE_MODE_{mode}"),
                    reason=pb.RevokeReason.Value(f"REVOKE_REASON_{reason}"),
                )
            ]
        )

    def end(
        self,
        code: grpc.StatusCode | None = None,
        reason: str = "INTERNAL",
        message: str = "the test says so",
        retry_after_ms: int | None = None,
    ) -> None:
        """Ends the stream, with OK or as a refusal."""
        if code is not None:
            self._status = (code, reason, message, retry_after_ms)
        self._outbox.put_nowait(None)

    # --- the stream ---

    async def run(self, requests: AsyncIterator[pb.ConsumeRequest]) -> AsyncIterator[pb.ConsumeResponse]:
        reader = asyncio.create_task(self._read(requests))
        try:
            while (frame := await self._outbox.get()) is not None:
                yield frame
            if self._status is not None:
                await abort(self.context, *self._status)
        finally:
            self.ended.set()
            reader.cancel()

    async def _read(self, requests: AsyncIterator[pb.ConsumeRequest]) -> None:
        async for frame in requests:
            if not self.frames and frame.HasField("attach"):
                self.attach = frame.attach
                if self.broker.on_attach(self):
                    self.send(attached=self.broker.attached(self.attach))
            self.frames.append(frame)
            self._answer(frame)
        if self.detached and self.broker.answer_detach:
            self.end()

    def _answer(self, frame: pb.ConsumeRequest) -> None:
        parts: dict[str, Any] = {}
        if frame.settlements and self.answer_settlements:
            parts["settled"] = [
                pb.SettleResult(range=r, status=pb.SETTLE_STATUS_OK) for s in frame.settlements for r in s.ranges
            ]
        if frame.HasField("heartbeat") and self.answer_heartbeats:
            beat = frame.heartbeat.sequence
            parts["heartbeat"] = pb.BrokerHeartbeat(sequence=beat + 100, echo=beat, broker_time_unix_ms=1)
        if frame.extend.ranges:
            parts["extended"] = [
                pb.ExtendResult(range=r, status=self.broker.extend_status) for r in frame.extend.ranges
            ]
        if parts:
            self.send(**parts)


OnPublish = Callable[[pb.PublishRequest], pb.PublishResponse | None]


class FakeBroker(broker_pb2_grpc.BrokerServiceServicer):
    """The server; see the module."""

    def __init__(self) -> None:
        self.port = 0
        self.sessions: list[FakeSession] = []
        self.requests: list[pb.PublishRequest] = []
        """Publishes in the order they came, resends included."""
        self.publish_streams = 0
        self.open_publish_streams = 0
        self.stored: dict[str, list[pb.Message]] = {}
        self.limits = pb.Limits(max_message_bytes=3 << 20, max_request_bytes=(4 << 20) - (64 << 10))
        self.heartbeat_interval_ms = 0
        self.answer_settlements = True
        self.answer_detach = True
        self.extend_status: Any = pb.SETTLE_STATUS_OK
        self.on_attach: Callable[[FakeSession], bool] = lambda _session: True
        """Whether `attached` is sent."""
        self.on_publish: OnPublish = self.store
        """What a request is answered; None: nothing."""
        self.publish_status: tuple[grpc.StatusCode, str] | None = None
        """With what PublishStream ends at once."""
        self.ends: list[asyncio.Event] = []
        self._answers: dict[tuple[str, str, int], pb.PublishResponse] = {}
        self._server: grpc.aio.Server | None = None

    @property
    def url(self) -> str:
        return f"kyogo://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        server = self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        broker_pb2_grpc.add_BrokerServiceServicer_to_server(self, server)
        self.port = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def session(self, number: int = 0) -> FakeSession:
        """The nth Consume stream, once it has attached."""
        await eventually(
            lambda: len(self.sessions) > number and bool(self.sessions[number].frames), f"session {number}"
        )
        return self.sessions[number]

    def attached(self, attach: pb.Attach) -> pb.Attached:
        interval = self.heartbeat_interval_ms or attach.heartbeat_interval_ms
        return pb.Attached(
            session_id="s1",
            session_token=f"token-{len(self.sessions)}",
            consumer_id=attach.consumer_id or "assigned",
            prefetch=attach.prefetch,
            heartbeat_interval_ms=interval,
            suspect_after_ms=3 * interval,
            failed_after_ms=10 * interval,
            limits=self.limits,
            subscriptions=[
                pb.SubscriptionInfo(queue=s.queue, visibility_timeout_ms=30_000) for s in attach.subscriptions
            ],
            node="fake",
            broker_version="0",
        )

    def store(self, request: pb.PublishRequest) -> pb.PublishResponse:
        """As the broker does: a resend is recognised."""
        name = (request.producer_id, request.destination, request.request_id)
        if request.producer_id and name in self._answers:
            return self._answers[name]
        log = self.stored.setdefault(request.destination, [])
        run = pb.OffsetRun(first_offset=len(log) + 1, count=len(request.messages))
        log.extend(request.messages)
        response = pb.PublishResponse(request_id=request.request_id, offsets=[run])
        self._answers[name] = response
        return response

    def bodies(self, queue: str) -> list[bytes]:
        return [message.body for message in self.stored.get(queue, ())]

    # --- the service ---

    async def Publish(self, request: Any, context: Any) -> pb.PublishResponse:  # noqa: N802 - gRPC names it
        raise NotImplementedError

    async def Receive(self, request: Any, context: Any) -> pb.ReceiveResponse:  # noqa: N802 - gRPC names it
        raise NotImplementedError

    async def Settle(self, request: Any, context: Any) -> pb.SettleResponse:  # noqa: N802 - gRPC names it
        raise NotImplementedError

    async def GetServerInfo(self, request: Any, context: Any) -> pb.GetServerInfoResponse:  # noqa: N802 - gRPC names it
        return pb.GetServerInfoResponse(version="0", node="fake", limits=self.limits)

    async def Consume(self, requests: Any, context: Any) -> AsyncIterator[pb.ConsumeResponse]:  # noqa: N802 - gRPC names it
        session = FakeSession(self, context)
        self.sessions.append(session)
        async for frame in session.run(requests):
            yield frame

    async def PublishStream(self, requests: Any, context: Any) -> AsyncIterator[pb.PublishResponse]:  # noqa: N802 - gRPC names it
        self.publish_streams += 1
        self.open_publish_streams += 1
        end = asyncio.Event()
        self.ends.append(end)
        try:
            if self.publish_status is not None:
                await abort(context, self.publish_status[0], self.publish_status[1])
            async for answer in self._publish_answers(requests, end):
                yield answer
            if end.is_set():
                await abort(context, grpc.StatusCode.UNAVAILABLE, "BROKER_DRAINING", "going down", 1)
        finally:
            self.open_publish_streams -= 1

    async def _publish_answers(self, requests: Any, end: asyncio.Event) -> AsyncIterator[pb.PublishResponse]:
        outbox: asyncio.Queue[pb.PublishResponse | None] = asyncio.Queue()

        async def read() -> None:
            async for request in requests:
                self.requests.append(request)
                answer = self.on_publish(request)
                if answer is not None:
                    outbox.put_nowait(answer)
            outbox.put_nowait(None)

        async def wait() -> None:
            await end.wait()
            outbox.put_nowait(None)

        tasks = [asyncio.create_task(read()), asyncio.create_task(wait())]
        try:
            while (answer := await outbox.get()) is not None:
                yield answer
        finally:
            for task in tasks:
                task.cancel()


@asynccontextmanager
async def fake_broker() -> AsyncIterator[FakeBroker]:
    """A running one."""
    broker = FakeBroker()
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


def bodies(count: int, template: str = '{{"n": {}}}') -> Sequence[bytes]:
    return [template.format(n).encode() for n in range(count)]
