"""Keeps a worker attached: connect, attach, work, and after a loss do so again; at last drain and leave.

    connecting --attached--> working --drain, asked by the broker or by the program--> leaving --> left
        ^                       |                                                         |
        +---- backoff <---------+ stream lost                        the broker stops ----+--> connecting

Leaving, in this order: nothing new is taken and what has not begun is released; running handlers finish, up to a
deadline, then they are stopped and their messages released; every settlement is answered; detach.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from kyogo import prefetch, wire
from kyogo.actions import Action, Answered, Arrived, Attached, Attachment, DrainAsked, Fault, Rejected, Stop
from kyogo.backoff import Backoff
from kyogo.codec import Codecs
from kyogo.connection import FRAME_BYTES_MAX, open_channel
from kyogo.errors import AccessError, KyogoError, UnavailableError, UnsupportedError
from kyogo.executor import Executor
from kyogo.handlers import Handlers
from kyogo.middleware import Chain
from kyogo.pending import FRAME_BYTES_SPARE
from kyogo.session import Phase, Session
from kyogo.settings import WorkerSettings
from kyogo.stream import Ending, Stream
from kyogo.target import Target

_log = logging.getLogger("kyogo.consumer")

_ANSWER_TIMEOUT: Final = 10.0
"""Seconds to wait, when leaving, until the last settlements are answered."""
_LEAVE_TIMEOUT: Final = 3.0
"""Seconds to wait for the end of the stream after `detach`."""
_CLEANUP_TIMEOUT: Final = 2.0
"""Seconds that a stopped handler has to clean up, past the deadline."""
_STEADY_SECONDS: Final = 5.0
"""A stream that lived so long counts as success: the next wait is short again."""
_FRAME_MARGIN: Final = 64 * 1024
_BROKER_STOPS: Final = "the broker is stopping"
"""The broker's reason for draining everyone: it will be back, so the worker stays."""


@dataclass(slots=True)
class Tally:
    """What became of streams and settlements, since the worker began."""

    attached: int = 0
    """Streams that became sessions."""
    confirmed: int = 0
    """Settlements answered OK."""
    stale: int = 0
    """Settlements that came too late: the work is done again elsewhere."""
    unanswered: int = 0
    """Settlements that a lost stream took with it: the work may be done again."""


