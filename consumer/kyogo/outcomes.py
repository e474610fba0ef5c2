"""How a delivery ends, and how a handler says so.

Returning means ACK. Raising `Retry`, `DeadLetter` or `Release` says otherwise, and any other exception is a RETRY
with its type and text. `judge` is that rule, and the only place that knows it.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Final

REASON_BYTES_MAX: Final = 4_096
"""The broker cuts reasons here; cut before sending so that a huge repr never travels."""
ERROR_TYPE_BYTES_MAX: Final = 256
RETRY_SECONDS_MAX: Final = 365 * 24 * 3_600
"""The broker's bound."""


class Outcome(IntEnum):
    """The contract's outcomes, with its numbers."""

    ACK = 1
    """Done; never delivered again."""
    RETRY = 2
    """Failed; again after the queue's backoff or the given delay. Counts as a failure."""
    RELEASE = 3
    """Given back uncharged, to its place."""
    DEAD_LETTER = 4
    """Failed for good; goes to the dead-letter queue."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """How one delivery ended. Equal ones travel together."""

    outcome: Outcome
    delay_ms: int | None = None
    """For RETRY, instead of the queue's backoff. 0: at once."""
    reason: str = ""
    error_type: str = ""


ACK: Final = Settlement(Outcome.ACK)
RELEASE: Final = Settlement(Outcome.RELEASE)


class Signal(Exception):  # noqa: N818 - what a handler says on purpose is no error
    """What a handler raises to end a delivery otherwise than with an ACK."""

    outcome: Outcome

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


class Retry(Signal):
    """Again later, charged as a failure."""

    outcome = Outcome.RETRY

    def __init__(self, reason: str = "", *, after: float | timedelta | None = None) -> None:
        """Ask for another attempt.

        Args:
            reason: for people. Default: the text of the exception this one is raised from.
            after: seconds to wait instead of the queue's backoff. 0: at once.

        Raises:
            ValueError: a negative time, or more than a year.
        """
        seconds = after.total_seconds() if isinstance(after, timedelta) else after
        if seconds is not None and not 0 <= seconds <= RETRY_SECONDS_MAX:
            raise ValueError(f"after={after} is out of bounds: give the seconds to wait, 0 for at once, a year at most")
        super().__init__(reason, after=seconds)


class DeadLetter(Signal):
    """Never again: to the dead-letter queue, with a reason."""

    outcome = Outcome.DEAD_LETTER

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)


class Release(Signal):
    """Given back uncharged; it may come again at once, here or elsewhere."""

    outcome = Outcome.RELEASE

    def __init__(self) -> None:
        super().__init__()


def judge(error: BaseException, no_retry: tuple[type[BaseException], ...] = ()) -> Settlement:
    """How a delivery ends whose handler raised."""
    if isinstance(error, Signal):
        return _from_signal(error)
    outcome = Outcome.DEAD_LETTER if no_retry and isinstance(error, no_retry) else Outcome.RETRY
    return Settlement(outcome, reason=_text(error), error_type=_name(error))


def _from_signal(signal: Signal) -> Settlement:
    if signal.outcome is Outcome.RELEASE:
        return RELEASE
    cause = signal.__cause__
    reason, error_type = cut(str(signal.reason), REASON_BYTES_MAX), ""
    if cause is not None:  # `raise Retry(after=5) from error` keeps what went wrong
        error_type = _name(cause)
        reason = reason if reason else _text(cause)
    delay_ms = None if signal.after is None else round(signal.after * 1_000)
    return Settlement(signal.outcome, delay_ms=delay_ms, reason=reason, error_type=error_type)


def cut(text: str, bytes_max: int) -> str:
    """The text, at most so many bytes of UTF-8, and valid in it."""
    encoded = text.encode("utf-8", "replace")[:bytes_max]
    return encoded.decode("utf-8", "ignore")


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception as unprintable:  # noqa: BLE001 - a broken __str__ must not end the worker
        text = f"unprintable, its __str__ raised {type(unprintable).__name__}"
    return cut(text, REASON_BYTES_MAX)


def _name(error: BaseException) -> str:
    return cut(type(error).__name__, ERROR_TYPE_BYTES_MAX)
