"""HTTP/2 by hand: what no client library would send, frame by frame.

Only what an attack needs. Headers go out as literals without a table (RFC 7541, 6.2.2), so there is no state to keep;
what comes back is sorted by kind and never decoded.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEAD_BYTES = 9
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
WINDOW_MAX = (1 << 31) - 1
INITIAL_WINDOW = 4
"""Number of the setting."""


class Kind(IntEnum):
    """Types of frames."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


def frame(kind: int, stream: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def call(path: str, stream: int, more: Iterable[tuple[str, str]] = ()) -> bytes:
    """The frame that begins a gRPC call."""
    return frame(Kind.HEADERS, stream, header_block(path, more), END_HEADERS)


def header_block(path: str, more: Iterable[tuple[str, str]] = ()) -> bytes:
    usual = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )
    return b"".join(literal(name.encode(), value.encode()) for name, value in (*usual, *more))


def literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + _integer(len(name)) + name + _integer(len(value)) + value


def message(raw: bytes, *, compressed: bool = False) -> bytes:
    """A gRPC message with its prefix, as the payload of DATA."""
    return bytes([compressed]) + len(raw).to_bytes(4) + raw


def data(stream: int, payload: bytes, *, end: bool = False) -> bytes:
    """DATA frames of the largest size that needs no leave."""
    size = 16_384
    parts = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    flags = [0] * (len(parts) - 1) + [END_STREAM if end else 0]
    return b"".join(frame(Kind.DATA, stream, part, flag) for part, flag in zip(parts, flags, strict=True))


def reset(stream: int) -> bytes:
    return frame(Kind.RST_STREAM, stream, (8).to_bytes(4))


def ping() -> bytes:
    return frame(Kind.PING, payload=bytes(8))


def window(stream: int, more: int) -> bytes:
    return frame(Kind.WINDOW_UPDATE, stream, more.to_bytes(4))


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(Kind.SETTINGS, payload=b"".join(number.to_bytes(2) + value.to_bytes(4) for number, value in pairs))


class Connection:
    """One connection; what comes is read all the time, pings and settings are answered."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.came: Counter[Kind] = Counter()
        self.trailers: list[bytes] = []
        """Payloads of HEADERS, still packed."""
        self.window = 65_535
        """What the connection may send."""
        self.stream_windows: Counter[int] = Counter()
        """What was granted on top of the initial window, by stream."""
        self.initial_window = 65_535
        self.granted = asyncio.Event()
        self.closed = False

    async def send(self, octets: bytes) -> bool:
        """Whether it could be sent."""
        try:
            self._writer.write(octets)
            await self._writer.drain()
        except OSError:
            self.closed = True
        return not self.closed

    async def send_data(self, stream: int, payload: bytes, *, seconds: float) -> int:
        """DATA as far as the peer's windows allow within `seconds`; how many bytes that was."""
        sent = 0
        deadline = asyncio.get_running_loop().time() + seconds
        while sent < len(payload) and not self.closed:
            room = min(self.window, self.initial_window + self.stream_windows[stream] - sent, len(payload) - sent)
            if room <= 0:
                self.granted.clear()
                left = deadline - asyncio.get_running_loop().time()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.granted.wait(), max(0.0, left))
                if left <= 0:
                    break
                continue
            self.window -= room
            await self.send(data(stream, payload[sent : sent + room]))
            sent += room
        return sent

    async def read(self, *, answer: bool = True) -> None:
        """Until the end; the one reader."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await self._reader.readexactly(FRAME_HEAD_BYTES)
                kind, flags, stream = Kind(head[3]), head[4], int.from_bytes(head[5:])
                payload = await self._reader.readexactly(int.from_bytes(head[:3]))
                self._take(kind, stream, flags, payload)
                if answer and kind in (Kind.SETTINGS, Kind.PING) and not flags & ACK:
                    await self.send(frame(kind, payload=payload if kind is Kind.PING else b"", flags=ACK))
        self.closed = True
        self.granted.set()

    def _take(self, kind: Kind, stream: int, flags: int, payload: bytes) -> None:
        self.came[kind] += 1
        if kind is Kind.HEADERS:
            self.trailers.append(payload)
        elif kind is Kind.WINDOW_UPDATE:
            more = int.from_bytes(payload)
            if stream:
                self.stream_windows[stream] += more
            else:
                self.window += more
            self.granted.set()
        elif kind is Kind.SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                if int.from_bytes(payload[at : at + 2]) == INITIAL_WINDOW:
                    self.initial_window = int.from_bytes(payload[at + 2 : at + 6])
            self.granted.set()

    def close(self) -> None:
        """At once: what a peer does not read would keep the socket open for ever."""
        self._writer.transport.abort()


@asynccontextmanager
async def connected(
    address: str, *, hello: bytes = PREFACE + settings(), answer: bool = True
) -> AsyncIterator[Connection]:
    """A connection that has said `hello`."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    connection = Connection(reader, writer)
    reading = asyncio.create_task(connection.read(answer=answer))
    try:
        await connection.send(hello)
        yield connection
    finally:
        connection.close()
        reading.cancel()
        # Not `await reading`: who is cancelled here would take that for the reader's end, and go on.
        await asyncio.wait([reading])


def _integer(number: int) -> bytes:
    """An HPACK integer of a 7-bit prefix, without Huffman coding."""
    if number < 127:
        return bytes([number])
    encoded, number = bytearray([127]), number - 127
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
