"""Logs: for people on a terminal, JSON everywhere else; always to stderr, always one line an event.

Whatever clients send (names, reasons) may stand in a log, so control characters are escaped before any
renderer sees them. Notices of the shard become lines here; when one kind comes in masses, some lines and then
a count.
"""

import asyncio
import logging
import sys
from collections import Counter
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal, TextIO

import structlog

from kyogo_broker.model.effects import Notice

LogFormat = Literal["auto", "console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

NOTICE_WINDOW_SECONDS = 10.0
NOTICES_IN_A_WINDOW = 20
"""Lines of one kind in a window; what is beyond is counted. A thousand consumers lost at once are 20 lines
and a sum."""
KINDS_MAX = 100
"""Of notices counted apart; the shard has some twenty."""

_WARNINGS = frozenset(
    {"consumer_lost", "consumer_suspect", "consumer_failed", "dead_letter", "dead_letter_dropped", "pressure"}
)


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How much is logged, and how it looks."""

    format: LogFormat = "auto"
    """`auto`: console on a terminal, JSON otherwise."""
    level: LogLevel = "info"


def configure_logs(settings: LogSettings, stream: TextIO | None = None) -> bool:
    """Set up structlog, and the standard library's logging through it.

    Returns:
        Whether the logs are for people.
    """
    out = sys.stderr if stream is None else stream
    people = settings.format == "console" or (settings.format == "auto" and out.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if people else "iso", utc=not people),
    ]
    if people:
        shared.append(_one_line)
        renderer: structlog.typing.Processor = structlog.dev.ConsoleRenderer(colors=out.isatty())
    else:
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer(sort_keys=False)
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("kyogo").setLevel(level)
    # It warns of every bad request, and how many lines there are would be up to whoever sends them.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    return people


class NoticeLog:
    """Writes the shard's notices; a sink for the engine."""

    def __init__(self, later: Callable[[float, Callable[[], None]], object] | None = None) -> None:
        """A log with empty windows.

        Args:
            later: calls a function after some seconds; None: the running loop's `call_later`.
        """
        self._log = structlog.stdlib.get_logger("kyogo.shard")
        self._later = later
        self._written: Counter[str] = Counter()
        self._held_back: Counter[str] = Counter()
        self._window_open = False

    def __call__(self, notice: Notice) -> None:
        """Write a notice, or count it."""
        kind = notice.event if notice.event in self._written or len(self._written) < KINDS_MAX else "other"
        if not self._window_open:
            self._open_window()
        self._written[kind] += 1
        if self._written[kind] > NOTICES_IN_A_WINDOW:
            self._held_back[kind] += 1
            return
        self._line(notice.event, **notice.fields)

    def _open_window(self) -> None:
        self._window_open = True
        later = asyncio.get_running_loop().call_later if self._later is None else self._later
        later(NOTICE_WINDOW_SECONDS, self._close_window)

    def _close_window(self) -> None:
        self._window_open = False
        for event, count in self._held_back.items():
            self._line(event, more=count, seconds=int(NOTICE_WINDOW_SECONDS))
        self._written.clear()
        self._held_back.clear()

    def _line(self, event: str, **fields: str | int) -> None:
        write = self._log.warning if event in _WARNINGS else self._log.info
        write(event, **fields)


def _one_line(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ANN401
    """Escape what would break a line, or steer a terminal; JSON does so by itself."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = value.encode("unicode_escape").decode()
    return event
