"""Publishing over real gRPC."""

import asyncio
from typing import Any

import grpc
import pytest

from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.server.limits import MAX_RECEIVE_BYTES, Limits
from tests.support.edge import Broker, failure_from, failure_of, running_broker


def request(request_id: int, queue: str = "orders", size: int = 1, **fields: Any) -> pb.PublishRequest:
    messages = [pb.Message(body=bytes(size), **fields)]
    return pb.PublishRequest(destination=queue, request_id=request_id, messages=messages)


async def test_server_info_says_who_and_how_much(edge: Broker) -> None:
    info = await edge.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert (info.node, info.version, info.durability) == ("test-node", "0.0.1", pb.DURABILITY_MEMORY)
    assert info.limits.max_message_bytes == 3 << 20
    assert info.limits.max_prefetch_messages == 10_000
    assert "started" in info.capabilities


async def test_a_call_is_answered_with_offsets(edge: Broker) -> None:
    first = await edge.publish("orders", b"a", b"b", request_id=5)
    second = await edge.publish("orders", b"c")
    assert first.request_id == 5
    assert [(run.first_offset, run.count) for run in first.offsets] == [(1, 2)]
    assert [(run.first_offset, run.count) for run in second.offsets] == [(3, 1)]


async def test_a_resend_of_a_producer_is_recognised(edge: Broker) -> None:
    fields = {"producer_id": "p", "request_id": 1}
    first = await edge.publish("orders", b"a", **fields)
    again = await edge.publish("orders", b"a", **fields)
    assert again.offsets == first.offsets
    failure = await failure_of(edge.publish("orders", b"other", **fields))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_CONFLICT")


@pytest.mark.parametrize(
    ("bad", "code", "reason"),
    [
        (request(1, queue="no name"), grpc.StatusCode.INVALID_ARGUMENT, "FRAME_INVALID"),
        (pb.PublishRequest(destination="orders"), grpc.StatusCode.INVALID_ARGUMENT, "FRAME_INVALID"),
        (request(1, key="k"), grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED"),
        (request(1, size=(3 << 20) + 1), grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE"),
        (request(1, size=5 << 20), grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE"),
    ],
    ids=["name", "empty", "feature", "message too large", "request too large"],
)
async def test_a_refusal_is_the_status_of_a_call(
    edge: Broker, bad: pb.PublishRequest, code: grpc.StatusCode, reason: str
) -> None:
    failure = await failure_of(edge.stub.Publish(bad))
    assert (failure.code, failure.reason) == (code, reason)
    assert failure.text


async def test_without_auto_create_an_unknown_queue_is_named_with_its_nearest() -> None:
    async with running_broker(auto_create=False) as edge:
        failure = await failure_of(edge.publish("orders", b"a"))
        assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "QUEUE_NOT_FOUND")
        assert failure.retry_after_ms is None


async def test_a_stream_answers_every_request_and_ends_ok(edge: Broker) -> None:
    call = edge.stub.PublishStream()
    for number in range(1, 201):
        await call.write(request(number, queue="a" if number % 2 else "b"))
    await call.done_writing()
    answers = [answer async for answer in call]
    assert await call.code() == grpc.StatusCode.OK
    for wanted in (0, 1):
        ids = [answer.request_id for answer in answers if answer.request_id % 2 == wanted]
        assert ids == [number for number in range(1, 201) if number % 2 == wanted], "in order for each queue"
    assert all(len(answer.offsets) == 1 and not answer.HasField("error") for answer in answers)


async def test_a_refusal_does_not_end_a_stream(edge: Broker) -> None:
    call = edge.stub.PublishStream()
    for bad in (request(1), request(2, key="k"), request(3, size=5 << 20), request(4)):
        await call.write(bad)
    await call.done_writing()
    answers = {answer.request_id: answer async for answer in call}
    assert sorted(answers) == [1, 2, 3, 4]
    assert [answers[n].error.code for n in (1, 2, 3, 4)] == [
        pb.ERROR_CODE_UNSPECIFIED,
        pb.ERROR_CODE_UNSUPPORTED,
        pb.ERROR_CODE_MESSAGE_TOO_LARGE,
        pb.ERROR_CODE_UNSPECIFIED,
    ]
    assert await call.code() == grpc.StatusCode.OK


async def test_beyond_what_grpc_receives_the_stream_ends_and_the_broker_lives(edge: Broker) -> None:
    call = edge.stub.PublishStream()
    await call.write(request(1, size=MAX_RECEIVE_BYTES))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    await edge.publish("orders", b"a")


async def test_calls_beyond_the_limit_are_told_so() -> None:
    async with running_broker(Limits(max_calls=1)) as edge:
        await edge.publish("orders", b"a")
        calls = [asyncio.ensure_future(edge.publish("orders", b"b")) for _ in range(50)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        refused = [failure_from(error) for error in ended if isinstance(error, grpc.aio.AioRpcError)]
        assert 0 < len(refused) < 50, "one at a time is let in"
        assert {(failure.code, failure.reason) for failure in refused} == {
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
        }
        assert all("max_calls" in failure.text for failure in refused)
        assert edge.server.stats().refused == len(refused)
        await edge.publish("orders", b"c")
