"""Histories by chance, damage by chance, and what a salvage must make of them: nothing whole is missing, nothing invented.

The truth is what was appended. A record is whole if its bytes are as they were, so the test knows what can be had
without asking the code that looks for it.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kyogo_broker.journal.checkpoint import parse_checkpoint
from kyogo_broker.journal.inspect import Finding, describe
from kyogo_broker.journal.lane import InlineLane
from kyogo_broker.journal.segment_file import Header
from kyogo_broker.journal.segments import SegmentJournal, SegmentSettings
from kyogo_broker.model.commands import (
    Attach,
    CopyForward,
    CreateQueue,
    DeleteQueue,
    Detach,
    Outcome,
    PauseQueue,
    Publish,
    PurgeQueue,
    Settle,
    Settlement,
    StreamEnded,
    Subscription,
)
from kyogo_broker.model.effects import Deliver, Effect
from kyogo_broker.model.errors import BrokerStopError
from kyogo_broker.model.facts import (
    DeadLettered,
    Fact,
    Finished,
    Leased,
    Moved,
    Published,
    QueueDeleted,
    Settled,
)
from kyogo_broker.model.message import FenceRange
from kyogo_broker.model.settings import QueueSettings, RetrySettings
from kyogo_broker.recovery import section_state
from kyogo_broker.salvage import Salvage
from tests.support.damage import KINDS
from tests.support.faulty_disk import FaultyDisk
from tests.support.logged_shard import LoggedShard, batch_of

DIR, SAVED = Path("/data"), Path("/saved")
SETTINGS = SegmentSettings(segment_bytes=16 << 10, max_record_bytes=7 << 10, min_free_bytes=0)
QUEUE_SETTINGS = QueueSettings(max_attempts=2, retry=RetrySettings(initial_ms=500))
SEEDS = range(600 if os.environ.get("CI") else 150)

Place = tuple[int, int]
"""Queue and offset."""


@dataclass
class History:
    """A broker's life by chance."""

    random: Random
    disk: FaultyDisk = field(default_factory=FaultyDisk)
    held: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Fences, by port."""
    ports: int = 0
    requests: int = 0

    def __post_init__(self) -> None:
        self.logged = LoggedShard(DIR, SETTINGS, self.disk, on_effect=self._effect)

    def live(self, turns: int) -> None:
        """Be a broker for so many turns, with a checkpoint and a restart now and then."""
        self.logged.start()
        steps = [
            (10, self._publish), (8, self._settle), (4, self._attach), (1, self._leave), (1, self._purge), (2, self._wait),
            (1, self._pause), (1, self._delete), (2, self._checkpoint), (1, self._restart),
        ]  # fmt: skip
        for _ in range(turns):
            self.random.choices([step for _, step in steps], [weight for weight, _ in steps])[0]()
        self.logged.stop()

    def _effect(self, effect: Effect) -> None:
        if isinstance(effect, Deliver):
            for run in effect.runs:
                self.held[effect.port] += range(run.first_fence, run.first_fence + run.count)

    def _queue(self) -> str:
        return self.random.choice("abc")

    def _publish(self) -> None:
        bodies = [self.random.randbytes(self.random.randint(1, 300)) for _ in range(self.random.randint(1, 8))]
        self.requests += 1
        producer = self.random.choice(("", "p-1", "p-2"))
        self.logged.do(Publish(0, 0, self._queue(), batch_of(*bodies), producer, self.requests, self.requests))

    def _attach(self) -> None:
        self.ports += 1
        names, port = tuple(Subscription(q.name) for q in self.logged.shard.stats().queues), self.ports
        if names:
            self.logged.do(Attach(port, port, str(port), f"c-{port}", names, prefetch_messages=6))

    def _settle(self) -> None:
        for port, fences in list(self.held.items()):
            outcome = self.random.choice((Outcome.ACK, Outcome.ACK, Outcome.ACK, *Outcome))
            some = sorted(self.random.sample(fences, self.random.randint(0, len(fences))))
            self.held[port] = [fence for fence in fences if fence not in some]
            if some:
                ranges = tuple(FenceRange(fence, fence) for fence in some)
                self.logged.do(Settle(port, (Settlement(outcome, ranges),)))

    def _leave(self) -> None:
        if self.held:
            port = self.random.choice(list(self.held))
            del self.held[port]
            self.logged.do(self.random.choice((Detach(port), StreamEnded(port))))

    def _purge(self) -> None:
        self.logged.do(PurgeQueue(0, 0, self._queue()))

    def _pause(self) -> None:
        self.logged.do(PauseQueue(0, 0, self._queue(), paused=self.random.random() < 0.3))

    def _delete(self) -> None:
        name = self._queue()
        if self.random.random() < 0.3:
            self.logged.do(DeleteQueue(0, 0, name))
        self.logged.do(CreateQueue(0, 0, name, QUEUE_SETTINGS))

    def _wait(self) -> None:
        self.logged.now_ms += self.random.randint(1, 3_000)
        self.logged.do()

    def _checkpoint(self) -> None:
        for low, high in self.logged.checkpoint():
            self.logged.do(CopyForward(low, high))

    def _restart(self) -> None:
        self.logged.stop()
        self.held.clear()
        self.logged.now_ms += 1_000
        self.logged.start()


class Truth:
    """What was appended, and what of it is left.

    Args:
        history: its records.
        before: the disk before it was damaged.
        below: records from this sequence on are as if they had never been.
    """

    def __init__(self, history: History, before: FaultyDisk, *, below: int = 1 << 62) -> None:
        self.history = history
        self.before = before
        self.disk = history.disk
        records = [record for record in history.logged.records if record.sequence < below]
        self.bodies: dict[Place, bytes] = {}
        self.finished: set[Place] = set()
        self.gone: set[int] = set()
        self.issued = 0
        self.next_offsets: dict[int, int] = {}
        self.left: set[Place] = set()
        """Whose bodies stand in a whole record."""
        self.known_finished: set[Place] = set()
        self.known_gone: set[int] = set()
        for record in records:
            for fact in record.facts:
                self._tell(fact)
        for record in records:
            name = f"{record.segment:010d}.segment"
            old, new = (disk.names_now.get(DIR / name) for disk in (before, self.disk))
            part = slice(record.byte, record.byte + record.size)
            if old is not None and new is not None and old.data[part] == new.data[part]:
                for fact in record.facts:
                    self.left |= set(bodies_in(fact))
                    self.known_finished |= finished_by(fact)
                    self.known_gone |= {fact.queue_id} if isinstance(fact, QueueDeleted) else set()
        for name in self.disk.names(DIR):
            if name.startswith("checkpoint-"):
                self._checkpoint(name, bytes(self.disk.names_now[DIR / name].data))
        self.unfinished = {place for place in self.bodies if place not in self.finished and place[0] not in self.gone}

    def _tell(self, fact: Fact) -> None:
        self.bodies |= bodies_in(fact)
        self.finished |= finished_by(fact)
        match fact:
            case Leased(span=span):
                self.issued = max(self.issued, span.first_fence + span.count - 1)
            case QueueDeleted(queue_id=queue_id):
                self.gone.add(queue_id)
            case Published(queue_id=queue_id, first_offset=first, batch=batch):
                self.next_offsets[queue_id] = first + batch.count

    def _checkpoint(self, name: str, data: bytes) -> None:
        try:
            sections = parse_checkpoint(data, key=9, number=int(name[-10:]))
        except ValueError:
            return
        for section in sections:
            state, settings = section_state(section)
            if settings is not None:
                low, *above = state["finished"]
                ranges = [(1, low - 1), *zip(above[::2], above[1::2], strict=True)]
                self.known_finished |= {(section.queue_id, n) for a, b in ranges for n in range(a, b + 1)}

    @property
    def says_whose(self) -> bool:
        """Whether anything is left that tells the journal's key."""
        files = [self.disk.names_now[DIR / name].data for name in self.disk.names(DIR) if name.endswith("segment")]
        headers = [Header.parse(bytes(data[:64])) for data in files]
        meta = self.disk.names_now.get(DIR / "meta")
        return (meta is not None and not meta.data.startswith(b"\1")) or any(headers)


