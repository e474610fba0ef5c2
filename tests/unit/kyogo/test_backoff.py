"""Waiting times between tries."""

import random
from typing import Any

import pytest

from kyogo.backoff import Backoff, BackoffSettings
from kyogo.errors import ConfigurationError


def backoff(seed: Any = 1, **settings: Any) -> Any:
    return Backoff(BackoffSettings(**settings), random.Random(seed))


def test_bounds_double_up_to_the_maximum() -> None:
    bounds = [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    for seed in range(50):
        series = backoff(seed, initial=0.1, maximum=1.0)
        waits = [series.next() for _ in bounds]
        assert all(0 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))


def test_the_whole_range_is_used() -> None:
    waits = [backoff(seed, initial=1.0, maximum=1.0).next() for seed in range(200)]
    assert min(waits) < 0.05
    assert max(waits) > 0.95


def test_success_is_remembered() -> None:
    series = backoff(initial=0.1, maximum=100.0)
    for _ in range(20):
        series.next()
    series.reset()
    assert series.next() <= 0.1


def test_what_the_other_side_asked_for_is_waited_for_and_then_spread() -> None:
    waits = [backoff(seed, initial=0.5, maximum=1.0).next(at_least=3.0) for seed in range(100)]
    assert all(3.0 <= wait <= 3.5 for wait in waits)
    assert len(set(waits)) > 90


def test_a_million_failures_do_not_overflow() -> None:
    series = backoff(initial=0.1, maximum=15.0)
    series.failures = 1_000_000
    assert series.next() <= 15.0


@pytest.mark.parametrize("settings", [{"initial": 0}, {"initial": 2, "maximum": 1}, {"multiplier": 0.5}])
def test_settings_that_cannot_work_are_refused(settings: Any) -> None:
    with pytest.raises(ConfigurationError):
        BackoffSettings(**settings)
