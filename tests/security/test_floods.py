"""Floods of HTTP/2 frames that ask for nothing, from a few connections that do not care for the answers."""

import asyncio
import random
from collections.abc import Callable

import pytest

from tests.security.http2 import (
    END_HEADERS,
    INITIAL_WINDOW,
    PREFACE,
    Kind,
    call,
    connected,
    data,
    frame,
    header_block,
    literal,
    message,
    ping,
    reset,
    settings,
    window,
)
from tests.security.victim import Victim
from tests.support.edge import until

CONNECTIONS = 4
PUBLISH = "/kyogo.v1.BrokerService/Publish"
CONSUME = "/kyogo.v1.BrokerService/Consume"
HEALTH = "/grpc.health.v1.Health/Watch"

Piece = Callable[[int], bytes]
"""The nth piece of a flood."""


async def flood(address: str, piece: Piece) -> None:
    """Send piece after piece, for ever; who is thrown out comes again."""
    while True:
        async with connected(address) as connection:
            number = 0
            while await connection.send(piece(number)):
                number += 1
                await asyncio.sleep(0)


def resets(path: str) -> Piece:
    block = header_block(path)

    def piece(number: int) -> bytes:
        streams = range(200 * number + 1, 200 * number + 201, 2)
        return b"".join(frame(Kind.HEADERS, stream, block, END_HEADERS) + reset(stream) for stream in streams)

    return piece


def once(first: bytes, then: bytes) -> Piece:
    return lambda number: then if number else first


HPACK_BOMB = header_block(PUBLISH) + b"\x40" + literal(b"x", b"y" * 4_000)[1:] + b"\xbe" * 12_000
"""One header of 4 KB, put into the table and named 12,000 times: 48 MB from 16 KB."""

FLOODS: dict[str, Piece] = {
    "stream resets, Publish": resets(PUBLISH),
    "stream resets, Consume": resets(CONSUME),
    "stream resets, health": resets(HEALTH),
    "pings": lambda _: ping() * 100,
    "settings": lambda _: settings((INITIAL_WINDOW, 65_535)) * 100,
    "window updates": lambda _: window(0, 1) * 200,
    "priorities": lambda number: b"".join(frame(Kind.PRIORITY, 2 * n + 1, bytes(5)) for n in range(200)),
    "resets of no stream": lambda _: reset(99_999) * 200,
    "empty data": once(call(CONSUME, 1), data(1, b"") * 200),
    "headers without an end": once(
        frame(Kind.HEADERS, 1, header_block(PUBLISH)),
        frame(Kind.CONTINUATION, 1, literal(b"x", b"y" * 1_000)) * 20,
    ),
    "a bomb in the headers": lambda number: frame(Kind.HEADERS, 2 * number + 1, HPACK_BOMB, END_HEADERS),
    "empty messages": once(call(CONSUME, 1), data(1, message(b"") * 200)),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_is_survived(victim: Victim, name: str) -> None:
    async with victim.attacked(name) as attack:
        await attack.run(*(flood(victim.address, FLOODS[name]) for _ in range(CONNECTIONS)))


async def test_answers_that_nobody_reads_do_not_pile_up(victim: Victim) -> None:
    """Pings are answered; who does not read the answers is not read either."""
    async with victim.attacked("pings, answers not read") as attack:
        host, _, port = victim.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(PREFACE + settings())
        while attack.goes_on() and writer.transport.get_write_buffer_size() < 1 << 20:
            writer.write(ping() * 1_000)
            await asyncio.sleep(0)
        writer.transport.abort()


@pytest.mark.parametrize(
    "hello",
    [b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)],
    ids=["http1", "tls"],
)
async def test_another_protocol_is_hung_up_on(victim: Victim, hello: bytes) -> None:
    async with connected(victim.address, hello=hello, answer=False) as connection:
        await until(lambda: connection.closed, "hung up", 20)


async def test_random_frames_do_no_harm(victim: Victim) -> None:
    chance = random.Random(1)

    def piece(_: int) -> bytes:
        return b"".join(
            frame(
                chance.randrange(12), chance.randrange(8), chance.randbytes(chance.randrange(40)), chance.randrange(64)
            )
            for _ in range(20)
        )

    async with victim.attacked("random frames") as attack:
        await attack.run(*(flood(victim.address, piece) for _ in range(CONNECTIONS)))
