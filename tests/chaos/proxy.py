"""A TCP proxy for each client, so that its connections can be cut, stalled and half closed without touching it.

client --> [ up ] --> broker
client <-- [down] <-- broker         every connection has a pump for each direction
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

CHUNK_BYTES = 1 << 16
DIRECTIONS = ("up", "down")


@dataclass(slots=True, eq=False)
class Connection:
    """One connection of a client, and its other half to the broker."""

    client: asyncio.StreamWriter
    broker: asyncio.StreamWriter
    pumps: list[asyncio.Task[None]] = field(default_factory=list)


class Proxy:
    """Stands between one client and the broker."""

    def __init__(self) -> None:
        self.address = ""
        self.stalled_bytes = 0
        """Held back while stalled, since the start."""
        self._target = ("", 0)
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._gates = {direction: asyncio.Event() for direction in DIRECTIONS}
        for gate in self._gates.values():
            gate.set()

    async def start(self, target: str) -> None:
        """Listen; the address stays for good."""
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """End everything. Idempotent."""
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.sleep(0)

    @property
    def connections(self) -> int:
        """Open now."""
        return len(self._connections)

    def cut(self) -> int:
        """Reset all connections; how many that were."""
        connections = list(self._connections)
        for connection in connections:
            for writer in (connection.client, connection.broker):
                writer.transport.abort()
            for pump in connection.pumps:
                pump.cancel()
        return len(connections)

    def half_close(self, direction: str) -> int:
        """Send an end of file one way and leave the other way open; on how many connections."""
        connections = list(self._connections)
        for connection in connections:
            with suppress(OSError, RuntimeError):
                (connection.broker if direction == "up" else connection.client).write_eof()
        return len(connections)

    def stall(self, *directions: str) -> None:
        """Hold back what comes; the connections stay open."""
        for direction in directions:
            self._gates[direction].clear()

    def go_on(self) -> None:
        """Let through what was held back, and what comes."""
        for gate in self._gates.values():
            gate.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            broker_reader, broker_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        connection = Connection(writer, broker_writer)
        self._connections.add(connection)
        connection.pumps = [
            asyncio.create_task(self._pump(reader, broker_writer, "up")),
            asyncio.create_task(self._pump(broker_reader, writer, "down")),
        ]
        try:
            await asyncio.wait(connection.pumps)
        except asyncio.CancelledError:
            pass  # the run is over; streams complain about a server's task that says so
        finally:
            self._connections.discard(connection)
            for each in (writer, broker_writer):
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        gate = self._gates[direction]
        try:
            while chunk := await reader.read(CHUNK_BYTES):
                if not gate.is_set():
                    self.stalled_bytes += len(chunk)
                    await gate.wait()
                writer.write(chunk)
                await writer.drain()
            writer.write_eof()
        except (OSError, RuntimeError):
            writer.transport.abort()  # a reset on one side is one on the other
