"""The last minute, from figures that only ever grow: the oldest snapshot is taken off the newest."""

from collections import deque
from dataclasses import dataclass

from kyogo_broker.model.stats import EngineStats, Histogram

SAMPLE_SECONDS = 1.0
WINDOW_SAMPLES = 60


@dataclass(frozen=True, slots=True)
class Recent:
    """Of the last minute, in milliseconds; 0 where nothing happened."""

    commit_p50_ms: float
    commit_p99_ms: float
    stall_max_ms: float
    """The longest time within one second in which the loop stood still."""


class RecentFigures:
    """Takes a sample a second."""

    def __init__(self) -> None:
        self._commits: deque[Histogram] = deque(maxlen=WINDOW_SAMPLES + 1)
        self._stalls: deque[float] = deque(maxlen=WINDOW_SAMPLES)
        self._stalled_seconds = 0.0

    def sample(self, stats: EngineStats) -> None:
        """Note the figures as of now."""
        self._commits.append(stats.commit_seconds)
        self._stalls.append(stats.stalled_seconds - self._stalled_seconds)
        self._stalled_seconds = stats.stalled_seconds

    def last_minute(self, stats: EngineStats) -> Recent:
        """What happened between the oldest sample and now."""
        newest = stats.commit_seconds
        oldest = self._commits[0] if self._commits else Histogram(newest.bounds, (0,) * len(newest.counts))
        counts = tuple(new - old for new, old in zip(newest.counts, oldest.counts, strict=True))
        return Recent(
            commit_p50_ms=1000 * quantile(newest.bounds, counts, 0.5),
            commit_p99_ms=1000 * quantile(newest.bounds, counts, 0.99),
            stall_max_ms=1000 * max(self._stalls, default=0.0),
        )


def quantile(bounds: tuple[float, ...], counts: tuple[int, ...], share: float) -> float:
    """A quantile of a histogram, evenly spread within its bucket; the highest bound for what is above it."""
    rank = share * sum(counts)
    below, low = 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and below + count >= rank:
            return low + (bound - low) * (rank - below) / count
        below += count
        low = bound
    return low if below < sum(counts) else 0.0