class Consumer:
    """One worker's life on the network."""

    def __init__(self, settings: WorkerSettings, handlers: Handlers, chain: Chain, codecs: Codecs) -> None:
        self.tally = Tally()
        self.executor: Executor | None = None
        self.session: Session | None = None
        self._settings = settings
        self._handlers = handlers
        self._chain = chain
        self._codecs = codecs
        self._backoff = Backoff(settings.reconnect)
        self._stream: Stream | None = None
        self._session_token = ""
        self._visibility_ms: dict[str, int] = {}
        self._group: asyncio.TaskGroup | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._finished = False
        """Leaving for good, not because the broker stops."""
        self._broker_stops = False
        self._lost_since: float | None = None
        self._changed: list[asyncio.Future[None]] = []

    # --- for the worker ---

    async def run(self) -> None:
        """Stay attached until drained.

        Raises:
            KyogoError: the broker does not let this worker in, or was away for longer than `give_up_after`.
        """
        settings = self._settings
        target = Target.resolve(settings.url, settings.token)
        failure: KyogoError | None = None
        async with asyncio.TaskGroup() as group:
            self._group = group
            self.executor = Executor(
                self._handlers, self._chain, concurrency=settings.concurrency, codecs=self._codecs, group=group
            )
            try:
                failure = await self._stay_attached(target)
            finally:
                self.executor.close()
        if failure is not None:
            raise failure

    def drain(self, grace: float | None = None) -> None:
        """Finish what runs, settle, leave; `run` returns then. Idempotent.

        Args:
            grace: seconds for running handlers. None: no limit.
        """
        if self._finished:
            return
        self._finished = True
        self._notify()
        if self._stream is None:
            return
        if self.session is not None and self.session.phase is Phase.ATTACHED:
            self._leave(grace)
        else:
            self._stream.abort(UnavailableError("the worker was stopped before it was attached"))

    async def changed(self) -> None:
        """Wait until something happened: a frame came, or the stream."""
        waiter = asyncio.get_running_loop().create_future()
        self._changed.append(waiter)
        await waiter

    # --- connecting ---

    async def _stay_attached(self, target: Target) -> KyogoError | None:
        """Returns why it gave up; None: it left as asked."""
        attempt = 0
        loop = asyncio.get_running_loop()
        self._lost_since = loop.time()
        while not self._is_finished():
            began = loop.time()
            ending = await self._attach_once(target, attempt)
            if self._is_finished() or (ending.error is None and not self._broker_stops):
                return None
            self._broker_stops = False
            error = ending.error if ending.error is not None else UnavailableError("the broker is stopping")
            now = loop.time()
            if ending.attached:
                self._lost_since = now
                if now - began >= _STEADY_SECONDS:
                    self._backoff.reset()
            if self._hopeless(error, now):
                return error
            await self._wait_before_next(error)
            attempt += 1
        return None

    def _is_finished(self) -> bool:
        return self._finished

    def _hopeless(self, error: KyogoError, now: float) -> bool:
        limit = self._settings.give_up_after
        if limit is not None and self._lost_since is not None and now - self._lost_since >= limit:
            return True
        # At first this is a wrong token or address, which somebody has to correct; later it may be a rotation.
        return not self.tally.attached and isinstance(error, (AccessError, UnsupportedError))

    async def _wait_before_next(self, error: KyogoError) -> None:
        asked = 0.0 if error.retry_after_ms is None else error.retry_after_ms / 1_000
        wait = self._backoff.next(at_least=asked)
        _log.warning("not attached: %s. Trying again in %.1f s", error, wait)
        try:
            async with asyncio.timeout(wait):
                while not self._finished:
                    await self.changed()
        except TimeoutError:
            return

    async def _attach_once(self, target: Target, attempt: int) -> Ending:
        executor = self._the_executor()
        channel = open_channel(target, attempt=attempt, repeat_calls=False)
        session = self.session = Session(self._attachment(), executor)
        self._stream = Stream(
            wire.consume(channel, target.metadata()),
            session,
            address=target.addresses[attempt % len(target.addresses)],
            act=self._act,
            beat=self._beat,
        )
        executor.attach(session, self._stream)
        try:
            return await self._stream.run()
        finally:
            self._stream = None
            if self._leaving is not None:
                self._leaving.cancel()
                self._leaving = None
            self._abandon(session)
            await channel.close()

    def _attachment(self) -> Attachment:
        settings = self._settings
        return Attachment(
            queues=self._handlers.queues,
            prefetch=self._wanted_prefetch(),
            prefetch_bytes=settings.prefetch_bytes,
            consumer_id=settings.consumer_id,
            name=settings.name,
            version=settings.version,
            labels=settings.labels,
            weight=settings.weight,
            heartbeat_interval_ms=round(settings.heartbeat * 1_000),
            max_frame_bytes=FRAME_BYTES_MAX - _FRAME_MARGIN,
            session_token=self._session_token if settings.consumer_id else "",
        )

    def _abandon(self, session: Session) -> None:
        lost = session.abandon()
        self._the_executor().detach()
        self.tally.unanswered += lost.unanswered
        if lost.running or lost.unanswered:
            _log.warning(
                "the stream was lost with %d running handlers and %d unanswered settlements: these messages may be"
                " delivered again",
                len(lost.running),
                lost.unanswered,
            )
        self._notify()

    # --- working ---

    def _act(self, actions: list[Action]) -> None:
        executor = self._the_executor()
        stops: list[Stop] = []
        for action in actions:
            match action:
                case Arrived():
                    executor.arrived()
                case Answered():
                    self._on_answered(action)
                case Stop():
                    stops.append(action)
                case Rejected():
                    executor.rejected(action)
                case Attached():
                    self._on_attached(action)
                case DrainAsked():
                    self._on_drain(action)
                case Fault():
                    self._on_fault(action)
        if stops:
            executor.stop(stops)
        self._notify()

    def _beat(self) -> float:
        """Called with each heartbeat."""
        self._adapt()
        return self._the_executor().utilization

    def _adapt(self) -> None:
        wanted = self._wanted_prefetch()
        if self.session is not None and prefetch.differs(self.session.prefetch, wanted):
            self.session.set_prefetch(wanted)
            if self._stream is not None:
                self._stream.wake()

    def _wanted_prefetch(self) -> int:
        fixed = self._settings.prefetch
        return self._the_executor().wanted_prefetch() if fixed is None else fixed

    def _on_attached(self, attached: Attached) -> None:
        self.tally.attached += 1
        self._session_token = attached.session_token
        executor = self._the_executor()
        if attached.message_bytes_max:
            executor.message_bytes_max = attached.message_bytes_max
        if attached.request_bytes_max:
            executor.publish_bytes_max = max(attached.request_bytes_max, 2 * FRAME_BYTES_SPARE) - FRAME_BYTES_SPARE
        _log.info("attached as %s to %s (%s)", attached.consumer_id, ", ".join(self._handlers.queues), attached.broker)
        for handler in self._handlers.all():
            visibility_ms = attached.visibility_timeouts_ms.get(handler.queue, 0)
            limit = handler.options.time_limit
            if limit is not None and 0 < visibility_ms < limit * 1_000:
                _log.warning(
                    "%s may run for %g s, but %r gives a message to another worker after %g s: lower the time_limit,"
                    " raise the queue's visibility_timeout_ms, or call message.extend()",
                    handler.name,
                    limit,
                    handler.queue,
                    visibility_ms / 1_000,
                )

    def _on_answered(self, answered: Answered) -> None:
        self.tally.confirmed += answered.ok
        self._adapt()
        if answered.stale:
            self.tally.stale += answered.stale
            _log.warning(
                "%d settlements came too late: their messages had been given to others, and are done twice. Are"
                " handlers slower than the visibility timeout?",
                answered.stale,
            )

    def _on_fault(self, fault: Fault) -> None:
        if fault.error.code == "BROKER_DRAINING":
            self._broker_stops = True
        _log.error("the broker did not understand a part of a frame: %s", fault.error)

    # --- leaving ---

    def _on_drain(self, action: DrainAsked) -> None:
        _log.info("the broker asks to leave: %s", action.reason)
        self._broker_stops = self._broker_stops or action.reason.startswith(_BROKER_STOPS)
        self._leave(None if action.deadline_ms is None else action.deadline_ms / 1_000)

    def _leave(self, grace: float | None) -> None:
        if self._leaving is None and self.session is not None and self._stream is not None and self._group is not None:
            self._leaving = self._group.create_task(
                self._finish_and_detach(self.session, self._stream, grace), name="kyogo-leave"
            )

    async def _finish_and_detach(self, session: Session, stream: Stream, grace: float | None) -> None:
        executor = self._the_executor()
        session.stop_taking()
        stream.wake()
        if not await _within(grace, executor.idle()):
            _log.warning("%d handlers did not finish in %g s and are stopped", executor.busy, grace)
            executor.interrupt_all()
            if not await _within(_CLEANUP_TIMEOUT, executor.idle()):
                _log.error("%d handlers did not stop: their messages go to others", executor.busy)
        if not await _within(_ANSWER_TIMEOUT, self._until(lambda: not session.unanswered)):
            _log.error("%d settlements were not answered: their messages may be delivered again", session.unanswered)
        session.detach()
        stream.wake()
        await asyncio.sleep(_LEAVE_TIMEOUT)  # cancelled by the end of the stream
        stream.abort(UnavailableError("the broker did not end the stream after `detach`"))

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.changed()

    def _notify(self) -> None:
        if self._changed:
            changed, self._changed = self._changed, []
            for waiter in changed:
                if not waiter.done():
                    waiter.set_result(None)

    def _the_executor(self) -> Executor:
        assert self.executor is not None
        return self.executor


async def _within(seconds: float | None, waiting: Coroutine[Any, Any, None]) -> bool:
    """Whether it came to its end in time."""
    try:
        async with asyncio.timeout(seconds):
            await waiting
    except TimeoutError:
        return False
    return True
