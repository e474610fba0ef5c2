"""The ceiling: what bare code over grpc.aio reaches when it does the broker's work and nothing else.

    publish frames -> group commit (one pwritev, one fdatasync, in a thread) -> confirms
                                                                            -> deliveries, evenly to the streams
    settle frames  -> the same commit                                       -> answers, and room for more

It keeps the wire and the promises that cost time: durable before confirmed, durable before delivered, settlements
durable before answered, prefetch counted, what a lost stream held goes to the others. It leaves out everything else:
it takes one queue, messages of one size in a request, whole deliveries settled in their order, and never restarts. So
a figure of the broker divided by the probe's is the price of the broker's features, whatever the machine.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import grpc
import grpc.aio

from bench.frames import delivery, message_stride, publish_head
from kyogo.v1 import broker_pb2 as pb

FILE_BYTES: Final = 256 << 20
"""Written once before the start, overwritten from the front when full: no commit pays for metadata."""
FRAME_BYTES: Final = 1 << 20
"""Deliveries are filled up to this, as in the contract."""
SPACING_S: Final = 0.001
"""Under load the next commit waits this long after the last: fewer, larger frames. Costs nothing when idle."""
SPACING_FRAMES: Final = 4
"""A commit with fewer frames than this was not load. At 500 messages a second there are one or two."""
PARTS_MAX: Final = 1000
"""Below the kernel's IOV_MAX of 1024."""
SERVICE: Final = "kyogo.v1.BrokerService"
Context = grpc.aio.ServicerContext[bytes, bytes]
OPTIONS: Final = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 << 20))


class Log:
    """One file, one record a commit; a thread of its own writes, so that the loop goes on reading frames."""

    def __init__(self, folder: Path, *, inline: bool) -> None:
        self._descriptor, name = tempfile.mkstemp(dir=folder)
        Path(name).unlink()
        zeros = bytes(1 << 20)
        for start in range(0, FILE_BYTES, len(zeros)):
            os.pwrite(self._descriptor, zeros, start)
        os.fsync(self._descriptor)
        self._position = 0
        self._inline = inline
        self._loop = asyncio.get_running_loop()
        self._work: SimpleQueue[tuple[list[bytes], asyncio.Future[None]]] = SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    async def append(self, parts: list[bytes]) -> None:
        """Durable when it returns."""
        if self._inline:
            self._commit(parts)
            return
        done = self._loop.create_future()
        self._work.put((parts, done))
        await done

    def _serve(self) -> None:
        while True:
            parts, done = self._work.get()
            self._commit(parts)
            self._loop.call_soon_threadsafe(done.set_result, None)

    def _commit(self, parts: list[bytes]) -> None:
        if self._position + sum(map(len, parts)) > FILE_BYTES:
            self._position = 0
        for start in range(0, len(parts), PARTS_MAX):
            self._position += os.pwritev(self._descriptor, parts[start : start + PARTS_MAX], self._position)
        os.fdatasync(self._descriptor)


@dataclass(slots=True)
class Run:
    """Messages of one size that lie together on the wire: `(tag, length, message)` each, `stride` bytes long."""

    wire: bytes
    stride: int
    count: int
    taken: int = 0


