"""What no handler here knows is set aside for a while, then released.

A RELEASE has no delay, and what is released is offered again at once, maybe to the same worker. Released at once it
would come round thousands of times a second; so it is held, longer each time, and its queue's other messages get
room of their own meanwhile (`prefetch.py`).
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from kyogo.delivery import Delivery
from kyogo.session import Session

_log = logging.getLogger("kyogo.worker")

HOLD_SECONDS: Final = 1.0
HOLD_SECONDS_MAX: Final = 30.0
_KINDS_MAX: Final = 1_000
"""Types come from publishers: beyond so many they share one place."""


@dataclass(slots=True)
class _Kind:
    hold: float = HOLD_SECONDS
    waiting: list[Delivery] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None


class Parking:
    """What one session has set aside."""

    def __init__(self, session: Session, wake: Callable[[], None]) -> None:
        self._session = session
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def park(self, delivery: Delivery) -> None:
        """Hold one until its kind is released."""
        name = (delivery.queue, delivery.type)
        if name not in self._kinds and len(self._kinds) >= _KINDS_MAX:
            name = (delivery.queue, "")
        kind = self._kinds.setdefault(name, _Kind())
        kind.waiting.append(delivery)
        self._session.park(delivery)
        if kind.timer is None:
            kind.timer = self._loop.call_later(kind.hold, self._release, name, kind)

    def close(self) -> None:
        """The session is over: nothing is left to release."""
        for kind in self._kinds.values():
            if kind.timer is not None:
                kind.timer.cancel()
        self._kinds.clear()

    def _release(self, name: tuple[str, str], kind: _Kind) -> None:
        for delivery in kind.waiting:
            self._session.release(delivery)
        _log.warning(
            "%d messages of queue %r and type %r were released: this worker has no handler for them. Register one with"
            " @app.handle(%r, type=%r), or a catch-all without type",
            len(kind.waiting),
            *name,
            *name,
        )
        kind.waiting.clear()
        kind.timer = None
        kind.hold = min(kind.hold * 2, HOLD_SECONDS_MAX)
        self._wake()
