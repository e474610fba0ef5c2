"""The only loop: inbox -> shard -> journal -> release.

One turn takes everything that waits, reads the clock once, lets the shard handle it and then tick, appends the facts
as one record if somebody waits for one of them, and releases the effects in order once the record is durable. What
arrives meanwhile forms the next turn: that is the group commit, and it needs no timer.
"""

from typing import Protocol

from kyogo_broker.model.commands import Command
from kyogo_broker.model.effects import Effect
from kyogo_broker.model.stats import EngineStats, ShardStats


class Sink(Protocol):
    """A connection's end for effects; `take` is called on the loop, must not block and must not raise."""

    def take(self, effect: Effect) -> None:
        """Accept one effect addressed to the port; called in the order of release."""


class Engine:
    """Owns the shard and the journal of one broker."""

    def open_port(self, sink: Sink) -> int:
        """Register a connection; its number goes into every command it submits."""
        raise NotImplementedError

    def close_port(self, port: int) -> None:
        """Forget a connection; effects still under way to it are dropped. A consumer's `StreamEnded` goes first."""
        raise NotImplementedError

    async def submit(self, command: Command, *, port: int, size: int = 0) -> None:
        """Put a command into the inbox; waits only while this port has too much in it (bytes or commands).

        Args:
            command: what to do.
            port: whose it is.
            size: its bytes, as they came from the wire.
        """
        raise NotImplementedError

    def submit_now(self, command: Command) -> None:
        """Put a command into the inbox whatever is in it: for what must not be lost, like `StreamEnded`."""
        raise NotImplementedError

    async def run(self) -> None:
        """Turn until `stop`.

        Raises:
            BrokerStopError: an append failed; nothing after it was released.
        """
        raise NotImplementedError

    async def stop(self) -> None:
        """Handle what is in the inbox, take a checkpoint, close the journal. Idempotent."""
        raise NotImplementedError

    def shard_stats(self) -> ShardStats:
        """Queues and consumers as of the last turn."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """The loop's own figures."""
        raise NotImplementedError
