"""Runs handlers: at most `concurrency` at once, over all queues.

Each place is a slot, a task that lives on: it takes a delivery, awaits the handler and takes the next. A handler
that does not really wait costs no task, no future and no turn of the loop, and yet `asyncio.current_task`, timeouts
and cancellation work in it as everywhere. Two things need care:

* Context variables that a handler sets would be seen by the next one. A slot whose context has changed ends, and
  a fresh one takes its place.
* Handlers that never wait would keep the loop for themselves. All slots together have 5 ms a turn, then the stream,
  heartbeats and timers have theirs.

A handler in a thread cannot be stopped: its slot stays taken until it returns, whatever became of its message.
"""

import asyncio
import contextvars
import functools
import inspect
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from kyogo import prefetch
from kyogo.actions import Rejected, Stop
from kyogo.codec import Codecs
from kyogo.delivery import GONE, RUNNING, Delivery
from kyogo.errors import TimeLimitExceeded
from kyogo.failures import FailureLog
from kyogo.handlers import Handler, Handlers
from kyogo.message import Message, RedeliveryReason
from kyogo.middleware import Chain
from kyogo.outcomes import ACK, ERROR_TYPE_BYTES_MAX, REASON_BYTES_MAX, RELEASE, Outcome, Settlement, cut, judge
from kyogo.outgoing import MESSAGE_BYTES_MAX
from kyogo.parking import Parking
from kyogo.session import Session
from kyogo.threads import Threads

_log = logging.getLogger("kyogo.worker")

TURN_SECONDS: Final = 0.005
_MEAN_WEIGHT: Final = 0.05
"""Of the newest handling time in their running mean."""

# After one of these the message may be what ended its last consumer: that it has begun must be known to the broker
# before it can end this one too.
_SUSPICIOUS: Final = frozenset({RedeliveryReason.STREAM_LOSS, RedeliveryReason.FAILED, RedeliveryReason.SUSPECT})


_LOST: Final = Settlement(Outcome.RELEASE, reason="lost")
"""Stands for no settlement at all: the delivery is another's."""


class Link(Protocol):
    """What the executor needs of a stream."""

    def wake(self) -> None:
        """Something waits to be sent."""

    async def flush(self) -> None:
        """Wait until it has been."""


class Why(Enum):
    """Why a running handler is cancelled."""

    LOST = auto()
    CANCELLED = auto()
    DRAINED = auto()
    TIME_LIMIT = auto()


@dataclass(slots=True)
class Counts:
    """What became of deliveries, since the worker began."""

    acked: int = 0
    retried: int = 0
    released: int = 0
    dead_lettered: int = 0
    lost: int = 0
    """Were taken away while their handler ran."""
    rejected: int = 0
    """ACKs whose publishes could not be stored."""
    unknown: int = 0
    """Had no handler."""


class _Slot:
    """A place for one handler at a time."""

    __slots__ = ("delivery", "interruptible", "settled", "task", "why")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.delivery: Delivery | None = None
        self.interruptible = True
        self.settled: Settlement | None = None
        """Of a handler in a thread, before it has returned."""
        self.why: Why | None = None

    def interrupt(self, why: Why) -> None:
        """Stop the handler, if it can be."""
        if self.delivery is not None:
            self.delivery.stop()
        if self.interruptible and self.why is None and self.task is not None:
            self.why = why
            self.task.cancel()


