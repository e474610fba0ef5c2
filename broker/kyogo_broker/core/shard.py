"""A shard: all queues of one journal as one pure state machine.

    handle(command, now) -> Step(facts, effects)

Synchronous, without clock, chance or IO. A command is validated as a whole before anything is changed; every change of
what is durable is a fact that goes through `State.apply`. The engine makes the facts durable and then releases the
effects; `Tick` comes last in each of its turns and does what time and room allow: expiry, redelivery, dispatch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from kyogo_broker.core.consumers import Consumer
from kyogo_broker.core.copying import Copying
from kyogo_broker.core.dispatch import Dispatch
from kyogo_broker.core.fences import BLOCK
from kyogo_broker.core.leases import Lease
from kyogo_broker.core.letters import Letters
from kyogo_broker.core.limits import CAPABILITIES, ShardConfig
from kyogo_broker.core.publishing import Publishing, queue_not_found
from kyogo_broker.core.queue import Queue
from kyogo_broker.core.queues import Queues
from kyogo_broker.core.reading import Reading
from kyogo_broker.core.sessions import Sessions
from kyogo_broker.core.settling import Settling
from kyogo_broker.core.state import State
from kyogo_broker.core.step import Step
from kyogo_broker.core.timers import Timed
from kyogo_broker.model.column import Pieces
from kyogo_broker.model.commands import (
    Attach,
    Command,
    CopyForward,
    CreateQueue,
    DeleteQueue,
    Detach,
    Drain,
    Extend,
    Heartbeat,
    Loaded,
    PauseQueue,
    Publish,
    PurgeQueue,
    SetPrefetch,
    SetPressure,
    Settle,
    Started,
    StreamEnded,
    Tick,
    UpdateQueue,
)  # fmt: skip
from kyogo_broker.model.effects import Notice
from kyogo_broker.model.errors import Refusal
from kyogo_broker.model.facts import Fact, FencesReserved, Opened, ProducersForgotten
from kyogo_broker.model.now import Now
from kyogo_broker.model.settings import QueueSettings
from kyogo_broker.model.stats import ConsumerStats, QueueStats, ShardStats

IDLE_CHECK_MS = 60_000
"""How often producers' windows are looked through for those to forget."""

PROMOTED_MAX = 4_096
"""Delayed messages of one queue made ready in one tick: the loop must come back to its inbox within milliseconds."""

__all__ = ["CAPABILITIES", "Shard", "ShardConfig", "Step"]


