"""How long to wait before trying again: exponential, full jitter, forgotten after success.

Full jitter (uniform between 0 and the bound) spreads clients that lost the same broker at the same moment; see
"Exponential Backoff And Jitter", AWS Architecture Blog, 2015. Pure but for the generator it is given.
"""

import random
from dataclasses import dataclass, field

from kyogo.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class BackoffSettings:
    """The shape of the waiting times, in seconds."""

    initial: float = 0.1
    """The bound of the first wait."""
    maximum: float = 15.0
    """No wait is longer, so that a broker that comes back is found within it."""
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.initial <= self.maximum or self.multiplier < 1:
            raise ConfigurationError("a backoff needs 0 < initial <= maximum and a multiplier of at least 1")


@dataclass(slots=True)
class Backoff:
    """One series of tries."""

    settings: BackoffSettings = field(default_factory=BackoffSettings)
    chance: random.Random = field(default_factory=random.Random)
    failures: int = 0
    """In a row, since the last success."""

    def next(self, *, at_least: float = 0.0) -> float:
        """The wait after one more failure, in seconds.

        Args:
            at_least: what the other side asked for; jitter comes on top of it, so that not all come at once.
        """
        bound = self.settings.initial
        for _ in range(self.failures):  # not a power: a million failures in a row must not overflow
            bound *= self.settings.multiplier
            if bound >= self.settings.maximum:
                break
        self.failures += 1
        return at_least + self.chance.uniform(0.0, min(bound, self.settings.maximum))

    def reset(self) -> None:
        """The last try succeeded."""
        self.failures = 0
