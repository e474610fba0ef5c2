"""A shard's every step beside the model's: what was to be expected, what was said, and what is where afterwards."""

from collections import Counter
from typing import Any

from kyogo_broker.core.step import Step
from kyogo_broker.model.commands import (
    Attach,
    Command,
    CreateQueue,
    DeleteQueue,
    Detach,
    Extend,
    PauseQueue,
    Publish,
    PurgeQueue,
    SetPrefetch,
    Settle,
    Started,
    StreamEnded,
    Tick,
    UpdateQueue,
)
from kyogo_broker.model.effects import (
    AdminDone,
    AttachDone,
    AttachRefused,
    Deliver,
    EndStream,
    ExtendDone,
    Notice,
    PublishDone,
    Revoke,
    SettleDone,
)
from kyogo_broker.model.errors import ErrorCode
from kyogo_broker.model.facts import Lost, Retried
from kyogo_broker.model.now import Now
from kyogo_broker.model.states import RevokeMode, SettleStatus
from tests.support.model import Model
from tests.support.model_nouns import Queue
from tests.support.shards import Driver


class ShardWatch:
    """Watches the shard of one driver."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.model = Model()
        self.model.patience_ms = driver.now.steady_ms
        self.expected: dict[str, Any] = {}
        """What the command under way must be answered."""
        self.lost: set[tuple[int, int]] = set()
        """(port, fence) of what a consumer must be told that it lost."""
        self.ended: list[int] = []
        """Ports whose streams the broker ended."""
        self.ending: set[int] = set()
        """Ports that detached and are still owed answers: only after these their streams end."""
        driver.on_step = self.on_step

    def on_step(self, command: Command, step: Step, now: Now) -> None:
        """The model takes part in every step, and all is compared after it."""
        model = self.model
        shard = self.driver.shard._state
        names_by_id = {queue.id: queue.name for queue in shard.queues.values()}
        model.dues = {}
        for fact in step.facts:
            if isinstance(fact, Retried | Lost):
                spans = (fact.span,) if isinstance(fact, Retried) else fact.spans
                for span in spans:
                    for offset in range(span.first_offset, span.first_offset + span.count):
                        model.dues[names_by_id[fact.queue_id], offset] = fact.due_ms
        self.expected = {}
        port = getattr(command, "port", 0)
        if not isinstance(command, StreamEnded | Attach):
            self.lost |= {(port, fence) for fence in model.heard(port)}
        self.anticipate(command, now)
        for effect in step.effects:
            self.effect(effect, now)
        assert not self.expected, f"not answered: {self.expected}"
        assert not self.lost, f"not told: {self.lost}"
        self.driver.shard.check_invariants()
        self.compare(now)

    def anticipate(self, command: Command, now: Now) -> None:
        """What the model makes of a command."""
        model = self.model
        match command:
            case Tick():
                for fence in model.tick(now):
                    holder = model.leases[fence].consumer
                    if holder.counts_start:
                        self.lost.add((holder.attach.port, fence))
            case Publish():
                self.expected["published"] = model.store(command, now)
            case Attach():
                self.attach_anticipated(command, now)
            case SetPrefetch() if command.port in model.consumers:
                consumer = model.consumers[command.port]
                consumer.messages, consumer.octets = command.messages, command.bytes
            case Started() if command.port in model.consumers:
                model.started(command.port, command.ranges, now)
            case Settle() if command.port in model.consumers:
                for settlement in command.settlements:
                    if settlement.publishes:
                        self.expected["unit"] = model.unit(command.port, settlement, now)
                        if not self.expected["unit"]:
                            del self.expected["unit"]
                    else:
                        model.settle(command.port, settlement, now)
            case Extend() if command.port in model.consumers:
                self.expected["extended"] = model.extend(command.port, command.ranges, command.extension_ms, now)
            case Detach() if command.port in model.consumers:
                if self.owed(command.port):
                    self.ending.add(command.port)
                else:
                    self.expected["ended"] = command.port
                model.detach(command.port, now)
            case StreamEnded():
                self.ending.discard(command.port)
                model.stream_end(command.port, now)
            case CreateQueue():
                queue = model.queues.get(command.queue)
                if queue is not None:
                    same = queue.settings == command.settings
                    self.expected["admin"] = (None if same else ErrorCode.QUEUE_EXISTS, 0)
                elif command.settings.dead_letter_queue == command.queue:
                    self.expected["admin"] = (ErrorCode.SETTINGS_INVALID, 0)
                else:
                    model.queues[command.queue] = Queue(command.queue, command.settings)
                    self.expected["admin"] = (None, 0)
            case UpdateQueue() | PauseQueue() | PurgeQueue() | DeleteQueue():
                self.admin(command)
            case _:
                pass

    def admin(self, command: UpdateQueue | PauseQueue | PurgeQueue | DeleteQueue) -> None:
        """What operators ask for."""
        queue = self.model.queues.get(command.queue)
        if queue is None:
            self.expected["admin"] = (ErrorCode.QUEUE_NOT_FOUND, 0)
            return
        count = 0
        match command:
            case UpdateQueue(settings=settings):
                if settings.dead_letter_queue == command.queue:
                    self.expected["admin"] = (ErrorCode.SETTINGS_INVALID, 0)
                    return
                queue.settings = settings
            case PauseQueue():
                queue.paused = command.paused
            case PurgeQueue():
                count = self.model.purge(command.queue)
            case DeleteQueue():
                count = len(queue.at("ready", "delayed", "in_flight", "ending"))
                for lease in self.model.leases.values():
                    if lease.live and lease.queue is queue and lease.consumer.attach.capabilities:
                        self.lost.add((lease.consumer.attach.port, lease.fence))
                self.model.delete(command.queue)
        self.expected["admin"] = (None, count)

    def effect(self, effect: object, now: Now) -> None:
        """What the broker says."""
        model = self.model
        match effect:
            case Deliver():
                model.deliver(effect, now)
            case PublishDone():
                told = effect.offsets if effect.refusal is None else effect.refusal.code
                assert told == self.expected.pop("published")
            case AttachDone() | AttachRefused():
                self.attached(effect)
            case SettleDone():
                for result in effect.results:
                    if result.published:
                        assert result.status is SettleStatus.OK
                        assert list(result.published) == self.expected.pop("unit")
                    assert (result.refusal is not None) == (result.status is SettleStatus.REJECTED)
                    model.answered(effect.port, result)
            case ExtendDone():
                found = Counter(
                    (fence, result.status)
                    for result in effect.results
                    for fence in range(result.range.first, result.range.last + 1)
                )
                assert found == self.expected.pop("extended")
            case AdminDone():
                code = None if effect.refusal is None else effect.refusal.code
                assert (code, effect.count) == self.expected.pop("admin")
            case EndStream():
                if self.expected.get("ended") == effect.port:
                    del self.expected["ended"]
                elif effect.port in self.ending:
                    assert not self.owed(effect.port), "ended before everything was answered"
                    self.ending.remove(effect.port)
                else:
                    self.ended.append(effect.port)
            case Revoke():
                assert effect.mode is RevokeMode.LOST
                for fences_lost in effect.ranges:
                    for fence in range(fences_lost.first, fences_lost.last + 1):
                        assert not model.leases[fence].live
                        self.lost.discard((effect.port, fence))
            case Notice("dead_letter", fields):
                model.died(str(fields["queue"]), int(fields["offset"]), str(fields["reason"]), now)
            case _:
                pass

    def owed(self, port: int) -> int:
        """Answers that a port is still owed."""
        return sum(count for (asker, _, _), count in self.model.answers.items() if asker == port)

    def attach_anticipated(self, command: Attach, now: Now) -> None:
        """Whether a session is opened, and whether another one ends by it."""
        model = self.model
        before = [c for c in model.consumers.values() if c.attach.consumer_id == command.consumer_id]
        shown = bool(before) and before[0].attach.session_token == command.resumed_token
        if any(subscription.queue not in model.queues for subscription in command.subscriptions):
            self.expected["attached"] = ErrorCode.QUEUE_NOT_FOUND
        elif before and not shown:
            self.expected["attached"] = ErrorCode.CONSUMER_ID_IN_USE
        else:
            self.expected["attached"] = command
            if before:
                model.stream_end(before[0].attach.port, now)

    def attached(self, effect: AttachDone | AttachRefused) -> None:
        """An attach was answered."""
        expected = self.expected.pop("attached")
        if isinstance(expected, Attach):
            assert isinstance(effect, AttachDone), effect
            self.model.attach(expected, effect.prefetch_messages, effect.prefetch_bytes)
        else:
            assert isinstance(effect, AttachRefused)
            assert effect.refusal.code is expected

    def compare(self, now: Now) -> None:
        """The model's queues and the shard's."""
        state = self.driver.shard._state
        assert set(state.names) == set(self.model.queues)
        letters_wait = bool(self.driver.loads or self.driver._turn_loads)
        for name, model in self.model.queues.items():
            queue = state.names[name]
            ready = {*queue.ready.offsets(), *queue.aside}
            delayed = {offset: due for due, offset in _dues(queue)}
            due = {offset for offset, at in delayed.items() if at <= now.steady_ms}
            assert ready | due == {m.offset for m in model.at("ready")}, f"ready in {name}"
            assert {o: at for o, at in delayed.items() if o not in due} == {
                m.offset: m.due_ms for m in model.at("delayed")
            }  # fmt: skip
            in_flight = {
                lease.first_offset + bit
                for lease in state.leases if lease.queue is queue
                for bit in range(lease.count) if lease.live >> bit & 1
            }  # fmt: skip
            assert in_flight == {m.offset for m in model.at("in_flight", "ending")}, f"in flight in {name}"
            assert set(queue.dying) == {m.offset for m in model.at("ending")}
            assert letters_wait or not queue.dying, "nobody reads the bodies of letters"
            counts = Counter(m.place for m in model.messages)
            for place in ("ready", "delayed", "in_flight", "ending"):
                counts.pop(place, None)
            assert dict(counts) == {str(reason): count for reason, count in queue.finished_by.items() if count}
            for message in model.at("ready", "delayed", "in_flight", "ending"):
                trouble = queue.troubles.get(message.offset)
                charged = (trouble.failures, trouble.losses) if trouble else (0, 0)
                assert charged == (message.failures, message.losses)

    def rest(self) -> None:
        """Let everything settle down and look whether anything waits for nothing."""
        self.driver.settle_down()
        self.model.check_rest()
        assert not self.ending, "a stream was never ended"


def _dues(queue: Any) -> list[tuple[int, int]]:
    column = queue.delayed.snapshot()
    return [(column[index], column[index + 1]) for index in range(0, len(column), 3)]
