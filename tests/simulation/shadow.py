"""A second shard that is fed the records that became durable, and nothing else: what every restart must come back to.

    restore(checkpoint + tail) == the shadow == restore(all)          after every crash, before the new epoch
    live == the shadow + the record under way + what nobody waited for          at every end of a process

Some of what a shard knows may differ and mean the same: what has become due may stand with the delayed or with the
ready, ranges may be cut differently. A *picture* is what is left when that is evened out.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from kyogo_broker.core.limits import ShardConfig
from kyogo_broker.core.shard import Shard
from kyogo_broker.model.facts import Fact
from kyogo_broker.model.states import RedeliveryReason
from kyogo_broker.recovery import queue_section, restore, shard_section
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
        expected = self._empty()
        sections = [shard_section(self.shard, self.sequence)]
        sections += [
            s for n in self.shard.queue_ids() if (s := queue_section(self.shard, n, self.sequence)) is not None
        ]
        restore(expected, tuple(sections))
        under_way = self.under_way
        if under_way is not None:
            expected.replay(under_way.sequence, under_way.position, list(under_way.facts))
        if pending:
            last = self.sequence if under_way is None else under_way.sequence
            expected.replay(last + 1, position, list(pending))
        _compare("live", live, "its records", expected)

    def check_recovered(self, shard: Shard, sequence: int) -> None:
        """What was restored, up to the record `sequence`, is what was durable."""
        if self.under_way is not None and sequence == self.under_way.sequence:
            self.durable()
        self.under_way = None
        if sequence != self.sequence:
            raise ViolationError(f"I1: the journal ends with record {sequence}, durable were {self.sequence}")
        _compare("restored", shard, "all records", self.shard)

    def _take(self, record: Written) -> None:
        self.shard.replay(record.sequence, record.position, list(record.facts))
        self.sequence = record.sequence

    def _empty(self) -> Shard:
        return Shard(ShardConfig(auto_create=True), seed=0, stretch=self._stretch)


def _compare(one: str, first: Shard, other: str, second: Shard) -> None:
    ours, theirs = _picture(first), _picture(second)
    if ours != theirs:
        names = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
        told = "; ".join(_difference(name, ours.get(name), theirs.get(name)) for name in names)
        raise ViolationError(f"I15: {one} and {other} differ: {told:.1500}")


def _difference(name: str, ours: Any, theirs: Any) -> str:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        parts = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
        return f"{name}: " + ", ".join(f"{key}: {ours.get(key)} / {theirs.get(key)}" for key in parts)
    return f"{name}: {ours} / {theirs}"


def _picture(shard: Shard) -> Picture:
    picture: Picture = {"shard": shard.snapshot_shard()}
    for queue_id in shard.queue_ids():
        found = shard.snapshot_queue(queue_id)
        assert found is not None
        picture[f"queue {queue_id}"] = _queue_picture(*found)
    return picture


def _queue_picture(state: dict[str, Any], settings: object) -> Picture:
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
