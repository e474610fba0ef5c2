"""What a publisher has not had confirmed yet, without IO: messages in, requests out, answers in.

    add --> lane.waiting --next_request--> lane.request --answered--> tickets
                 ^                              |
                 +--- refused, try again -------+--- stream lost: the same bytes, the same id, again

A lane is a destination, and has one request under way: what waits meanwhile forms the next one. That is the whole of
the batching, needs no timer, and keeps order even when the broker refuses a request for a while (several under way
would let later ones overtake). An unanswered request may be stored or not, so it is sent again as it was and the
broker recognises it; a refused one is certainly not stored, so its messages go back to the front of the lane.

One bad message refuses its whole request, which other callers' messages share: it is taken out, and they go again.
It knows no clock and no stream.
"""

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from kyogo import wire
from kyogo.backoff import Backoff, BackoffSettings
from kyogo.errors import KyogoError, ProtocolError, PublishTimeoutError

BATCH_MESSAGES: Final = 256
"""A larger request gains nothing: a frame's cost is spread thin enough."""
BATCH_BYTES: Final = 512 * 1024
REQUESTS_MAX: Final = 64
"""Under way at once, over all destinations."""

_LANES_KEPT: Final = 1_000
"""Empty lanes are remembered up to so many, for programs that publish to ever new queues."""

_RETRY = BackoffSettings(initial=0.05, maximum=5.0)


_UNKNOWN = (
    "no answer in time; whether the message is stored is unknown. Publish it again: with an id and a dedup window it is"
    " stored once"
)


class Ticket(Protocol):
    """Whoever waits for a message."""

    @property
    def dropped(self) -> bool:
        """Nobody waits any more: need not be sent."""

    def stored(self, offset: int, *, duplicate: bool) -> None:
        """It is durable."""

    def failed(self, error: KyogoError) -> None:
        """It is not stored, or nobody knows."""


class _Entry:
    """One message."""

    __slots__ = ("deadline", "field", "ticket")

    def __init__(self, field: bytes, ticket: Ticket, deadline: float) -> None:
        self.field = field
        self.ticket: Ticket | None = ticket
        self.deadline = deadline

    def fail(self, error: KyogoError) -> None:
        if self.ticket is not None:
            self.ticket.failed(error)
            self.ticket = None


@dataclass(slots=True)
class _Request:
    id: int
    lane: "_Lane"
    entries: list[_Entry]
    data: bytes
    sent_at: float
    """The last time it was sent."""
    expired: int = 0
    """So many of the entries, from the front, have passed their deadline."""


@dataclass(slots=True)
class _Lane:
    destination: str
    backoff: Backoff
    waiting: deque[_Entry] = field(default_factory=deque)
    request: _Request | None = None
    not_before: float = 0.0
    refusal: KyogoError | None = None
    """Why the lane waits."""
    singles: int = 0
    """So many messages go one by one: one of them is bad, and the broker did not say which."""
    queued: bool = False
    """Stands in the outbox's line of lanes that can send."""


