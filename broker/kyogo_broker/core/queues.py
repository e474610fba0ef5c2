"""What operators do to queues: make, change, pause, empty and delete them."""

from kyogo_broker.core.letters import Letters
from kyogo_broker.core.publishing import queue_not_found, too_many_queues
from kyogo_broker.core.state import State
from kyogo_broker.model.commands import CreateQueue, DeleteQueue, PauseQueue, PurgeQueue, UpdateQueue
from kyogo_broker.model.effects import AdminDone, Notice, PartRefused, Revoke
from kyogo_broker.model.errors import ErrorCode, Refusal
from kyogo_broker.model.facts import Finished, QueueCreated, QueueDeleted, QueuePaused, QueueUpdated
from kyogo_broker.model.message import FenceRange
from kyogo_broker.model.now import Now
from kyogo_broker.model.settings import DLQ_SUFFIX, NAME_RULE, QueueMode, QueueSettings, valid_queue_name
from kyogo_broker.model.states import FinishReason, RevokeMode, RevokeReason
from kyogo_broker.policy.balance import POLICIES


class Queues:
    """The control plane's part of a shard."""

    def __init__(self, state: State, letters: Letters) -> None:
        self._state = state
        self._letters = letters

    def create(self, command: CreateQueue, now: Now) -> None:
        """Make a queue."""
        state, name = self._state, command.queue
        refusal = None
        before = state.names.get(name)
        if before is not None and before.settings == command.settings:
            # The same again is what a deployment does at every start.
            state.emit(AdminDone(command.port, command.tag))
            return
        if not valid_queue_name(name) or name.endswith(DLQ_SUFFIX):
            refusal = Refusal(ErrorCode.SETTINGS_INVALID, NAME_RULE)
        elif before is not None:
            text = f"there is a queue '{name}' with other settings; change it with: kyogo queue update {name}"
            refusal = Refusal(ErrorCode.QUEUE_EXISTS, text)
        elif len(state.queues) >= state.config.queues_max:
            refusal = too_many_queues(state)
        refusal = refusal or _settings_refusal(name, command.settings)
        if refusal is None:
            state.record(QueueCreated(state.next_queue_id, name, command.settings, now.unix_ms))
            state.emit(Notice("queue_created", {"queue": name, "by": "request"}))
        state.emit(AdminDone(command.port, command.tag, refusal))

    def update(self, command: UpdateQueue) -> None:
        """Replace a queue's settings; they hold from here on, for what is in flight as said in the table."""
        queue = self._state.names.get(command.queue)
        refusal = None
        if queue is None:
            refusal = queue_not_found(self._state, command.queue)
        elif command.settings.mode is not queue.settings.mode:
            text = f"mode is fixed at creation ({queue.settings.mode}); create another queue"
            refusal = Refusal(ErrorCode.SETTINGS_INVALID, text)
        else:
            refusal = _settings_refusal(queue.name, command.settings)
        if refusal is None and queue is not None:
            self._state.record(QueueUpdated(queue.id, command.settings))
            self._state.emit(Notice("queue_updated", {"queue": queue.name}))
        self._state.emit(AdminDone(command.port, command.tag, refusal))

    def pause(self, command: PauseQueue) -> None:
        """Stop or go on with deliveries."""
        queue = self._state.names.get(command.queue)
        if queue is None:
            self._not_found(command.port, command.tag, command.queue)
            return
        if queue.paused is not command.paused:
            self._state.record(QueuePaused(queue.id, command.paused))
            self._state.dirty[queue.id] = queue
            self._state.emit(Notice("queue_paused" if command.paused else "queue_unpaused", {"queue": queue.name}))
        self._state.emit(AdminDone(command.port, command.tag))

    def purge(self, command: PurgeQueue) -> None:
        """Finish all that is not in flight."""
        queue = self._state.names.get(command.queue)
        if queue is None:
            self._not_found(command.port, command.tag, command.queue)
            return
        waiting = sorted(
            [(offset, offset) for offset in (*queue.delayed.offsets(), *queue.aside)] + queue.ready.ranges()
        )
        count = sum(last - first + 1 for first, last in waiting)
        if waiting:
            self._state.record(Finished(queue.id, FinishReason.PURGED, tuple(waiting)))
        self._state.emit(Notice("queue_purged", {"queue": queue.name, "messages": count}))
        self._state.emit(AdminDone(command.port, command.tag, count=count))

    def delete(self, command: DeleteQueue) -> None:
        """Remove a queue with all its messages; consumers are told what they lost."""
        state = self._state
        queue = state.names.get(command.queue)
        if queue is None:
            self._not_found(command.port, command.tag, command.queue)
            return
        text = f"queue '{queue.name}' was deleted; attach again without it"
        gone = Refusal(ErrorCode.QUEUE_NOT_FOUND, text, metadata={"queue": queue.name})
        for member in list(queue.members.values()):
            consumer = member.consumer
            ranges = [
                FenceRange(span.first_fence, span.first_fence + span.count - 1)
                for lease in consumer.leases.values() if lease.queue is queue
                for span in lease.spans(lease.live)
            ]  # fmt: skip
            if ranges and consumer.capabilities:
                state.emit(Revoke(consumer.port, tuple(ranges), RevokeMode.LOST, RevokeReason.PURGED))
            state.emit(PartRefused(consumer.port, gone))
        self._letters.queue_deleted(queue)
        count = queue.accepted - sum(queue.finished_by.values())
        state.record(QueueDeleted(queue.id))
        for member in list(queue.members.values()):
            if member.offered:
                queue.balance.remove(member)
            member.consumer.members.remove(member)
        queue.members.clear()
        state.emit(Notice("queue_deleted", {"queue": queue.name, "messages": count}))
        state.emit(AdminDone(command.port, command.tag, count=count))

    def _not_found(self, port: int, tag: int, name: str) -> None:
        self._state.emit(AdminDone(port, tag, queue_not_found(self._state, name)))


def _settings_refusal(name: str, settings: QueueSettings) -> Refusal | None:
    """What cannot hold for this queue, or is not built."""
    if settings.mode is not QueueMode.STANDARD:
        return Refusal(ErrorCode.UNSUPPORTED, f"mode {settings.mode} is not built yet; use STANDARD")
    if settings.balance_policy not in POLICIES:
        text = f"balance_policy {settings.balance_policy} is not built yet; use one of {', '.join(POLICIES)}"
        return Refusal(ErrorCode.UNSUPPORTED, text)
    if settings.dead_letter_queue == name:
        return Refusal(ErrorCode.SETTINGS_INVALID, "a queue cannot be its own dead_letter_queue; name another")
    return None
