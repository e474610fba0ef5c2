"""What a handler's end means."""

from datetime import timedelta
from typing import Any

import pytest

from kyogo.errors import TimeLimitExceeded
from kyogo.outcomes import RELEASE, DeadLetter, Outcome, Release, Retry, Settlement, cut, judge
from kyogo.v1 import broker_pb2 as pb


def from_cause(signal: Any) -> Any:
    try:
        raise signal from KeyError("k")
    except type(signal) as error:
        return error


JUDGED = [
    (ValueError("boom"), (), Settlement(Outcome.RETRY, reason="boom", error_type="ValueError")),
    (ValueError("boom"), (ValueError,), Settlement(Outcome.DEAD_LETTER, reason="boom", error_type="ValueError")),
    (UnicodeError("boom"), (OSError, ValueError), Settlement(Outcome.DEAD_LETTER, None, "boom", "UnicodeError")),
    (KeyError("k"), (ValueError,), Settlement(Outcome.RETRY, reason="'k'", error_type="KeyError")),
    (SystemExit(3), (), Settlement(Outcome.RETRY, reason="3", error_type="SystemExit")),
    (Retry(), (Exception,), Settlement(Outcome.RETRY)),
    (Retry(after=0), (), Settlement(Outcome.RETRY, delay_ms=0)),
    (Retry(after=timedelta(minutes=1)), (), Settlement(Outcome.RETRY, delay_ms=60_000)),
    (Retry("busy", after=1.5), (), Settlement(Outcome.RETRY, delay_ms=1_500, reason="busy")),
    (from_cause(Retry(after=2)), (), Settlement(Outcome.RETRY, delay_ms=2_000, reason="'k'", error_type="KeyError")),
    (from_cause(DeadLetter("no")), (), Settlement(Outcome.DEAD_LETTER, reason="no", error_type="KeyError")),
    (DeadLetter("no"), (), Settlement(Outcome.DEAD_LETTER, reason="no")),
    (Release(), (Exception,), RELEASE),
]


@pytest.mark.parametrize(("error", "no_retry", "settlement"), JUDGED)
def test_judge(error: Any, no_retry: Any, settlement: Any) -> None:
    assert judge(error, no_retry) == settlement


def test_a_time_limit_is_a_retry_of_that_name() -> None:
    settlement = judge(TimeLimitExceeded("too slow"))
    assert (settlement.outcome, settlement.error_type) == (Outcome.RETRY, "TimeLimitExceeded")


def test_reasons_are_cut_where_the_broker_cuts() -> None:
    settlement = judge(ValueError("ü" * 5_000))
    assert len(settlement.reason.encode()) <= 4_096
    assert settlement.reason == "ü" * 2_048


def test_cutting_never_leaves_half_a_character_nor_what_cannot_be_sent() -> None:
    assert cut("aü", 2) == "a"
    assert cut("\ud800x", 10).encode() == b"?x"


def test_an_exception_that_cannot_be_printed_is_no_other_error() -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert "unprintable" in judge(BrokenError()).reason


@pytest.mark.parametrize("after", [-1, -0.1, float("nan"), float("inf"), 1e300, timedelta(days=366)])
def test_a_retry_out_of_bounds_is_refused(after: float | timedelta) -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        Retry(after=after)


def test_the_numbers_are_the_contracts() -> None:
    assert {o.name: o.value for o in Outcome} == {
        name.removeprefix("OUTCOME_"): number for name, number in pb.Outcome.items() if number
    }
