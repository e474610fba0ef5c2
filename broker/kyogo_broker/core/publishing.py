"""Publishing: all or nothing, recognised when it comes again."""

from difflib import get_close_matches

from kyogo_broker.core.producers import offsets_of
from kyogo_broker.core.queue import Queue
from kyogo_broker.core.state import State
from kyogo_broker.model.commands import Publish
from kyogo_broker.model.effects import Notice, PublishDone
from kyogo_broker.model.errors import ErrorCode, Refusal
from kyogo_broker.model.facts import Published, QueueCreated
from kyogo_broker.model.message import OffsetRun
from kyogo_broker.model.now import Now
from kyogo_broker.model.settings import DLQ_SUFFIX, NAME_RULE, QueueSettings, valid_queue_name

PRESSURE_RETRY_MS = 1_000
DRAINING_RETRY_MS = 2_000


class Publishing:
    """Stores batches, of all queues."""

    def __init__(self, state: State) -> None:
        self._state = state

    def publish(self, command: Publish, now: Now) -> None:
        """Store a batch, or answer a resend from its producer's window."""
        queue = self._state.names.get(command.queue)
        if queue is not None:
            known = self._resend(queue, command, now)
            if known is not None:
                self._state.emit(known)
                return
        refusal = self._pressure() or self._draining() or self._refusal(command)
        if refusal is not None:
            self._state.emit(PublishDone(command.port, command.tag, refusal=refusal))
            return
        self._state.emit(PublishDone(command.port, command.tag, self.store(command, now)))

    def refusal_of(self, publishes: tuple[Publish, ...], now: Now) -> Refusal | None:
        """Why the publishes of a settlement cannot be stored, if so. Settling goes on while a broker drains."""
        digests: dict[tuple[str, str, int], int] = {}
        for publish in publishes:
            queue = self._state.names.get(publish.queue)
            known = self._resend(queue, publish, now) if queue is not None else None
            if known is not None and known.refusal is None:
                continue
            refusal = self._pressure() or self._refusal(publish) if known is None else known.refusal
            request = publish.queue, publish.producer_id, publish.request_id
            if refusal is None and publish.producer_id:
                same = digests.setdefault(request, publish.digest) == publish.digest
                refusal = None if same else _conflict(publish)
            if refusal is not None:
                return refusal
        return None

    def store_once(self, command: Publish, now: Now) -> tuple[OffsetRun, ...]:
        """Store a batch of a settlement, unless its producer has stored it before."""
        queue = self._state.names.get(command.queue)
        known = self._resend(queue, command, now) if queue is not None else None
        return self.store(command, now) if known is None or known.refusal is not None else known.offsets

    def store(self, command: Publish, now: Now) -> tuple[OffsetRun, ...]:
        """Store a batch that was not refused; its queue is made if it is not there."""
        state = self._state
        queue = state.names.get(command.queue)
        if queue is None:
            state.record(QueueCreated(state.next_queue_id, command.queue, QueueSettings(), now.unix_ms))
            state.emit(Notice("queue_created", {"queue": command.queue, "by": "publish"}))
            queue = state.names[command.queue]
        first = queue.next_offset
        fact = Published(
            queue.id, first, command.batch, now.unix_ms, command.producer_id,
            command.request_id if command.producer_id else 0, command.digest if command.producer_id else 0,
        )  # fmt: skip
        state.record(fact)
        return (OffsetRun(first, command.batch.count),)

    def _resend(self, queue: Queue, command: Publish, now: Now) -> PublishDone | None:
        """The answer to a request that is in its producer's window, or too old to tell."""
        window = queue.producers.window(command.producer_id) if command.producer_id else None
        if window is None:
            return None
        stored = window.requests.get(command.request_id)
        if stored is None:
            if command.request_id > window.dropped_id:
                return None
            text = (
                f"request {command.request_id} to '{queue.name}' is not above {window.dropped_id}, the highest one "
                "that is remembered no more: whether it was stored cannot be told; check, then publish it as a new one"
            )
            return PublishDone(command.port, command.tag, refusal=Refusal(ErrorCode.REQUEST_TOO_OLD, text))
        queue.producers.touch(command.producer_id, now.steady_ms)
        if stored.digest != command.digest or stored.messages != command.batch.count:
            return PublishDone(command.port, command.tag, refusal=_conflict(command))
        return PublishDone(command.port, command.tag, offsets_of(stored))

    def _pressure(self) -> Refusal | None:
        state = self._state
        if state.disk_low:
            text = "the broker's disk is nearly full: settle or purge messages, or free disk space; then send it again"
            return Refusal(ErrorCode.DISK_LOW, text, PRESSURE_RETRY_MS)
        if state.memory_high:
            text = "the broker is above its memory limit: settle messages or raise the limit; then send it again"
            return Refusal(ErrorCode.MEMORY_HIGH, text, PRESSURE_RETRY_MS)
        return None

    def _draining(self) -> Refusal | None:
        if self._state.draining:
            return Refusal(ErrorCode.BROKER_DRAINING, "the broker is stopping; send it again", DRAINING_RETRY_MS)
        return None

    def _refusal(self, command: Publish) -> Refusal | None:
        state = self._state
        queue = state.names.get(command.queue)
        if queue is None:
            if not state.config.auto_create or command.queue.endswith(DLQ_SUFFIX):
                return queue_not_found(state, command.queue)
            if not valid_queue_name(command.queue):
                return Refusal(ErrorCode.MESSAGE_INVALID, f"destination: {NAME_RULE}")
            if len(state.queues) >= state.config.queues_max:
                return too_many_queues(state)
        elif command.producer_id and queue.producers.window(command.producer_id) is None:
            windows = sum(len(each.producers) for each in state.queues.values())
            if windows >= state.config.producers_max:
                text = f"{windows} producers are remembered, the most there may be; publish without a producer_id"
                return Refusal(ErrorCode.LIMIT_EXCEEDED, text)
        return None


def _conflict(command: Publish) -> Refusal:
    text = (
        f"request {command.request_id} to '{command.queue}' was stored with other messages; "
        "use a new request id for new messages"
    )
    return Refusal(ErrorCode.REQUEST_CONFLICT, text)


def queue_not_found(state: State, name: str) -> Refusal:
    """The refusal for a queue that is not there; it names the nearest one."""
    near = get_close_matches(name, list(state.names)[:1_000], n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    metadata = {"queue": name[:200]} | ({"nearest": near[0]} if near else {})
    text = f"there is no queue '{name[:200]}'{hint} Create it first: kyogo queue create NAME"
    return Refusal(ErrorCode.QUEUE_NOT_FOUND, text.replace("' Create", "'. Create"), metadata=metadata)


def too_many_queues(state: State) -> Refusal:
    """The refusal for one queue too many."""
    text = f"there are {len(state.queues)} queues, the most there may be; delete some first"
    return Refusal(ErrorCode.LIMIT_EXCEEDED, text)
