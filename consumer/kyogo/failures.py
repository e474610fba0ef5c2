"""Failures of handlers in the log: each kind in full once a second, the rest counted.

A broken deployment fails thousands of times a second, always in the same way.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kyogo.handlers import Handler
from kyogo.message import Message
from kyogo.outcomes import Settlement, Signal

_log = logging.getLogger("kyogo.worker")

_EVERY_SECONDS: Final = 1.0
_KINDS_MAX: Final = 1_000


@dataclass(slots=True)
class _Kind:
    due: float
    skipped: int = 0


class FailureLog:
    """What one worker's handlers raised."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def record(self, handler: Handler, message: Message, settlement: Settlement, error: BaseException) -> None:
        """A handler raised; this is what became of its message."""
        now = self._clock()
        name = (handler.name, settlement.error_type)
        if name not in self._kinds and len(self._kinds) >= _KINDS_MAX:
            self._kinds.clear()
        kind = self._kinds.setdefault(name, _Kind(due=now))
        if now < kind.due:
            kind.skipped += 1
            return
        more = f" ({kind.skipped} more like it were not shown)" if kind.skipped else ""
        if isinstance(error, Signal):  # said on purpose: no traceback
            _log.warning("%s %r: %s: %s%s", settlement.outcome.name, message, handler.name, settlement.reason, more)
        else:
            _log.error("%s %r: %s failed%s", settlement.outcome.name, message, handler.name, more, exc_info=error)
        kind.due = now + _EVERY_SECONDS
        kind.skipped = 0
