"""Messages that are too large, or made of too many parts: refused by name, and paid for by who sends them."""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.model.commands import Settle
from kyogo_broker.model.errors import ErrorCode, RefusedError
from kyogo_broker.server import limits as bounds
from kyogo_broker.server import wire
from kyogo_broker.server.limits import Limits
from tests.security import tiny
from tests.security.http2 import END_STREAM, Kind, call, connected, data, frame, message
from tests.security.sizes import SIZES
from tests.security.victim import Victim
from tests.support.edge import failure_of, until

STREAMS = 4
CONSUME = "/kyogo.v1.BrokerService/Consume"
PUBLISH = "/kyogo.v1.BrokerService/Publish"
SESSION = wire.Session(port=1, session_id=1, session_token="t", consumer_id="c")
NO_LIMIT = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@asynccontextmanager
async def channel_to(victim: Victim) -> AsyncIterator[Any]:
    options = [*NO_LIMIT, ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(victim.address, options) as channel:
        yield channel


def decode_consume(raw: bytes) -> wire.ConsumerFrame:
    return wire.decode_consume(raw, SESSION, Limits())


def decode_publish(raw: bytes) -> object:
    return wire.decode_publish(raw, port=1, limits=Limits())


@pytest.mark.parametrize(
    ("decode", "make"),
    [
        *(pytest.param(decode_consume, make, id=name) for name, make in {**tiny.CONSUME, **tiny.ATTACH}.items()),
        *(pytest.param(decode_publish, make, id=name) for name, make in tiny.PUBLISH.items()),
    ],
)
def test_no_frame_takes_long_to_decode(decode: Callable[[bytes], object], make: tiny.Make) -> None:
    raw = make()
    assert len(raw) <= Limits().max_request_bytes
    began = time.thread_time()
    try:
        decode(raw)
    except RefusedError as error:
        assert error.refusal.message.isprintable()
    assert time.thread_time() - began < SIZES.decode_seconds


@pytest.mark.parametrize("name", ["started", "settlements", "ranges of a settlement", "ranges of an extension"])
async def test_too_many_parts_are_refused_by_name(victim: Victim, name: str) -> None:
    async with channel_to(victim) as channel:
        stream = await attached(channel)
        await stream.write(tiny.CONSUME[name]())
        async with asyncio.timeout(30):
            while not (errors := pb.ConsumeResponse.FromString(await stream.read()).errors):
                pass
        assert [error.code for error in errors] == [pb.ERROR_CODE_LIMIT_EXCEEDED]
        assert "at most" in errors[0].message
        stream.cancel()


@pytest.mark.parametrize("name", ["publishes of a settlement", "publishes of many settlements"])
def test_too_many_publishes_reject_their_settlements(name: str) -> None:
    commands = decode_consume(tiny.CONSUME[name]()).commands
    settlements = [each for command in commands if isinstance(command, Settle) for each in command.settlements]
    assert sum(len(each.publishes) for each in settlements) <= bounds.MAX_PUBLISHES_PER_FRAME
    refusal = settlements[-1].refusal
    assert refusal is not None
    assert refusal.code is ErrorCode.LIMIT_EXCEEDED


@pytest.mark.parametrize("name", tiny.ATTACH)
async def test_too_much_in_an_attach_ends_the_stream_with_a_reason(victim: Victim, name: str) -> None:
    async with channel_to(victim) as channel:
        stream = channel.stream_stream(CONSUME)()
        await stream.write(tiny.ATTACH[name]())
        failure = await failure_of(stream)
    assert failure.reason in ("FRAME_INVALID", "LIMIT_EXCEEDED")
    assert len(failure.text) < 300


@pytest.mark.parametrize("name", tiny.ADMIN)
async def test_a_large_request_of_the_control_plane_is_refused_unread(victim: Victim, name: str) -> None:
    rpc, make = tiny.ADMIN[name]
    raw = make()
    async with channel_to(victim) as channel:
        failure = await failure_of(channel.unary_unary(f"/kyogo.v1.AdminService/{rpc}")(raw))
        question = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")()
        await question.write(b"\x3a" + raw)
        asked = await failure_of(question)
    assert (failure.reason, asked.reason) == ("LIMIT_EXCEEDED", "LIMIT_EXCEEDED")


async def attached(channel: Any, **attach: Any) -> Any:
    """A stream of bytes with a session."""
    stream = channel.stream_stream(CONSUME)()
    subscriptions = [pb.Subscription(queue="bystander", max_unsettled=1)]
    frame = pb.ConsumeRequest(attach=pb.Attach(subscriptions=subscriptions, prefetch=pb.Prefetch(messages=0), **attach))
    await stream.write(frame.SerializeToString())
    await stream.read()
    return stream


async def repeat(victim: Victim, raw: bytes) -> None:
    """Send it again and again, and read what comes."""

    async def read(stream: Any) -> None:
        while await stream.read() is not grpc.aio.EOF:
            pass

    async def write(stream: Any) -> None:
        while True:
            await stream.write(raw)

    async with channel_to(victim) as channel, asyncio.TaskGroup() as group:
        stream = await attached(channel)
        group.create_task(read(stream))
        group.create_task(write(stream))


FENCE = 1 << 40
"""Never issued."""
AT_THE_LIMIT: dict[str, pb.ConsumeRequest] = {
    "16,384 ranges settled": pb.ConsumeRequest(
        settlements=[
            pb.Settlement(
                outcome=pb.OUTCOME_ACK,
                ranges=tiny.ranges(range(1, 2 * bounds.MAX_RANGES_PER_FRAME, 2)),
            )
        ]
    ),
    "16,384 ranges extended": pb.ConsumeRequest(
        extend=pb.Extend(ranges=tiny.ranges(range(1, 2 * bounds.MAX_RANGES_PER_FRAME, 2)), extension_ms=1_000)
    ),
    "40,000 fences settled": pb.ConsumeRequest(
        settlements=[
            pb.Settlement(outcome=pb.OUTCOME_ACK, ranges=[pb.FenceRange(first=1, last=10_000)]) for _ in range(4)
        ]
    ),
    "4,096 settlements": pb.ConsumeRequest(
        settlements=[
            pb.Settlement(outcome=pb.OUTCOME_RETRY, ranges=tiny.ranges([FENCE + number]), reason="r")
            for number in range(bounds.MAX_SETTLEMENTS_PER_FRAME)
        ]
    ),
}


@pytest.mark.parametrize("name", AT_THE_LIMIT)
async def test_frames_at_the_limit_leave_the_loop_to_others(victim: Victim, name: str) -> None:
    """Small on the wire, so that hundreds of them wait at once: who sends them waits for himself."""
    raw = AT_THE_LIMIT[name].SerializeToString()
    assert len(raw) < 256 << 10
    async with victim.attacked(f"frames of {name}", rss_mib=250) as attack:
        await attack.run(*(repeat(victim, raw) for _ in range(STREAMS)))


@pytest.mark.parametrize("name", ["started", "publishes of many settlements", "unknown fields"])
async def test_large_frames_of_tiny_fields_take_turns(victim: Victim, name: str) -> None:
    raw = tiny.CONSUME[name]()
    async with victim.attacked(f"frames of {SIZES.frame_bytes >> 20} MiB of {name}", rss_mib=300) as attack:
        await attack.run(*(repeat(victim, raw) for _ in range(STREAMS)))


@pytest.mark.parametrize("name", ["messages", "headers of a message"])
async def test_large_publishes_of_tiny_fields_take_turns(victim: Victim, name: str) -> None:
    raw = tiny.PUBLISH[name]()

    async def publish() -> None:
        async with channel_to(victim) as channel:
            while True:
                try:
                    await channel.unary_unary(PUBLISH)(raw)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error

    async with victim.attacked(f"publishes of {SIZES.frame_bytes >> 20} MiB of {name}", rss_mib=300) as attack:
        await attack.run(*(publish() for _ in range(STREAMS)))


async def test_answers_that_are_not_read_are_bounded(victim: Victim) -> None:
    """A frame of 100 KiB asks for 16,384 results of 200 B each. Who does not read them is not read."""
    raw = AT_THE_LIMIT["16,384 ranges settled"].SerializeToString()
    attach = pb.ConsumeRequest(
        attach=pb.Attach(subscriptions=[pb.Subscription(queue="bystander")], prefetch=pb.Prefetch(messages=0))
    ).SerializeToString()
    async with (
        victim.attacked("results that nobody reads", rss_mib=300) as attack,
        connected(victim.address) as connection,
    ):
        await connection.send(call(CONSUME, 1) + data(1, message(attach)))
        octets = 1
        while octets or attack.goes_on():
            octets = await connection.send_data(1, message(raw) * 10, seconds=2)
            connection.stream_windows[1] -= octets


@pytest.mark.parametrize(
    ("size", "code", "reason"),
    [
        ((4 << 20) + 1, grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE"),
        ((3 << 20) + 100, grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE"),
        ((8 << 20) + 100, grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
        (64 << 20, grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
    ],
)
async def test_a_message_too_large_is_refused(victim: Victim, size: int, code: grpc.StatusCode, reason: str) -> None:
    request = pb.PublishRequest(destination="orders", messages=[pb.Message(body=bytes(size))]).SerializeToString()
    async with victim.attacked(f"a message of {size >> 10:,} KiB"), channel_to(victim) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(PUBLISH)(request)
        assert caught.value.code() is code
        if reason:
            assert (await failure_of(channel.unary_unary(PUBLISH)(request))).reason == reason


async def test_a_length_without_its_bytes_costs_nothing(victim: Victim) -> None:
    """The prefix promises 4 GiB."""
    async with victim.attacked("a prefix of 4 GiB", rss_mib=40), connected(victim.address) as connection:
        await connection.send(call(PUBLISH, 1) + data(1, b"\x00\xff\xff\xff\xff" + bytes(1_000)))
        await until(lambda: connection.came[Kind.HEADERS], "it is refused at once")
        assert b"grpc-status" in connection.trailers[-1]


def bomb(size: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(16 << 20)
    return b"".join(packer.compress(block) for _ in range(size // len(block))) + packer.flush()


async def test_compression_bombs_are_refused_unpacked(victim: Victim) -> None:
    """256 MiB of zeros are 255 KiB; ten thousand times that could be sent."""
    packed = bomb(SIZES.bomb_bytes)
    async with (
        victim.attacked(f"gzip of {SIZES.bomb_bytes >> 20} MiB", rss_mib=60) as attack,
        connected(victim.address) as connection,
    ):
        stream = 1
        while attack.goes_on():
            seen = connection.came[Kind.HEADERS] + connection.came[Kind.RST_STREAM]
            await connection.send(call(PUBLISH, stream, [("grpc-encoding", "gzip")]))
            await connection.send_data(stream, message(packed, compressed=True), seconds=5)
            await connection.send(frame(Kind.DATA, stream, b"", END_STREAM))
            await until(
                lambda seen=seen: (
                    connection.closed  # type: ignore[misc]
                    or connection.came[Kind.HEADERS] + connection.came[Kind.RST_STREAM] > seen
                ),
                "an answer",
            )
            stream += 2
        assert any(b"larger than max" in trailer for trailer in connection.trailers)


@pytest.mark.parametrize("encoding", ["br", "zstd", "../etc"])
async def test_an_unknown_encoding_is_refused(victim: Victim, encoding: str) -> None:
    async with connected(victim.address) as connection:
        await connection.send(call(PUBLISH, 1, [("grpc-encoding", encoding)]))
        await connection.send(data(1, message(b"x" * 100, compressed=True), end=True))
        await until(lambda: connection.came[Kind.HEADERS] or connection.came[Kind.RST_STREAM], "an answer")
        assert not any(b"Traceback" in trailer for trailer in connection.trailers)


@pytest.mark.parametrize(
    "metadata",
    [
        [("x-big", "y" * 100_000)],
        [(f"x-{number}", "y" * 100) for number in range(1_000)],
        [("x" * 60_000, "y")],
        [("x-bin-bin", bytes(60_000))],
    ],
    ids=["a long value", "many", "a long name", "binary"],
)
async def test_huge_metadata_is_refused(victim: Victim, metadata: Sequence[tuple[str, Any]]) -> None:
    async with channel_to(victim) as channel:
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(PUBLISH)(b"", metadata=list(metadata))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
