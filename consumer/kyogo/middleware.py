"""What runs around every handler of a worker.

`before` and `around` decide the outcome: what they raise counts like the handler's own exception, and an `around`
that does not call on means ACK. `after` is told the outcome once it is decided; an error in it is logged and the
outcome stands. All run on the loop, in front of handlers in threads too: keep them short or `async`.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias, TypeVar

from kyogo.errors import ConfigurationError
from kyogo.message import Message
from kyogo.outcomes import Settlement

_log = logging.getLogger("kyogo.middleware")

CallNext: TypeAlias = Callable[[], Awaitable[None]]
"""Goes on inwards, to the next middleware and at last the handler."""
Before: TypeAlias = Callable[[Message], Awaitable[None] | None]
Around: TypeAlias = Callable[[Message, CallNext], Awaitable[None]]
After: TypeAlias = Callable[[Message, Settlement], Awaitable[None] | None]

BeforeT = TypeVar("BeforeT", bound=Before)
AroundT = TypeVar("AroundT", bound=Around)
AfterT = TypeVar("AfterT", bound=After)


class Middleware:
    """All three in one object: override what is needed, pass it to `Worker.use`."""

    async def before(self, message: Message) -> None:
        """Called before the handler; raise to decide the outcome."""

    async def around(self, message: Message, call_next: CallNext) -> None:  # noqa: ARG002 - for subclasses
        """Called instead of the handler; `await call_next()` runs it."""
        await call_next()

    async def after(self, message: Message, settlement: Settlement) -> None:
        """Called once the outcome is decided."""


class Chain:
    """A worker's middleware, in the order of registration: the first is the outermost."""

    def __init__(self) -> None:
        self._around: list[Around] = []
        self._after: list[After] = []

    @property
    def wraps(self) -> bool:
        """Whether anything stands in front of handlers; else they are called directly."""
        return bool(self._around)

    @property
    def follows(self) -> bool:
        """Whether anything is to be told about outcomes."""
        return bool(self._after)

    def add_before(self, hook: Before) -> None:
        """Run something first."""

        async def around(message: Message, call_next: CallNext) -> None:
            waiting = hook(message)
            if waiting is not None:
                await waiting
            await call_next()

        self._around.append(around)

    def add_around(self, hook: Around) -> None:
        """Run something instead."""
        if not inspect.iscoroutinefunction(hook) and not inspect.iscoroutinefunction(type(hook).__call__):
            raise ConfigurationError("an `around` middleware has to be `async def`: it awaits call_next()")
        self._around.append(hook)

    def add_after(self, hook: After) -> None:
        """Tell something."""
        self._after.append(hook)

    def add(self, middleware: Middleware) -> None:
        """Add those of the three that the object overrides."""
        kind = type(middleware)
        if kind.before is not Middleware.before:
            self.add_before(middleware.before)
        if kind.around is not Middleware.around:
            self.add_around(middleware.around)
        if kind.after is not Middleware.after:
            self.add_after(middleware.after)

    async def run(self, message: Message, handler: CallNext) -> None:
        """Run the handler inside of everything."""
        call_next = handler
        for hook in reversed(self._around):
            call_next = _bind(hook, message, call_next)
        await call_next()

    async def tell(self, message: Message, settlement: Settlement) -> None:
        """Tell everything about an outcome; nothing that happens here changes it."""
        for hook in self._after:
            try:
                waiting = hook(message, settlement)
                if waiting is not None:
                    await waiting
            except Exception:  # noqa: BLE001 - the application's, whatever it is
                _log.exception("an `after` middleware failed on %r; its %s stands", message, settlement.outcome.name)


def _bind(hook: Around, message: Message, call_next: CallNext) -> CallNext:
    return lambda: hook(message, call_next)


# --- idempotency ---


class IdempotencyStore(Protocol):
    """Remembers what was done. Use one that all workers share, such as the database that the handler writes to."""

    async def seen(self, key: str) -> bool:
        """Whether a message was handled before."""

    async def remember(self, key: str) -> None:
        """It has been handled now."""


def idempotent(store: IdempotencyStore) -> Around:
    """Middleware that skips (and acks) what was done before.

    The key is the message's id, else its queue and offset. What fails between the handler's end and `remember` is
    done twice: where that matters, remember in the handler's own transaction.
    """

    async def around(message: Message, call_next: CallNext) -> None:
        key = message.id if message.id else f"{message.queue}/{message.offset}"
        if await store.seen(key):
            _log.info("skipped %r: done before", message)
            return
        await call_next()
        await store.remember(key)

    return around
