"""One reading of both clocks; what they are is said in `clock`."""

from typing import NamedTuple


class Now(NamedTuple):
    """Steady time never jumps, unix time is the wall clock; both in milliseconds since 1970."""

    steady_ms: int
    unix_ms: int
