"""How many streams and calls may be open, with a clear error for the one too many.

gRPC's own limits make it hang, or count health checks, so they are only the net behind these.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kyogo_broker.model.errors import ErrorCode, RefusedError, refuse
from kyogo_broker.server.limits import Limits

RETRY_AFTER_MS = 1_000
"""For a client that was refused: streams come and go by the second."""


@dataclass(frozen=True, slots=True)
class AdmissionStats:
    """What is open now, and what was refused since the start."""

    streams: int
    calls: int
    refused: int


class Admission:
    """Counts what is open."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._streams: Counter[str] = Counter()
        self._stream_count = 0
        self._calls = 0
        self._refused = 0

    @contextmanager
    def stream(self, peer: str) -> Iterator[None]:
        """Room for one stream of a connection, for as long as it lasts.

        Raises:
            RefusedError: there is none.
        """
        if self._stream_count >= self._limits.max_streams:
            raise self._refuse("max_streams", self._limits.max_streams, "close some, or raise the limit")
        if self._streams[peer] >= self._limits.max_streams_per_client:
            limit = self._limits.max_streams_per_client
            raise self._refuse("max_streams_per_client", limit, "subscribe to several queues on one stream")
        self._streams[peer] += 1
        self._stream_count += 1
        try:
            yield
        finally:
            self._stream_count -= 1
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    @contextmanager
    def call(self) -> Iterator[None]:
        """Room for one unary call.

        Raises:
            RefusedError: there is none.
        """
        if self._calls >= self._limits.max_calls:
            raise self._refuse("max_calls", self._limits.max_calls, "use PublishStream, or fewer calls at once")
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def stats(self) -> AdmissionStats:
        """What is open now."""
        return AdmissionStats(self._stream_count, self._calls, self._refused)

    def _refuse(self, name: str, limit: int, remedy: str) -> RefusedError:
        self._refused += 1
        return refuse(
            ErrorCode.LIMIT_EXCEEDED,
            f"{name} is reached ({limit}): {remedy}",
            retry_after_ms=RETRY_AFTER_MS,
            limit=str(limit),
            name=name,
        )
