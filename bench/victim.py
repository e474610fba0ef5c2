"""A consumer stream for one trial at a time, and the process that is killed while it holds one.

In a file of its own, so that the server which forks victims can import it ahead.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from bench.load import HEARTBEAT_S, SERVICE, BytesCall, LoadError, channel_to
from kyogo.v1 import broker_pb2 as pb


@dataclass(frozen=True, slots=True)
class Failover:
    """What is tried."""

    target: str
    queue: str
    trials: int
    messages: int = 100
    size: int = 1024


class Session:
    """One consumer stream."""

    def __init__(self, target: str) -> None:
        self._channel = channel_to(target)
        self._call: BytesCall = self._channel.stream_stream(SERVICE + "Consume")()
        self._writing = asyncio.Lock()
        self._early: pb.ConsumeResponse | None = None
        """The frame of `attached`, when it brought messages as well."""

    async def attach(self, queue: str, prefetch: int, *, consumer_id: str = "", token: str = "") -> str:
        """Open the session; its token, with which a consumer of the same id may take its place."""
        attach = pb.Attach(
            subscriptions=[pb.Subscription(queue=queue)],
            prefetch=pb.Prefetch(messages=prefetch),
            consumer_id=consumer_id,
            session_token=token,
        )
        await self.write(pb.ConsumeRequest(attach=attach))
        answer = await self.read()
        if not answer.HasField("attached"):
            raise LoadError(f"no `attached`: {answer}")
        if answer.deliveries:
            self._early = answer
        return answer.attached.session_token

    async def write(self, frame: pb.ConsumeRequest) -> None:
        """Send one frame."""
        async with self._writing:
            await self._call.write(frame.SerializeToString())

    async def read(self) -> pb.ConsumeResponse:
        """The next frame."""
        if self._early is not None:
            early, self._early = self._early, None
            return early
        raw = await self._call.read()
        if not isinstance(raw, bytes):
            raise LoadError(f"the stream ended: {await self._call.code()} {await self._call.details()}")
        return pb.ConsumeResponse.FromString(raw)

    async def take(self, count: int) -> list[pb.FenceRange]:
        """Read until so many messages have come; their fences."""
        ranges = []
        while count > 0:
            for run in (await self.read()).deliveries:
                ranges.append(pb.FenceRange(first=run.first_fence, last=run.first_fence + len(run.messages) - 1))
                count -= len(run.messages)
        if count:
            raise LoadError(f"{-count} messages too many")
        return ranges

    async def set_prefetch(self, messages: int) -> None:
        """Returns when the broker has seen it: heartbeats are answered in order."""
        beat = pb.ConsumerHeartbeat(sequence=time.monotonic_ns() >> 10)
        await self.write(pb.ConsumeRequest(prefetch=pb.Prefetch(messages=messages), heartbeat=beat))
        while (frame := await self.read()).heartbeat.echo != beat.sequence:
            if frame.deliveries:
                raise LoadError("a delivery to the standby before the victim was killed")

    async def settle(self, ranges: list[pb.FenceRange]) -> None:
        """ACK; returns when it was answered, and OK."""
        settlement = pb.Settlement(outcome=pb.OUTCOME_ACK, ranges=ranges)
        await self.write(pb.ConsumeRequest(settlements=[settlement]))
        left = sum(fences.last - fences.first + 1 for fences in ranges)
        while left:
            for result in (await self.read()).settled:
                if result.status != pb.SETTLE_STATUS_OK:
                    raise LoadError(f"an ACK was answered {result}")
                left -= result.range.last - result.range.first + 1

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Heartbeats meanwhile."""
        task = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            task.cancel()
            await self._channel.close()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self.write(pb.ConsumeRequest(heartbeat=pb.ConsumerHeartbeat()))


def victim(job: Failover, pipe: Connection) -> None:
    """A process that waits for its turn, takes the trial's messages, and waits to be killed."""
    try:
        asyncio.run(_suffer(job, pipe))
    except EOFError:
        return


async def _suffer(job: Failover, pipe: Connection) -> None:
    pipe.send("made")
    await asyncio.to_thread(pipe.recv)
    session = Session(job.target)
    async with session.beating():
        await session.attach(job.queue, job.messages)
        pipe.send("attached")
        await session.take(job.messages)
        pipe.send("full")
        await asyncio.to_thread(pipe.recv)
