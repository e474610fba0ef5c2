"""How many messages a worker asks to hold."""

from typing import Any

import pytest

from kyogo import prefetch


@pytest.mark.parametrize(
    ("concurrency", "seconds", "parked", "expected"),
    [
        (16, None, 0, 32),
        (1, None, 0, 2),
        (16, 60.0, 0, 17),  # slow handlers: nothing lies about here that another could do
        (16, 0.1, 0, 24),
        (16, 0.01, 0, 96),
        (16, 0.000_01, 0, 16 + 2_048),
        (16, 0.0, 0, 16 + 2_048),
        (1_000, 1.0, 0, 1_050),
        (16, 60.0, 10, 27),
        (16, 60.0, 10_000, 17 + 256),
    ],
)
def test_wanted(concurrency: Any, seconds: Any, parked: Any, expected: Any) -> None:
    assert prefetch.wanted(concurrency, seconds, parked) == expected


@pytest.mark.parametrize("seconds", [None, 0.0, 0.001, 1.0, 1e9])
def test_never_below_concurrency(seconds: Any) -> None:
    assert all(prefetch.wanted(c, seconds) > c for c in (1, 7, 500))


@pytest.mark.parametrize(
    ("old", "new", "worth"),
    [
        (32, 32, False),
        (32, 36, False),
        (32, 40, True),
        (40, 32, True),
        (2, 3, True),
        (0, 16, True),
        (2_064, 2_000, False),
    ],
)
def test_small_changes_are_not_worth_a_frame(old: Any, new: Any, worth: Any) -> None:
    assert prefetch.differs(old, new) is worth
