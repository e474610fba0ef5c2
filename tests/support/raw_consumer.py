"""A consumer by hand, straight from the contract: no SDK, every frame as the test wants it.

It answers nothing by itself except with heartbeats, so that fences, late settlements and lost streams can be
tried one by one.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from kyogo.v1 import broker_pb2
from kyogo.v1.broker_pb2_grpc import BrokerServiceStub

if TYPE_CHECKING:
    from grpc.aio import StreamStreamCall

ACK = broker_pb2.OUTCOME_ACK
RETRY = broker_pb2.OUTCOME_RETRY
RELEASE = broker_pb2.OUTCOME_RELEASE
DEAD_LETTER = broker_pb2.OUTCOME_DEAD_LETTER
ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivered message."""

    fence: int
    offset: int
    attempt: int
    losses: int
    reason: str
    """The redelivery reason without its prefix; UNSPECIFIED at first."""
    body: bytes
    message: broker_pb2.Message
    dead_letter: broker_pb2.DeadLetterInfo | None


class RawConsumer:
    """One attached stream; made by `attached`."""

    def __init__(self, call: "StreamStreamCall[broker_pb2.ConsumeRequest, broker_pb2.ConsumeResponse]") -> None:
        self._call = call
        self._writing = asyncio.Lock()
        self._deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
        self._statuses: dict[int, asyncio.Queue[str]] = {}
        self._session: asyncio.Future[broker_pb2.Attached] = asyncio.get_running_loop().create_future()
        self.revoked: list[broker_pb2.Revoke] = []
        self.frames: list[broker_pb2.ConsumeResponse] = []
        """Everything that came, for whoever wants to look."""

    async def read(self) -> None:
        """Sort what comes, until the stream ends; the one reader."""
        while isinstance(frame := await self._call.read(), broker_pb2.ConsumeResponse):
            self.frames.append(frame)
            if frame.HasField("attached"):
                self._session.set_result(frame.attached)
            for run in frame.deliveries:
                for delivery in _deliveries(run):
                    self._deliveries.put_nowait(delivery)
            for result in frame.settled:
                self._answered(result.range, result.status)
            for extended in frame.extended:
                self._answered(extended.range, extended.status)
            self.revoked.extend(frame.revokes)

    async def beat(self) -> None:
        """Live: a heartbeat an interval."""
        interval_ms = (await self.session()).heartbeat_interval_ms
        sequence = 0
        while True:
            await asyncio.sleep(interval_ms / 1000)
            sequence += 1
            await self.write(heartbeat=broker_pb2.ConsumerHeartbeat(sequence=sequence))

    async def session(self) -> broker_pb2.Attached:
        """What `attach` was answered with."""
        return await asyncio.wait_for(asyncio.shield(self._session), ANSWER_SECONDS)

    async def delivery(self, seconds: float = ANSWER_SECONDS) -> Delivery:
        """The next message.

        Raises:
            TimeoutError: none came.
        """
        return await asyncio.wait_for(self._deliveries.get(), seconds)

    async def started(self, *fences: int) -> None:
        """A handler began on these."""
        await self.write(started=[_range(fence) for fence in fences])

    async def settle(self, outcome: "broker_pb2.Outcome.ValueType", *fences: int, **fields: object) -> list[str]:
        """Settle, and wait for what became of each fence: "OK", "STALE", ..."""
        settlement = broker_pb2.Settlement(outcome=outcome, ranges=[_range(fence) for fence in fences])
        settlement.MergeFrom(broker_pb2.Settlement(**fields))  # type: ignore[arg-type]
        return await self._ask(fences, settlements=[settlement])

    async def extend(self, extension_ms: int, *fences: int) -> list[str]:
        """Ask for more time, and wait for what became of each fence."""
        ranges = [_range(fence) for fence in fences]
        return await self._ask(fences, extend=broker_pb2.Extend(ranges=ranges, extension_ms=extension_ms))

    async def detach(self) -> None:
        """Leave politely, and wait for the stream's end."""
        await self.write(detach=broker_pb2.Detach())
        code = await asyncio.wait_for(self._call.code(), ANSWER_SECONDS)
        assert code is grpc.StatusCode.OK, await self._call.details()

    def cut(self) -> None:
        """Be lost: the stream ends without a word."""
        self._call.cancel()

    async def write(self, **parts: object) -> None:
        """Send a frame."""
        async with self._writing:
            await self._call.write(broker_pb2.ConsumeRequest(**parts))  # type: ignore[arg-type]

    async def _ask(self, fences: Iterable[int], **parts: object) -> list[str]:
        answers = [self._statuses.setdefault(fence, asyncio.Queue()) for fence in fences]
        await self.write(**parts)
        return [await asyncio.wait_for(answer.get(), ANSWER_SECONDS) for answer in answers]

    def _answered(self, fences: broker_pb2.FenceRange, status: "broker_pb2.SettleStatus.ValueType") -> None:
        name = broker_pb2.SettleStatus.Name(status).removeprefix("SETTLE_STATUS_")
        for fence in range(fences.first, fences.last + 1):
            self._statuses.setdefault(fence, asyncio.Queue()).put_nowait(name)


@asynccontextmanager
async def attached(
    address: str,
    queue: str,
    *,
    capabilities: Iterable[str] = ("started",),
    prefetch: int = 16,
    consumer_id: str = "",
    heartbeats: bool = True,
) -> AsyncIterator[RawConsumer]:
    """A consumer of `queue`; its stream is cut on the way out unless it has detached."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = BrokerServiceStub(channel).Consume()
        consumer = RawConsumer(call)
        reading = asyncio.create_task(consumer.read())
        beating = asyncio.create_task(consumer.beat()) if heartbeats else None
        attach = broker_pb2.Attach(
            subscriptions=[broker_pb2.Subscription(queue=queue)],
            consumer_id=consumer_id,
            capabilities=capabilities,
            prefetch=broker_pb2.Prefetch(messages=prefetch),
        )
        try:
            await consumer.write(attach=attach)
            await consumer.session()
            yield consumer
        finally:
            consumer.cut()
            if beating is not None:
                beating.cancel()
            ended = [task for task in (reading, beating) if task is not None]
            await asyncio.gather(*ended, return_exceptions=True)


async def publish(address: str, queue: str, *bodies: bytes, **fields: object) -> list[int]:
    """Store messages with these bodies in one request; answered, so durable. Returns their offsets."""
    messages = [broker_pb2.Message(body=body, **fields) for body in bodies]  # type: ignore[arg-type]
    async with grpc.aio.insecure_channel(address) as channel:
        request = broker_pb2.PublishRequest(destination=queue, request_id=1, messages=messages)
        answer = await BrokerServiceStub(channel).Publish(request, timeout=ANSWER_SECONDS)
    return [offset for run in answer.offsets for offset in range(run.first_offset, run.first_offset + run.count)]


def _deliveries(run: broker_pb2.DeliveryRun) -> Iterable[Delivery]:
    reason = broker_pb2.RedeliveryReason.Name(run.redelivery_reason).removeprefix("REDELIVERY_REASON_")
    for index, message in enumerate(run.messages):
        yield Delivery(
            fence=run.first_fence + index,
            offset=run.first_offset + index,
            attempt=run.attempt,
            losses=run.losses,
            reason=reason,
            body=message.body,
            message=message,
            dead_letter=run.dead_letter if run.HasField("dead_letter") else None,
        )


def _range(fence: int) -> broker_pb2.FenceRange:
    return broker_pb2.FenceRange(first=fence, last=fence)