class Executor:
    """The handlers of one worker at work. Belongs to one loop; outlives streams."""

    def __init__(
        self, handlers: Handlers, chain: Chain, *, concurrency: int, codecs: Codecs, group: asyncio.TaskGroup
    ) -> None:
        self.codecs = codecs
        self.message_bytes_max = MESSAGE_BYTES_MAX
        self.publish_bytes_max = MESSAGE_BYTES_MAX
        self.counts = Counts()
        self.busy = 0
        """Slots whose handler has not returned."""
        self.handling_seconds: float | None = None
        """A running mean."""
        self._handlers = handlers
        self._chain = chain
        self._concurrency = concurrency
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._threads = Threads(concurrency)
        self._failures = FailureLog(self._loop.time)
        self._context = contextvars.copy_context()
        self._slots: set[_Slot] = set()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._watchers: list[asyncio.Future[None]] = []
        self._turn_end: float | None = None
        self._closed = False
        self._session: Session | None = None
        self._link: Link | None = None
        self._parking: Parking | None = None

    @property
    def utilization(self) -> float:
        """Share of the slots in use, 0 to 1."""
        return self.busy / self._concurrency

    def wanted_prefetch(self) -> int:
        """What the worker's speed asks for."""
        parked = 0 if self._session is None else self._session.parked
        return prefetch.wanted(self._concurrency, self.handling_seconds, parked)

    # --- the stream's side ---

    def attach(self, session: Session, link: Link) -> None:
        """Work comes from this session from now on."""
        self._session = session
        self._link = link
        self._parking = Parking(session, link.wake)

    def detach(self) -> None:
        """The session was abandoned: stop what ran for it."""
        if self._parking is not None:
            self._parking.close()
        self._session = self._link = self._parking = None
        for slot in self._slots:
            if slot.delivery is not None and slot.delivery.state == GONE:
                self.counts.lost += slot.why is None
                slot.interrupt(Why.LOST)

    def arrived(self) -> None:
        """Deliveries wait: wake as many slots as may find one."""
        waiting = 0 if self._session is None else self._session.buffered - self._session.parked
        while waiting > 0 and self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                waiting -= 1
        while waiting > 0 and len(self._slots) < self._concurrency:
            self._open_slot()
            waiting -= 1

    def stop(self, stops: list[Stop]) -> None:
        """The broker has taken deliveries back whose handlers run."""
        wanted = {id(action.delivery): action for action in stops}
        for slot in self._slots:
            action = wanted.get(id(slot.delivery))
            if action is not None:
                self.counts.lost += action.lost
                _log.warning("stopped %r: %s", action.delivery, action.reason)
                slot.interrupt(Why.LOST if action.lost else Why.CANCELLED)

    def rejected(self, action: Rejected) -> None:
        """An ACK could not be stored with its publishes: the message is tried again, for the reason given."""
        self.counts.rejected += 1
        error = action.error
        reason = cut(f"its publishes were rejected: {error}", REASON_BYTES_MAX)
        _log.error("RETRY %r: %s", action.delivery, reason)
        self._settle(
            action.delivery,
            Settlement(Outcome.RETRY, error.retry_after_ms, reason, cut(error.code, ERROR_TYPE_BYTES_MAX)),
        )

    def interrupt_all(self) -> None:
        """Out of time: stop every handler that can be, and give its message back."""
        for slot in self._slots:
            if slot.delivery is not None:
                slot.interrupt(Why.DRAINED)

    async def idle(self) -> None:
        """Wait until no handler runs."""
        while self.busy:
            watcher = self._loop.create_future()
            self._watchers.append(watcher)
            await watcher

    def close(self) -> None:
        """End all slots, whatever they do."""
        self._closed = True
        self._threads.close()
        for slot in self._slots:
            if slot.task is not None:
                slot.task.cancel()

    # --- the handlers' side ---

    def extend(self, message: Message, extension_ms: int) -> None:
        """Ask for more time; from any thread."""
        if threading.get_ident() == self._thread:
            self._extend(message, extension_ms)
        else:
            self._loop.call_soon_threadsafe(self._extend, message, extension_ms)

    def _extend(self, message: Message, extension_ms: int) -> None:
        if self._session is not None and self._link is not None and isinstance(message, Delivery):
            self._session.extend(message, extension_ms)
            self._link.wake()

    # --- slots ---

    def _open_slot(self) -> None:
        slot = _Slot()
        self._slots.add(slot)
        slot.task = self._group.create_task(self._work(slot), name="kyogo-slot", context=self._context.copy())

    async def _work(self, slot: _Slot) -> None:
        context = contextvars.copy_context()
        try:
            while not self._closed:
                if self._turn_is_over():
                    await asyncio.sleep(0)
                    continue
                delivery = None if self._session is None else self._session.take()
                if delivery is None:
                    waiter = self._loop.create_future()
                    self._idle.append(waiter)
                    await waiter
                    continue
                await self._handle(slot, delivery)
                if contextvars.copy_context() != context:
                    break
        finally:
            self._slots.discard(slot)
        if not self._closed:
            self.arrived()

    def _turn_is_over(self) -> bool:
        if self._turn_end is None:
            self._turn_end = time.perf_counter() + TURN_SECONDS
            self._loop.call_soon(self._new_turn)
            return False
        return time.perf_counter() > self._turn_end

    def _new_turn(self) -> None:
        self._turn_end = None

    async def _handle(self, slot: _Slot, delivery: Delivery) -> None:
        session = self._session
        assert session is not None
        handler = self._handlers.find(delivery)
        if handler is None:
            self._park(delivery)
            return
        session.begin(delivery)
        self.busy += 1
        slot.delivery = delivery
        slot.interruptible = handler.is_async
        began = time.perf_counter()
        settlement = ACK
        try:
            if handler.is_plain and not self._chain.wraps and not delivery.run.reason:
                await handler.function(*handler.arguments(delivery))
            else:
                await self._call(slot, handler, delivery)
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - a handler's, whatever it is: judged, logged, never the worker's end
            settlement = self._judge(slot, handler, delivery, error)
        finally:
            slot.delivery = None
            self.busy -= 1
        self._measure(time.perf_counter() - began)
        if slot.why is not None:
            self._recover(slot)
        if delivery.state == RUNNING:
            self._settle(delivery, settlement)
        elif slot.settled is not None:
            settlement, slot.settled = slot.settled, None
        else:
            settlement = _LOST
        if self._chain.follows and settlement is not _LOST:
            await self._chain.tell(delivery, settlement)
        if self._watchers and not self.busy:
            self._tell_watchers()

    async def _call(self, slot: _Slot, handler: Handler, delivery: Delivery) -> None:
        """Everything but the plainest case."""
        if delivery.redelivery_reason in _SUSPICIOUS and self._link is not None:
            await self._link.flush()
            if delivery.state != RUNNING:
                return
        limit = handler.options.time_limit
        timer = None if limit is None else self._loop.call_later(limit, self._over_limit, slot, handler, delivery)
        function = functools.partial(self._call_function, handler, delivery)
        try:
            await (self._chain.run(delivery, function) if self._chain.wraps else function())
        finally:
            if timer is not None:
                timer.cancel()

    async def _call_function(self, handler: Handler, delivery: Delivery) -> None:
        function = functools.partial(handler.function, *handler.arguments(delivery))
        if handler.is_async:
            await function()
            return
        result = await self._threads.call(function)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise TypeError(f"{handler.name} returned an awaitable from a thread: a decorator hides that it is async")

    def _judge(self, slot: _Slot, handler: Handler, delivery: Delivery, error: BaseException) -> Settlement:
        if isinstance(error, asyncio.CancelledError):
            if slot.why is Why.TIME_LIMIT:
                error = self._limit_error(handler)
            elif slot.why is not None:
                return RELEASE
            elif slot.task is not None and slot.task.cancelling():
                raise error  # the executor is closed
        if slot.why in {Why.CANCELLED, Why.DRAINED} or (not slot.interruptible and delivery.stopped):
            return RELEASE  # it failed because it was told to stop
        settlement = judge(error, handler.options.no_retry)
        if delivery.state == RUNNING and settlement.outcome in {Outcome.RETRY, Outcome.DEAD_LETTER}:
            self._failures.record(handler, delivery, settlement, error)
        return settlement

    def _over_limit(self, slot: _Slot, handler: Handler, delivery: Delivery) -> None:
        if slot.delivery is not delivery:
            return
        if not slot.interruptible:  # told, and charged now: it may never return
            error = self._limit_error(handler)
            settlement = judge(error, handler.options.no_retry)
            self._failures.record(handler, delivery, settlement, error)
            self._settle(delivery, settlement)
            slot.settled = settlement
        slot.interrupt(Why.TIME_LIMIT)

    def _limit_error(self, handler: Handler) -> TimeLimitExceeded:
        return TimeLimitExceeded(
            f"{handler.name} ran longer than its time limit of {handler.options.time_limit} s: raise the limit, or make"
            " the work smaller"
        )

    def _recover(self, slot: _Slot) -> None:
        """After our own cancellation the slot goes on; if it was cancelled from outside as well, `_closed` ends it."""
        slot.why = None
        assert slot.task is not None
        slot.task.uncancel()

    # --- settling ---

    def _settle(self, delivery: Delivery, settlement: Settlement) -> None:
        if self._session is None or self._link is None or not self._session.finish(delivery, settlement):
            return
        self._link.wake()
        counts = self.counts
        if settlement is ACK:
            counts.acked += 1
        elif settlement.outcome is Outcome.RETRY:
            counts.retried += 1
        elif settlement.outcome is Outcome.RELEASE:
            counts.released += 1
        else:
            counts.dead_lettered += 1

    def _park(self, delivery: Delivery) -> None:
        self.counts.unknown += 1
        if self._parking is not None:
            self._parking.park(delivery)

    def _measure(self, seconds: float) -> None:
        mean = self.handling_seconds
        self.handling_seconds = seconds if mean is None else mean + (seconds - mean) * _MEAN_WEIGHT

    def _tell_watchers(self) -> None:
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)
        self._watchers.clear()
