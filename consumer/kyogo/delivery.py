"""A delivery's life, as the session and the executor see it. Handlers are given it as a `Message`.

BUFFERED --begin--> RUNNING --settle--> SETTLING --answered--> GONE
|  ^                 ^                  |
v  | resume          +----rejected------+
PARKED                                            any --lost--> GONE
+-- release / return, from BUFFERED too --> SETTLING
"""

from typing import Final

from kyogo import wire
from kyogo.message import LOST_LOCK, Message, Run

# Plain numbers: compared several times for each message.
BUFFERED: Final = 0
"""Held, not begun."""
PARKED: Final = 1
"""Held, not begun, and set aside: no handler here knows its type."""
RUNNING: Final = 2
"""Its handler has begun."""
SETTLING: Final = 3
"""Settled here, not answered yet."""
GONE: Final = 4
"""Answered, or no longer ours."""


class Delivery(Message):
    """One delivery in its life."""

    __slots__ = ("state",)

    def __init__(self, message: wire.Message, run: Run, fence: int, offset: int) -> None:
        # Not super().__init__: this runs for each message.
        self._wire = message
        self._run = run
        self.fence = fence
        self.offset = offset
        self._stopped = False
        self._publishes = None
        self._lost = None
        self.state = BUFFERED

    @property
    def run(self) -> Run:
        """What it has in common with its neighbours."""
        return self._run

    @property
    def publishes(self) -> list[tuple[str, bytes]] | None:
        """What its handler published with it: destination and encoded message."""
        return self._publishes

    @property
    def stopped(self) -> bool:
        """Whether its handler was told to stop."""
        return self._stopped

    def drop_publishes(self) -> None:
        """It does not end with an ACK: nothing of what it published may be stored."""
        self._publishes = None

    def stop(self) -> None:
        """Tell the handler that going on is pointless."""
        with LOST_LOCK:
            self._stopped = True
            event = self._lost
        if event is not None:
            event.set()