class Outbox:
    """Unconfirmed messages of one publisher."""

    def __init__(self, producer_id: str) -> None:
        self.messages = 0
        """Added and not confirmed."""
        self.bytes = 0
        self.unreachable: KyogoError | None = None
        """Why nothing can be sent now."""
        self._producer_id = producer_id
        self._chance = random.Random()
        self._request_id = 0
        self._lanes: dict[str, _Lane] = {}
        self._line: deque[_Lane] = deque()
        self._under_way: dict[int, _Request] = {}
        self._resend: deque[_Request] = deque()
        self._delayed: set[str] = set()

    # --- in ---

    def add(self, destination: str, field: bytes, ticket: Ticket, deadline: float) -> None:
        """A message to be stored.

        Args:
            destination: the queue.
            field: from `outgoing.encode`.
            ticket: who is told.
            deadline: when to give up; not below those of earlier messages.
        """
        lane = self._lanes.get(destination)
        if lane is None:
            lane = self._lanes[destination] = _Lane(destination, Backoff(_RETRY, self._chance))
        lane.waiting.append(_Entry(field, ticket, deadline))
        self.messages += 1
        self.bytes += len(field)
        if not lane.queued:
            self._enqueue(lane)

    def answered(self, response: wire.PublishResponse, now: float) -> None:
        """The broker's answer to a request. One for none that is known is passed over."""
        request = self._under_way.pop(response.request_id, None)
        if request is None:
            return
        lane = request.lane
        lane.request = None
        if response.HasField("error"):
            self._refused(request, wire.error_from(response.error), now)
        else:
            lane.backoff.reset()
            lane.refusal = None
            self._confirm(request, response.offsets)
        self._enqueue(lane)
        if not lane.waiting and len(self._lanes) > _LANES_KEPT:
            self._forget(lane)

    def stream_lost(self) -> None:
        """Everything under way is unknown, and is sent again on the next stream, in order."""
        self._resend = deque(sorted(self._under_way.values(), key=lambda request: request.id))

    def fail_all(self, error: KyogoError) -> None:
        """Nothing can be stored: tell everybody."""
        for request in list(self._under_way.values()):
            self._drop(request.entries, error)
        for lane in self._lanes.values():
            self._drop(lane.waiting, error)
        self._under_way.clear()
        self._resend.clear()
        self._lanes.clear()
        self._line.clear()
        self._delayed.clear()

    # --- out ---

    def next_request(self, now: float) -> bytes | None:
        """The next request to send; None: there is none now."""
        while self._resend:
            request = self._resend.popleft()
            if self._under_way.get(request.id) is request:  # else its last deadline has passed
                request.sent_at = now
                return request.data
        for name in [name for name in self._delayed if self._lanes[name].not_before <= now]:
            self._delayed.discard(name)
            self._enqueue(self._lanes[name])
        while self._line and len(self._under_way) < REQUESTS_MAX:
            lane = self._line.popleft()
            lane.queued = False
            if lane.not_before > now:
                self._delayed.add(lane.destination)
                continue
            entries = self._batch(lane)
            if entries:
                return self._send(lane, entries, now)
        return None

    def expire(self, now: float) -> float | None:
        """Give up what has passed its deadline.

        Returns:
            When the newest request was sent of which a part was given up unanswered. None: there is none.
        """
        unanswered: list[float] = []
        for lane in list(self._lanes.values()):
            late: list[_Entry] = []
            while lane.waiting and lane.waiting[0].deadline <= now:
                late.append(lane.waiting.popleft())
            self._drop(late, self._why_late(lane))
            if lane.request is not None and self._expire_request(lane.request, now):
                unanswered.append(lane.request.sent_at)
                self._end_if_expired(lane.request)
            if not lane.waiting and lane.request is None:
                self._forget(lane)
        return max(unanswered, default=None)

    def due(self) -> float | None:
        """When `expire` or `next_request` is to be called next, if nothing else happens. None: never."""
        times = [self._lanes[name].not_before for name in self._delayed]
        for lane in self._lanes.values():
            if lane.request is not None:
                times.append(lane.request.entries[lane.request.expired].deadline)
            elif lane.waiting:
                times.append(lane.waiting[0].deadline)
        return min(times, default=None)

    # --- requests ---

    def _enqueue(self, lane: _Lane) -> None:
        if lane.request is None and not lane.queued and lane.waiting and lane.destination not in self._delayed:
            lane.queued = True
            self._line.append(lane)

    def _batch(self, lane: _Lane) -> list[_Entry]:
        most = 1 if lane.singles else BATCH_MESSAGES
        entries: list[_Entry] = []
        size = 0
        waiting = lane.waiting
        while waiting and len(entries) < most:
            entry = waiting[0]
            if entry.ticket is None or entry.ticket.dropped:
                self._forget_entry(waiting.popleft())
                continue
            size += len(entry.field)
            if entries and size > BATCH_BYTES:
                break
            entries.append(waiting.popleft())
        return entries

    def _send(self, lane: _Lane, entries: list[_Entry], now: float) -> bytes:
        lane.singles = max(0, lane.singles - 1)
        self._request_id += 1
        request = _Request(self._request_id, lane, entries, b"", now)
        lane.request = self._under_way[self._request_id] = request
        fields = [entry.field for entry in entries]
        request.data = wire.publish_request(lane.destination, self._request_id, self._producer_id, fields)
        return request.data

    def _confirm(self, request: _Request, runs: Iterable[wire.OffsetRun]) -> None:
        entries = iter(request.entries)
        for run in runs:
            for offset, entry in zip(range(run.first_offset, run.first_offset + run.count), entries, strict=False):
                if entry.ticket is not None:
                    entry.ticket.stored(offset, duplicate=run.duplicate)
                    entry.ticket = None
                self._forget_entry(entry)
        self._drop(entries, ProtocolError("the broker confirmed fewer messages than it was sent; the rest is unknown"))

    def _refused(self, request: _Request, error: KyogoError, now: float) -> None:
        """Nothing of it is stored."""
        lane = request.lane
        index = error.metadata.get("index", "")
        if error.retryable:
            wait = lane.backoff.next(at_least=(error.retry_after_ms or 0) / 1_000)
            lane.not_before, lane.refusal = now + wait, error
        elif index.isdecimal() and int(index) < len(request.entries):
            self._drop([request.entries.pop(int(index))], error)
        elif error.code.startswith("MESSAGE_") and len(request.entries) > 1:
            lane.singles = len(request.entries)
        else:
            self._drop(request.entries, error)
            return
        lane.waiting.extendleft(reversed(request.entries))

    # --- the end of entries ---

    def _expire_request(self, request: _Request, now: float) -> bool:
        entries = request.entries
        late = False
        while request.expired < len(entries) and entries[request.expired].deadline <= now:
            text = (
                "no answer in time; whether the message is stored is unknown. Publish it again: with an id and a dedup"
            )
            error = PublishTimeoutError(f"{request.lane.destination}: {text} window it is stored once")
            entries[request.expired].fail(error)
            request.expired += 1
            late = True
        return late

    def _end_if_expired(self, request: _Request) -> None:
        if request.expired < len(request.entries):
            return
        for entry in request.entries:
            self._forget_entry(entry)
        del self._under_way[request.id]
        request.lane.request = None
        self._enqueue(request.lane)

    def _why_late(self, lane: _Lane) -> KyogoError:
        """Why a message that waits was not sent, or was sent and refused; certain not to be stored."""
        reason = self.unreachable or lane.refusal
        if reason is None:
            return PublishTimeoutError(f"{lane.destination}: not sent in time, and so not stored. Publish it again")
        return reason

    def _drop(self, entries: Iterable[_Entry], error: KyogoError) -> None:
        for entry in entries:
            entry.fail(error)
            self._forget_entry(entry)

    def _forget_entry(self, entry: _Entry) -> None:
        self.messages -= 1
        self.bytes -= len(entry.field)

    def _forget(self, lane: _Lane) -> None:
        """Nothing is left of it; the next message makes a new one."""
        self._delayed.discard(lane.destination)
        del self._lanes[lane.destination]
        if lane.queued:
            self._line.remove(lane)

    def check_invariants(self) -> None:
        """The figures are what the lanes add up to. For tests."""
        entries = [entry for lane in self._lanes.values() for entry in lane.waiting]
        entries += [entry for request in self._under_way.values() for entry in request.entries]
        assert self.messages == len(entries)
        assert self.bytes == sum(len(entry.field) for entry in entries)
        for lane in self._lanes.values():
            assert lane.request is None or self._under_way[lane.request.id] is lane.request
            assert not (lane.request is None and lane.waiting) or lane.queued or lane.destination in self._delayed
        assert len(self._under_way) == sum(lane.request is not None for lane in self._lanes.values())
