"""What a broker with STANDARD queues must do, after `PROTOCOL.md` alone: lists, dicts, and no thought of speed.

The model hears every command before its effects and says what must hold after it. Where the contract leaves a choice
(which consumer gets a message, when a letter's body has been read back) it checks that the choice was allowed.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from kyogo_broker.model.commands import Attach, Outcome, Publish, Settlement
from kyogo_broker.model.effects import Deliver, Delivery, SettleResult
from kyogo_broker.model.errors import ErrorCode
from kyogo_broker.model.message import DeadLetterInfo, FenceRange, OffsetRun
from kyogo_broker.model.now import Now
from kyogo_broker.model.settings import Backoff, QueueSettings
from kyogo_broker.model.states import RedeliveryReason, SettleStatus
from tests.support.model_nouns import Consumer, End, Lease, Message, Queue, Window
from tests.support.shards import FRAME_HEAD_BYTES, bodies_of

OK, STALE, UNKNOWN, REJECTED = SettleStatus
SUSPECT_INTERVALS, FAILED_INTERVALS = 3, 10


class Model:
    """All queues and consumers."""

    def __init__(self) -> None:
        self.queues: dict[str, Queue] = {}
        self.consumers: dict[int, Consumer] = {}
        self.leases: dict[int, Lease] = {}
        """Every delivery that ever was, by fence."""
        self.last_fence = 0
        self.patience_ms = 0
        """The steady clock without the broker's own stalls."""
        self.dues: dict[tuple[str, int], int] = {}
        """What the broker chose, within its settings: (queue, offset) to the instant."""
        self.answers: Counter[tuple[int, int, SettleStatus]] = Counter()
        """Still to come: (port, fence, status)."""
        self.smallest_frame = 1 << 62
        self.draining = False

    # Publishing.

    def store(self, publish: Publish, now: Now) -> tuple[OffsetRun, ...] | ErrorCode:
        """A publish, alone or in a settlement: where it stands, or why it is refused."""
        queue = self.queues.get(publish.queue)
        if queue is None:
            return ErrorCode.QUEUE_NOT_FOUND
        known = self.resend(publish)
        if known is not None:
            return known
        first = self.append(queue, bodies_of(publish.batch), now)
        if publish.producer_id:
            window = queue.windows.setdefault(publish.producer_id, Window())
            window.requests.append((publish.request_id, publish.digest, first, publish.batch.count))
            for old in window.requests[:-64]:
                window.dropped = max(window.dropped, old[0])
            del window.requests[:-64]
        return (OffsetRun(first, publish.batch.count),)

    def resend(self, publish: Publish) -> tuple[OffsetRun, ...] | ErrorCode | None:
        """What is answered to a request that came before; None: it is new."""
        queue = self.queues.get(publish.queue)
        window = queue.windows.get(publish.producer_id) if queue is not None and publish.producer_id else None
        if window is None:
            return None
        for request_id, digest, first, count in window.requests:
            if request_id == publish.request_id:
                same = (digest, count) == (publish.digest, publish.batch.count)
                return (OffsetRun(first, count),) if same else ErrorCode.REQUEST_CONFLICT
        return ErrorCode.REQUEST_TOO_OLD if publish.request_id <= window.dropped else None

    def append(self, queue: Queue, bodies: Iterable[bytes], now: Now, letter: DeadLetterInfo | None = None) -> int:
        """New messages at the end of a queue; the first one's offset."""
        first = len(queue.messages) + 1
        for number, body in enumerate(bodies):
            queue.messages.append(Message(first + number, body, now.unix_ms, letter))
        return first

    # Sessions.

    def attach(self, attach: Attach, messages: int, octets: int) -> None:
        """A session was opened."""
        queues: list[Queue | None] = [self.queues[subscription.queue] for subscription in attach.subscriptions]
        self.consumers[attach.port] = Consumer(attach, queues, messages, octets, self.patience_ms)
        self.smallest_frame = min(self.smallest_frame, attach.max_frame_bytes - FRAME_HEAD_BYTES)

    def heard(self, port: int) -> set[int]:
        """A sign of life; the fences of which it must be told that they are lost."""
        consumer = self.consumers.get(port)
        if consumer is None:
            return set()
        consumer.heard_ms, consumer.health = self.patience_ms, "well"
        taken, consumer.taken = consumer.taken, set()
        return taken if consumer.attach.capabilities else set()

    def held(self, consumer: Consumer) -> list[Lease]:
        """What a consumer has not settled."""
        return [lease for lease in self.leases.values() if lease.live and lease.consumer is consumer]

    def unsettled(self, consumer: Consumer) -> list[Lease]:
        """What counts against its prefetch: also what it cannot settle any more because its letter is being written."""
        return [
            lease for lease in self.leases.values()
            if lease.consumer is consumer and (lease.live or (lease.end and lease.message.place == "ending"))
        ]  # fmt: skip

    def detach(self, port: int, now: Now) -> None:
        """A polite leave."""
        for lease in self.held(self.consumers[port]):
            self.give_back(lease, RedeliveryReason.DETACH)
        del self.consumers[port]

    def stream_end(self, port: int, now: Now) -> None:
        """A lost stream."""
        if port in self.consumers:
            for lease in self.held(self.consumers[port]):
                self.take(lease, RedeliveryReason.STREAM_LOSS, RedeliveryReason.STREAM_LOSS, now)
            del self.consumers[port]

    def take(self, lease: Lease, lost: RedeliveryReason, returned: RedeliveryReason, now: Now) -> None:
        """Take a delivery from a consumer that is gone: a loss if its handler had begun."""
        if lease.begun or not lease.consumer.counts_start:
            self.lose(lease, lost, now)
        else:
            self.give_back(lease, returned)
        lease.consumer.taken.add(lease.fence)

    # How a delivery ends.

    def give_back(self, lease: Lease, reason: RedeliveryReason) -> None:
        """To its original place, uncharged."""
        lease.live = False
        self.return_at(lease, reason, 0)

    def return_at(self, lease: Lease, reason: RedeliveryReason, due_ms: int, now_ms: int = 0) -> None:
        """Ready again, at once or later."""
        message = lease.message
        message.fresh, message.reason, message.due_ms = False, reason, due_ms
        message.place = "delayed" if due_ms > now_ms else "ready"

    def lose(self, lease: Lease, reason: RedeliveryReason, now: Now) -> None:
        """One loss is charged."""
        queue, message = lease.queue, lease.message
        limit = 0 if queue.keeps_failing else queue.settings.max_losses
        if limit and message.losses + 1 >= limit:
            self.die(lease, "lost_too_often", losses=1)
            return
        message.losses += 1
        self.note(lease)
        lease.live = False
        delay = 0 if message.losses == 1 else self.delay(lease, message.losses - 1, None, now)
        self.return_at(lease, reason, now.steady_ms + delay, now.steady_ms)

    def fail(self, lease: Lease, reason: RedeliveryReason, now: Now, *, delay_ms: int | None = None,
             error_type: str = "", error: str = "") -> None:  # fmt: skip
        """One failure is charged; the last one ends the message."""
        queue, message = lease.queue, lease.message
        if not queue.keeps_failing:
            hopeless = bool(error_type) and error_type in queue.settings.retry.non_retryable
            if hopeless or (queue.settings.max_attempts and message.failures + 1 >= queue.settings.max_attempts):
                end = "non_retryable" if hopeless else "max_attempts"
                self.die(lease, end, failures=1, error_type=error_type, error=error)
                return
        message.failures += 1
        message.first_error = message.first_error or error
        message.last_error, message.error_type = error, error_type
        self.note(lease)
        lease.live = False
        delay = self.delay(lease, message.failures, delay_ms, now)
        self.return_at(lease, reason, now.steady_ms + delay, now.steady_ms)

    def note(self, lease: Lease) -> None:
        """When it was first delivered stays known of what failed or was lost."""
        message = lease.message
        message.first_delivered_unix_ms = message.first_delivered_unix_ms or lease.leased_unix_ms

    def delay(self, lease: Lease, failures: int, delay_ms: int | None, now: Now) -> int:
        """How long a message waits: as said, or by the queue's backoff, of which jitter is the broker's choice."""
        if delay_ms is not None:
            return delay_ms
        retry = lease.queue.settings.retry
        if retry.backoff is Backoff.LIST:
            longest = retry.delays_ms[min(failures, len(retry.delays_ms)) - 1]
        elif retry.backoff is Backoff.LINEAR:
            longest = min(retry.initial_ms * failures, retry.max_ms)
        else:
            longest = min(int(retry.initial_ms * retry.multiplier ** (failures - 1)), retry.max_ms)
        chosen = self.dues[lease.queue.name, lease.message.offset]
        delay = chosen - now.steady_ms if chosen else 0
        assert 0 <= delay <= longest, f"a delay of {delay} ms where {longest} is the longest"
        assert retry.jitter or delay == longest, f"a delay of {delay} ms instead of {longest}"
        return delay

    def die(self, lease: Lease, reason: str, *, failures: int = 0, losses: int = 0, error_type: str = "",
            error: str = "") -> None:  # fmt: skip
        """The end of a message: a letter, as soon as its body is there."""
        message = lease.message
        lease.live = False
        message.place = "ending"
        lease.end = End(reason, DeadLetterInfo(
            queue=lease.queue.name, offset=message.offset, reason=reason, attempts=message.failures + failures,
            losses=message.losses + losses, first_error=message.first_error or error,
            last_error=error or message.last_error, error_type=error_type or message.error_type,
            last_consumer_id=lease.consumer.attach.consumer_id,
            first_delivered_unix_ms=message.first_delivered_unix_ms or lease.leased_unix_ms, dead_lettered_unix_ms=0,
        ))  # fmt: skip

    def died(self, name: str, offset: int, reason: str, now: Now) -> None:
        """The broker says that a letter was written."""
        queue = self.queues[name]
        message = queue.messages[offset - 1]
        assert message.place == "ending", f"a letter for a message that is {message.place}"
        end = next(lease.end for lease in self.leases.values() if lease.message is message and lease.end is not None)
        assert end.reason == reason, f"ended by {reason} instead of {end.reason}"
        message.place = "dead_lettered"
        home = queue.settings.dead_letter_queue
        if home != "":
            home = home or f"{name}.dlq"
            if home not in self.queues:
                letters = QueueSettings(max_attempts=0, max_losses=0) if home.endswith(".dlq") else QueueSettings()
                self.queues[home] = Queue(home, letters)
            fields = {f: getattr(end.info, f) for f in end.info.__slots__} | {"dead_lettered_unix_ms": now.unix_ms}
            self.append(self.queues[home], [message.body], now, DeadLetterInfo(**fields))

    # Settling.

    def status(self, port: int, fence: int, outcome: Outcome | None) -> SettleStatus:
        """What a fence is answered; OK with a live lease means: do it."""
        lease = self.leases.get(fence)
        if lease is None:
            return UNKNOWN if fence > self.last_fence or fence < 1 else STALE
        if lease.live:
            return OK if lease.consumer is self.consumers[port] else UNKNOWN
        return OK if outcome is not None and lease.said is outcome else STALE

    def settle(self, port: int, settlement: Settlement, now: Now) -> None:
        """One settlement without publishes: each fence stands for itself."""
        for fence in numbers(settlement.ranges):
            status = self.status(port, fence, settlement.outcome)
            self.answers[port, fence, status] += 1
            lease = self.leases.get(fence)
            if status is not OK or lease is None:
                continue
            if lease.live:
                self.end(lease, settlement, now)
            if lease.end is not None and lease.message.place == "ending":
                lease.end.asked.append((port, fence))

    def end(self, lease: Lease, settlement: Settlement, now: Now) -> None:
        """A consumer's word on its own delivery."""
        lease.said = settlement.outcome
        if settlement.outcome is Outcome.ACK:
            lease.live, lease.message.place = False, "acked"
        elif settlement.outcome is Outcome.RELEASE:
            self.give_back(lease, RedeliveryReason.RELEASE)
        elif settlement.outcome is Outcome.DEAD_LETTER and not lease.queue.keeps_failing:
            self.die(lease, settlement.reason or "dead_letter", failures=1, error_type=settlement.error_type,
                     error=settlement.reason)  # fmt: skip
        else:
            self.fail(lease, RedeliveryReason.RETRY, now, delay_ms=settlement.delay_ms,
                      error_type=settlement.error_type, error=settlement.reason)  # fmt: skip

    def unit(self, port: int, settlement: Settlement, now: Now) -> list[tuple[OffsetRun, ...]]:
        """One settlement with publishes: all of it or nothing; where the publishes stand."""
        named = list(numbers(settlement.ranges))
        found = {fence: self.status(port, fence, settlement.outcome) for fence in named}
        live = {fence for fence in named if found[fence] is OK and self.leases[fence].live}
        refused = bool(live) and (
            len(live) < len(named) or settlement.outcome is not Outcome.ACK
            or any(self.refusal(publish, settlement.publishes) for publish in settlement.publishes)
        )  # fmt: skip
        for fence in named:
            self.answers[port, fence, REJECTED if refused and fence in live else found[fence]] += 1
        if refused or not live:
            return []
        published = []
        for publish in settlement.publishes:
            places = self.store(publish, now)
            assert isinstance(places, tuple)
            published.append(places)
        for fence in named:
            self.end(self.leases[fence], settlement, now)
        return published

    def refusal(self, publish: Publish, beside: tuple[Publish, ...]) -> ErrorCode | None:
        """Why a publish in a settlement cannot be stored."""
        if publish.queue not in self.queues:
            return ErrorCode.QUEUE_NOT_FOUND
        for other in beside if publish.producer_id else ():
            request = (other.queue, other.producer_id, other.request_id)
            same = request == (publish.queue, publish.producer_id, publish.request_id)
            if same and other.digest != publish.digest:
                return ErrorCode.REQUEST_CONFLICT
        known = self.resend(publish)
        return known if isinstance(known, ErrorCode) else None

    def answered(self, port: int, result: SettleResult) -> None:
        """The broker answered a range."""
        for fence in range(result.range.first, result.range.last + 1):
            key = (port, fence, result.status)
            assert self.answers[key] > 0, f"fence {fence} is answered {result.status!r}; due: {+self.answers}"
            self.answers[key] -= 1
            lease = self.leases.get(fence)
            pending = lease is not None and lease.message.place == "ending" and lease.said is not None
            assert not (pending and result.status is OK), "answered OK before its letter was written"

    def started(self, port: int, ranges: Iterable[FenceRange], now: Now) -> None:
        """Handlers began."""
        for fence in numbers(ranges):
            lease = self.leases.get(fence)
            if lease is not None and lease.live and lease.consumer is self.consumers[port] and not lease.begun:
                lease.begun = True
                lease.deadline_ms = now.steady_ms + lease.queue.settings.visibility_timeout_ms

    def extend(
        self, port: int, ranges: Iterable[FenceRange], extension_ms: int, now: Now
    ) -> Counter[tuple[int, SettleStatus]]:
        """More time; what each fence is answered."""
        answers: Counter[tuple[int, SettleStatus]] = Counter()
        for fence in numbers(ranges):
            status = self.status(port, fence, None)
            answers[fence, status] += 1
            if status is OK:
                self.leases[fence].begun = True
                self.leases[fence].deadline_ms = now.steady_ms + extension_ms
        return answers

    # Admin.

    def purge(self, name: str) -> int:
        """Everything that is not in flight ends; how many that was."""
        waiting = self.queues[name].at("ready", "delayed")
        for message in waiting:
            message.place = "purged"
        return len(waiting)

    def delete(self, name: str) -> None:
        """A queue and all that is in it."""
        queue = self.queues.pop(name)
        for consumer in self.consumers.values():
            consumer.queues = [None if each is queue else each for each in consumer.queues]
        for lease in self.leases.values():
            if lease.queue is queue:
                if lease.message.place == "ending" and lease.end is not None:
                    for port, fence in lease.end.asked:
                        self.answers[port, fence, OK] -= 1
                        self.answers[port, fence, STALE] += 1
                lease.live, lease.said = False, None
                lease.message.place = "deleted"

    # Time.

    def instants(self) -> Iterator[int]:
        """When something is due, if nothing else happens before."""
        for lease in self.leases.values():
            if lease.live and lease.deadline_ms is not None:
                yield lease.deadline_ms
        for queue in self.queues.values():
            yield from (message.due_ms for message in queue.at("delayed"))

    def silences(self) -> Iterator[int]:
        """When a consumer's silence becomes too long, on the clock of patience."""
        for consumer in self.consumers.values():
            intervals = {"well": SUSPECT_INTERVALS, "suspect": FAILED_INTERVALS}.get(consumer.health)
            if intervals is not None:
                yield consumer.heard_ms + intervals * consumer.attach.heartbeat_interval_ms

    def tick(self, now: Now) -> set[int]:
        """What time brings about; fences whose visibility timeout has passed."""
        for consumer in self.consumers.values():
            silent = (self.patience_ms - consumer.heard_ms) // consumer.attach.heartbeat_interval_ms
            if silent >= FAILED_INTERVALS and consumer.health != "failed":
                consumer.health = "failed"
                for lease in self.held(consumer):
                    self.take(lease, RedeliveryReason.FAILED, RedeliveryReason.SUSPECT, now)
            elif silent >= SUSPECT_INTERVALS and consumer.health == "well":
                consumer.health = "suspect"
                for lease in self.held(consumer):
                    if consumer.counts_start and not lease.begun:
                        self.give_back(lease, RedeliveryReason.SUSPECT)
                        consumer.taken.add(lease.fence)
        expired = set()
        for lease in list(self.leases.values()):
            if lease.live and lease.deadline_ms is not None and lease.deadline_ms <= now.steady_ms:
                expired.add(lease.fence)
                self.fail(lease, RedeliveryReason.VISIBILITY_TIMEOUT, now, error_type="VisibilityTimeout",
                          error="not settled within its visibility timeout")  # fmt: skip
        for queue in self.queues.values():
            for message in queue.at("delayed"):
                if message.due_ms <= now.steady_ms:
                    message.place = "ready"
        return expired

    # Deliveries.

    def deliver(self, deliver: Deliver, now: Now) -> None:
        """Messages were handed out."""
        consumer = self.consumers.get(deliver.port)
        assert consumer is not None, "delivered to nobody"
        assert consumer.health == "well", f"delivered to a consumer that is {consumer.health}"
        for run in deliver.runs:
            self.run(consumer, run, now)

    def run(self, consumer: Consumer, run: Delivery, now: Now) -> None:
        """One run of them."""
        queue = consumer.queues[run.subscription]
        assert queue is not None, "delivered from a queue that was deleted"
        assert not queue.paused, "delivered from a paused queue"
        wire = bytes(run.wire)
        at = 0
        for number in range(run.count):
            message = queue.messages[run.first_offset + number - 1]
            fence = run.first_fence + number
            assert fence == self.last_fence + 1, f"fence {fence} after {self.last_fence}"
            self.last_fence = fence
            assert message.place == "ready", f"delivered message {message.offset}, which is {message.place}"
            assert wire[at : at + len(message.body)] == message.body, f"message {message.offset} has another's body"
            at += len(message.body)
            told = (run.attempt, run.losses, run.reason, run.published_unix_ms, run.dead_letter)
            assert told == (
                message.failures + 1, message.losses, message.reason, message.published_unix_ms, message.letter,
            )  # fmt: skip
            self.in_order(queue, message)
            self.room(consumer, queue, message)
            message.place = "in_flight"
            begun = not consumer.counts_start
            deadline = now.steady_ms + queue.settings.visibility_timeout_ms if begun else None
            self.leases[fence] = Lease(fence, queue, message, consumer, now.unix_ms, begun, deadline)
        assert at == len(wire), "a run holds more than its messages"

    def in_order(self, queue: Queue, message: Message) -> None:
        """Nothing is passed over but what may not fit into some consumer's frames; that may come at any time after."""
        if len(message.body) > self.smallest_frame:
            return
        for other in queue.in_turn():
            if other is message:
                return
            assert len(other.body) > self.smallest_frame, f"message {message.offset} passed over {other.offset}"

    def room(self, consumer: Consumer, queue: Queue, message: Message) -> None:
        """A delivery keeps within the prefetch and the frames."""
        assert consumer.fits(message.body), "a message larger than its consumer's frames"
        assert self.has_room(consumer, queue, message), "a delivery beyond the prefetch"

    def has_room(self, consumer: Consumer, queue: Queue, message: Message) -> bool:
        """Whether a consumer may be given one more message."""
        held = self.unsettled(consumer)
        most = consumer.attach.subscriptions[consumer.queues.index(queue)].max_unsettled
        if len(held) >= consumer.messages or (most is not None and sum(lease.queue is queue for lease in held) >= most):
            return False
        size = sum(len(lease.message.body) for lease in held)
        return not held or size + len(message.body) <= consumer.octets

    def check_rest(self) -> None:
        """When all is quiet: everything was answered, and nothing waits that somebody could be given."""
        assert not +self.answers, f"not answered: {+self.answers}"
        for queue in self.queues.values():
            assert not queue.at("ending"), "a letter was never written"
            if queue.paused:
                continue
            ready = queue.in_turn()
            for consumer in self.consumers.values():
                if consumer.health == "well" and queue in consumer.queues:
                    # It takes or waits for the first message that fits; one that was passed over may come before it.
                    large = [m for m in ready if len(m.body) > self.smallest_frame and consumer.fits(m.body)]
                    first = next((m for m in ready if consumer.fits(m.body)), None)
                    waits = any(not self.has_room(consumer, queue, message) for message in large)
                    able = first is not None and not waits and self.has_room(consumer, queue, first)
                    assert not able, f"message {first and first.offset} of {queue.name} waits for nothing"


def numbers(ranges: Iterable[FenceRange]) -> Iterator[int]:
    """Each fence of some ranges."""
    for fences in ranges:
        yield from range(fences.first, fences.last + 1)
