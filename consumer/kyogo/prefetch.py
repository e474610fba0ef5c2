"""How many messages a worker asks to hold: enough to stay busy, no more.

    prefetch = concurrency + what it finishes in 50 ms, at least 1, at most 2,048 (+ what is parked)

50 ms is many round trips to a broker, so that a fast worker never runs dry between two deliveries; a worker whose
handlers take seconds holds one message more than it runs, and nothing waits there that another could do. Pure.
"""

from typing import Final

AHEAD_SECONDS: Final = 0.05
BUFFER_MAX: Final = 2_048
PARKED_MAX: Final = 256
"""Room is made for so many that nothing here can handle; beyond, they do cost room, and a worker that gets nothing
else stops asking."""
_CHANGE_MIN: Final = 1.25
"""Smaller changes are not worth a frame."""


def wanted(concurrency: int, handling_seconds: float | None, parked: int = 0) -> int:
    """The prefetch in messages.

    Args:
        concurrency: how many handlers may run at once.
        handling_seconds: the mean time of one handler. None: not known yet.
        parked: held, and set aside.
    """
    if handling_seconds is None:
        ahead = concurrency
    elif handling_seconds * BUFFER_MAX <= AHEAD_SECONDS * concurrency:
        ahead = BUFFER_MAX
    else:
        ahead = max(1, round(AHEAD_SECONDS * concurrency / handling_seconds))
    return concurrency + min(ahead, BUFFER_MAX) + min(parked, PARKED_MAX)


def differs(old: int, new: int) -> bool:
    """Whether a change is worth telling the broker."""
    small, large = sorted((old, new))
    return small == 0 or large >= small * _CHANGE_MIN or (large > small and small < 1 / (_CHANGE_MIN - 1))
