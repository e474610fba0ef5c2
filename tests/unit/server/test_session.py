"""A consumer's stream with a network and an engine that do what the test says; time is virtual."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.clock import Clock
from kyogo_broker.model.commands import StreamEnded
from kyogo_broker.model.effects import (
    AttachDone,
    AttachRefused,
    Deliver,
    Delivery,
    EndStream,
    SettleDone,
    SettleResult,
)
from kyogo_broker.model.errors import ErrorCode, Refusal, RefusedError
from kyogo_broker.model.message import FenceRange
from kyogo_broker.model.states import RedeliveryReason, SettleStatus
from kyogo_broker.server import session
from kyogo_broker.server.session import ConsumeStream
from kyogo_broker.server.status import OrderError
from kyogo_broker.server.stream import StreamClosedError
from kyogo_broker.server.wire import UndecodableError
from tests.support.edge import IDENTITY, LIMITS, FakeContext, FakeEngine, settle_down

ATTACH = pb.ConsumeRequest(attach=pb.Attach(subscriptions=[pb.Subscription(queue="orders")]))
ACK = pb.Settlement(outcome=pb.OUTCOME_ACK, ranges=[pb.FenceRange(first=1, last=1)])
DETACH = pb.ConsumeRequest(detach=pb.Detach())


class Harness:
    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.context = FakeContext()
        self.stream = ConsumeStream(self.engine, LIMITS, IDENTITY, Clock())
        self.task = asyncio.create_task(self.stream.serve(self.context))  # type: ignore[arg-type]

    async def feed(self, *frames: Any) -> None:
        self.context.feed(*frames)
        await settle_down()

    async def release(self, *effects: Any) -> None:
        self.engine.release(1, *effects)
        await settle_down()

    async def attach(self) -> None:
        await self.feed(ATTACH)
        await self.release(attach_done())

    def frames(self) -> list[pb.ConsumeResponse]:
        return list(self.context.parsed())


def attach_done() -> AttachDone:
    return AttachDone(1, 5, "token", "c-1", 16, 1 << 20, 1_000, 3_000, 10_000, ("started",), ())


def delivery(fence: int, body: bytes = b"x") -> Deliver:
    wire = pb.PublishRequest(messages=[pb.Message(body=body)]).SerializeToString()
    run = Delivery(0, fence, fence, 1, 1, 0, RedeliveryReason.UNSPECIFIED, 1, None, memoryview(wire))
    return Deliver(1, (run,))


def settled(fence: int) -> SettleDone:
    return SettleDone(1, (SettleResult(FenceRange(fence, fence), SettleStatus.OK),))


@asynccontextmanager
async def harness() -> AsyncIterator[Harness]:
    made = Harness()
    await settle_down()
    try:
        yield made
    finally:
        made.context.end()
        made.task.cancel()
        await asyncio.wait({made.task})
        await settle_down()


pytestmark = pytest.mark.looptime


async def test_attached_is_the_first_frame_and_alone() -> None:
    async with harness() as it:
        await it.feed(ATTACH)
        await it.release(attach_done(), delivery(1), settled(9))
        first, second = it.frames()
        assert first.HasField("attached")
        assert not first.deliveries
        assert (second.deliveries[0].first_fence, second.settled[0].range.first) == (1, 9)


async def test_an_error_in_the_first_frame_waits_for_attached() -> None:
    async with harness() as it:
        await it.feed(pb.ConsumeRequest(attach=ATTACH.attach, started=[pb.FenceRange()]))
        assert it.frames() == []
        await it.release(attach_done())
        first, second = it.frames()
        assert first.HasField("attached")
        assert second.errors[0].metadata["part"] == "started"


async def test_what_waits_while_a_write_is_under_way_shares_one_frame() -> None:
    async with harness() as it:
        await it.attach()
        it.context.writable.clear()
        await it.release(delivery(1))
        for fence in range(2, 30):
            await it.release(delivery(fence), settled(fence + 100))
        it.context.writable.set()
        await settle_down()
        frames = it.frames()
        assert len(frames) == 3
        assert sum(len(run.messages) for run in frames[2].deliveries) == 28
        assert len(frames[2].settled) == 28


async def test_the_shards_limit_of_a_frame_is_the_consumers() -> None:
    async with harness() as it:
        await it.feed(
            pb.ConsumeRequest(attach=pb.Attach(subscriptions=ATTACH.attach.subscriptions, max_frame_bytes=70_000))
        )
        await it.release(attach_done(), *(delivery(2 * n, bytes(30_000)) for n in range(1, 7)))
        assert [len(frame) < 70_000 for frame in it.context.written] == [True] * 4


async def test_end_of_input_without_detach_is_told_at_once() -> None:
    async with harness() as it:
        await it.attach()
        it.context.end()
        await settle_down()
        assert it.engine.submitted[-1] == StreamEnded(1)
        assert it.task.done()
        assert it.task.exception() is None
        assert it.engine.closed == [1]
        assert it.engine.kinds().count("StreamEnded") == 1


async def test_end_of_input_is_told_though_nothing_can_be_written() -> None:
    async with harness() as it:
        await it.attach()
        it.context.writable.clear()
        await it.release(delivery(1))
        it.context.end()
        await settle_down()
        assert it.engine.submitted[-1] == StreamEnded(1)
        assert not it.task.done()


async def test_a_cancelled_call_is_told_at_once() -> None:
    async with harness() as it:
        await it.attach()
        it.task.cancel()
        await settle_down()
        assert it.engine.kinds() == ["Attach", "StreamEnded"]
        assert it.engine.closed == [1]


async def test_no_read_is_ever_cancelled() -> None:
    async with harness() as it:
        await it.attach()
        reads = it.context.reads
        it.task.cancel()
        await settle_down()
        readers = [task for task in asyncio.all_tasks() if "Stream._read" in str(task.get_coro())]
        assert len(readers) == 1, "the reader still waits for its read"
        assert it.context.reads == reads
        it.context.end()
        await settle_down()
        assert readers[0].done()
        assert not readers[0].cancelled()


async def test_what_came_before_the_detach_is_answered_before_the_end() -> None:
    async with harness() as it:
        await it.attach()
        await it.feed(pb.ConsumeRequest(settlements=[ACK]), DETACH)
        it.context.end()
        await settle_down()
        assert it.engine.kinds() == ["Attach", "Settle", "Detach"]
        assert not it.task.done(), "half-closed, but its answers are still to come"
        await it.release(settled(1), EndStream(1))
        assert it.frames()[-1].settled[0].range.first == 1
        assert it.task.done()
        assert it.task.exception() is None


async def test_nothing_is_read_after_a_detach() -> None:
    async with harness() as it:
        await it.attach()
        await it.feed(DETACH, ATTACH)
        assert it.engine.kinds() == ["Attach", "Detach"]


@pytest.mark.parametrize(
    "frames",
    [
        [pb.ConsumeRequest()],
        [pb.ConsumeRequest(heartbeat=pb.ConsumerHeartbeat(sequence=1))],
        [DETACH],
        [ATTACH, ATTACH],
    ],
    ids=["empty first", "heartbeat first", "detach first", "attach twice"],
)
async def test_a_frame_against_the_order_ends_the_stream(frames: list[pb.ConsumeRequest]) -> None:
    async with harness() as it:
        await it.feed(*frames)
        with pytest.raises(OrderError, match="attach"):
            await it.task
        assert it.engine.kinds()[-1] == "StreamEnded"


async def test_garbage_ends_the_stream() -> None:
    async with harness() as it:
        await it.attach()
        await it.feed(b"\xff\xff")
        with pytest.raises(UndecodableError):
            await it.task


async def test_a_bad_part_does_not_end_the_stream() -> None:
    async with harness() as it:
        await it.attach()
        await it.feed(pb.ConsumeRequest(started=[pb.FenceRange(first=2, last=1)]))
        assert it.frames()[-1].errors[0].code == pb.ERROR_CODE_FRAME_INVALID
        assert not it.task.done()


@pytest.mark.parametrize("unavailable", [True, False])
async def test_the_shard_ends_a_stream_after_what_was_sent_before(unavailable: bool) -> None:
    async with harness() as it:
        await it.attach()
        refusal = Refusal(ErrorCode.QUEUE_NOT_FOUND, "gone")
        await it.release(delivery(1), EndStream(1, refusal, unavailable))
        assert it.frames()[-1].deliveries
        with pytest.raises(StreamClosedError if unavailable else RefusedError, match="gone"):
            await it.task
        assert it.engine.kinds()[-1] == "StreamEnded", "the shard forgets a silent consumer only when told"


async def test_a_refused_attach_is_the_end() -> None:
    async with harness() as it:
        await it.feed(ATTACH)
        it.context.end()
        await settle_down()
        assert not it.task.done(), "a client that half-closes at once still learns why it was refused"
        await it.release(AttachRefused(1, Refusal(ErrorCode.QUEUE_NOT_FOUND, "no queue")))
        with pytest.raises(RefusedError, match="no queue"):
            await it.task
        assert it.frames() == []


async def test_a_broker_that_stops_charges_nobody() -> None:
    async with harness() as it:
        await it.attach()
        it.engine.release(1, settled(4))
        it.stream.close(Refusal(ErrorCode.BROKER_DRAINING, "stopping"))
        await settle_down()
        assert it.frames()[-1].settled, "what waited is still written"
        with pytest.raises(StreamClosedError):
            await it.task
        assert it.engine.kinds() == ["Attach"]


async def test_an_empty_frame_is_a_sign_of_life() -> None:
    async with harness() as it:
        await it.attach()
        await it.feed(pb.ConsumeRequest())
        assert it.engine.kinds() == ["Attach", "Heartbeat"]


async def test_a_heartbeat_is_answered_with_its_sequence() -> None:
    async with harness() as it:
        await it.attach()
        await it.feed(pb.ConsumeRequest(heartbeat=pb.ConsumerHeartbeat(sequence=41)))
        await it.feed(pb.ConsumeRequest(heartbeat=pb.ConsumerHeartbeat(sequence=42)))
        await it.feed(pb.ConsumeRequest(heartbeat=pb.ConsumerHeartbeat()))
        beats = [frame.heartbeat for frame in it.frames()[1:]]
        assert [(beat.sequence, beat.echo) for beat in beats] == [(1, 41), (2, 42)]
        assert beats[0].broker_time_unix_ms > 1_600_000_000_000


async def test_the_broker_is_heard_at_least_every_five_seconds() -> None:
    async with harness() as it:
        await it.attach()
        await asyncio.sleep(21)
        assert [frame.HasField("heartbeat") for frame in it.frames()[1:]] == [True] * 5
        assert [frame.heartbeat.sequence for frame in it.frames()[1:]] == [1, 2, 3, 4, 5]


async def test_no_heartbeat_while_other_frames_say_the_same() -> None:
    async with harness() as it:
        await it.attach()
        for fence in range(1, 20):
            await asyncio.sleep(1)
            await it.release(delivery(fence))
        assert not any(frame.HasField("heartbeat") for frame in it.frames())


async def test_a_stream_that_does_not_attach_is_ended() -> None:
    async with harness() as it:
        await asyncio.sleep(9.9)
        assert not it.task.done()
        await asyncio.sleep(0.2)
        with pytest.raises(OrderError, match="within 10 s"):
            await it.task


async def test_one_timer_a_session() -> None:
    async with harness() as it:
        await it.attach()
        for sequence in range(1, 50):
            await it.feed(pb.ConsumeRequest(heartbeat=pb.ConsumerHeartbeat(sequence=sequence)))
        scheduled = [each for each in asyncio.get_running_loop()._scheduled if not each.cancelled()]  # type: ignore[attr-defined]
        assert len(scheduled) == 1


async def test_a_consumer_that_does_not_read_is_not_read_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_WAITING_EFFECTS", 10)
    async with harness() as it:
        await it.attach()
        it.context.writable.clear()
        bad = pb.ConsumeRequest(started=[pb.FenceRange()])
        await it.feed(*[bad] * 100)
        reads = it.context.reads
        assert reads < 20
        await settle_down(100)
        assert it.context.reads == reads
        it.context.writable.set()
        await settle_down(200)
        assert sum(len(frame.errors) for frame in it.frames()) == 100


async def test_a_command_that_waits_does_not_come_after_the_end() -> None:
    async with harness() as it:
        await it.attach()
        it.engine.gate = asyncio.Event()
        both = pb.ConsumeRequest(heartbeat=pb.ConsumerHeartbeat(), settlements=[ACK])
        await it.feed(both, both)
        it.task.cancel()
        await settle_down()
        it.engine.gate.set()
        await settle_down()
        assert it.engine.kinds() == ["Attach", "Heartbeat", "StreamEnded"]


async def test_sizes_are_told_once_a_frame() -> None:
    async with harness() as it:
        await it.attach()
        frame = pb.ConsumeRequest(heartbeat=pb.ConsumerHeartbeat(sequence=1), prefetch=pb.Prefetch(messages=3))
        await it.feed(frame)
        assert it.engine.sizes == [ATTACH.ByteSize(), 0, frame.ByteSize()]


async def test_a_fault_in_the_edge_ends_the_stream_and_is_raised() -> None:
    async with harness() as it:
        await it.attach()
        await it.release(object())
        with pytest.raises(AssertionError, match="no part of a consumer's frame"):
            await it.task
        assert it.engine.kinds()[-1] == "StreamEnded"
