"""The end of messages that cannot be handled: a letter in the dead-letter queue, with its history.

The letter is a new message, stored in the same record in which its origin is finished. If the message is not in
memory it is read back first; until then its delivery is over for its consumer, but not yet accounted for.
"""

from kyogo_broker.core.leases import Lease
from kyogo_broker.core.queue import Dying, Queue, Trouble
from kyogo_broker.core.reading import Reading
from kyogo_broker.core.state import State
from kyogo_broker.model.effects import EndStream, Notice, SettleDone, SettleResult
from kyogo_broker.model.facts import DeadLettered, Published, QueueCreated
from kyogo_broker.model.message import Batch, DeadLetterInfo, FenceRange
from kyogo_broker.model.now import Now
from kyogo_broker.model.settings import DLQ_SUFFIX, QueueSettings
from kyogo_broker.model.states import SettleStatus

TURN_BYTES_MAX = 2 << 20
"""Of letters written in one turn, one message beyond it at most: they share its record with everything else."""
ERROR_LENGTH_MAX = 2_000
"""Characters of an error's text that travel with its letter."""


class Letters:
    """Writes dead letters."""

    def __init__(self, state: State, reading: Reading) -> None:
        self._state = state
        self._reading = reading
        self._owed: dict[int, int] = {}
        """Answers that wait for a letter, by port."""
        self._ending: set[int] = set()
        """Ports whose streams end once nothing is owed to them."""
        self._waiting: dict[int, Queue] = {}
        """Queues with letters that could be written, but for the bytes of this turn."""
        self._bytes_left = TURN_BYTES_MAX

    def begin(self) -> None:
        """A new turn, with bytes of its own."""
        self._bytes_left = TURN_BYTES_MAX

    @property
    def is_waiting(self) -> bool:
        """Whether there are letters for the next turn."""
        return bool(self._waiting)

    def go_on(self, now: Now) -> None:
        """Write letters that had to wait for another turn."""
        for queue in list(self._waiting.values()):
            if self._bytes_left <= 0:
                return
            del self._waiting[queue.id]
            self.loaded(queue, now)

    def write(self, queue: Queue, dying: Dying, now: Now) -> bool:
        """End a delivery in a dead letter; False: its message is read back first, or it is another turn's work."""
        offset = dying.span.first_offset
        keeps = queue.settings.dead_letter_queue != ""
        held = queue.window.find(offset) if keeps else None
        if keeps and (held is None or self._bytes_left <= 0):
            queue.dying[offset] = dying
            for port in dying.ports:
                self._owed[port] = self._owed.get(port, 0) + 1
            if held is None:
                self._reading.want_dying(queue)
            else:
                self._waiting[queue.id] = queue
            return False
        lease = self._state.leases.find(dying.span.first_fence)
        assert lease is not None, "a dying delivery keeps its lease"
        info = self._info(queue, dying, lease, now)
        if held is not None:
            home = self._home(queue, now)
            index = offset - held.first
            wire = bytes(held.batch.part(index, index))
            self._bytes_left -= len(wire)
            batch = Batch(wire, range(len(wire), len(wire) + 1))
            held.pinned = False
            self._state.record(Published(home.id, home.next_offset, batch, now.unix_ms, dead_letter=info))
        self._state.record(DeadLettered(queue.id, dying.span, dying.outcome, dying.reason))
        self._state.emit(Notice("dead_letter", {"queue": queue.name, "offset": offset, "reason": dying.reason}))
        return True

    def loaded(self, queue: Queue, now: Now) -> None:
        """Messages were read back: write the letters that waited for them."""
        for offset, dying in list(queue.dying.items()):
            if queue.window.find(offset) is None:
                continue
            if self._bytes_left <= 0:
                self._waiting[queue.id] = queue
                break
            del queue.dying[offset]
            self.write(queue, dying, now)
            self._answer(dying, SettleStatus.OK)
        self._reading.want_dying(queue)

    def ask(self, dying: Dying, port: int) -> None:
        """The settlement that ends it was repeated: it has the same answer at the same time."""
        dying.ports.append(port)
        self._owed[port] = self._owed.get(port, 0) + 1

    def queue_deleted(self, queue: Queue) -> None:
        """No letter will be written."""
        for dying in queue.dying.values():
            self._answer(dying, SettleStatus.STALE)
        queue.dying.clear()
        self._waiting.pop(queue.id, None)

    def end_stream(self, port: int) -> None:
        """End a stream that was detached, once everything that came before is answered."""
        if port in self._owed:
            self._ending.add(port)
        else:
            self._state.emit(EndStream(port))

    def stream_ended(self, port: int) -> None:
        """It has ended by itself."""
        self._ending.discard(port)

    def _answer(self, dying: Dying, status: SettleStatus) -> None:
        fence = dying.span.first_fence
        for port in dying.ports:
            self._state.emit(SettleDone(port, (SettleResult(FenceRange(fence, fence), status),)))
            self._owed[port] -= 1
            if not self._owed[port]:
                del self._owed[port]
                if port in self._ending:
                    self._ending.remove(port)
                    self._state.emit(EndStream(port))

    def _home(self, queue: Queue, now: Now) -> Queue:
        """The queue for the letters of `queue`, made at the first one."""
        name = queue.settings.dead_letter_queue or queue.name + DLQ_SUFFIX
        home = self._state.names.get(name)
        if home is None:
            settings = QueueSettings(max_attempts=0, max_losses=0) if name.endswith(DLQ_SUFFIX) else QueueSettings()
            self._state.record(QueueCreated(self._state.next_queue_id, name, settings, now.unix_ms))
            self._state.emit(Notice("queue_created", {"queue": name, "by": "dead letter"}))
            home = self._state.names[name]
        return home

    def _info(self, queue: Queue, dying: Dying, lease: Lease, now: Now) -> DeadLetterInfo:
        trouble = queue.troubles.get(dying.span.first_offset, Trouble())
        error = dying.error[:ERROR_LENGTH_MAX]
        return DeadLetterInfo(
            queue=queue.name, offset=dying.span.first_offset, reason=dying.reason,
            attempts=trouble.failures + dying.failed, losses=trouble.losses + dying.lost,
            first_error=trouble.first_error or error, last_error=error or trouble.last_error,
            error_type=dying.error_type or trouble.error_type, last_consumer_id=lease.consumer_id,
            first_delivered_unix_ms=trouble.first_delivered_unix_ms or lease.leased_unix_ms,
            dead_lettered_unix_ms=now.unix_ms,
        )  # fmt: skip
