"""A data directory as a broker leaves it, with every kind of fact in it and a checkpoint in its middle.

`python -m tests.upgrade.data_directory NAME` writes `tests/fixtures/NAME` and, beside it, `NAME.json` with all that its
users can see: queues, settings, messages, histories, producers' windows. What a release has written is never written
anew: a new fact needs a new directory, and both are read for ever. Time and chance are fixed, so that a run can be
repeated; who killed the broker, in the end, left a delivery without an answer.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from pydantic import TypeAdapter

from kyogo.v1 import broker_pb2
from kyogo_broker.clock import Clock
from kyogo_broker.core.shard import Shard, ShardConfig
from kyogo_broker.journal.base import Journal
from kyogo_broker.journal.codec import encode
from kyogo_broker.journal.lane import InlineLane
from kyogo_broker.journal.loading import load
from kyogo_broker.journal.segments import SegmentJournal, SegmentSettings
from kyogo_broker.model.commands import (
    Attach,
    Command,
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
    Started,
    StreamEnded,
    Subscription,
    Tick,
    UpdateQueue,
)
from kyogo_broker.model.effects import Deliver, Effect, Load
from kyogo_broker.model.message import Batch, FenceRange
from kyogo_broker.model.now import Now
from kyogo_broker.model.settings import Backoff, BalancePolicy, QueueSettings, RetrySettings
from kyogo_broker.recovery import queue_section, recover, shard_section

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SIZES = SegmentSettings(segment_bytes=20 << 10, max_record_bytes=8 << 10, reserve_segments=1, min_free_bytes=0)
SPARE_BYTES = 8 << 10
"""Room for the next checkpoint, which is kept ready beside the last one."""
BEGINNING_MS = 1_760_000_000_000
HOUR_MS = 3_600_000
CAREFUL = QueueSettings(
    visibility_timeout_ms=5_000, max_attempts=3, max_losses=2, labels=(("team", "größe"),),
    retry=RetrySettings(Backoff.LIST, delays_ms=(0, 60_000), jitter=False, non_retryable=("KeyError",)),
)  # fmt: skip
ALIKE = ("acked", "alone", "given", "again")
WIRE_TAG = broker_pb2.PublishRequest.DESCRIPTOR.fields_by_name["messages"].number << 3 | 2

_settings = TypeAdapter(QueueSettings)


class StillClock(Clock):
    """Time that passes when it is told to."""

    def __init__(self, ms: int = BEGINNING_MS) -> None:
        self.ms = ms

    def now(self) -> Now:
        return Now(self.ms, self.ms)

    def seconds(self) -> float:
        return self.ms / 1000


class Running:
    """A broker without a loop: a turn is what `do` is given, and what follows from it."""

    def __init__(self, path: Path, clock: StillClock, *, kyogo: str) -> None:
        self.clock = clock
        self.journal = SegmentJournal(path, SIZES, key=4_711, version=kyogo, lane=InlineLane)
        self.shard, _ = recover(self.journal, ShardConfig(auto_create=True), seed=7, clock=clock)
        self.settled: dict[int, str] = {}
        self.last_fence = 0

    def do(self, *commands: Command) -> list[Effect]:
        """A turn, and those that it leads to."""
        effects: list[Effect] = []
        waiting = list(commands)
        while True:
            self.shard.begin(position=self.journal.position, now=self.clock.now())
            facts, new = [], []
            for command in (*waiting, Tick()):
                step = self.shard.handle(command, self.clock.now())
                facts += step.facts
                new += step.effects
            if facts:
                self.journal.append(self.journal.sequence, encode(facts)).result()
            effects += new
            waiting = [load(self.journal, effect) for effect in new if isinstance(effect, Load)]
            if not waiting and self.shard.next_wake_ms() != 0:
                return effects

    def publish(self, queue: str, *bodies: str, producer: tuple[str, int] = ("", 0)) -> None:
        """Messages with everything that a message can have."""
        batch = batch_of(*bodies)
        digest = sum(batch.wire) * 1_000_003 if producer[0] else 0
        self.do(Publish(0, 0, queue, batch, *producer, digest))

    def attach(self, port: int, queue: str, prefetch: int) -> list[int]:
        """A consumer; returns the fences that it is given."""
        subscriptions = (Subscription(queue),)
        name, token = f"consumer-{port}", f"token-{port}"
        attach = Attach(
            port, 1_000 + port, token, name, subscriptions, capabilities=frozenset({"started"}),
            prefetch_messages=prefetch,
        )  # fmt: skip
        return self.delivered(self.do(attach))

    def delivered(self, effects: list[Effect]) -> list[int]:
        """The fences of all deliveries in them."""
        runs = [run for effect in effects if isinstance(effect, Deliver) for run in effect.runs]
        fences = [fence for run in runs for fence in range(run.first_fence, run.first_fence + run.count)]
        self.last_fence = max(self.last_fence, *fences) if fences else self.last_fence
        return fences

    def settle(self, port: int, fence: int, outcome: Outcome, **fields: Any) -> list[int]:
        """One delivery's end; returns the fences given for it."""
        settlement = Settlement(outcome, (FenceRange(fence, fence),), **fields)
        self.settled[fence] = outcome.name
        return self.delivered(self.do(Settle(port, (settlement,))))

    def take_checkpoint(self) -> None:
        """Of all queues, as of now."""
        last = self.journal.sequence - 1
        writer = self.journal.begin_checkpoint()
        writer.add(shard_section(self.shard, last))
        for queue_id in self.shard.queue_ids():
            section = queue_section(self.shard, queue_id, last)
            assert section is not None
            writer.add(section)
        writer.commit().result()


