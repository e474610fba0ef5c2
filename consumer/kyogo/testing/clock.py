"""A clock that goes on by itself and can be moved ahead."""

from kyogo_broker.clock import Clock
from kyogo_broker.model.now import Now


class MovableClock(Clock):
    """Real time, and what was added to it."""

    def __init__(self) -> None:
        super().__init__()
        self._ahead_ms = 0

    def advance(self, seconds: float) -> None:
        """Move ahead, the wall clock too."""
        self._ahead_ms += round(seconds * 1_000)

    def now(self) -> Now:
        """Both clocks, as moved."""
        steady_ms, unix_ms = super().now()
        return Now(steady_ms + self._ahead_ms, unix_ms + self._ahead_ms)
