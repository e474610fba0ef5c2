"""HTTP connections that neither stay too long nor become too many.

uvicorn waits for a request as long as it takes, and beyond its limit of connections answers 503, also to probes: some
sixty silent connections would make an orchestrator restart a healthy broker. Here a request and its answer have their
time, and one connection too many ends the oldest one.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS_MAX = 64
"""A scraper, a prober and some browsers."""
REQUEST_SECONDS = 10.0
"""From the first byte, or the connection, to the last byte of the answer."""


class BoundedProtocol(H11Protocol):
    """One connection."""

    _since = 0.0
    _answered = False
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """It is there, and another one may have to go."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._wait()
        if len(self.connections) > CONNECTIONS_MAX:
            oldest = min(self.connections, key=_since)
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Of this request, or the first of the next one."""
        if self._answered:
            self._wait()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Written, but perhaps not sent: that has its time, too."""
        super().on_response_complete()
        self._wait()
        self._answered = True

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._answered = False
        self._late = self.loop.call_later(REQUEST_SECONDS, self._is_late)

    def _is_late(self) -> None:
        if not self._answered or self.transport.get_write_buffer_size():
            self.transport.abort()


def _since(connection: Any) -> float:  # noqa: ANN401  # uvicorn's own set is of any protocol
    since: float = connection._since  # noqa: SLF001  # its own class's
    return since