def bodies_in(fact: Fact) -> dict[Place, bytes]:
    if not isinstance(fact, Published | Moved):
        return {}
    first = fact.first_offset if isinstance(fact, Published) else 0
    offsets: Sequence[int] = fact.offsets if isinstance(fact, Moved) else range(first, first + fact.batch.count)
    return {(fact.queue_id, offset): bytes(fact.batch.part(n, n)) for n, offset in enumerate(offsets)}


def finished_by(fact: Fact) -> set[Place]:
    match fact:
        case Settled(outcome=Outcome.ACK, spans=spans):
            ranges = [(span.first_offset, span.first_offset + span.count - 1) for span in spans]
        case DeadLettered(span=span):
            ranges = [(span.first_offset, span.first_offset)]
        case Finished(ranges=said):
            ranges = list(said)
        case _:
            return set()
    return {(fact.queue_id, offset) for first, last in ranges for offset in range(first, last + 1)}


@dataclass
class Saved:
    """What a salvage left behind, as a broker finds it."""

    findings: list[Finding]
    delivered: dict[Place, bytes] = field(default_factory=dict)
    fences: list[int] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)

    def offsets(self, name: str) -> set[Place]:
        """All offsets that the report names under a heading."""
        queues = [one.fields for one in self.findings if one.what == "queue"]
        return {(q["queue_id"], n) for q in queues for a, b in q[name] for n in range(a, b + 1)}

    def skipped(self) -> dict[int, int]:
        """The last offset that is left out, by queue."""
        queues = [one.fields for one in self.findings if one.what == "queue" and one.fields["skipped_offsets"]]
        return {q["queue_id"]: q["skipped_offsets"][1] for q in queues}


