"""What one command led to."""

from dataclasses import dataclass, field

from kyogo_broker.model.effects import Effect
from kyogo_broker.model.facts import Fact


@dataclass(slots=True)
class Step:
    """Facts to make durable and effects to release after that, both in order."""

    facts: list[Fact] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