@dataclass(slots=True, eq=False)
class Stream:
    """One open stream: what waits to be written, and for a consumer what it holds."""

    outbox: deque[bytes] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    prefetch: int = 0
    held: int = 0
    in_flight: deque[Run] = field(default_factory=deque)

    def put(self, frame: bytes) -> None:
        """Leave a frame to the writer."""
        self.outbox.append(frame)
        self.wake.set()

    async def write(self, context: Context) -> None:
        """Write what waits, until cancelled or the peer is gone."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            while self.outbox:
                await context.write(self.outbox.popleft())


@contextlib.asynccontextmanager
async def stream_to(context: Context) -> AsyncIterator[Stream]:
    """A stream with its writer at work."""
    stream = Stream()
    writer = asyncio.create_task(stream.write(context))
    try:
        yield stream
    finally:
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)


class Probe:
    """The queue, its group commit, and its streams."""

    def __init__(self, log: Log, *, spacing_s: float) -> None:
        self._log = log
        self._spacing_s = spacing_s
        self._publishes: list[tuple[Stream, int, Run]] = []
        self._settles: list[tuple[Stream, bytes, pb.ConsumeRequest]] = []
        self._wake = asyncio.Event()
        self._ready: deque[Run] = deque()
        self._waiting = 0
        self._consumers: list[Stream] = []
        self._offset = 1
        self._fence = 1

    async def run(self) -> None:
        """Commit what came, then release it; what comes meanwhile is the next commit."""
        committed, frames = 0.0, 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            if frames >= SPACING_FRAMES and (pause := committed + self._spacing_s - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            publishes, self._publishes = self._publishes, []
            settles, self._settles = self._settles, []
            frames = len(publishes) + len(settles)
            if frames:
                await self._log.append([run.wire for _, _, run in publishes] + [raw for _, raw, _ in settles])
                committed = time.monotonic()
            for stream, request_id, run in publishes:
                stream.put(self._store(request_id, run))
            answers: dict[Stream, bytes] = {}
            for stream, _, frame in settles:
                answers[stream] = answers.get(stream, b"") + self._settle(stream, frame)
            self._dispatch(answers)
            for stream, answer in answers.items():
                stream.put(answer)

    def _store(self, request_id: int, run: Run) -> bytes:
        answer = pb.PublishResponse(request_id=request_id)
        answer.offsets.add(first_offset=self._offset, count=run.count)
        self._offset += run.count
        self._ready.append(run)
        self._waiting += run.count
        return answer.SerializeToString()

    def _settle(self, stream: Stream, frame: pb.ConsumeRequest) -> bytes:
        answer = pb.ConsumeResponse()
        for settlement in frame.settlements:
            for fences in settlement.ranges:
                left = fences.last - fences.first + 1
                while left and stream.in_flight:
                    count = stream.in_flight.popleft().count
                    left -= count
                    stream.held -= count
                answer.settled.add(range=fences, status=pb.SETTLE_STATUS_OK)
        return answer.SerializeToString()

    def _dispatch(self, answers: dict[Stream, bytes]) -> None:
        """Deal what waits evenly to the streams with room; a stream's answer goes in the same frame."""
        while self._waiting:
            free = [stream for stream in self._consumers if stream.held < stream.prefetch]
            if not free:
                return
            free.sort(key=lambda stream: stream.held)
            share = -(-self._waiting // len(free))
            for stream in free:
                count = min(share, stream.prefetch - stream.held, self._waiting)
                if count:
                    stream.put(answers.pop(stream, b"") + self._deliver(stream, count))

    def _deliver(self, stream: Stream, wanted: int) -> bytes:
        """A frame of up to `wanted` messages from the front, all of one size."""
        stride = self._ready[0].stride
        wanted = min(wanted, max(1, FRAME_BYTES // stride))
        parts: list[bytes] = []
        count = 0
        while count < wanted and self._ready and self._ready[0].stride == stride:
            run = self._ready[0]
            end = min(run.count, run.taken + wanted - count)
            parts.append(run.wire[run.taken * stride : end * stride])
            count += end - run.taken
            run.taken = end
            if end == run.count:
                self._ready.popleft()
        wire = b"".join(parts)
        frame = delivery(self._fence, self._fence, wire)
        stream.in_flight.append(Run(wire, stride, count))
        stream.held += count
        self._waiting -= count
        self._fence += count
        return frame

    async def publish_stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """`PublishStream`, as bytes. The load half-closes only when everything was answered."""
        async with stream_to(context) as stream:
            async for raw in requests:
                self._publish(stream, raw)

    async def publish(self, raw: bytes, context: Context) -> bytes:  # noqa: ARG002 - gRPC's signature
        """`Publish`, as bytes."""
        stream = Stream()
        self._publish(stream, raw)
        await stream.wake.wait()
        return stream.outbox.popleft()

    def _publish(self, stream: Stream, raw: bytes) -> None:
        request_id, start = publish_head(raw)
        wire = raw[start:]
        stride = message_stride(wire)
        self._publishes.append((stream, request_id, Run(wire, stride, len(wire) // stride)))
        self._wake.set()

    async def consume(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """`Consume`, as bytes."""
        async with stream_to(context) as stream:
            self._consumers.append(stream)
            try:
                async for raw in requests:
                    frame = pb.ConsumeRequest.FromString(raw)
                    if frame.HasField("detach"):
                        return
                    self._take(stream, raw, frame)
            finally:
                self._lose(stream)

    def _take(self, stream: Stream, raw: bytes, frame: pb.ConsumeRequest) -> None:
        if frame.HasField("attach"):
            stream.prefetch = frame.attach.prefetch.messages
            stream.put(pb.ConsumeResponse(attached=pb.Attached(session_id="probe")).SerializeToString())
        if frame.HasField("prefetch"):
            stream.prefetch = frame.prefetch.messages
        if frame.HasField("heartbeat"):
            beat = pb.BrokerHeartbeat(sequence=1, echo=frame.heartbeat.sequence)
            stream.put(pb.ConsumeResponse(heartbeat=beat).SerializeToString())
        if frame.settlements:
            self._settles.append((stream, raw, frame))
        self._wake.set()

    def _lose(self, stream: Stream) -> None:
        """Back to the front with what it held."""
        self._consumers.remove(stream)
        stream.prefetch = 0
        self._ready.extendleft(reversed(stream.in_flight))
        self._waiting += sum(run.count for run in stream.in_flight)
        stream.in_flight.clear()
        self._wake.set()


async def serve(arguments: argparse.Namespace) -> None:
    """Run until killed."""
    log = Log(Path(arguments.data), inline=arguments.inline)
    probe = Probe(log, spacing_s=arguments.spacing_ms / 1000)
    server = grpc.aio.server(options=OPTIONS)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "PublishStream": grpc.stream_stream_rpc_method_handler(probe.publish_stream),
        "Publish": grpc.unary_unary_rpc_method_handler(probe.publish),
        "Consume": grpc.stream_stream_rpc_method_handler(probe.consume),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port(arguments.listen)
    await server.start()
    gc.freeze()
    ready = Path(arguments.ready_file)
    ready.with_suffix(".new").write_text(json.dumps({"listen": f"127.0.0.1:{port}"}))
    ready.with_suffix(".new").replace(ready)
    await probe.run()


def main() -> None:
    """Entry: the switches are for finding out what a broker should do; the defaults are the quickest known."""
    parser = argparse.ArgumentParser(description="The bare server that the broker is compared with.")
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--data", required=True, help="folder for the one file, which is removed at once")
    parser.add_argument("--ready-file", required=True, help="written as JSON when the port is open")
    parser.add_argument("--inline", action="store_true", help="write and sync on the loop instead of in a thread")
    parser.add_argument("--spacing-ms", type=float, default=SPACING_S * 1000, help="between commits under load")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
