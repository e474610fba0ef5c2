"""A recording producer, straight from the contract: sends, and sends again until it knows.

    python -m tests.chaos.producer --mode stream|unary|bare ...

`stream` pipelines requests on PublishStream, `unary` calls Publish; both have a producer id and repeat what was not
answered, or was refused for a while, under its old number. `bare` has none and never repeats. Now and then they repeat
what was answered, and publish what must be refused.
"""

import asyncio
import sys
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import grpc
import grpc.aio

from kyogo.connection import channel_options
from kyogo.errors import from_rpc
from kyogo.v1 import broker_pb2
from kyogo.v1.broker_pb2_grpc import BrokerServiceStub
from tests.chaos.process import Part, play
from tests.chaos.workload import Workload, digest_of

if TYPE_CHECKING:
    from kyogo.v1.broker_pb2_grpc import BrokerServiceAsyncStub

PublishCall: TypeAlias = "grpc.aio.StreamStreamCall[broker_pb2.PublishRequest, broker_pb2.PublishResponse]"

OPEN_MAX = 32
"""Requests without an answer: half of what a broker remembers of a producer."""
BATCH_MAX = 12
SILENCE_SECONDS = 3.0
"""Without any answer while some are due: the stream is given up."""
BACKOFF_SECONDS = 0.4
REFUSED_SECONDS = 0.8
"""Before the same request is tried again that was refused for a while."""
FINISH_SECONDS = 120.0
"""To learn what became of everything, once told to end."""
REPEAT_SHARE = 0.02
BAD_SHARE = 0.01
EXIT_UNRESOLVED = 5
REFUSALS = frozenset(name.removeprefix("ERROR_CODE_") for name in broker_pb2.ErrorCode.keys()) - {  # noqa: SIM118
    "UNSPECIFIED", "INTERNAL", "PERMISSION_DENIED", "UNAUTHENTICATED",
}  # fmt: skip
"""What only a broker says; the last three are statuses of gRPC's as well."""
TRANSIENT = frozenset({"DISK_LOW", "MEMORY_HIGH", "BROKER_DRAINING", "LIMIT_EXCEEDED", "RATE_LIMITED", "QUEUE_FULL"})


@dataclass(slots=True)
class Request:
    """One request, until it is known what became of it."""

    id: int
    queue: str
    message: broker_pb2.PublishRequest
    not_before: float = 0.0


