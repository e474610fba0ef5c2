"""A publish stream with a network and an engine that do what the test says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.model.commands import Publish
from kyogo_broker.model.effects import PublishDone
from kyogo_broker.model.errors import ErrorCode, Refusal
from kyogo_broker.model.message import OffsetRun
from kyogo_broker.server import publish
from kyogo_broker.server.publish import PublishStream
from kyogo_broker.server.stream import StreamClosedError
from kyogo_broker.server.wire import UndecodableError
from tests.support.edge import LIMITS, FakeContext, FakeEngine, settle_down


class Harness:
    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.context = FakeContext()
        self.stream = PublishStream(self.engine, LIMITS)
        self.task = asyncio.create_task(self.stream.serve(self.context))  # type: ignore[arg-type]

    async def feed(self, *frames: Any) -> None:
        self.context.feed(*frames)
        await settle_down()

    async def answer(self, *request_ids: int) -> None:
        for request_id in request_ids:
            self.engine.release(1, PublishDone(1, request_id, (OffsetRun(request_id * 10, 1),)))
        await settle_down()

    def answers(self) -> list[pb.PublishResponse]:
        return list(self.context.parsed(pb.PublishResponse))


@asynccontextmanager
async def harness() -> AsyncIterator[Harness]:
    made = Harness()
    try:
        yield made
    finally:
        made.context.end()
        made.task.cancel()
        await asyncio.wait({made.task})
        await settle_down()


def request(request_id: int, **fields: Any) -> pb.PublishRequest:
    messages = [pb.Message(body=b"x", **fields)]
    return pb.PublishRequest(destination="orders", request_id=request_id, messages=messages)


async def test_requests_are_pipelined_and_each_is_answered() -> None:
    async with harness() as it:
        await it.feed(request(1), request(2), request(3))
        assert [command.request_id for command in it.engine.submitted if isinstance(command, Publish)] == [1, 2, 3]
        await it.answer(2, 1)
        await it.answer(3)
        assert [(a.request_id, a.offsets[0].first_offset) for a in it.answers()] == [(2, 20), (1, 10), (3, 30)]


async def test_two_requests_of_one_id_get_two_answers() -> None:
    async with harness() as it:
        await it.feed(request(0), request(0))
        await it.answer(0, 0)
        it.context.end()
        await settle_down()
        assert [answer.request_id for answer in it.answers()] == [0, 0]
        assert it.task.done()


async def test_a_refusal_is_an_answer_and_the_stream_goes_on() -> None:
    async with harness() as it:
        await it.feed(request(1, key="k"), request(2))
        it.engine.release(1, PublishDone(1, 2, refusal=Refusal(ErrorCode.DISK_LOW, "full", 1_000)))
        await settle_down()
        first, second = it.answers()
        assert (first.request_id, first.error.code) == (1, pb.ERROR_CODE_UNSUPPORTED)
        assert (second.request_id, second.error.code) == (2, pb.ERROR_CODE_DISK_LOW)
        assert second.error.retry_after_ms == 1_000
        assert second.error.request_id == 2
        assert not it.task.done()


async def test_after_a_half_close_everything_is_answered_and_then_ok() -> None:
    async with harness() as it:
        await it.feed(request(1), request(2))
        it.context.end()
        await settle_down()
        assert not it.task.done()
        await it.answer(1)
        assert not it.task.done()
        await it.answer(2)
        assert it.task.done()
        assert it.task.exception() is None
        assert len(it.answers()) == 2
        assert it.engine.closed == [1]


async def test_garbage_ends_the_stream() -> None:
    async with harness() as it:
        await it.feed(b"\xff")
        with pytest.raises(UndecodableError):
            await it.task


async def test_a_producer_that_does_not_read_is_not_read_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "MAX_PIPELINED", 8)
    async with harness() as it:
        it.context.writable.clear()
        await it.feed(*(request(n) for n in range(1, 100)))
        assert len(it.engine.submitted) == 8
        await it.answer(*range(1, 9))
        await settle_down(100)
        # One round of answers is with the writer, one more may wait behind it.
        assert len(it.engine.submitted) <= 16
        it.context.writable.set()
        await settle_down()
        released = 8
        while released < 99:
            waiting = range(released + 1, len(it.engine.submitted) + 1)
            assert waiting, "the reader goes on as soon as there is room"
            released = waiting[-1]
            await it.answer(*waiting)
        assert [answer.request_id for answer in it.answers()] == list(range(1, 100))


async def test_a_broker_that_stops_writes_what_is_answered() -> None:
    async with harness() as it:
        await it.feed(request(1), request(2))
        it.engine.release(1, PublishDone(1, 1, (OffsetRun(1, 1),)))
        it.stream.close(Refusal(ErrorCode.BROKER_DRAINING, "stopping"))
        with pytest.raises(StreamClosedError):
            await it.task
        assert [answer.request_id for answer in it.answers()] == [1]


async def test_a_lost_client_leaves_no_port() -> None:
    async with harness() as it:
        await it.feed(request(1))
        it.task.cancel()
        await settle_down()
        assert it.engine.closed == [1]