def salvaged(disk: FaultyDisk) -> Saved:
    """Salvage, start, and consume everything, with a restart in the middle."""
    saved = Saved(list(Salvage(DIR, SAVED, settings=SETTINGS, files=disk, lane=InlineLane).run()))
    logged = LoggedShard(SAVED, SETTINGS, disk, key=1, now_ms=1_900_000_000_000)
    at: list[Any] = []
    logged.on_effect = at.append
    for port in (1, 2):
        logged.start()
        logged.shard.check_invariants()
        saved.names = {queue.queue_id: queue.name for queue in logged.shard.stats().queues}
        for name in saved.names.values():
            logged.do(PauseQueue(0, 0, name, paused=False))
        names = tuple(map(Subscription, saved.names.values()))
        if names:
            most = 10 if port == 1 else 10_000
            attach = Attach(port, port, "t", "c", names, prefetch_messages=most, prefetch_bytes=1 << 30)
            logged.do(attach)
        ids = {name: queue_id for queue_id, name in saved.names.items()}
        for run in [run for effect in at if isinstance(effect, Deliver) for run in effect.runs]:
            queue_id = ids[names[run.subscription].queue]
            sizes = batch_of(*_split(bytes(run.wire), saved, queue_id, run.first_offset, run.count)).ends
            assert sizes[-1] == len(run.wire)
            saved.fences += range(run.first_fence, run.first_fence + run.count)
        at.clear()
        logged.shard.check_invariants()
        logged.stop()
    return saved


TRUTH: dict[Place, bytes] = {}
"""Of the history under test: deliveries carry bodies back to back."""


def _split(wire: bytes, saved: Saved, queue_id: int, first: int, count: int) -> list[bytes]:
    bodies, at = [], 0
    for offset in range(first, first + count):
        body = wire[at : at + len(TRUTH[queue_id, offset])]
        saved.delivered[queue_id, offset] = body
        bodies.append(body)
        at += len(body)
    return bodies


def damaged(seed: int, kinds: int) -> Truth:
    """A history and what became of its directory."""
    random = Random(seed)
    history = History(random)
    history.live(random.randint(10, 120))
    before = history.disk.crash("kept", random)
    for kind in random.sample(KINDS, kinds):
        kind(history.disk, DIR, random)
    truth = Truth(history, before)
    TRUTH.clear()
    TRUTH.update(truth.bodies)
    return truth


def check(truth: Truth, saved: Saved) -> None:
    assert all(fence > truth.issued for fence in saved.fences), "a fence is issued twice"
    assert len(set(saved.fences)) == len(saved.fences)
    beyond = any("the log ends before them" in one.fields.get("error", "") for one in saved.findings)
    if (torn := [one.fields["sequence"] for one in saved.findings if one.what == "torn"]) and not beyond:
        # A rotten end is not to be told from a torn one, which was never answered; the broker takes it for one, too.
        truth = Truth(truth.history, truth.before, below=min(torn))
    copied = set(saved.delivered)
    missing = (truth.unfinished & truth.left) - copied
    assert not missing, "whole and unfinished, and not copied"
    assert copied <= truth.left, "copied out of nothing"
    assert not copied & truth.known_finished, "what is known to be finished comes again"
    assert not {queue for queue, _ in copied} & truth.known_gone, "a queue that is known to be deleted comes again"
    assert {place: saved.delivered[place] for place in copied} == {place: truth.bodies[place] for place in copied}
    again = copied - truth.unfinished
    assert again <= saved.offsets("in_doubt_offsets"), "comes again, and the report does not say that it may"
    lost = {place for place in truth.unfinished - copied if place[0] in saved.names}
    told, skipped = saved.offsets("lost_offsets"), saved.skipped()
    untold = {place for place in lost - told if place[1] > skipped.get(place[0], 0)}
    assert not untold, "lost, and the report does not say so"
    for queue_id, name in saved.names.items():
        offset = truth.next_offsets.get(queue_id, 1)
        assert truth_next(saved, queue_id) >= offset, f"{name}: an offset is given away twice"


