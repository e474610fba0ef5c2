"""What stands in the broker's place to be watched: a shard that tells of every step, an encoder that remembers."""

from collections.abc import Sequence
from typing import ClassVar

from kyogo_broker.core.shard import Shard
from kyogo_broker.core.step import Step
from kyogo_broker.journal import codec
from kyogo_broker.journal.base import Part
from kyogo_broker.model.commands import Command
from kyogo_broker.model.facts import Fact
from kyogo_broker.model.now import Now
from tests.simulation.check import Check


class WatchedShard(Shard):
    """A shard that tells of every step."""

    check: ClassVar[Check]

    def handle(self, command: Command, now: Now) -> Step:
        self.check.before(command, now)
        step = super().handle(command, now)
        self.check.after(self, command, step, now)
        return step

    def open(self, epoch: int, now: Now) -> Step:
        self.check.recovered(self)
        return super().open(epoch, now)


def watched_encode(facts: Sequence[Fact]) -> list[Part]:
    """As the codec's, and remembers what it was."""
    Check.encoding = tuple(facts)
    return codec.encode(facts)