def write(path: Path, *, kyogo: str) -> dict[str, Any]:
    """Write the directory; returns what its users can see, once it was opened again."""
    clock = StillClock()
    first = Running(path, clock, kyogo=kyogo)
    _live(first, "first", port=1)
    first.take_checkpoint()
    first.journal.close()
    clock.ms += 1_000
    second = Running(path, clock, kyogo=kyogo)
    _live(second, "second", port=11, earlier="first")
    second.journal.close()
    # Who had it, on which machine, is nobody's business.
    (path / "lock").unlink()
    return {
        "kyogo": kyogo, "closed_unix_ms": clock.ms, "last_fence": second.last_fence,
        "settled": {str(fence): outcome for fence, outcome in (first.settled | second.settled).items()},
    }  # fmt: skip


def _live(broker: Running, name: str, *, port: int, earlier: str = "") -> None:
    """Everything that can happen to a queue, in queues of this name."""
    work, plain, gone, purged = f"{name}.work", f"{name}.plain", f"{name}.gone", f"{name}.purged"
    for queue in (work, plain, gone, purged):
        broker.do(CreateQueue(0, 0, queue, CAREFUL if queue == work else QueueSettings()))
    broker.publish(gone, "lost with its queue")
    broker.do(DeleteQueue(0, 0, gone))
    broker.publish(purged, "one", "two")
    broker.do(PurgeQueue(0, 0, purged))
    broker.publish(plain, "from an hour ago", producer=("producer-old", 1))
    # An hour in which nobody uses a window, but for one of the life before.
    broker.clock.ms += HOUR_MS // 2
    if earlier:
        broker.publish(f"{earlier}.work", *ALIKE, producer=("producer-1", 1))
    broker.clock.ms += HOUR_MS // 2 + 60_000
    broker.do()
    # Four of a kind, then four of different sizes.
    broker.publish(work, *ALIKE, producer=("producer-1", 1))
    broker.publish(
        work, "dead at once", "dead by its error", "started, lost", "never begun", producer=("producer-1", 5)
    )
    fences = broker.attach(port, work, prefetch=8)
    unit = Publish(port, 0, plain, batch_of("published with an ack"), "producer-2", 1, 77)
    broker.settle(port, fences[0], Outcome.ACK)
    broker.settle(port, fences[1], Outcome.ACK, publishes=(unit,))
    again = broker.settle(port, fences[2], Outcome.RELEASE)
    broker.settle(port, fences[3], Outcome.RETRY, error_type="ValueError", reason="nö", delay_ms=HOUR_MS)
    broker.settle(port, fences[4], Outcome.DEAD_LETTER, error_type="Bad", reason="hopeless")
    broker.settle(port, fences[5], Outcome.RETRY, error_type="KeyError", reason="no such key")
    broker.do(Started(port, (FenceRange(fences[6], fences[6]),)))
    broker.do(StreamEnded(port))
    # It goes on elsewhere: too slow, then left politely, in the end under way.
    fences = broker.attach(port + 1, work, prefetch=1)
    assert fences
    assert again
    broker.do(Started(port + 1, (FenceRange(fences[0], fences[0]),)))
    broker.clock.ms += CAREFUL.visibility_timeout_ms + 1
    broker.do()
    broker.do(Detach(port + 1))
    broker.do(CopyForward(0, broker.journal.position))
    broker.do(UpdateQueue(0, 0, plain, QueueSettings(max_attempts=9, balance_policy=BalancePolicy.ROUND_ROBIN)))
    broker.publish(plain, "waits", "waits too", producer=("producer-2", 2))
    broker.do(PauseQueue(0, 0, plain, paused=True))
    assert broker.attach(port + 2, work, prefetch=1)


