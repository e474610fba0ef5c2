"""Consuming over real gRPC: sessions, their ends, and what goes through them."""

import asyncio

import grpc
import pytest

from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.model.states import ConsumerState
from kyogo_broker.server import session
from kyogo_broker.server.limits import FILL_FRAME_BYTES, Limits
from tests.support.edge import Broker, Consumer, failure_of, running_broker, until


async def test_a_session_from_attach_to_detach(edge: Broker) -> None:
    await edge.publish("orders", b"a", b"b")
    consumer = await edge.consumer("orders", consumer_id="me")
    attached = consumer.attached
    assert (attached.consumer_id, attached.node, attached.broker_version) == ("me", "test-node", "0.0.1")
    assert attached.session_token
    assert attached.heartbeat_interval_ms == 1_000
    assert attached.subscriptions[0].queue == "orders"
    found = await consumer.delivered(2)
    assert [message.body for _, message in found] == [b"a", b"b"]
    results = await consumer.settle(*(fence for fence, _ in found))
    assert {result.status for result in results} == {pb.SETTLE_STATUS_OK}
    await consumer.send(detach=pb.Detach())
    assert await consumer.frame() is None
    assert await consumer.call.code() == grpc.StatusCode.OK
    assert edge.consumers() == ()


async def test_a_message_arrives_byte_for_byte(edge: Broker) -> None:
    sent = pb.Message(
        id="7", body=bytes(range(256)), content_type="x/y", headers={"traceparent": "1", "ce-id": "2"}, type="t"
    )
    await edge.stub.Publish(pb.PublishRequest(destination="orders", messages=[sent]))
    [(_, received)] = await (await edge.consumer("orders")).delivered(1)
    assert received == sent


async def test_a_consumer_without_an_id_is_given_one(edge: Broker) -> None:
    await edge.publish("orders", b"a")
    first, second = await edge.consumer("orders"), await edge.consumer("orders")
    assert first.attached.consumer_id != second.attached.consumer_id != ""


@pytest.mark.parametrize("way", ["cancel", "half-close"])
async def test_a_stream_that_ends_without_detach_is_a_lost_consumer(edge: Broker, way: str) -> None:
    await edge.publish("orders", b"a")
    first = await edge.consumer("orders")
    [(fence, _)] = await first.delivered(1)
    second = await edge.consumer("orders")
    if way == "cancel":
        first.call.cancel()
    else:
        await first.call.done_writing()
        assert await first.frame() is None, "a half-close ends OK"
    frame = await second.until(lambda frame: frame.deliveries)
    [run] = frame.deliveries
    assert run.redelivery_reason == pb.REDELIVERY_REASON_STREAM_LOSS
    assert run.first_fence > fence
    assert any(notice.event == "consumer_lost" for notice in edge.notices)


async def test_a_settlement_right_before_the_end_still_counts(edge: Broker) -> None:
    await edge.publish("orders", b"a")
    consumer = await edge.consumer("orders")
    [(fence, _)] = await consumer.delivered(1)
    ack = pb.Settlement(outcome=pb.OUTCOME_ACK, ranges=[pb.FenceRange(first=fence, last=fence)])
    await consumer.send(settlements=[ack], detach=pb.Detach())
    frame = await consumer.frame()
    assert frame is not None
    assert frame.settled[0].status == pb.SETTLE_STATUS_OK
    assert await consumer.frame() is None


async def test_all_parts_of_one_frame_are_done_in_order(edge: Broker) -> None:
    await edge.publish("orders", b"a")
    consumer = Consumer(edge.stub.Consume())
    await consumer.send(
        attach=pb.Attach(subscriptions=[pb.Subscription(queue="orders")], capabilities=["started"]),
        prefetch=pb.Prefetch(messages=1),
        heartbeat=pb.ConsumerHeartbeat(sequence=5),
        settlements=[pb.Settlement(outcome=pb.OUTCOME_ACK, ranges=[pb.FenceRange(first=1, last=2)])],
        extend=pb.Extend(ranges=[pb.FenceRange(first=1, last=1)], extension_ms=1_000),
    )
    merged = pb.ConsumeResponse()
    while not (merged.HasField("attached") and merged.HasField("heartbeat") and merged.settled and merged.extended):
        frame = await consumer.frame()
        assert frame is not None
        assert frame.HasField("attached") == (len(consumer.frames) == 1), "attached comes first, and once"
        merged.MergeFrom(frame)
    assert merged.attached.prefetch.messages == 16
    assert merged.heartbeat.echo == 5
    assert {result.status for result in merged.settled} == {pb.SETTLE_STATUS_UNKNOWN}
    assert {result.status for result in merged.extended} == {pb.SETTLE_STATUS_UNKNOWN}


