"""Producers' windows: the last requests that were stored, so that a resend is recognised.

For each (producer, queue) the last 64 stored requests are kept with their offsets and a digest. An id that is not
above the highest one dropped from the window can no longer be told from a new one and is refused.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from kyogo_broker.model.column import Pieces
from kyogo_broker.model.message import OffsetRun

REQUESTS_KEPT = 64
IDLE_MS_MAX = 3_600_000
"""A window that nobody used for an hour is forgotten."""
PIECE_WINDOWS = 16
"""Of a picture: some 1,000 requests."""


class Stored(NamedTuple):
    """A request that was stored."""

    request_id: int
    first_offset: int
    messages: int
    digest: int


class ProducerWindow:
    """The last stored requests of one producer to one queue."""

    __slots__ = ("dropped_id", "pictures", "requests", "used_ms")

    def __init__(self, used_ms: int, *, pictures: int = 0) -> None:
        self.requests: dict[int, Stored] = {}
        """By request id, in the order in which they were stored."""
        self.dropped_id = 0
        """The highest id that has left the window."""
        self.used_ms = used_ms
        self.pictures = pictures
        """Pictures that had been taken when it was made: a later one may still hold it, so then it is not changed."""

    def copy(self, *, pictures: int) -> "ProducerWindow":
        """The same window, to be changed."""
        window = ProducerWindow(self.used_ms, pictures=pictures)
        window.requests = self.requests.copy()
        window.dropped_id = self.dropped_id
        return window

    def keep(self, stored: Stored) -> None:
        """Remember a request; the oldest makes room."""
        self.requests[stored.request_id] = stored
        if len(self.requests) > REQUESTS_KEPT:
            oldest = next(iter(self.requests))
            del self.requests[oldest]
            self.dropped_id = max(self.dropped_id, oldest)


class Producers:
    """The windows of one queue, least recently used first."""

    __slots__ = ("_pictures", "_windows")

    def __init__(self) -> None:
        self._windows: OrderedDict[str, ProducerWindow] = OrderedDict()
        self._pictures = 0

    def __len__(self) -> int:
        """Producers with a window."""
        return len(self._windows)

    def window(self, producer_id: str) -> ProducerWindow | None:
        """The window of a producer, if it has one."""
        return self._windows.get(producer_id)

    def touch(self, producer_id: str, now_ms: int) -> None:
        """A resend was answered: that counts as use."""
        self._used(producer_id, self._windows[producer_id], now_ms)

    def keep(self, producer_id: str, stored: Stored, now_ms: int) -> None:
        """Remember a request that was stored."""
        window = self._windows.get(producer_id)
        if window is None:
            window = self._windows[producer_id] = ProducerWindow(now_ms, pictures=self._pictures)
        else:
            window = self._used(producer_id, window, now_ms)
        window.keep(stored)

    def _used(self, producer_id: str, window: ProducerWindow, now_ms: int) -> ProducerWindow:
        """It is the one used last; returns what may be changed."""
        if window.pictures < self._pictures:
            window = self._windows[producer_id] = window.copy(pictures=self._pictures)
        window.used_ms = now_ms
        self._windows.move_to_end(producer_id)
        return window

    def restarted(self, now_ms: int) -> None:
        """The time without a broker is nobody's idleness, and when a window was used last is not known durably."""
        for window in self._windows.values():
            window.used_ms = now_ms

    def idle(self, now_ms: int) -> tuple[str, ...]:
        """Producers whose window is due to be forgotten. Steady time: a leap of the wall clock is not an idle hour."""
        found = []
        for producer_id, window in self._windows.items():
            if now_ms - window.used_ms < IDLE_MS_MAX:
                break
            found.append(producer_id)
        return tuple(found)

    def forget(self, producer_ids: tuple[str, ...]) -> None:
        """Drop windows."""
        for producer_id in producer_ids:
            self._windows.pop(producer_id, None)

    def snapshot(self) -> list[list[object]]:
        """Each producer with its state, least recently used first."""
        return _rows(self._windows, tuple(self._windows))

    def freeze(self) -> Pieces:
        """The same, for later."""
        self._pictures += 1
        return Pieces(tuple(self._windows), partial(_rows, dict(self._windows)), count=PIECE_WINDOWS)

    @classmethod
    def restored(cls, rows: list[list[object]]) -> "Producers":
        """The inverse of `snapshot`."""
        producers = cls()
        for producer_id, dropped_id, used_ms, requests in rows:
            window = ProducerWindow(int(str(used_ms)))
            window.dropped_id = int(str(dropped_id))
            assert isinstance(requests, list)
            for stored in requests:
                window.requests[stored[0]] = Stored(*stored)
            producers._windows[str(producer_id)] = window
        return producers


def _rows(windows: Mapping[str, ProducerWindow], producer_ids: Sequence[str]) -> list[list[Any]]:
    return [
        [producer_id, window.dropped_id, window.used_ms, [list(stored) for stored in window.requests.values()]]
        for producer_id in producer_ids
        for window in (windows[producer_id],)
    ]


def offsets_of(stored: Stored) -> tuple[OffsetRun, ...]:
    """The answer to a resend: what the first one got."""
    return (OffsetRun(stored.first_offset, stored.messages),)