class Shard:
    """The state machine. Not thread-safe, and never needs to be."""

    def __init__(self, config: ShardConfig, *, seed: int, stretch: int) -> None:
        """An empty shard.

        Args:
            config: its limits.
            seed: of its own chance (jitter).
            stretch: of the journal, see `Journal.stretch`.
        """
        self._state = state = State(config, seed=seed, stretch=stretch)
        reading = Reading(state)
        letters = Letters(state, reading)
        self._reading = reading
        self._letters = letters
        self._publishing = Publishing(state)
        self._settling = Settling(state, letters, self._publishing)
        self._sessions = Sessions(state, self._settling, letters)
        self._queues = Queues(state, letters)
        self._copying = Copying(state)
        self._dispatch = Dispatch(state, reading)
        self._idle_check_ms = 0
        sessions, settling, queues = self._sessions, self._settling, self._queues
        self._handlers: Mapping[type, Callable[[Any, Now], None]] = {
            Publish: self._publishing.publish,
            Attach: sessions.attach,
            SetPrefetch: lambda c, _: self._of_consumer(c.port, lambda: sessions.set_prefetch(c)),
            Heartbeat: lambda *_: None,
            Started: lambda c, now: self._of_consumer(c.port, lambda: settling.started(c, now)),
            Settle: lambda c, now: self._of_consumer(c.port, lambda: settling.settle(c, now)),
            Extend: lambda c, now: self._of_consumer(c.port, lambda: settling.extend(c, now)),
            Detach: lambda c, _: self._of_consumer(c.port, lambda: sessions.detach(c.port)),
            StreamEnded: lambda c, now: sessions.lost(c.port, now),
            CreateQueue: queues.create,
            UpdateQueue: lambda c, _: queues.update(c),
            DeleteQueue: lambda c, _: queues.delete(c),
            PurgeQueue: lambda c, _: queues.purge(c),
            PauseQueue: lambda c, _: queues.pause(c),
            Loaded: self._loaded,
            CopyForward: lambda c, _: self._copying.copy_forward(c),
            SetPressure: lambda c, _: self._set_pressure(c),
            Drain: lambda c, _: sessions.drain(c),
            Tick: self._tick,
        }

    def begin(self, *, position: int, now: Now, stalled_ms: int = 0) -> None:
        """A turn begins: its facts go into the record at `position`.

        Args:
            position: of the journal's next record.
            now: the clocks.
            stalled_ms: how long the broker itself stood still since the last turn: nobody's silence.
        """
        state = self._state
        state.position = position
        state.unix_ms = now.unix_ms
        self._letters.begin()
        state.steady_ms = now.steady_ms
        state.stalled_ms += stalled_ms
        state.patience_ms = now.steady_ms - state.stalled_ms

    def handle(self, command: Command, now: Now) -> Step:
        """Do one command."""
        state = self._state
        step = state.step = Step()
        port = getattr(command, "port", None)
        if port is not None and port in state.consumers and type(command) is not StreamEnded:
            self._sessions.heard(port, now)
        self._handlers[type(command)](command, now)
        return step

    def hear(self, commands: Iterable[Command], now: Now) -> Step:
        """These have come and are handled in a later turn: whoever sent them is not silent meanwhile."""
        state = self._state
        step = state.step = Step()
        for port in {getattr(command, "port", None) for command in commands if type(command) is not StreamEnded}:
            if port in state.consumers:
                self._sessions.heard(port, now)
        return step

    def open(self, epoch: int, now: Now) -> Step:
        """Begin after a restart (or at first): leases of before are over, fences begin a new block."""
        step = self._state.step = Step()
        fences = self._state.fences
        self._state.record(Opened(epoch, now.unix_ms))
        self._state.record(FencesReserved(fences.reserved + BLOCK))
        for queue in self._state.queues.values():
            self._remind_delayed(queue)
            queue.producers.restarted(now.steady_ms)
        return step

    def next_wake_ms(self) -> int | None:
        """The steady instant at which a tick has something to do; 0: at once; None: not by time."""
        state = self._state
        if self._letters.is_waiting or (state.dirty and not state.draining):
            return 0
        return state.timers.next_ms()

    # Restoring.

    def replay(self, sequence: int, position: int, facts: list[Fact]) -> None:
        """Apply a record that was read back."""
        self._state.replay(sequence, position, facts)

    def restore_shard(self, sequence: int, state: Mapping[str, Any]) -> None:
        """Take in the shard's own section of a checkpoint, before those of the queues."""
        self._state.restore_shard(sequence, state)

    def restore_queue(self, queue_id: int, sequence: int, state: Mapping[str, Any], settings: QueueSettings) -> None:
        """Take in the section of a queue."""
        self._state.restore_queue(queue_id, sequence, state, settings)

    def snapshot_shard(self) -> dict[str, Any]:
        """The shard's own section."""
        return self._state.snapshot_shard()

    def freeze_queue(self, queue_id: int) -> tuple[dict[str, Any], QueueSettings] | None:
        """The section of a queue as it is now, in parts `Pieces`, and its settings; None if it was deleted."""
        queue = self._state.queues.get(queue_id)
        return None if queue is None else (self._state.freeze_queue(queue), queue.settings)

    def snapshot_queue(self, queue_id: int) -> tuple[dict[str, Any], QueueSettings] | None:
        """The same with everything made at once."""
        found = self.freeze_queue(queue_id)
        if found is None:
            return None
        state, settings = found
        return {name: value.whole() if isinstance(value, Pieces) else value for name, value in state.items()}, settings

    def queue_ids(self) -> tuple[int, ...]:
        """All queues that there are."""
        return tuple(self._state.queues)

    def live_bytes(self) -> Iterator[tuple[int, int]]:
        """(position, bytes still needed) of every stretch of the journal with live messages.

        May be stopped and go on later: what is live then, and stood in the journal when it began, is among them.
        """
        for queue in tuple(self._state.queues.values()):
            yield from queue.extents.live_bytes()

    @property
    def copying(self) -> bool:
        """Whether messages are being copied forward."""
        return self._copying.under_way

    def messages(self) -> int:
        """Messages that are not finished."""
        return sum(q.accepted - sum(q.finished_by.values()) for q in self._state.queues.values())

    # What people see.

    def stats(self) -> ShardStats:
        """A frozen picture of queues and consumers."""
        state = self._state
        return ShardStats(
            queues=tuple(_queue_stats(queue, state.unix_ms) for queue in state.queues.values()),
            consumers=tuple(_consumer_stats(c, state.patience_ms) for c in state.consumers.values()),
            failovers=dict(state.failovers),
            producers=sum(len(queue.producers) for queue in state.queues.values()),
            window_bytes=state.budget.used,
        )

    def queue_stats(self, name: str) -> QueueStats | Refusal:
        """A frozen picture of one queue; the refusal if there is none of that name."""
        queue = self._state.names.get(name)
        return queue_not_found(self._state, name) if queue is None else _queue_stats(queue, self._state.unix_ms)

    def in_flight(self) -> int:
        """Deliveries that are not settled."""
        return sum(queue.in_flight for queue in self._state.queues.values())

    def check_invariants(self) -> None:
        """Of all parts: for tests, after every step."""
        self._state.check_invariants()

    def _of_consumer(self, port: int, do: Callable[[], None]) -> None:
        """What only an attached consumer can ask; one that just left asks in vain."""
        if port in self._state.consumers:
            do()

    def _set_pressure(self, command: SetPressure) -> None:
        state = self._state
        if (command.disk_low, command.memory_high) != (state.disk_low, state.memory_high):
            state.disk_low, state.memory_high = command.disk_low, command.memory_high
            fields = {"disk_low": int(command.disk_low), "memory_high": int(command.memory_high)}
            state.emit(Notice("pressure", fields))

    def _loaded(self, command: Loaded, now: Now) -> None:
        if self._copying.loaded(command):
            return
        queue = self._reading.loaded(command)
        if queue is not None and queue.dying:
            self._letters.loaded(queue, now)

    def _tick(self, _: Tick, now: Now) -> None:
        state = self._state
        for timed in state.timers.due(now.steady_ms):
            self._due(timed, now)
        state.timers.compact(self._is_live)
        if now.steady_ms >= self._idle_check_ms:
            self._idle_check_ms = now.steady_ms + IDLE_CHECK_MS
            self._forget_producers(now)
        if self._letters.is_waiting:
            self._letters.go_on(now)
        if state.dirty:
            self._dispatch.run(now)

    def _due(self, timed: Timed, now: Now) -> None:
        if isinstance(timed, Consumer):
            self._sessions.look_at(timed, now)
        elif isinstance(timed, Lease):
            if timed.live:
                self._settling.expire(timed, now)
        elif isinstance(timed, Queue) and self._state.queues.get(timed.id) is timed:
            if timed.promote(now.steady_ms, PROMOTED_MAX):
                self._state.dirty[timed.id] = timed
            self._remind_delayed(timed, after_ms=now.steady_ms)

    def _is_live(self, timed: Timed) -> bool:
        if isinstance(timed, Lease):
            return timed.live != 0
        if isinstance(timed, Queue):
            return self._state.queues.get(timed.id) is timed
        return isinstance(timed, Consumer) and self._state.consumers.get(timed.port) is timed

    def _remind_delayed(self, queue: Queue, *, after_ms: int = 0) -> None:
        due = queue.delayed.next_due_ms()
        if due is not None:
            self._state.timers.remind(queue, max(due, after_ms + 1))

    def _forget_producers(self, now: Now) -> None:
        for queue in self._state.queues.values():
            idle = queue.producers.idle(now.steady_ms)
            if idle:
                self._state.record(ProducersForgotten(queue.id, idle))


