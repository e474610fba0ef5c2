"""One queue: where each of its messages is.

    published -> ready -> in flight -> finished
                   ^          |
                   +- delayed-+        a message is in exactly one of these

Nothing is kept for a plain waiting message: it is an offset above `finished.low` that is neither finished nor in
flight. Only messages that failed or were lost have a `Trouble`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from kyogo_broker.core.consumers import Member
from kyogo_broker.core.delayed import Delayed
from kyogo_broker.core.extents import Extents
from kyogo_broker.core.producers import Producers
from kyogo_broker.core.ranges import FinishedOffsets
from kyogo_broker.core.standard import Ready, StandardReady
from kyogo_broker.core.window import Held, Window, WindowBudget
from kyogo_broker.model.column import Pieces
from kyogo_broker.model.commands import Outcome
from kyogo_broker.model.facts import Published, Span
from kyogo_broker.model.settings import DLQ_SUFFIX, QueueSettings
from kyogo_broker.model.states import FinishReason, RedeliveryReason
from kyogo_broker.policy.balance import POLICIES, Balance


@dataclass(slots=True)
class Trouble:
    """The history of a message that failed or was lost."""

    failures: int = 0
    losses: int = 0
    first_error: str = ""
    last_error: str = ""
    error_type: str = ""
    last_consumer_id: str = ""
    first_delivered_unix_ms: int = 0


@dataclass(frozen=True, slots=True)
class Dying:
    """A delivery that ends in a dead letter as soon as its message has been read back."""

    span: Span
    ports: list[int]
    """Who is answered; empty: nobody asked."""
    outcome: Outcome | None
    reason: str
    error_type: str
    error: str
    failed: bool
    lost: bool


@dataclass(slots=True)
class Counters:
    """Since this broker started."""

    delivered: int = 0
    settled: dict[str, int] = field(default_factory=dict)
    redelivered: dict[str, int] = field(default_factory=dict)


class Queue:
    """State of one queue; changed by facts only, the window and the members aside."""

    __slots__ = (
        "accepted", "aside", "aside_due", "balance", "contains", "counters", "created_unix_ms", "delayed", "dying",
        "extents", "finished", "finished_by", "held_up", "id", "in_flight", "loaded_to", "loading",
        "loading_to", "members", "name", "next_offset", "paused", "producers", "ready", "settings", "timer_ms",
        "troubles", "window",
    )  # fmt: skip

    def __init__(
        self, queue_id: int, name: str, settings: QueueSettings, *, created_unix_ms: int, stretch: int,
        budget: WindowBudget,
    ) -> None:  # fmt: skip
        self.id = queue_id
        self.name = name
        self.settings = settings
        self.created_unix_ms = created_unix_ms
        self.paused = False
        self.next_offset = 1
        self.accepted = 0
        self.in_flight = 0
        self.finished = FinishedOffsets()
        self.finished_by: dict[str, int] = {}
        self.extents = Extents(stretch)
        self.ready = StandardReady()
        self.delayed = Delayed()
        self.troubles: dict[int, Trouble] = {}
        self.producers = Producers()
        self.contains = 0
        """Sequence of the last record that a restored snapshot contains."""
        self.window = Window(budget)
        self.loaded_to = 1
        """Fresh messages below it are in the window."""
        self.loading: int | None = None
        """The id of the load under way."""
        self.loading_to = 0
        """Last fresh offset of the load under way; 0: none."""
        self.aside: dict[int, tuple[int, RedeliveryReason]] = {}
        """Ready messages, by offset, too large for whoever was in turn: (encoded size, reason)."""
        self.aside_due = False
        """Whether somebody may be able to take what is aside."""
        self.held_up: dict[int, dict[int, Member]] = {}
        """Those who had no room for the message that was next, by its offset and by session."""
        self.dying: dict[int, Dying] = {}
        self.members: dict[int, Member] = {}
        """By session."""
        self.balance: Balance = POLICIES[settings.balance_policy]()
        self.counters = Counters()
        self.timer_ms = 0

    @property
    def is_dead_letter_queue(self) -> bool:
        """Whether it holds letters of another queue: what fails here returns after backoff, for ever."""
        return self.name.endswith(DLQ_SUFFIX)

    @property
    def ready_count(self) -> int:
        """Messages that could be delivered now."""
        return self.ready.count + len(self.aside)

    def keep(self, fact: Published) -> None:
        """Keep a batch just published in memory, if it continues what is there and the budget allows."""
        if not self.loading_to:
            self.loaded_to = max(self.loaded_to, self.ready.fresh_from() or 0)
        admit_at = self.loading_to + 1 if self.loading_to else self.loaded_to
        cost = len(fact.batch.wire)
        if fact.first_offset != admit_at:
            return
        if not self.window.has_room(cost):
            self.window.make_room(cost, below=self.ready.fresh_from() or self.next_offset)
            if not self.window.has_room(cost):
                return
        last = fact.first_offset + fact.batch.count - 1
        held = Held(fact.first_offset, last, fact.batch, fact.published_unix_ms, fact.dead_letter, pinned=False)
        self.window.add(held)
        if self.loading_to:
            self.loading_to = last
        else:
            self.loaded_to = last + 1

    def finish(self, first: int, last: int, reason: FinishReason) -> None:
        """Messages end here."""
        count = last - first + 1
        self.finished.add(first, last)
        self.extents.finish(first, last)
        self.finished_by[reason] = self.finished_by.get(reason, 0) + count
        if self.troubles:
            for offset in range(first, last + 1) if count <= len(self.troubles) else tuple(self.troubles):
                if first <= offset <= last:
                    self.troubles.pop(offset, None)
        self.window.drop_below(self.finished.low)

    def history(self, first: int, last: int) -> tuple[int, int, int]:
        """(failures, losses, last offset that has the same) of the message `first` and those after it."""
        if not self.troubles:
            return 0, 0, last
        trouble = self.troubles.get(first)
        same = (trouble.failures, trouble.losses) if trouble else (0, 0)
        offset = first
        while offset < last:
            trouble = self.troubles.get(offset + 1)
            if ((trouble.failures, trouble.losses) if trouble else (0, 0)) != same:
                break
            offset += 1
        return *same, offset

    def trouble(self, offset: int) -> Trouble:
        """The history of a message, to be changed; begun if it has none."""
        found = self.troubles.get(offset)
        # Another object each time: a picture of the queue may hold the one before.
        found = self.troubles[offset] = Trouble() if found is None else replace(found)
        return found

    def promote(self, now_ms: int, most: int) -> bool:
        """Make ready what is due, up to `most`; whether there was anything."""
        found = False
        for offset, reason in self.delayed.pop_due(now_ms, most):
            self.ready.add_returned(offset, offset, reason)
            found = True
        return found

    def live_ranges(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Ranges of messages that are not finished."""
        return self.finished.unfinished(first, min(last, self.next_offset - 1))

    def freeze(self) -> dict[str, Any]:
        """Everything durable as it is now, as JSON values, columns and pieces; the state adds leases and fences."""
        aside = [Ready(offset, offset, reason) for offset, (_, reason) in self.aside.items()]
        fresh, returned = self.ready.freeze(beside=aside)
        return {
            "name": self.name,
            "created_unix_ms": self.created_unix_ms,
            "paused": self.paused,
            "next_offset": self.next_offset,
            "accepted": self.accepted,
            "finished": self.finished.snapshot(),
            "finished_by": dict(self.finished_by),
            "fresh": fresh,
            "returned": returned,
            "delayed": self.delayed.freeze(),
            "troubles": Pieces(tuple(self.troubles), partial(_trouble_rows, self.troubles.copy())),
            "producers": self.producers.freeze(),
            **{f"extents.{name}": column for name, column in self.extents.snapshot().items()},
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any], *, stretch: int) -> None:
        """The inverse of `freeze`, into a new queue."""
        self.paused = state["paused"]
        self.next_offset = state["next_offset"]
        self.accepted = state["accepted"]
        self.finished = FinishedOffsets.restored(state["finished"])
        self.finished_by = dict(state["finished_by"])
        self.ready = StandardReady.restored({"fresh": state["fresh"], "returned": state["returned"]})
        self.delayed = Delayed.restored(state["delayed"])
        self.troubles = {row[0]: Trouble(*row[1:]) for row in state["troubles"]}
        self.producers = Producers.restored(state["producers"])
        columns = ("first", "span", "position", "length", "bytes", "live")
        self.extents = Extents.restored(stretch, {name: state[f"extents.{name}"] for name in columns})

    def check_invariants(self) -> None:
        """Every accepted message is in exactly one place."""
        for part in (self.finished, self.extents, self.ready, self.window):
            part.check_invariants()
        finished = sum(self.finished_by.values())
        total = self.ready_count + len(self.delayed) + self.in_flight + finished
        assert total == self.accepted, f"{self.name}: {total} messages of {self.accepted} accounted for"
        assert self.accepted == self.next_offset - 1, "offsets are not dense"
        assert finished == self.finished.low - 1 + self.finished.above, "finished miscounted"
        assert self.extents.total_live() == self.accepted - finished, "extents hold the wrong messages"


def _trouble_rows(troubles: Mapping[int, Trouble], offsets: Sequence[int]) -> list[Any]:
    return [
        [offset, t.failures, t.losses, t.first_error, t.last_error, t.error_type, t.last_consumer_id,
         t.first_delivered_unix_ms]
        for offset in offsets
        for t in (troubles[offset],)
    ]  # fmt: skip
