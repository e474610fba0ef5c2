"""A client that has nothing to do with the attack: publishes, is delivered to, settles, and notes when.

Run as a process of its own, so that what it sees is the broker and not the attacker's loop. It writes a line for each
message that went all the way; a gap between two of them is how long the broker did not serve it. Whatever ends it is a
line too, and fails the test.

    python -m tests.security.bystander HOST:PORT FILE
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import grpc

from kyogo.v1 import broker_pb2 as pb
from kyogo.v1.broker_pb2_grpc import BrokerServiceStub

QUEUE = "bystander"
PAUSE_SECONDS = 0.005
BEAT_SECONDS = 0.5


class Consumer:
    """A consumer of one message at a time, which has heartbeats beside it."""

    def __init__(self, stub: Any) -> None:
        self._call = stub.Consume()
        self._writing = asyncio.Lock()

    async def attach(self) -> None:
        await self._write(attach=pb.Attach(subscriptions=[pb.Subscription(queue=QUEUE)]))

    async def beat(self) -> None:
        """Live."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            await self._write(heartbeat=pb.ConsumerHeartbeat())

    async def settle(self) -> int:
        """Take one frame and settle what is in it; how many were settled by it."""
        frame = await self._call.read()
        assert isinstance(frame, pb.ConsumeResponse), f"the stream ended: {await self._call.details()}"
        assert not frame.revokes, frame.revokes
        ranges = [
            pb.FenceRange(first=run.first_fence, last=run.first_fence + len(run.messages) - 1)
            for run in frame.deliveries
        ]
        if ranges:
            await self._write(settlements=[pb.Settlement(outcome=pb.OUTCOME_ACK, ranges=ranges)])
        for result in frame.settled:
            assert result.status == pb.SETTLE_STATUS_OK, result
        return sum(result.range.last - result.range.first + 1 for result in frame.settled)

    async def _write(self, **parts: Any) -> None:
        async with self._writing:
            await self._call.write(pb.ConsumeRequest(**parts))


async def main(address: str, note: "Notes") -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = BrokerServiceStub(channel)
        await stub.Publish(publish(0), wait_for_ready=True)
        publishing, consumer = stub.PublishStream(), Consumer(stub)
        await consumer.attach()
        beating = asyncio.create_task(consumer.beat())
        number, settled = 0, 0
        while not beating.done():
            number += 1
            await publishing.write(publish(number))
            answer = await publishing.read()
            assert isinstance(answer, pb.PublishResponse), f"the stream ended: {await publishing.details()}"
            assert not answer.HasField("error"), answer.error
            while settled <= number:  # the one from before the stream, too
                settled += await consumer.settle()
            note.served()
            await asyncio.sleep(PAUSE_SECONDS)
        await beating


def publish(number: int) -> pb.PublishRequest:
    return pb.PublishRequest(destination=QUEUE, request_id=number, messages=[pb.Message(body=b"%d" % number)])


class Notes:
    """The file that the tests read: an instant (CLOCK_MONOTONIC) a line, or a sentence."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def served(self) -> None:
        self._file.write(f"{time.monotonic()}\n")

    def ended(self, error: Exception) -> None:
        self._file.write(f"{type(error).__name__}: {error}\n".replace("\n", " ") + "\n")


if __name__ == "__main__":
    notes = Notes(Path(sys.argv[2]))
    try:
        asyncio.run(main(sys.argv[1], notes))
    except Exception as problem:  # noqa: BLE001  # whatever it is, the test shows it
        notes.ended(problem)
