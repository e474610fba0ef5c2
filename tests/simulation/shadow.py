"""A second shard that is fed the records that became durable, and nothing else: what every restart must come back to.

    restore(checkpoint + tail) == the shadow == restore(all)          after every crash, before the new epoch
    live == the shadow + the record under way + what nobody waited for          at every end of a process

Some of what a shard knows may differ and mean the same: what has become due may stand with the delayed or with the
ready, ranges may be cut differently. A *picture* is what is left when that is evened out.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from kyogo_broker.core.limits import ShardConfig
from kyogo_broker.core.shard import Shard
from kyogo_broker.model.facts import Fact, Opened
from kyogo_broker.model.states import RedeliveryReason
from tests.simulation.world import ViolationError

Picture = dict[str, Any]


class Written(NamedTuple):
    """A record and where it stands."""

    sequence: int
    position: int
    facts: Sequence[Fact]


class Shadow:
    """What is durable, as the records say it."""

    def __init__(self, stretch: int) -> None:
        self._stretch = stretch
        self.shard = self._empty()
        self.sequence = 0
        """Of the last record taken in."""
        self.under_way: Written | None = None
        self._pictures: dict[int, Picture] = {}
        """Of the queues that no record has touched since they were made."""

    def appending(self, record: Written) -> None:
        """It is handed to the journal."""
        if self.under_way is not None:
            raise ViolationError(f"record {record.sequence} is appended, {self.under_way.sequence} is under way")
        self.under_way = record

    def durable(self) -> None:
        """The record under way is on the disk."""
        record, self.under_way = self.under_way, None
        assert record is not None
        self._take(record)

    def check_live(self, live: Shard, pending: Sequence[Fact], position: int) -> None:
        """The state of a process at its end is what it has written, and what it was about to write."""
        under_way = self.under_way
        facts = [*(under_way.facts if under_way is not None else ()), *pending]
        # A shard of its own for what these touch; the rest is as the records left it.
        touched = _touched(facts, self.shard)
        expected = self._copy(touched)
        if under_way is not None:
            expected.replay(under_way.sequence, under_way.position, list(under_way.facts))
        if pending:
            last = self.sequence if under_way is None else under_way.sequence
            expected.replay(last + 1, position, list(pending))
        theirs = {number: self._picture(number) for number in self.shard.queue_ids() if number not in touched}
        theirs |= {number: _queue_picture(expected, number) for number in expected.queue_ids()}
        _compare("live", live, "its records", expected.snapshot_shard(), theirs)

    def check_recovered(self, shard: Shard, sequence: int) -> None:
        """What was restored, up to the record `sequence`, is what was durable."""
        if self.under_way is not None and sequence == self.under_way.sequence:
            self.durable()
        self.under_way = None
        if sequence != self.sequence:
            raise ViolationError(f"I1: the journal ends with record {sequence}, durable were {self.sequence}")
        theirs = {number: self._picture(number) for number in self.shard.queue_ids()}
        _compare("restored", shard, "all records", self.shard.snapshot_shard(), theirs)

    def _take(self, record: Written) -> None:
        for number in _touched(record.facts, self.shard):
            self._pictures.pop(number, None)
        self.shard.replay(record.sequence, record.position, list(record.facts))
        self.sequence = record.sequence

    def _picture(self, queue_id: int) -> Picture:
        found = self._pictures.get(queue_id)
        if found is None:
            found = self._pictures[queue_id] = _queue_picture(self.shard, queue_id)
        return found

    def _copy(self, queue_ids: Collection[int]) -> Shard:
        """Another shard that knows the same of these queues, on the way of a checkpoint without its bytes."""
        copy = self._empty()
        copy.restore_shard(self.sequence, self.shard.snapshot_shard())
        for queue_id in queue_ids:
            found = self.shard.snapshot_queue(queue_id)
            if found is not None:
                copy.restore_queue(queue_id, self.sequence, *found)
        return copy

    def _empty(self) -> Shard:
        return Shard(ShardConfig(auto_create=True), seed=0, stretch=self._stretch)


def _touched(facts: Sequence[Fact], shard: Shard) -> set[int]:
    """Queues whose state facts change; the begin of an epoch ends the leases of all."""
    touched = {getattr(fact, "queue_id", 0) for fact in facts}
    if any(type(fact) is Opened for fact in facts):
        touched.update(shard.queue_ids())
    return touched - {0}


def _compare(one: str, first: Shard, other: str, shard: dict[str, Any], queues: dict[int, Picture]) -> None:
    ours = {number: _queue_picture(first, number) for number in first.queue_ids()}
    if ours == queues and first.snapshot_shard() == shard:
        return
    told = [
        _difference(f"queue {n}", ours.get(n), queues.get(n)) for n in ours | queues if ours.get(n) != queues.get(n)
    ]
    told.append(_difference("shard", first.snapshot_shard(), shard))
    raise ViolationError(f"I15: {one} and {other} differ: {'; '.join(told):.1500}")


def _difference(name: str, ours: Any, theirs: Any) -> str:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        parts = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
        return f"{name}: " + ", ".join(f"{key}: {ours.get(key)} / {theirs.get(key)}" for key in parts)
    return f"{name}: {ours} / {theirs}"


def _queue_picture(shard: Shard, queue_id: int) -> Picture:
    found = shard.snapshot_queue(queue_id)
    assert found is not None
    state, settings = found
    waiting: dict[int, int] = {}
    for first, last, reason in _rows(state.pop("returned"), 3):
        waiting |= dict.fromkeys(range(first, last + 1), reason)
    due: dict[int, int] = {}
    for due_ms, offset, reason in _rows(state.pop("delayed"), 3):
        waiting[offset] = reason
        due[offset] = due_ms
    fresh = {offset for first, last in _rows(state.pop("fresh"), 2) for offset in range(first, last + 1)}
    fresh |= {offset for offset, reason in waiting.items() if reason == RedeliveryReason.UNSPECIFIED}
    live = sum(state["extents.live"])
    producers = {row[0]: (row[1], row[3]) for row in state.pop("producers")}
    leases = [tuple(row) for row in state.pop("leases")]
    return {
        **{name: value for name, value in state.items() if not name.startswith("extents.")},
        "settings": settings,
        "fresh": fresh,
        "returned": {offset: reason for offset, reason in waiting.items() if reason},
        "live": live,
        "producers": producers,
        "leases": leases,
    }


def _rows(column: Any, width: int) -> list[tuple[int, ...]]:
    return [tuple(column[at : at + width]) for at in range(0, len(column), width)]


__all__ = ["Shadow", "Written"]
