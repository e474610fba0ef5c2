"""Logs: one line an event whatever clients send, and never a flood."""

import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest
import structlog

from kyogo_broker.model.effects import Notice
from kyogo_broker.ops.logs import NOTICES_IN_A_WINDOW, LogSettings, NoticeLog, configure_logs


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


def configured(out: io.StringIO, **settings: str) -> list[str]:
    configure_logs(LogSettings(**settings), out)  # type: ignore[arg-type]
    return []


def lines(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_without_a_terminal_logs_are_json(out: io.StringIO) -> None:
    assert configure_logs(LogSettings(), out) is False
    structlog.stdlib.get_logger("kyogo.x").info("hello", queue="q", count=3)
    [line] = lines(out)
    assert (line["event"], line["queue"], line["count"], line["level"]) == ("hello", "q", 3, "info")
    assert "timestamp" in line


def test_a_terminal_gets_text() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    assert configure_logs(LogSettings(), out) is True
    structlog.stdlib.get_logger("kyogo.x").info("hello", queue="q")
    assert "hello" in out.getvalue()
    assert not out.getvalue().startswith("{")


@pytest.mark.parametrize("format_", ["console", "json"])
@pytest.mark.parametrize("hostile", ["a\r\nb", "\x1b[31mred", "nul\x00", "line\u2028separator", "\u202egnp.exe"])
def test_what_clients_send_stays_on_one_line(out: io.StringIO, format_: str, hostile: str) -> None:
    configured(out, format=format_)
    structlog.stdlib.get_logger("kyogo.x").warning("consumer_lost", consumer=hostile)
    logging.getLogger("other").warning("said %s", hostile)
    text = out.getvalue()
    assert len(text.splitlines()) == 2
    assert hostile not in text
    assert all(character.isprintable() for character in text.replace("\n", ""))


def test_the_level_holds(out: io.StringIO) -> None:
    configured(out, level="warning")
    log = structlog.stdlib.get_logger("kyogo.x")
    log.info("quiet")
    log.warning("loud")
    assert [line["event"] for line in lines(out)] == ["loud"]


def test_other_libraries_log_the_same_way_from_warning_on(out: io.StringIO) -> None:
    configured(out, level="debug")
    logging.getLogger("asyncio").info("chatter")
    logging.getLogger("asyncio").warning("never retrieved\n%s", "x")
    [line] = lines(out)
    assert line["level"] == "warning"


def test_an_exception_is_one_line_of_json(out: io.StringIO) -> None:
    configured(out)
    try:
        int("x")
    except ValueError:
        structlog.stdlib.get_logger("kyogo.x").exception("call_failed")
        logging.getLogger("grpc").exception("call_failed")
    assert all("ValueError" in str(line["exception"]) for line in lines(out))
    assert len(lines(out)) == 2


class Later:
    """Time for `NoticeLog`, by hand."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, seconds: float, call: Callable[[], None]) -> None:
        self.calls.append((seconds, call))

    def pass_by(self) -> None:
        calls, self.calls = self.calls, []
        for _, call in calls:
            call()


def test_notices_are_lines_with_their_fields(out: io.StringIO) -> None:
    configured(out)
    log = NoticeLog(Later())
    log(Notice("queue_created", {"queue": "orders"}))
    log(Notice("consumer_lost", {"consumer": "c", "started": 3}))
    first, second = lines(out)
    assert (first["event"], first["queue"], first["level"]) == ("queue_created", "orders", "info")
    assert (second["event"], second["started"], second["level"]) == ("consumer_lost", 3, "warning")


def test_masses_of_one_kind_become_some_lines_and_a_count(out: io.StringIO) -> None:
    configured(out)
    later = Later()
    log = NoticeLog(later)
    for number in range(1_000):
        log(Notice("consumer_lost", {"consumer": str(number)}))
    log(Notice("queue_created", {"queue": "orders"}))
    assert len(later.calls) == 1, "one timer, however many notices"
    assert len(lines(out)) == NOTICES_IN_A_WINDOW + 1
    later.pass_by()
    [summary] = lines(out)[NOTICES_IN_A_WINDOW + 1 :]
    assert (summary["event"], summary["more"]) == ("consumer_lost", 1_000 - NOTICES_IN_A_WINDOW)
    log(Notice("consumer_lost", {"consumer": "again"}))
    assert lines(out)[-1]["consumer"] == "again"
    later.pass_by()
    assert later.calls == [], "nothing happens, no timer runs"


def test_kinds_are_bounded(out: io.StringIO) -> None:
    configured(out)
    log = NoticeLog(Later())
    for number in range(10_000):
        log(Notice(f"event_{number}"))
    assert len(lines(out)) < 200
