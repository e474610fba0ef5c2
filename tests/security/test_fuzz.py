"""Bytes that are almost right, to every rpc of a running broker: a clear status, and no line of the log.

`tests/integration/test_garbage.py` sends what decodes to nothing. Here requests that are whole are cut, flipped,
spliced and repeated, so that many of them still decode, to values that nobody means.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped, unused-ignore]
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped, unused-ignore]

from kyogo.v1 import admin_pb2, broker_pb2
from kyogo_broker.server import wire
from kyogo_broker.server.standard import HEALTH_SERVICE, REFLECTION_SERVICES
from tests.security.sizes import SIZES
from tests.security.victim import Victim

SHOWN = ("Traceback", "kyogo_broker", "google.protobuf", "DecodeError", "<class", ".py")
"""What a client never gets to see."""
NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**53, 2**63 - 1, -(2**63))
TEXTS = ("", "fuzzed", "orders", "a" * 300, "../../etc/passwd", "\0", "\r\n\x1b[31m", "\u202e\ufffe\U0001f600")
DEPTH_MAX = 4
UNSENT = "Internal error from Core"
"""What a client says of itself when the broker ends a stream that it is writing to."""
ANSWER_SECONDS = 0.5
"""Then a stream that has no more to say is left."""


def _rpcs() -> Iterator[tuple[str, str, type[Message]]]:
    for service, module in ((wire.BROKER_SERVICE, broker_pb2), (wire.ADMIN_SERVICE, admin_pb2)):
        for rpc in module.DESCRIPTOR.services_by_name[service.rpartition(".")[2]].methods:
            yield service, rpc.name, GetMessageClass(rpc.input_type)
    yield HEALTH_SERVICE, "Check", health_pb2.HealthCheckRequest
    yield HEALTH_SERVICE, "Watch", health_pb2.HealthCheckRequest
    for name in REFLECTION_SERVICES:
        yield name, "ServerReflectionInfo", reflection_pb2.ServerReflectionRequest


def whole(kind: Any, chance: random.Random, depth: int = 0) -> Message:
    """A message with any of its fields set to anything of their types."""
    message: Message = kind()
    for field in kind.DESCRIPTOR.fields:
        if chance.random() < 0.4:
            continue
        of = getattr(message, field.name)
        if field.message_type is None:
            value = scalar(field, chance)
            of.append(value) if field.is_repeated else setattr(message, field.name, value)
        elif field.message_type.GetOptions().map_entry:
            of[chance.choice(TEXTS)] = chance.choice(TEXTS)
        elif depth < DEPTH_MAX:
            inner = whole(GetMessageClass(field.message_type), chance, depth + 1)
            of.append(inner) if field.is_repeated else of.CopyFrom(inner)
    return message


def scalar(field: Any, chance: random.Random) -> object:
    """Any value that the field can hold."""
    kinds = FieldDescriptor
    match field.type:
        case kinds.TYPE_STRING:
            return chance.choice(TEXTS)
        case kinds.TYPE_BYTES:
            return chance.randbytes(chance.randrange(50))
        case kinds.TYPE_BOOL:
            return chance.random() < 0.5
        case kinds.TYPE_ENUM:
            return chance.choice((0, 1, 2, 99))
        case kinds.TYPE_DOUBLE | kinds.TYPE_FLOAT:
            return chance.choice((0.0, -1.0, 1e308, float("inf"), float("nan")))
        case kinds.TYPE_INT32 | kinds.TYPE_SINT32:
            return chance.choice([number for number in NUMBERS if -(2**31) <= number < 2**31])
        case kinds.TYPE_UINT32:
            return chance.choice([number for number in NUMBERS if 0 <= number < 2**32])
        case kinds.TYPE_UINT64:
            return chance.choice([number for number in NUMBERS if number >= 0])
        case _:
            return chance.choice(NUMBERS)


def cut(raw: bytes, chance: random.Random) -> bytes:
    return raw[: chance.randrange(len(raw) + 1)]


def flipped(raw: bytes, chance: random.Random) -> bytes:
    octets = bytearray(raw)
    for _ in range(chance.randrange(1, 4) if octets else 0):
        octets[chance.randrange(len(octets))] ^= 1 << chance.randrange(8)
    return bytes(octets)


def spliced(raw: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(raw) + 1)
    return raw[:at] + chance.randbytes(chance.randrange(1, 9)) + raw[at:]


def repeated(raw: bytes, chance: random.Random) -> bytes:
    return raw * chance.randrange(2, 6)


def kept(raw: bytes, chance: random.Random) -> bytes:
    return raw


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (kept, kept, cut, flipped, spliced, repeated)


@asynccontextmanager
async def channel_to(victim: Victim) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(victim.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


async def ask(channel: grpc.aio.Channel, path: str, raws: list[bytes]) -> grpc.aio.AioRpcError | None:
    """Send frames and read what comes; the status if it is not OK. Every rpc is a stream on the wire.

    Watches are left at their first answer.
    """
    call: Any = channel.stream_stream(path)()
    try:
        for raw in raws:
            await call.write(raw)
        await call.done_writing()
        async with asyncio.timeout(ANSWER_SECONDS):
            while await call.read() is not grpc.aio.EOF and "Watch" not in path:
                pass
    except TimeoutError:
        return None
    except grpc.aio.AioRpcError as error:
        return None if error.details() == UNSENT else error
    except asyncio.InvalidStateError:
        pass  # It ended while it was written to.
    finally:
        call.cancel()
    return None


@pytest.mark.parametrize(
    ("service", "rpc", "kind"), list(_rpcs()), ids=lambda each: each if isinstance(each, str) else ""
)
async def test_almost_right_requests_get_clear_answers(
    victim: Victim, service: str, rpc: str, kind: type[Message]
) -> None:
    chance = random.Random(f"{service}/{rpc}")
    statuses = set()
    victim.judge_log()
    async with channel_to(victim) as channel:
        for _ in range(SIZES.fuzz_calls):
            raws = [
                chance.choice(CHANGES)(whole(kind, chance).SerializeToString(), chance)
                for _ in range(3 if rpc in ("Consume", "PublishStream") else 1)
            ]
            error = await ask(channel, f"/{service}/{rpc}", raws)
            if error is not None:
                statuses.add(error.code())
                text = str(error.details())
                assert error.code() not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), (raws, text)
                assert text.isprintable(), (raws, text)
                assert not any(word in text for word in SHOWN), (raws, text)
    assert statuses or rpc == "GetServerInfo", "all was right: it was no attack"
    victim.judge_log()


async def test_almost_right_frames_in_a_running_session(victim: Victim) -> None:
    """Attached, so that they come to the shard."""
    chance = random.Random(2)
    attach = broker_pb2.ConsumeRequest(
        attach=broker_pb2.Attach(subscriptions=[broker_pb2.Subscription(queue="bystander", max_unsettled=1)])
    )
    attach.attach.prefetch.messages = 0
    async with victim.attacked("almost right frames in a session") as attack, channel_to(victim) as channel:
        calls = 0
        while attack.goes_on() or calls < SIZES.fuzz_calls:
            calls += 1
            frames = [whole(broker_pb2.ConsumeRequest, chance) for _ in range(3)]
            for frame in frames:
                frame.ClearField("attach")
                frame.ClearField("prefetch")
            raws = [chance.choice(CHANGES)(frame.SerializeToString(), chance) for frame in frames]
            error = await ask(channel, "/kyogo.v1.BrokerService/Consume", [attach.SerializeToString(), *raws])
            code = error.code() if error is not None else grpc.StatusCode.OK
            assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), (raws, error)
