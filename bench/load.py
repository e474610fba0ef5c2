"""The load: raw grpc.aio clients written against the contract, each process one side.

`python -m bench.load produce|consume '{"target": ...}'` opens its streams, prints `ready`, waits for a line on stdin,
works, prints how far it is once a second, and at the end one line of JSON. Times are CLOCK_MONOTONIC, which processes
of one machine share. It does not know whether the probe or the broker answers.
"""

import asyncio
import contextlib
import gc
import json
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import grpc
import grpc.aio

from kyogo.v1 import broker_pb2 as pb

SERVICE: Final = "/kyogo.v1.BrokerService/"
OPTIONS: Final = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
"""A connection for each channel, as separate programs would have."""
STAMP: Final = struct.Struct("<q")
"""The first 8 bytes of a body: when it was handed to gRPC, in monotonic nanoseconds; 0: not to be timed."""
HEARTBEAT_S: Final = 1.0
PREFETCH_BYTES: Final = 64 << 20
HOUR_MS: Final = 3_600_000
STOP_S: Final = 5.0
"""How long the streams may take to end after `detach`."""

BytesCall = grpc.aio.StreamStreamCall[bytes, bytes]
Go = Callable[[], Awaitable[None]]


class LoadError(Exception):
    """The other side refused, or broke its promise: figures would be worth nothing."""


@dataclass(frozen=True, slots=True)
class Produce:
    """What a producer does."""

    target: str
    queue: str
    messages: int
    size: int
    """Bytes of a body; at least 8."""
    batch: int = 1
    """Messages a request."""
    window: int = 1
    """Requests that may wait for their confirm."""
    rate: float = 0
    """Requests a second, paced; 0: as fast as the window lets."""
    unary: bool = False
    """Calls `Publish`, one after the other, instead of a stream."""
    timed: bool = True
    """Stamps messages that go one a request, and keeps the time of each confirm: for millions, do not."""
    opening: bool = True
    """First publishes one message by `Publish`, before it is ready: consumers can attach only to what exists."""


@dataclass(frozen=True, slots=True)
class Consume:
    """What a consumer process does: takes and acks until everything was answered."""

    target: str
    queue: str
    messages: int
    streams: int = 4
    prefetch: int = 4096
    """Messages that each stream will hold."""
    started: bool = False
    """Says `started` for what it settles, in the same frame."""
    straggle_every: int = 0
    """One message in so many is not acked, by its offset: every other one of these is settled as failed, to come again
    in an hour, the rest are kept unsettled until the end and are not among `messages`. 0: none."""


@dataclass(slots=True)
class Report:
    """What a process tells when it is done."""

    began: float = 0
    ended: float = 0
    messages: int = 0
    """Confirmed, or settled."""
    latencies: list[float] = field(default_factory=list)
    """Seconds: of a producer to the confirm of each request, of a consumer from each stamp to the delivery."""
    shares: list[int] = field(default_factory=list)
    """Messages that each stream got."""
    frames: int = 0
    """Received."""
    rss: list[int] = field(default_factory=list)
    """Bytes of its own memory, once a second, where that is what is measured."""


def channel_to(target: str) -> grpc.aio.Channel:
    """An own connection."""
    return grpc.aio.insecure_channel(target, options=OPTIONS)


async def produce(job: Produce, report: Report, go: Go) -> None:
    """Publish; every request must be confirmed."""
    async with channel_to(job.target) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
        producer = Producer(job, channel, report)
        if job.opening:
            await producer.open_queue()
        await go()
        report.began = time.monotonic()
        await (producer.run_unary() if job.unary else producer.run())
        report.ended = time.monotonic()


