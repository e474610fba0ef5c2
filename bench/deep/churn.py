"""Churn: consumers attach, work, detach, are cut off, come back and are killed; publishers come and go.

`python -m bench.deep.churn '{"target": ...}'` works for as long as it is told, then takes everything that is left, and
prints one line of JSON: messages are those that were settled, frames the streams that were opened.
"""

import asyncio
import contextlib
import json
import multiprocessing
import random
import sys
import time
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from typing import Any, Final

import grpc.aio

from bench.deep.jobs import Churn
from bench.load import SERVICE, LoadError, Report, channel_to, say, tell, wait_for_go
from bench.victim import Failover, Session, victim
from kyogo.v1 import broker_pb2 as pb

LIFE_S: Final = 1.0
"""The longest; the mean is half of it."""
PREFETCH: Final = 64
BATCH: Final = 32
BODY: Final = bytes(200)
RETRY_MS: Final = 100
ENDED: Final = (LoadError, grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError)


def name_of(number: int) -> str:
    """A queue's."""
    return f"churn-{number}"


@dataclass(slots=True)
class Name:
    """Who a consumer is, over all its streams."""

    consumer_id: str = ""
    token: str = ""
    """Of its last stream; with it the next one may take that one's place."""


class Worker:
    """One consumer stream that settles whatever comes, each frame in one of several ways."""

    def __init__(
        self, target: str, report: Report, chance: random.Random, name: Name | None = None, *, acks: float = 0.9
    ) -> None:
        self._session = Session(target)
        self._name = Name() if name is None else name
        self._report = report
        self._chance = chance
        self._acks = acks
        self.heard_at = time.monotonic()
        """When the last message came."""

    async def live(self, queue: str, life: "asyncio.Future[Any] | asyncio.Task[Any]", *, politely: bool) -> None:
        """Attach, work until `life` is over, and leave, or be cut off."""
        self._report.frames += 1
        async with self._session.beating():
            prefetch = self._chance.randrange(1, PREFETCH)
            name = self._name
            name.token = await self._session.attach(queue, prefetch, consumer_id=name.consumer_id, token=name.token)
            working = asyncio.create_task(self._work())
            await asyncio.wait((life, working), return_when=asyncio.FIRST_COMPLETED)
            if politely and not working.done():
                await self._session.write(pb.ConsumeRequest(detach=pb.Detach()))
                await working
        await working

    async def rested(self, seconds: float) -> None:
        """Until no message has come for a while."""
        while (left := self.heard_at + seconds - time.monotonic()) > 0:  # noqa: ASYNC110 - each message moves the end
            await asyncio.sleep(left)

    async def _work(self) -> None:
        with contextlib.suppress(*ENDED, asyncio.CancelledError):
            while True:
                frame = await self._session.read()
                if frame.errors:
                    raise RuntimeError(f"the broker complains: {frame.errors}")
                ranges = [
                    pb.FenceRange(first=run.first_fence, last=run.first_fence + len(run.messages) - 1)
                    for run in frame.deliveries
                ]
                done = [result.range for result in frame.settled if result.status == pb.SETTLE_STATUS_OK]
                self._report.messages += sum(each.last - each.first + 1 for each in done)
                if ranges:
                    self.heard_at = time.monotonic()
                    await self._session.write(pb.ConsumeRequest(settlements=[self._settlement(ranges)]))

    def _settlement(self, ranges: list[pb.FenceRange]) -> pb.Settlement:
        if self._chance.random() < self._acks:
            return pb.Settlement(outcome=pb.OUTCOME_ACK, ranges=ranges)
        if self._chance.random() < 0.5:
            return pb.Settlement(outcome=pb.OUTCOME_RELEASE, ranges=ranges)
        return pb.Settlement(outcome=pb.OUTCOME_RETRY, ranges=ranges, delay_ms=RETRY_MS, error_type="Churn")


class Churning:
    """Everybody of one churn."""

    def __init__(self, job: Churn, report: Report) -> None:
        self._job = job
        self._report = report
        self._chance = random.Random(job.seed)
        self._until = time.monotonic() + job.seconds
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["bench.victim"])

    async def run(self) -> None:
        """Work until the time is over."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._job.consumers):
                group.create_task(self._consumers(Name(f"consumer-{number}")))
            for _ in range(self._job.victims):
                group.create_task(self._victims())
            for _ in range(self._job.publishers):
                group.create_task(self._publishers())

    async def drain(self) -> None:
        """Take what is left of every queue and does not wait for its time."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._job.queues):
                worker = Worker(self._job.target, self._report, self._chance, acks=1)
                life = asyncio.create_task(worker.rested(self._job.drained_after_s))
                group.create_task(worker.live(name_of(number), life, politely=True))

    @property
    def _going(self) -> bool:
        return time.monotonic() < self._until

    def _queue(self) -> str:
        return name_of(self._chance.randrange(self._job.queues))

    async def _consumers(self, name: Name) -> None:
        """One after the other, all of the same name: who was cut off comes back."""
        while self._going:
            life = asyncio.create_task(asyncio.sleep(self._chance.random() * LIFE_S))
            worker = Worker(self._job.target, self._report, self._chance, name)
            await worker.live(self._queue(), life, politely=self._chance.random() < 0.5)

    async def _victims(self) -> None:
        """Processes that take messages and are killed with them."""
        while self._going:
            ours, theirs = self._processes.Pipe()
            job = Failover(self._job.target, self._queue(), trials=1, messages=1)
            process = self._processes.Process(target=victim, args=(job, theirs), daemon=True)
            await asyncio.to_thread(process.start)
            theirs.close()
            try:
                await asyncio.to_thread(ours.recv)
                ours.send("go")
                await asyncio.sleep(0.3 + self._chance.random() * LIFE_S)
            finally:
                kill(process)
                ours.close()
            self._report.frames += 1

    async def _publishers(self) -> None:
        """One after the other: a stream of requests, closed or broken off."""
        while self._going:
            async with channel_to(self._job.target) as channel:
                self._report.frames += 1
                call: Any = channel.stream_stream(SERVICE + "PublishStream")()
                for number in range(1, self._chance.randrange(2, 20)):
                    await call.write(self._request(number))
                    if await call.read() is grpc.aio.EOF:
                        raise LoadError(f"the publish stream ended: {await call.code()} {await call.details()}")
                    await asyncio.sleep(0.02)
                if self._chance.random() < 0.5:
                    await call.write(self._request(100))
                    call.cancel()

    def _request(self, number: int) -> bytes:
        messages = [pb.Message(body=BODY)] * BATCH
        return pb.PublishRequest(destination=self._queue(), request_id=number, messages=messages).SerializeToString()


def kill(process: BaseProcess) -> None:
    """With -9, and wait for it."""
    process.kill()
    process.join()


async def open_queues(job: Churn) -> None:
    """Publish a message to each, which makes it."""
    async with channel_to(job.target) as channel:
        publish: Any = channel.unary_unary(SERVICE + "Publish")
        for number in range(job.queues):
            request = pb.PublishRequest(destination=name_of(number), request_id=1, messages=[pb.Message(body=BODY)])
            await publish(request.SerializeToString())


async def run(job: Churn, report: Report) -> None:
    """All of it."""
    await open_queues(job)
    await wait_for_go()
    telling = asyncio.create_task(tell(report))
    report.began = time.monotonic()
    churning = Churning(job, report)
    await churning.run()
    await churning.drain()
    report.ended = time.monotonic()
    telling.cancel()


def main() -> None:
    """Entry of the process."""
    report = Report()
    asyncio.run(run(Churn(**json.loads(sys.argv[1])), report))
    say(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
