"""What waits to be read by all consumers together.

Each consumer is bounded by its prefetch; a hundred of them that ask for all they may and read nothing would still fill
the memory. So the sum has a limit too. At it the one whose frame has been under way the longest is lost: who reads,
however slowly, gets a frame through now and then, who does not read never does.
"""

from typing import Protocol

from kyogo_broker.server.limits import MAX_UNREAD_BYTES


class Reader(Protocol):
    """One consumer's stream."""

    def writing_since(self) -> float | None:
        """When the frame that is under way was begun; None: none is, or the stream is given up already."""

    def give_up(self) -> None:
        """Lose the consumer, and remove at once what waits for it."""


class Unread:
    """Bytes of messages in the outboxes of all consumers of a server."""

    def __init__(self, bytes_max: int = MAX_UNREAD_BYTES) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._readers: dict[Reader, int] = {}
        """Those for whom anything waits."""

    def add(self, reader: Reader, octets: int) -> None:
        """So much more waits for one; another one, or it itself, may be given up for it."""
        self._bytes += octets
        self._readers[reader] = self._readers.get(reader, 0) + octets
        while self._bytes > self._bytes_max:
            since = {each: begun for each in self._readers if (begun := each.writing_since()) is not None}
            if not since:
                return
            min(since, key=lambda each: (since[each], -self._readers[each])).give_up()

    def remove(self, reader: Reader, octets: int) -> None:
        """So much was written, or is forgotten."""
        left = self._readers.get(reader, 0) - octets
        self._bytes -= octets
        if left:
            self._readers[reader] = left
        else:
            self._readers.pop(reader, None)

    def waiting(self, reader: Reader) -> int:
        """Bytes that wait for one."""
        return self._readers.get(reader, 0)