async def test_publishes_ride_in_a_settlement(edge: Broker) -> None:
    await edge.publish("orders", b"a")
    consumer = await edge.consumer("orders")
    [(fence, _)] = await consumer.delivered(1)
    mails = pb.PublishRequest(destination="mails", messages=[pb.Message(body=b"m1"), pb.Message(body=b"m2")])
    [result] = await consumer.settle(fence, publish=[mails])
    assert result.status == pb.SETTLE_STATUS_OK
    assert [(run.first_offset, run.count) for run in result.published[0].offsets] == [(1, 2)]
    found = await (await edge.consumer("mails")).delivered(2)
    assert [message.body for _, message in found] == [b"m1", b"m2"]


async def test_a_publish_that_cannot_be_stored_leaves_the_lease(edge: Broker) -> None:
    await edge.publish("orders", b"a")
    consumer = await edge.consumer("orders")
    [(fence, _)] = await consumer.delivered(1)
    bad = pb.PublishRequest(destination="mails", messages=[pb.Message(key="k")])
    [result] = await consumer.settle(fence, publish=[bad])
    assert result.status == pb.SETTLE_STATUS_REJECTED
    assert result.error.code == pb.ERROR_CODE_UNSUPPORTED
    [result] = await consumer.settle(fence)
    assert result.status == pb.SETTLE_STATUS_OK


