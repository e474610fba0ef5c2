"""The worker: handlers by queue and type, and `run`.

    app = Worker(concurrency=16)

    @app.handle("orders", type="order.paid")
    async def paid(order: dict) -> None: ...

    app.run()

This file is the surface; `consumer.py` keeps it attached, `executor.py` runs the handlers.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from kyogo.codec import Codecs
from kyogo.consumer import Consumer
from kyogo.errors import ConfigurationError
from kyogo.executor import Counts
from kyogo.handlers import HandlerOptions, Handlers
from kyogo.middleware import AfterT, AroundT, BeforeT, Chain, Middleware
from kyogo.session import Phase
from kyogo.settings import WorkerSettings

_log = logging.getLogger("kyogo.worker")

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStats:
    """A worker at one moment; counts run since it began."""

    attached: bool
    running: int
    """Handlers that have not returned, of lost deliveries too."""
    buffered: int
    """Held and not begun."""
    parked: int
    """Of these: no handler here knows their type."""
    unanswered: int
    """Settled, and the broker has not answered yet."""
    prefetch: int
    handling_seconds: float | None
    """A running mean. None: nothing was handled."""
    acked: int
    retried: int
    released: int
    dead_lettered: int
    confirmed: int
    """Settlements answered OK."""
    stale: int
    """Settlements that came too late."""
    rejected: int
    """ACKs whose publishes could not be stored."""
    lost: int
    """Deliveries taken away while their handler ran."""
    unknown: int
    """Deliveries that no handler here knows."""
    settlements_lost: int
    """Unanswered when their stream was lost."""
    attachments: int
    """Streams that became sessions: 1 + the losses survived."""


class Worker:
    """A consumer with handlers."""

    def __init__(  # noqa: PLR0913 - what most programs set stands here, everything is in `settings`
        self,
        concurrency: int = 16,
        url: str | None = None,
        *,
        token: str | None = None,
        prefetch: int | None = None,
        consumer_id: str = "",
        version: str = "",
        labels: Mapping[str, str] | None = None,
        grace: float = 25.0,
        settings: WorkerSettings | None = None,
    ) -> None:
        """A worker; nothing is connected before `run` or `serve`.

        Args:
            concurrency: handlers at once, over all queues.
            url: `kyogo://host:port`. Default: KYOGO_URL, else this machine.
            token: default: KYOGO_TOKEN.
            prefetch: messages held at most. Default: follows concurrency and the measured handling time.
            consumer_id: a stable name, of which there is one. Default: assigned.
            version: the program's build; rollouts go by it.
            labels: for drain and rollout.
            grace: seconds that running handlers have after SIGTERM.
            settings: all of these and more, instead of them.

        Raises:
            ConfigurationError: a value cannot work, or `settings` comes with others.
        """
        given = WorkerSettings(
            concurrency=concurrency,
            url=url,
            token=token,
            prefetch=prefetch,
            consumer_id=consumer_id,
            version=version,
            labels={} if labels is None else labels,
            grace=grace,
        )
        if settings is not None and given != WorkerSettings():
            raise ConfigurationError("`settings` stands for all settings: put the others into it")
        self.settings = given if settings is None else settings
        self.codecs = Codecs()
        """Register a codec of one's own here, before the handlers."""
        self._handlers = Handlers(self.codecs)
        self._chain = Chain()
        self._consumer: Consumer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def queues(self) -> tuple[str, ...]:
        """Every queue that has a handler."""
        return self._handlers.queues

    # --- handlers and middleware ---

    def handle(
        self,
        queue: str,
        type: str | None = None,
        *,
        no_retry: tuple[type[BaseException], ...] | type[BaseException] = (),
        time_limit: float | None = None,
        isolation: Literal["thread", "process"] | None = None,
    ) -> Callable[[FunctionT], FunctionT]:
        """Register a handler: `async def` runs on the loop, `def` in a thread.

        It is called with the body, decoded as its first parameter is annotated, and with the `Message` if it takes a
        second one. Returning means ACK, whatever the value.

        Args:
            queue: where from.
            type: which messages. Default: all that have no handler of their own.
            no_retry: exceptions that dead-letter at once.
            time_limit: seconds; then an async handler is cancelled, one in a thread is told by `message.lost`, and
                the message is retried with `TimeLimitExceeded`. Default: none.
            isolation: "thread" is where plain functions run anyway.

        Raises:
            ConfigurationError: the function cannot be called with a message, or the place is taken.
        """
        if isolation == "process":
            raise ConfigurationError(
                'isolation="process" is not built yet: use a plain function, which runs in a thread, and more workers'
            )
        if time_limit is not None and time_limit <= 0:
            raise ConfigurationError(f"time_limit={time_limit}: give the seconds a handler may take, or leave it out")
        exceptions = no_retry if isinstance(no_retry, tuple) else (no_retry,)
        options = HandlerOptions(no_retry=exceptions, time_limit=time_limit)

        def register(function: FunctionT) -> FunctionT:
            handler = self._handlers.add(queue, type, function, options)
            if isolation == "thread" and handler.is_async:
                raise ConfigurationError(f'{handler.name} is async and cannot have isolation="thread": make it plain')
            return function

        return register

    def use(self, middleware: Middleware) -> None:
        """Add middleware; the first one added is the outermost."""
        self._chain.add(middleware)

    def before(self, hook: BeforeT) -> BeforeT:
        """Run this before every handler; what it raises decides the outcome."""
        self._chain.add_before(hook)
        return hook

    def around(self, hook: AroundT) -> AroundT:
        """Run this around every handler: `async def hook(message, call_next)`."""
        self._chain.add_around(hook)
        return hook

    def after(self, hook: AfterT) -> AfterT:
        """Tell this every outcome; an error in it is logged and the outcome stands."""
        self._chain.add_after(hook)
        return hook

    # --- work ---

    def run(self) -> None:
        """Work until SIGTERM or SIGINT, or until the broker drains this worker. A second signal stops at once.

        Returns after everything is settled, so that the program ends with 0. Logs to standard error if the program
        has set up no logging.

        Raises:
            ConfigurationError: there is no handler, or an address or file that cannot be used.
            KyogoError: the broker does not let this worker in.
            SystemExit: the second signal came.
        """
        if not logging.getLogger().handlers:
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        asyncio.run(self._run())

    async def serve(self) -> None:
        """Work until `drain` is called, or the broker drains this worker. For programs with a loop of their own.

        Cancelling it stops at once: what runs is cancelled, and goes to others.

        Raises:
            ConfigurationError: there is no handler, it works already, or an address that cannot be used.
            KyogoError: the broker does not let this worker in.
        """
        if not self._handlers.queues:
            raise ConfigurationError("this worker has no handler: register one with @app.handle(queue)")
        if self._loop is not None:
            raise ConfigurationError("this worker works already: make another one")
        settings = self.settings
        if not settings.name:
            settings = replace(settings, name=Path(sys.argv[0]).name)
        self._loop = asyncio.get_running_loop()
        self._consumer = Consumer(settings, self._handlers, self._chain, self.codecs)
        try:
            await self._consumer.run()
        finally:
            self._loop = None

    def drain(self, grace: float | None = None) -> None:
        """Take nothing new, finish what runs, settle, leave; `serve` returns then. From any thread. Idempotent.

        Args:
            grace: seconds for running handlers. Default: the settings'.
        """
        loop, consumer = self._loop, self._consumer
        if loop is not None and consumer is not None:
            loop.call_soon_threadsafe(consumer.drain, self.settings.grace if grace is None else grace)

    async def attached(self) -> None:
        """Wait until the worker is attached. For tests and readiness probes; `serve` has to run."""
        while not self.stats().attached:
            if self._consumer is None:
                await asyncio.sleep(0)
            else:
                await self._consumer.changed()

    def stats(self) -> WorkerStats:
        """What it does, and has done."""
        consumer = self._consumer
        if consumer is None:
            consumer = Consumer(self.settings, self._handlers, self._chain, self.codecs)
        return _stats(consumer)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        received: list[signal.Signals] = []

        def on_signal(number: signal.Signals) -> None:
            received.append(number)
            if len(received) == 1:
                _log.info("%s: draining; a second signal stops at once", number.name)
                self.drain()
            elif task is not None:
                task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError):  # on Windows Ctrl-C stops at once
                loop.add_signal_handler(number, on_signal, number)
        try:
            await self.serve()
        except asyncio.CancelledError:
            if not received:
                raise
            raise SystemExit(128 + received[-1]) from None
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                with suppress(NotImplementedError):
                    loop.remove_signal_handler(number)


def _stats(consumer: Consumer) -> WorkerStats:
    session, executor, tally = consumer.session, consumer.executor, consumer.tally
    attached = session is not None and session.phase in {Phase.ATTACHED, Phase.LEAVING}
    counts = Counts() if executor is None else executor.counts
    return WorkerStats(
        attached=attached,
        running=0 if executor is None else executor.busy,
        buffered=0 if session is None else session.buffered,
        parked=0 if session is None else session.parked,
        unanswered=0 if session is None else session.unanswered,
        prefetch=0 if session is None else session.prefetch,
        handling_seconds=None if executor is None else executor.handling_seconds,
        acked=counts.acked,
        retried=counts.retried,
        released=counts.released,
        dead_lettered=counts.dead_lettered,
        confirmed=tally.confirmed,
        stale=tally.stale,
        rejected=counts.rejected,
        lost=counts.lost,
        unknown=counts.unknown,
        settlements_lost=tally.unanswered,
        attachments=tally.attached,
    )