def batch_of(*bodies: str) -> Batch:
    """Messages as they travel."""
    wires = []
    for number, body in enumerate(bodies):
        message = broker_pb2.Message(
            id=f"id-{number}", body=body.encode(), content_type="text/plain", type="note", key=f"key-{number}",
            headers={"traceparent": f"00-{number}"},
        ).SerializeToString(deterministic=True)  # fmt: skip
        wires.append(bytes((WIRE_TAG, len(message))) + message)
    assert all(len(wire) < 2 + 128 for wire in wires), "the length is one byte"
    ends = tuple(accumulate(map(len, wires)))
    same = range(ends[0], ends[-1] + 1, ends[0])
    return Batch(b"".join(wires), same if ends == tuple(same) else ends)


def seen(shard: Shard, journal: Journal) -> dict[str, Any]:
    """Everything that users can see of a shard that was just recovered, as JSON would have it."""
    queues = {name: _queue_seen(shard, journal, name) for name in sorted(shard._state.names)}
    told: dict[str, Any] = json.loads(json.dumps(queues))
    return told


def _queue_seen(shard: Shard, journal: Journal, name: str) -> dict[str, Any]:
    queue = shard._state.names[name]
    found = shard.snapshot_queue(queue.id)
    assert found is not None
    state, settings = found
    places: dict[int, dict[str, Any]] = {}
    for first, last in _rows(state["fresh"], 2):
        places |= {offset: {"state": "ready", "reason": 0} for offset in range(first, last + 1)}
    for first, last, reason in _rows(state["returned"], 3):
        places |= {offset: {"state": "ready", "reason": reason} for offset in range(first, last + 1)}
    for due_ms, offset, reason in _rows(state["delayed"], 3):
        places[offset] = {"state": "delayed", "due_ms": due_ms, "reason": reason}
    for offset, trouble in queue.troubles.items():
        places[offset] |= asdict(trouble)
    for offset, message in _messages(journal, queue):
        places[offset] |= message
    return {
        "settings": _settings.dump_python(settings, mode="json"),
        "paused": queue.paused,
        "created_unix_ms": queue.created_unix_ms,
        "accepted": queue.accepted,
        "finished": {str(reason): count for reason, count in queue.finished_by.items() if count},
        "messages": {str(offset): places[offset] for offset in sorted(places)},
        "producers": {
            row[0]: {"dropped_id": row[1], "requests": [list(stored) for stored in row[3]]}
            for row in state["producers"]
        },
    }


def _messages(journal: Journal, queue: Any) -> list[tuple[int, dict[str, Any]]]:
    """What was published, by offset."""
    ranges = tuple(queue.live_ranges(1, queue.next_offset - 1))
    stretches = tuple(sorted({(position, length) for position, length, _, _ in queue.extents.rows_from(1)}))
    found = []
    for batch in load(journal, Load(queue.id, 0, stretches, ranges)).batches if ranges else ():
        for offset, message in zip(batch.offsets, _parsed(batch.batch.wire), strict=True):
            letter = {} if batch.dead_letter is None else {"dead_letter": asdict(batch.dead_letter)}
            found.append((offset, {"published_unix_ms": batch.published_unix_ms, **message, **letter}))
    return found


def _parsed(wire: bytes) -> list[dict[str, Any]]:
    return [
        {
            "id": message.id, "body": message.body.decode(), "content_type": message.content_type,
            "type": message.type, "key": message.key, "headers": dict(message.headers),
        }
        for message in broker_pb2.PublishRequest.FromString(bytes(wire)).messages
    ]  # fmt: skip


def _rows(column: Any, width: int) -> list[tuple[int, ...]]:
    return [tuple(column[at : at + width]) for at in range(0, len(column), width)]


def opened(path: Path, told: Mapping[str, Any]) -> Running:
    """A broker of today on a directory of then, a minute after it was left."""
    return Running(path, StillClock(told["closed_unix_ms"] + 60_000), kyogo=version("kyogo"))


def main(name: str) -> int:
    path = FIXTURES / name
    if path.exists():
        print(f"{path} is there already, and stays as it is: choose the next number")
        return 1
    with patch("kyogo_broker.journal.checkpoint.SPARE_BYTES_MIN", SPARE_BYTES):
        told = write(path, kyogo=version("kyogo"))
    with TemporaryDirectory() as elsewhere:
        reader = opened(copytree(path, Path(elsewhere, "data")), told)
        told["queues"] = seen(reader.shard, reader.journal)
        reader.journal.close()
    (FIXTURES / f"{name}.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