def truth_next(saved: Saved, queue_id: int) -> int:
    [fields] = [one.fields for one in saved.findings if one.what == "queue" and one.fields["queue_id"] == queue_id]
    return int(fields["next_offset"])


@pytest.mark.parametrize("seed", SEEDS)
def test_whole_messages_come_through_any_damage(seed: int) -> None:
    truth = damaged(seed, kinds=1 + seed % 3)
    files = {path: data for path, data in truth.disk.files() if path.parent == DIR}
    if not truth.says_whose:
        with pytest.raises(BrokerStopError, match=r"nothing is left of it|neither a whole"):
            list(Salvage(DIR, SAVED, settings=SETTINGS, files=truth.disk, lane=InlineLane).run())
        return
    saved = salvaged(truth.disk)
    check(truth, saved)
    assert {path: data for path, data in truth.disk.files() if path.parent == DIR} == files, "the source was changed"
    assert not any(finding.damaged for finding in describe(SAVED, files=truth.disk))


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_of_a_directory_that_is_whole(seed: int) -> None:
    truth = damaged(seed, kinds=0)
    saved = salvaged(truth.disk)
    check(truth, saved)
    assert set(saved.delivered) == truth.unfinished
    assert not any(finding.damaged for finding in saved.findings)
    assert not saved.offsets("lost_offsets") | saved.offsets("in_doubt_offsets")
    assert not saved.skipped()


@pytest.mark.parametrize("seed", SEEDS)
def test_what_became_of_its_messages_comes_through(seed: int) -> None:
    """Attempts, delays, producers' windows, settled fences, settings: a restart finds the same in both."""
    truth = damaged(seed, kinds=0)
    list(Salvage(DIR, SAVED, settings=SETTINGS, files=truth.disk, lane=InlineLane).run())
    pictures = []
    for path, records in ((DIR, truth.history.logged.records), (SAVED, [])):
        logged = LoggedShard(path, SETTINGS, truth.disk, records=list(records), now_ms=1_900_000_000_000)
        logged.start()
        pictures.append({queue_id: picture(logged, queue_id) for queue_id in logged.shard.queue_ids()})
        logged.stop()
    assert pictures[0] == pictures[1]


def picture(logged: LoggedShard, queue_id: int) -> dict[str, Any]:
    """A queue, without what may differ and mean the same: where messages stand, and how ranges are cut."""
    found = logged.shard.snapshot_queue(queue_id)
    assert found is not None
    state, settings = found
    returned, fresh = state.pop("returned"), state.pop("fresh")
    rows = [*zip(returned[::3], returned[1::3], returned[2::3], strict=True)]
    rows += [(first, last, 0) for first, last in zip(fresh[::2], fresh[1::2], strict=True)]
    delayed = state.pop("delayed")
    return {
        **{name: value for name, value in state.items() if not name.startswith("extents.")},
        "ready": {offset: reason for first, last, reason in rows for offset in range(first, last + 1)},
        "delayed": sorted(zip(delayed[::3], delayed[1::3], delayed[2::3], strict=True)),
        "producers": {row[0]: (row[1], row[3]) for row in state["producers"]},
        "troubles": sorted(state["troubles"]),
        "settings": settings,
        "live": sum(state["extents.live"]),
    }


def test_a_copy_that_broke_off_is_empty_or_whole_or_does_not_start() -> None:
    truth = damaged(3, kinds=0)
    assert truth.unfinished
    found = set()
    for calls in range(200):
        disk = truth.disk.crash("kept", Random(1))
        left = calls

        def before(_: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(28, "no space left")

        disk.before = before
        try:
            list(Salvage(DIR, SAVED, settings=SETTINGS, files=disk, lane=InlineLane).run())
        except BrokerStopError as error:
            assert "the copy broke off" in str(error)
            assert "Remove /saved" in str(error)
            disk.before = lambda _: None
            found.add(opens(disk))
        else:
            assert found == {"empty", "refused", "whole"}
            return
    raise AssertionError("it never ended")


def opens(disk: FaultyDisk) -> str:
    """What a broker finds."""
    journal = SegmentJournal(SAVED, SETTINGS, files=disk, lane=InlineLane)
    try:
        recovered = journal.open()
    except BrokerStopError as error:
        assert "records are missing" in str(error) or "no `meta`" in str(error)
        return "refused"
    journal.close()
    return "empty" if recovered.new else "whole"
