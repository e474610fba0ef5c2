"""The last minute, and what falls out of it."""

import pytest

from kyogo_broker.model.stats import EngineStats, Histogram
from kyogo_broker.ops.recent import WINDOW_SAMPLES, RecentFigures, quantile

BOUNDS = (0.001, 0.002, 0.004)


def stats(*counts: int, stalled: float = 0.0) -> EngineStats:
    return EngineStats(0, sum(counts), 0, Histogram(BOUNDS, counts), 0, 0.0, stalled)


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ((0, 0, 0, 0), 0.5, 0.0),
        ((10, 0, 0, 0), 0.5, 0.0005),
        ((10, 0, 0, 0), 1.0, 0.001),
        ((5, 5, 0, 0), 0.5, 0.001),
        ((5, 5, 0, 0), 0.75, 0.0015),
        ((0, 0, 10, 0), 0.5, 0.003),
        ((0, 0, 0, 10), 0.5, 0.004),
    ],
)
def test_quantiles_lie_within_their_bucket(counts: tuple[int, ...], share: float, expected: float) -> None:
    assert quantile(BOUNDS, counts, share) == pytest.approx(expected)


def test_only_the_last_minute_counts() -> None:
    recent = RecentFigures()
    recent.sample(stats(0, 0, 0, 0))
    recent.sample(stats(0, 0, 100, 0, stalled=2.0))
    assert recent.last_minute(stats(0, 0, 100, 0)).commit_p50_ms == pytest.approx(3.0)
    assert recent.last_minute(stats(0, 0, 100, 0)).stall_max_ms == pytest.approx(2_000)
    for _ in range(WINDOW_SAMPLES):
        recent.sample(stats(10, 0, 100, 0, stalled=2.0))
    now = recent.last_minute(stats(20, 0, 100, 0))
    assert now.commit_p50_ms == pytest.approx(0.5)
    assert now.stall_max_ms == 0.0


def test_before_the_first_sample_everything_counts() -> None:
    assert RecentFigures().last_minute(stats(10, 0, 0, 0)).commit_p99_ms == pytest.approx(0.99)