def _queue_stats(queue: Queue, unix_ms: int) -> QueueStats:
    head = queue.ready.head()
    held = queue.window.find(head.first) if head is not None else None
    return QueueStats(
        queue_id=queue.id, name=queue.name, settings=queue.settings, paused=queue.paused,
        created_unix_ms=queue.created_unix_ms, next_offset=queue.next_offset, ready=queue.ready_count,
        delayed=len(queue.delayed), parked=0, in_flight=queue.in_flight, finished=dict(queue.finished_by),
        accepted=queue.accepted, delivered=queue.counters.delivered, settled=dict(queue.counters.settled),
        redelivered=dict(queue.counters.redelivered), consumers=len(queue.members),
        oldest_ready_offset=head.first if head is not None else 0,
        oldest_ready_age_ms=max(0, unix_ms - held.published_unix_ms) if held is not None else None,
    )  # fmt: skip


def _consumer_stats(consumer: Consumer, patience_ms: int) -> ConsumerStats:
    return ConsumerStats(
        consumer_id=consumer.consumer_id, session_id=consumer.session_id, port=consumer.port, state=consumer.state,
        client=consumer.client, queues=tuple(member.queue.name for member in consumer.members),
        labels=consumer.labels, weight=consumer.weight, prefetch_messages=consumer.prefetch_messages,
        prefetch_bytes=consumer.prefetch_bytes, in_flight=consumer.in_flight,
        in_flight_bytes=consumer.in_flight_bytes, delivered=consumer.delivered, settled=consumer.settled,
        attached_unix_ms=consumer.attached_unix_ms, heard_ago_ms=max(0, patience_ms - consumer.heard_ms),
        started=sum((lease.started & lease.live).bit_count() for lease in consumer.leases.values()),
    )  # fmt: skip
