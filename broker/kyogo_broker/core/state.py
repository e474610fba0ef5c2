"""The state of a shard and its only mutator: `apply(fact)`, live and in replay alike.

Commands are decided elsewhere in this room; whatever they decide becomes a fact and comes through here, so that
`restore(records) == live`. What is not in facts (who is attached, what is in memory, deadlines of running handlers)
is lost with the process and needs no trace.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from kyogo_broker.core.chance import Chance
from kyogo_broker.core.consumers import Consumer
from kyogo_broker.core.fences import Fences
from kyogo_broker.core.leases import Lease, Leases
from kyogo_broker.core.limits import ShardConfig
from kyogo_broker.core.producers import Stored
from kyogo_broker.core.queue import Queue
from kyogo_broker.core.settled import SettledFences
from kyogo_broker.core.step import Step
from kyogo_broker.core.timers import Timers
from kyogo_broker.core.window import WindowBudget
from kyogo_broker.model.column import Pieces
from kyogo_broker.model.commands import Outcome
from kyogo_broker.model.effects import Effect
from kyogo_broker.model.facts import (
    DeadLettered,
    Fact,
    FencesReserved,
    Finished,
    Leased,
    Lost,
    Moved,
    Opened,
    ProducersForgotten,
    Published,
    QueueCreated,
    QueueDeleted,
    QueuePaused,
    QueueUpdated,
    Retried,
    Returned,
    Settled,
    Span,
)  # fmt: skip
from kyogo_broker.model.settings import QueueSettings
from kyogo_broker.model.states import FinishReason, RedeliveryReason
from kyogo_broker.policy.balance import POLICIES

FACT_BYTES = 64
"""What the journal needs for a batch beside its messages. Without it small batches would look as if copying them
forward made them smaller, and would be copied for ever."""


class State:
    """Queues, leases and consumers of one journal."""

    def __init__(self, config: ShardConfig, *, seed: int, stretch: int) -> None:
        self.config = config
        self.stretch = stretch
        self.chance = Chance(seed)
        self.queues: dict[int, Queue] = {}
        self.names: dict[str, Queue] = {}
        self.next_queue_id = 1
        self.epoch = 0
        self.contains = 0
        """Sequence of the last record that the shard's own restored section contains."""
        self.fences = Fences(config.shard_number)
        self.leases = Leases()
        self.settled = SettledFences()
        self.budget = WindowBudget()
        # What is not durable:
        self.timers = Timers()
        self.consumers: dict[int, Consumer] = {}
        """By port."""
        self.consumer_ids: dict[str, Consumer] = {}
        self.sessions: dict[int, Consumer] = {}
        self.failovers: dict[str, int] = {}
        self.dirty: dict[int, Queue] = {}
        """Queues that may have something to dispatch."""
        self.steady_ms = 0
        """Of this turn."""
        self.patience_ms = 0
        """The steady clock without the time in which this broker itself stood still."""
        self.stalled_ms = 0
        self.unix_ms = 0
        """When this turn began."""
        self.disk_low = False
        self.memory_high = False
        self.draining = False
        self.loads = 0
        self.position = 0
        """Of the record that the facts of this turn go into."""
        self.replaying = False
        self.step = Step()
        self._mutators: Mapping[type, Callable[[Any], None]] = {
            Opened: self._opened, FencesReserved: self._fences_reserved, QueueCreated: self._queue_created,
            QueueUpdated: self._queue_updated, QueuePaused: self._queue_paused, QueueDeleted: self._queue_deleted,
            Published: self._published, Moved: self._moved, Leased: self._leased, Settled: self._settled,
            Returned: self._returned, Lost: self._lost, Retried: self._retried, DeadLettered: self._dead_lettered,
            Finished: self._finished, ProducersForgotten: self._producers_forgotten,
        }  # fmt: skip

    def record(self, fact: Fact) -> None:
        """Something happened: it goes into this step's record and into the state."""
        self.step.facts.append(fact)
        self._mutators[type(fact)](fact)

    def emit(self, effect: Effect) -> None:
        """Ask the outside for something, once this step's facts are durable."""
        self.step.effects.append(effect)

    def replay(self, sequence: int, position: int, facts: Iterator[Fact] | list[Fact]) -> None:
        """Apply a record that was read back; a queue skips what its snapshot contains already."""
        self.replaying = True
        self.position = position
        for fact in facts:
            queue_id = getattr(fact, "queue_id", None)
            if queue_id is None:
                if sequence <= self.contains:
                    continue
            else:
                queue = self.queues.get(queue_id)
                if queue is None:
                    # Its queue was deleted before the checkpoint came to it, or is created by this very fact.
                    if type(fact) is not QueueCreated or queue_id < self.next_queue_id:
                        continue
                elif sequence <= queue.contains:
                    continue
            self._mutators[type(fact)](fact)
        self.replaying = False

    def restore_queue(self, queue_id: int, sequence: int, state: Mapping[str, Any], settings: QueueSettings) -> None:
        """Bring back a queue from its section of a checkpoint."""
        self._queue_created(QueueCreated(queue_id, state["name"], settings, state["created_unix_ms"]))
        queue = self.queues[queue_id]
        queue.restore(state, stretch=self.stretch)
        queue.contains = sequence
        self.settled.restore(queue_id, state["settled"])
        for first_fence, first_offset, count, session_id, consumer_id, live, leased_unix_ms, reason in state["leases"]:
            span = Span(first_fence, first_offset, count)
            lease = Lease(queue, span, session_id=session_id, consumer_id=consumer_id, leased_unix_ms=leased_unix_ms,
                          reason=RedeliveryReason(reason))  # fmt: skip
            lease.live = int(live, 16)
            queue.in_flight += lease.live.bit_count()
            self.leases.add(lease)

    def snapshot_shard(self) -> dict[str, Any]:
        """What belongs to no queue."""
        return {"epoch": self.epoch, "next_queue_id": self.next_queue_id, "fences_reserved": self.fences.reserved}

    def restore_shard(self, sequence: int, state: Mapping[str, Any]) -> None:
        """The inverse of `snapshot_shard`; comes before the queues."""
        self.contains = sequence
        self.epoch = state["epoch"]
        self.next_queue_id = state["next_queue_id"]
        self.fences.reserve(state["fences_reserved"])

    def freeze_queue(self, queue: Queue) -> dict[str, Any]:
        """One queue as it is now, with its leases and settled fences; its settings are encoded by the caller."""
        leases = [lease for lease in self.leases if lease.queue is queue] if queue.in_flight else []
        lives = [lease.live for lease in leases]
        rows = Pieces(range(len(leases)), partial(_lease_rows, leases, lives))
        return {**queue.freeze(), "leases": rows, "settled": self.settled.freeze(queue.id)}

    def end(self, span: Span) -> Lease:
        """Deliveries are over, one way or another: what they held is free again."""
        lease = self.leases.find(span.first_fence)
        assert lease is not None, "ended a delivery that was not there"
        bit = span.first_fence - lease.first_fence
        mask = ((1 << span.count) - 1) << bit
        assert lease.live & mask == mask, "ended a delivery twice"
        lease.live &= ~mask
        lease.queue.in_flight -= span.count
        if not lease.live:
            self.leases.ended()
        if lease.consumer is not None:
            lease.consumer.gave_back(lease, span.count, size=lease.size(bit, span.count))
            self.touch(lease.consumer)
        return lease

    def touch(self, consumer: Consumer) -> None:
        """What a consumer may be given has changed: tell the policies, and look at its queues again."""
        for member in consumer.members:
            offered = member.room() > 0
            if offered != member.offered:
                member.offered = offered
                if offered:
                    member.queue.balance.add(member)
                    self.dirty[member.queue.id] = member.queue
                else:
                    member.queue.balance.remove(member)
            elif offered:
                member.queue.balance.changed(member)
                self.dirty[member.queue.id] = member.queue
            if offered and member.queue.aside:
                member.queue.aside_due = True

    def check_invariants(self) -> None:
        """Of all parts; for tests, after every step."""
        self.leases.check_invariants()
        for queue in self.queues.values():
            queue.check_invariants()
            in_flight = sum(lease.live.bit_count() for lease in self.leases if lease.queue is queue)
            assert queue.in_flight == in_flight, "in flight disagrees with the leases"
        for consumer in self.consumers.values():
            consumer.check_invariants()
        assert self.budget.used == sum(queue.window.bytes for queue in self.queues.values()), "budget miscounted"

    # The mutator, a method for each fact.

    def _opened(self, fact: Opened) -> None:
        self.epoch = fact.epoch
        for lease in list(self.leases):
            for span in list(lease.spans(lease.live)):
                self.end(span)
                last = span.first_offset + span.count - 1
                lease.queue.ready.add_returned(span.first_offset, last, RedeliveryReason.BROKER_RESTART)
        self.fences.begin_block()

    def _fences_reserved(self, fact: FencesReserved) -> None:
        self.fences.reserve(fact.until)

    def _queue_created(self, fact: QueueCreated) -> None:
        queue = Queue(fact.queue_id, fact.name, fact.settings, created_unix_ms=fact.created_unix_ms,
                      stretch=self.stretch, budget=self.budget)  # fmt: skip
        self.queues[queue.id] = self.names[queue.name] = queue
        self.next_queue_id = max(self.next_queue_id, queue.id + 1)

    def _queue_updated(self, fact: QueueUpdated) -> None:
        queue = self.queues[fact.queue_id]
        before, queue.settings = queue.settings, fact.settings
        if before.balance_policy != fact.settings.balance_policy:
            queue.balance = POLICIES[fact.settings.balance_policy]()
            for member in queue.members.values():
                if member.offered:
                    queue.balance.add(member)

    def _queue_paused(self, fact: QueuePaused) -> None:
        self.queues[fact.queue_id].paused = fact.paused

    def _queue_deleted(self, fact: QueueDeleted) -> None:
        queue = self.queues[fact.queue_id]
        for lease in list(self.leases):
            if lease.queue is queue:
                for span in list(lease.spans(lease.live)):
                    self.end(span)
        queue.window.clear()
        self.settled.forget_queue(queue.id)
        self.dirty.pop(queue.id, None)
        del self.queues[queue.id], self.names[queue.name]

    def _published(self, fact: Published) -> None:
        queue = self.queues[fact.queue_id]
        batch, first = fact.batch, fact.first_offset
        count = len(batch.ends)
        assert first == queue.next_offset, "offsets are dense"
        queue.next_offset = first + count
        queue.accepted += count
        queue.extents.append(first=first, count=count, position=self.position, size=len(batch.wire) + FACT_BYTES)
        queue.ready.add_fresh(first, first + count - 1)
        if fact.producer_id:
            stored = Stored(fact.request_id, first, count, fact.digest)
            queue.producers.keep(fact.producer_id, stored, self.steady_ms)
        if not self.replaying:
            queue.keep(fact)
            self.dirty[queue.id] = queue

    def _moved(self, fact: Moved) -> None:
        queue = self.queues[fact.queue_id]
        queue.extents.move(fact.offsets, position=self.position, size=len(fact.batch.wire) + FACT_BYTES)

    def _leased(self, fact: Leased) -> None:
        queue = self.queues[fact.queue_id]
        span = fact.span
        if self.replaying:
            self._catch_up(queue, span)
        reason = queue.ready.take(span.first_offset, span.count)
        queue.in_flight += span.count
        self.leases.add(
            Lease(queue, span, session_id=fact.session_id, consumer_id=fact.consumer_id,
                  leased_unix_ms=fact.leased_unix_ms, reason=reason)
        )  # fmt: skip

    def _catch_up(self, queue: Queue, span: Span) -> None:
        """Time passes in a replay too: what was delivered had become due before, whatever the clocks say."""
        if not len(queue.delayed):
            return
        for offset in range(span.first_offset, span.first_offset + span.count):
            reason = queue.delayed.discard(offset)
            if reason is not None:
                queue.ready.add_returned(offset, offset, reason)

    def _settled(self, fact: Settled) -> None:
        queue = self.queues[fact.queue_id]
        for span in fact.spans:
            self.end(span)
            last = span.first_offset + span.count - 1
            self.settled.add(queue.id, span.first_fence, span.count, fact.outcome)
            if fact.outcome is Outcome.ACK:
                queue.finish(span.first_offset, last, FinishReason.ACKED)
            else:
                self._ready_again(queue, span.first_offset, last, RedeliveryReason.RELEASE)

    def _returned(self, fact: Returned) -> None:
        queue = self.queues[fact.queue_id]
        for span in fact.spans:
            self.end(span)
            self._ready_again(queue, span.first_offset, span.first_offset + span.count - 1, fact.reason)

    def _lost(self, fact: Lost) -> None:
        queue = self.queues[fact.queue_id]
        for span in fact.spans:
            lease = self.end(span)
            for offset in range(span.first_offset, span.first_offset + span.count):
                trouble = queue.trouble(offset)
                trouble.losses += 1
                trouble.last_consumer_id = fact.consumer_id
                trouble.first_delivered_unix_ms = trouble.first_delivered_unix_ms or lease.leased_unix_ms
                if fact.due_ms:
                    self._delay(queue, offset, fact.due_ms, fact.reason)
            if not fact.due_ms:
                self._ready_again(queue, span.first_offset, span.first_offset + span.count - 1, fact.reason)

    def _retried(self, fact: Retried) -> None:
        queue, offset = self.queues[fact.queue_id], fact.span.first_offset
        lease = self.end(fact.span)
        if fact.reason is RedeliveryReason.RETRY:
            self.settled.add(queue.id, fact.span.first_fence, 1, fact.outcome)
        trouble = queue.trouble(offset)
        trouble.failures += 1
        trouble.first_error = trouble.first_error or fact.error
        trouble.last_error = fact.error
        trouble.error_type = fact.error_type
        trouble.last_consumer_id = fact.consumer_id
        trouble.first_delivered_unix_ms = trouble.first_delivered_unix_ms or lease.leased_unix_ms
        if fact.due_ms:
            self._delay(queue, offset, fact.due_ms, fact.reason)
        else:
            self._ready_again(queue, offset, offset, fact.reason)

    def _dead_lettered(self, fact: DeadLettered) -> None:
        queue = self.queues[fact.queue_id]
        self.end(fact.span)
        if fact.outcome is not None:
            self.settled.add(queue.id, fact.span.first_fence, 1, fact.outcome)
        queue.finish(fact.span.first_offset, fact.span.first_offset, FinishReason.DEAD_LETTERED)

    def _finished(self, fact: Finished) -> None:
        queue = self.queues[fact.queue_id]
        queue.aside.clear()
        queue.ready.clear()
        queue.delayed.clear()
        for held in queue.window:
            held.pinned = False
        for first, last in fact.ranges:
            queue.finish(first, last, fact.reason)

    def _producers_forgotten(self, fact: ProducersForgotten) -> None:
        self.queues[fact.queue_id].producers.forget(fact.producer_ids)

    def _delay(self, queue: Queue, offset: int, due_ms: int, reason: RedeliveryReason) -> None:
        queue.delayed.add(offset, due_ms, reason)
        self.timers.remind(queue, due_ms)

    def _ready_again(self, queue: Queue, first: int, last: int, reason: RedeliveryReason) -> None:
        queue.ready.add_returned(first, last, reason)
        self.dirty[queue.id] = queue


def _lease_rows(leases: Sequence[Lease], lives: Sequence[int], numbers: Sequence[int]) -> list[Any]:
    return [
        [lease.first_fence, lease.first_offset, lease.count, lease.session_id, lease.consumer_id, format(live, "x"),
         lease.leased_unix_ms, int(lease.reason)]
        for lease, live in ((leases[number], lives[number]) for number in numbers)
    ]  # fmt: skip