async def test_a_backlog_comes_in_full_frames_below_the_limit(edge: Broker) -> None:
    for _ in range(4):
        await edge.publish("orders", *[bytes(10_000)] * 250)
    consumer = await edge.consumer("orders", prefetch=pb.Prefetch(messages=1_000, bytes=64 << 20))
    await consumer.delivered(1_000)
    sizes = [frame.ByteSize() for frame in consumer.frames if frame.deliveries]
    assert max(sizes) <= FILL_FRAME_BYTES
    assert len(sizes) < 30
    assert sum(size > FILL_FRAME_BYTES // 2 for size in sizes) > len(sizes) // 2


async def test_small_frames_for_who_asks_for_them(edge: Broker) -> None:
    await edge.publish("orders", *[bytes(10_000)] * 100)
    consumer = await edge.consumer("orders", max_frame_bytes=70_000, prefetch=pb.Prefetch(messages=100, bytes=8 << 20))
    await consumer.delivered(100)
    assert max(frame.ByteSize() for frame in consumer.frames) <= 70_000


@pytest.mark.parametrize(
    ("first", "code", "words"),
    [
        (pb.ConsumeRequest(), grpc.StatusCode.FAILED_PRECONDITION, "first frame must attach"),
        (pb.ConsumeRequest(detach=pb.Detach()), grpc.StatusCode.FAILED_PRECONDITION, "first frame must attach"),
        (pb.ConsumeRequest(attach=pb.Attach()), grpc.StatusCode.INVALID_ARGUMENT, "attach names 0 queues"),
        (
            pb.ConsumeRequest(attach=pb.Attach(subscriptions=[pb.Subscription(queue="none")])),
            grpc.StatusCode.NOT_FOUND,
            "no queue 'none'",
        ),
        (
            pb.ConsumeRequest(attach=pb.Attach(subscriptions=[pb.Subscription(queue="../etc")])),
            grpc.StatusCode.INVALID_ARGUMENT,
            "name",
        ),
    ],
    ids=["empty", "detach", "no queue", "unknown queue", "bad name"],
)
async def test_a_wrong_first_frame_ends_the_call(
    edge: Broker, first: pb.ConsumeRequest, code: grpc.StatusCode, words: str
) -> None:
    call = edge.stub.Consume()
    await call.write(first)
    failure = await failure_of(call)
    assert failure.code == code
    assert words in failure.text
    assert edge.consumers() == ()


async def test_attaching_twice_ends_the_call(edge: Broker) -> None:
    await edge.publish("orders", b"a")
    consumer = await edge.consumer("orders")
    await consumer.send(attach=pb.Attach(subscriptions=[pb.Subscription(queue="orders")]))
    failure = await failure_of(consumer.call)
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FRAME_INVALID")
    await until(lambda: edge.consumers() == (), "the session is over")


async def test_a_consumer_id_in_use_is_refused(edge: Broker) -> None:
    await edge.publish("orders", b"a")
    await edge.consumer("orders", consumer_id="me")
    call = edge.stub.Consume()
    await call.write(
        pb.ConsumeRequest(attach=pb.Attach(consumer_id="me", subscriptions=[pb.Subscription(queue="orders")]))
    )
    failure = await failure_of(call)
    assert (failure.code, failure.reason) == (grpc.StatusCode.ALREADY_EXISTS, "CONSUMER_ID_IN_USE")
    assert failure.retry_after_ms is not None


async def test_the_token_takes_the_session_over(edge: Broker) -> None:
    await edge.publish("orders", b"a")
    first = await edge.consumer("orders", consumer_id="me")
    await first.delivered(1)
    second = await edge.consumer("orders", consumer_id="me", session_token=first.attached.session_token)
    assert second.attached.consumer_id == "me"
    assert (await failure_of(first.call)).reason == "CONSUMER_ID_IN_USE"
    assert (await second.delivered(1))[0][1].body == b"a"


async def test_a_bad_part_is_an_error_and_the_stream_goes_on(edge: Broker) -> None:
    await edge.publish("orders", b"a")
    consumer = await edge.consumer("orders")
    [(fence, _)] = await consumer.delivered(1)
    await consumer.send(started=[pb.FenceRange(first=9, last=3)])
    frame = await consumer.until(lambda frame: frame.errors)
    assert frame.errors[0].code == pb.ERROR_CODE_FRAME_INVALID
    assert dict(frame.errors[0].metadata)["part"] == "started"
    assert (await consumer.settle(fence))[0].status == pb.SETTLE_STATUS_OK


async def test_a_client_that_declares_nothing_is_served(edge: Broker) -> None:
    """Level 1: attach, deliver, settle, heartbeat."""
    await edge.publish("orders", *[b"x"] * 50)
    consumer = await edge.consumer("orders", prefetch=pb.Prefetch(messages=5))
    done = 0
    while done < 50:
        found = await consumer.delivered(1)
        await consumer.settle(*(fence for fence, _ in found))
        done += len(found)
    kinds = {field.name for frame in consumer.frames for field, _ in frame.ListFields()}
    assert kinds <= {"attached", "deliveries", "settled", "heartbeat"}


async def test_silence_suspects_and_then_ends_a_stream() -> None:
    async with running_broker(heartbeat_interval_ms=20, heartbeat_interval_ms_min=10) as edge:
        await edge.publish("orders", b"a")
        consumer = await edge.consumer("orders", heartbeat_interval_ms=20)
        await consumer.delivered(1)
        await until(lambda: any(n.event == "consumer_suspect" for n in edge.notices), "suspect")
        failure = await failure_of(consumer.call)
        assert failure.code == grpc.StatusCode.UNAVAILABLE
        await until(lambda: edge.consumers() == (), "the shard forgets it")


async def test_heartbeats_keep_a_consumer_healthy() -> None:
    async with running_broker(heartbeat_interval_ms=40, heartbeat_interval_ms_min=10) as edge:
        await edge.publish("orders", b"a")
        consumer = await edge.consumer("orders", heartbeat_interval_ms=40)
        await consumer.delivered(1)
        for sequence in range(1, 31):
            await consumer.send(heartbeat=pb.ConsumerHeartbeat(sequence=sequence))
            while (await consumer.until(lambda frame: frame.HasField("heartbeat"))).heartbeat.echo < sequence:
                pass
            await asyncio.sleep(0.01)
        [stats] = edge.engine.shard_stats().consumers
        assert stats.state is ConsumerState.PROCESSING


async def test_streams_beyond_the_limit_are_told_so() -> None:
    async with running_broker(Limits(max_streams=1)) as edge:
        await edge.publish("orders", b"a")
        await edge.consumer("orders")
        failure = await failure_of(edge.stub.PublishStream())
        assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
        assert "max_streams" in failure.text
        assert failure.retry_after_ms is not None


async def test_a_stream_that_never_attaches_is_ended(edge: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "ATTACH_WITHIN_SECONDS", 0.05)
    failure = await failure_of(edge.stub.Consume())
    assert failure.code == grpc.StatusCode.FAILED_PRECONDITION
    assert "attach" in failure.text


async def test_streams_leave_nothing_behind(edge: Broker) -> None:
    await edge.publish("orders", b"a")
    before = len(asyncio.all_tasks())
    for number in range(30):
        call = edge.stub.Consume()
        if number % 3 == 0:
            await call.write(pb.ConsumeRequest())
            await failure_of(call)
        else:
            consumer = Consumer(call)
            await consumer.attach("orders")
            if number % 3 == 1:
                call.cancel()
            else:
                await consumer.send(detach=pb.Detach())
                while await consumer.frame() is not None:
                    pass
    await until(lambda: edge.server.stats().streams == 0, "all streams are gone")
    await until(lambda: edge.consumers() == (), "all sessions are gone")
    await until(lambda: len(asyncio.all_tasks()) <= before + 1, "all tasks are gone")
    assert len(edge.engine._ports) == 1, "only the port of the calls is open"