class Producer:
    """Requests for one queue, on one stream or as single calls."""

    def __init__(self, job: Produce, channel: grpc.aio.Channel, report: Report) -> None:
        self._job = job
        self._channel = channel
        self._report = report
        self._requests = -(-job.messages // job.batch)
        self._room = asyncio.Semaphore(job.window)
        self._sent: dict[int, float] = {}
        self._rest = bytes(job.size - STAMP.size)
        message = pb.Message(body=bytes(job.size))
        self._plain = pb.PublishRequest(messages=[message]).SerializeToString() * job.batch

    async def open_queue(self) -> None:
        """Publish the one message that makes the queue."""
        message = pb.Message(body=bytes(self._job.size))
        request = pb.PublishRequest(destination=self._job.queue, request_id=1, messages=[message])
        method: Any = self._channel.unary_unary(SERVICE + "Publish")
        await method(request.SerializeToString())

    async def run(self) -> None:
        """A stream, pipelined within the window or paced by the rate."""
        call: BytesCall = self._channel.stream_stream(SERVICE + "PublishStream")()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read(call))
            for number in range(self._requests):
                if self._job.rate:
                    await asyncio.sleep(self._report.began + number / self._job.rate - time.monotonic())
                else:
                    await self._room.acquire()
                await call.write(self._request(number))
        await call.done_writing()

    async def run_unary(self) -> None:
        """One call after the other."""
        method: Any = self._channel.unary_unary(SERVICE + "Publish")
        for number in range(self._requests):
            self._confirm(await method(self._request(number)))

    def _request(self, number: int) -> bytes:
        job = self._job
        request = pb.PublishRequest(destination=job.queue, request_id=number + 2)
        if job.timed:
            self._sent[number + 2] = time.monotonic()
        if job.batch == 1:
            request.messages.add(body=STAMP.pack(time.monotonic_ns() if job.timed else 0) + self._rest)
            return request.SerializeToString()
        count = min(job.batch, job.messages - number * job.batch)
        return request.SerializeToString() + self._plain[: len(self._plain) // job.batch * count]

    async def _read(self, call: BytesCall) -> None:
        for _ in range(self._requests):
            raw = await call.read()
            if not isinstance(raw, bytes):
                raise LoadError(f"the publish stream ended: {await call.code()} {await call.details()}")
            self._confirm(raw)
            self._room.release()

    def _confirm(self, raw: bytes) -> None:
        answer = pb.PublishResponse.FromString(raw)
        if answer.HasField("error"):
            raise LoadError(f"a publish was refused: {answer.error}")
        report = self._report
        report.frames += 1
        report.messages += sum(run.count for run in answer.offsets)
        if self._job.timed:
            report.latencies.append(time.monotonic() - self._sent.pop(answer.request_id))


async def consume(job: Consume, report: Report, go: Go) -> None:
    """Drain; every message must be delivered once, and its ACK be answered OK."""
    report.shares = [0] * job.streams
    done = asyncio.Event()
    consumers = [Consumer(job, number, report, done) for number in range(job.streams)]
    for consumer in consumers:
        await consumer.attach()
    async with asyncio.TaskGroup() as group:
        for consumer in consumers:
            group.create_task(consumer.beat())
        await go()
        report.began = time.monotonic()
        for consumer in consumers:
            group.create_task(consumer.run())
        await done.wait()
        report.ended = time.monotonic()
        async with asyncio.timeout(STOP_S):
            for consumer in consumers:
                await consumer.detach()
    for consumer in consumers:
        await consumer.close()
    if sum(report.shares) != job.messages and not job.straggle_every:
        raise LoadError(f"{sum(report.shares)} deliveries of {job.messages} messages")


class Consumer:
    """One stream: settles each frame as it arrives."""

    def __init__(self, job: Consume, number: int, report: Report, done: asyncio.Event) -> None:
        self._job = job
        self._channel = channel_to(job.target)
        self._call: BytesCall = self._channel.stream_stream(SERVICE + "Consume")()
        self._writing = asyncio.Lock()
        self._number = number
        self._report = report
        self._done = done

    async def attach(self) -> None:
        """Open the session, paused."""
        attach = pb.Attach(
            subscriptions=[pb.Subscription(queue=self._job.queue)],
            prefetch=pb.Prefetch(messages=0),
            capabilities=["started"] if self._job.started else [],
        )
        await self._write(pb.ConsumeRequest(attach=attach))
        answer = await self._read()
        if answer is None or not answer.HasField("attached"):
            raise LoadError(f"no `attached`: {answer}")

    async def beat(self) -> None:
        """Heartbeats until all is done. Not to be cancelled: a cancelled write ends the stream."""
        while not self._done.is_set():
            await self._write(pb.ConsumeRequest(heartbeat=pb.ConsumerHeartbeat()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._done.wait(), HEARTBEAT_S)

    async def run(self) -> None:
        """Take and settle until the stream ends."""
        wish = pb.Prefetch(messages=self._job.prefetch, bytes=PREFETCH_BYTES)
        await self._write(pb.ConsumeRequest(prefetch=wish))
        while (frame := await self._read()) is not None:
            self._count(frame)
            if frame.deliveries:
                await self._write(self._settlement(frame))

    async def detach(self) -> None:
        """Leave politely."""
        await self._write(pb.ConsumeRequest(detach=pb.Detach()))

    async def close(self) -> None:
        """Let go of the connection."""
        await self._channel.close()

    async def _write(self, frame: pb.ConsumeRequest) -> None:
        async with self._writing:
            await self._call.write(frame.SerializeToString())

    async def _read(self) -> pb.ConsumeResponse | None:
        raw = await self._call.read()
        if isinstance(raw, bytes):
            return pb.ConsumeResponse.FromString(raw)
        if not self._done.is_set():
            raise LoadError(f"the stream ended: {await self._call.code()} {await self._call.details()}")
        return None

    def _count(self, frame: pb.ConsumeResponse) -> None:
        report = self._report
        report.frames += 1
        for result in frame.settled:
            if result.status != pb.SETTLE_STATUS_OK:
                raise LoadError(f"an ACK was answered {result}")
            report.messages += result.range.last - result.range.first + 1
        if frame.errors:
            raise LoadError(f"the broker complains: {frame.errors}")
        now = time.monotonic_ns()
        for run in frame.deliveries:
            report.shares[self._number] += len(run.messages)
            stamp = STAMP.unpack_from(run.messages[0].body)[0]
            if stamp and len(run.messages) == 1:
                report.latencies.append((now - stamp) / 1e9)
            elif stamp:
                stamps = (STAMP.unpack_from(message.body)[0] for message in run.messages)
                report.latencies += [(now - stamp) / 1e9 for stamp in stamps if stamp]
        if report.messages >= self._job.messages:
            self._done.set()

    def _settlement(self, frame: pb.ConsumeResponse) -> pb.ConsumeRequest:
        ranges = [
            pb.FenceRange(first=run.first_fence, last=run.first_fence + len(run.messages) - 1)
            for run in frame.deliveries
        ]
        if self._job.straggle_every:
            return self._some(frame)
        settlement = pb.Settlement(outcome=pb.OUTCOME_ACK, ranges=ranges)
        return pb.ConsumeRequest(started=ranges if self._job.started else [], settlements=[settlement])

    def _some(self, frame: pb.ConsumeResponse) -> pb.ConsumeRequest:
        """ACK all but the stragglers."""
        every = self._job.straggle_every
        acks: list[pb.FenceRange] = []
        fails: list[pb.FenceRange] = []
        for run in frame.deliveries:
            begin = run.first_offset
            end = begin + len(run.messages)
            to_fence = run.first_fence - begin
            for straggler in range(begin + -begin % every, end, every):
                if straggler > begin:
                    acks.append(pb.FenceRange(first=begin + to_fence, last=straggler - 1 + to_fence))
                if straggler // every % 2:
                    fails.append(pb.FenceRange(first=straggler + to_fence, last=straggler + to_fence))
                begin = straggler + 1
            if begin < end:
                acks.append(pb.FenceRange(first=begin + to_fence, last=end - 1 + to_fence))
        settlements = [pb.Settlement(outcome=pb.OUTCOME_ACK, ranges=acks)]
        if fails:
            settlements.append(pb.Settlement(outcome=pb.OUTCOME_RETRY, ranges=fails, delay_ms=HOUR_MS))
        return pb.ConsumeRequest(settlements=settlements)


def say(text: str) -> None:
    """One line to the parent."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def wait_for_go() -> None:
    """Tell the parent that everything is open, and wait for its word."""
    gc.freeze()
    say("ready")
    if not await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        raise LoadError("the parent is gone")


async def tell(report: Report) -> None:
    """How far it is, once a second."""
    while True:
        await asyncio.sleep(1)
        say(str(report.messages))


async def work(role: str, settings: dict[str, Any]) -> Report:
    """Do one side's job."""
    report = Report()
    teller = asyncio.create_task(tell(report))
    if role == "produce":
        await produce(Produce(**settings), report, wait_for_go)
    else:
        await consume(Consume(**settings), report, wait_for_go)
    teller.cancel()
    return report


if __name__ == "__main__":
    say(json.dumps(asdict(asyncio.run(work(sys.argv[1], json.loads(sys.argv[2]))))))