class Producer:
    """One producer."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._mode: str = part.options.mode
        self._seconds = BATCH_MAX / 2 / part.options.rate
        self._workload = Workload(part.name, part.chance, poisons=part.options.poison, poison=part.options.poison)
        self._producer = "" if self._mode == "bare" else str(uuid.uuid4())
        self._last_id = 0
        self._open: dict[int, Request] = {}
        self._waiting: dict[int, Request] = {}
        """To be sent, again or at first, by id."""
        self._answered: list[Request] = []
        """A few of the latest, to be repeated on purpose."""
        self._wake = asyncio.Event()
        self._heard = 0.0
        self._loop = asyncio.get_running_loop()

    async def run(self) -> int:
        """Produce until told to leave, then until all is known."""
        making = asyncio.create_task(self._make())
        serve = self._stream if self._mode == "stream" else self._calls
        end: float | None = None
        while not self._part.leaving.is_set() or self._open or self._waiting:
            if self._part.leaving.is_set():
                end = self._loop.time() + FINISH_SECONDS if end is None else end
                if self._loop.time() > end:
                    break
            # gRPC may repeat a call on its own; what has no producer id must not be.
            options = [("grpc.enable_retries", 0)] if self._mode == "bare" else channel_options()
            async with grpc.aio.insecure_channel(self._part.address, options=options) as channel:
                await serve(BrokerServiceStub(channel))
            self._lost()
            await asyncio.sleep(BACKOFF_SECONDS * self._part.chance.random())
        making.cancel()
        return EXIT_UNRESOLVED if self._open or self._waiting else 0

    # --- making ---

    async def _make(self) -> None:
        """New requests, at the rate that was asked for, as long as few are open."""
        while not self._part.leaving.is_set():
            await asyncio.sleep(self._seconds * 2 * self._part.chance.random())
            if len(self._open) + len(self._waiting) < OPEN_MAX:
                self._waiting.setdefault(*self._next())
                self._wake.set()
        self._wake.set()

    def _next(self) -> tuple[int, Request]:
        chance = self._part.chance
        if self._answered and self._producer and chance.random() < REPEAT_SHARE:
            request = chance.choice(self._answered)
            return request.id, request
        self._last_id += chance.randint(1, 3)
        queue = self._workload.queue()
        messages = [self._workload.message(queue) for _ in range(chance.randint(1, BATCH_MAX))]
        if chance.random() < BAD_SHARE:
            messages[-1].priority = 9
        request = Request(
            self._last_id, queue,
            broker_pb2.PublishRequest(
                destination=queue, request_id=self._last_id, producer_id=self._producer, messages=messages
            ),
        )  # fmt: skip
        return request.id, request

    # --- what happens to requests ---

    def _name(self, request: Request) -> dict[str, object]:
        number = f"{self._part.name}:{request.id}" if self._mode == "bare" else request.id
        return {"queue": request.queue, "producer": self._producer, "request": number}

    def _sends(self, request: Request) -> None:
        messages = request.message.messages
        self._part.recorder.write(
            "publish", **self._name(request), uids=[m.id for m in messages], digests=[digest_of(m) for m in messages]
        )
        self._waiting.pop(request.id, None)
        self._open[request.id] = request

    def _stored(self, request: Request, runs: Iterable[broker_pb2.OffsetRun]) -> None:
        offsets = [[run.first_offset, run.count, run.duplicate] for run in runs]
        self._part.recorder.write("published", **self._name(request), status="ok", offsets=offsets)
        self._open.pop(request.id, None)
        self._answered = [*self._answered[-10:], request]

    def _refused(self, request: Request, code: str) -> None:
        self._part.recorder.write("published", **self._name(request), status="refused", code=code)
        self._open.pop(request.id, None)
        if code in TRANSIENT:
            request.not_before = self._loop.time() + REFUSED_SECONDS * self._part.chance.uniform(0.5, 1.5)
            self._waiting[request.id] = request

    def _unknown(self, request: Request) -> None:
        self._part.recorder.write("published", **self._name(request), status="unknown")
        self._open.pop(request.id, None)
        if self._producer:
            self._waiting[request.id] = request

    def _lost(self) -> None:
        for request in list(self._open.values()):
            self._unknown(request)
        self._waiting = dict(sorted(self._waiting.items()))

    def _due(self) -> Request | None:
        now = self._loop.time()
        return next((request for request in self._waiting.values() if request.not_before <= now), None)

    def _over(self) -> bool:
        return self._part.leaving.is_set() and not self._open and not self._waiting

    # --- on a stream ---

    async def _stream(self, stub: "BrokerServiceAsyncStub") -> None:
        call = stub.PublishStream()
        reading = asyncio.create_task(self._read(call))
        writing = asyncio.create_task(self._write(call))
        self._heard = self._loop.time()
        while not self._over():
            done, _ = await asyncio.wait({reading, writing}, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
            if done or (self._open and self._loop.time() - self._heard > SILENCE_SECONDS):
                break
        call.cancel()
        writing.cancel()
        await asyncio.gather(reading, writing, return_exceptions=True)

    async def _write(self, call: "PublishCall") -> None:
        while True:
            request = self._due()
            if request is None:
                self._wake.clear()
                try:
                    async with asyncio.timeout(BACKOFF_SECONDS):
                        await self._wake.wait()
                except TimeoutError:
                    continue
                continue
            if not self._open:
                self._heard = self._loop.time()
            self._sends(request)
            await call.write(request.message)

    async def _read(self, call: "PublishCall") -> None:
        while isinstance(answer := await call.read(), broker_pb2.PublishResponse):
            self._heard = self._loop.time()
            request = self._open.get(answer.request_id)
            if request is None:
                continue
            if answer.HasField("error"):
                self._refused(request, broker_pb2.ErrorCode.Name(answer.error.code).removeprefix("ERROR_CODE_"))
            else:
                self._stored(request, answer.offsets)

    # --- by calls ---

    async def _calls(self, stub: "BrokerServiceAsyncStub") -> None:
        """Until a call fails without an answer: then another connection."""
        failed = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()
        while not failed.is_set() and not self._over():
            request = self._due() if len(tasks) < OPEN_MAX // 4 else None
            if request is None:
                await asyncio.sleep(0.02)
            else:
                self._sends(request)
                task = asyncio.create_task(self._call(stub, request, failed))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _call(self, stub: "BrokerServiceAsyncStub", request: Request, failed: asyncio.Event) -> None:
        try:
            answer = await stub.Publish(request.message, timeout=SILENCE_SECONDS)
        except grpc.aio.AioRpcError as error:
            code = _reason(error)
            if code is not None:
                self._refused(request, code)
                return
            self._unknown(request)
            failed.set()
        else:
            self._stored(request, answer.offsets)


def _reason(error: grpc.aio.AioRpcError) -> str | None:
    """The broker's own code; None: a status of gRPC's, so that nobody knows."""
    known = from_rpc(error)
    return known.code if known.code in REFUSALS else None


async def run(part: Part) -> int:
    """Its part."""
    part.options.poison &= part.name.endswith(".1")  # not again for each one that takes a killed one's place
    return await Producer(part).run()


if __name__ == "__main__":
    sys.exit(
        play(
            run,
            lambda parser: parser.add_argument("--mode", choices=("stream", "unary", "bare"), default="stream"),
            lambda parser: parser.add_argument("--rate", type=float, default=60.0),
            lambda parser: parser.add_argument("--poison", action="store_true"),
        )
    )
