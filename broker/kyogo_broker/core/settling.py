"""How deliveries end: settlements, extensions, visibility timeouts, losses.

A fence is looked up once. It belongs to the asker and is live: done, OK. It is somebody else's: UNKNOWN. It is nobody's
any more: OK if it was settled with this outcome before, else STALE. It was never issued: UNKNOWN.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from kyogo_broker.core.consumers import Consumer
from kyogo_broker.core.leases import Lease
from kyogo_broker.core.letters import Letters
from kyogo_broker.core.limits import EXTENSION_MS_MAX, FENCE_RANGE_MAX
from kyogo_broker.core.publishing import Publishing
from kyogo_broker.core.queue import Dying, Queue
from kyogo_broker.core.ranges import runs_of
from kyogo_broker.core.state import State
from kyogo_broker.model.commands import Extend, Outcome, Settle, Settlement, Started
from kyogo_broker.model.effects import ExtendDone, PartRefused, Revoke, SettleDone, SettleResult
from kyogo_broker.model.errors import ErrorCode, Refusal
from kyogo_broker.model.facts import Lost, Retried, Returned, Settled, Span
from kyogo_broker.model.message import FenceRange
from kyogo_broker.model.now import Now
from kyogo_broker.model.states import RedeliveryReason, RevokeMode, RevokeReason, SettleStatus
from kyogo_broker.policy import retry

RESOLUTION = 1 << 20
"""Steps of a jitter between 0 and 1."""


class Piece(NamedTuple):
    """Consecutive fences that have one answer."""

    first: int
    last: int
    status: SettleStatus
    lease: Lease | None = None
    """Set when it is the asker's own and live."""
    dying: Dying | None = None
    """Set when it has ended in just this way, and its letter is being written."""


class Failure(NamedTuple):
    """How one delivery failed."""

    reason: RedeliveryReason
    error_type: str
    error: str
    outcome: Outcome | None = None
    """What the consumer said; None: it said nothing."""
    port: int | None = None
    """Who is answered."""
    delay_ms: int | None = None
    """Instead of the queue's backoff."""


EXPIRED = Failure(RedeliveryReason.VISIBILITY_TIMEOUT, "VisibilityTimeout", "not settled within its visibility timeout")


class Settling:
    """Ends deliveries, of all queues."""

    def __init__(self, state: State, letters: Letters, publishing: Publishing) -> None:
        self._state = state
        self._letters = letters
        self._publishing = publishing

    def settle(self, command: Settle, now: Now) -> None:
        """The settlements of one frame."""
        consumer = self._state.consumers[command.port]
        results: list[SettleResult] = []
        for settlement in command.settlements:
            if not self._sane(command.port, settlement.ranges):
                continue
            if settlement.publishes or settlement.refusal is not None:
                results += self._unit(consumer, settlement, now)
                continue
            for fences in settlement.ranges:
                for piece in self._pieces(consumer, fences, settlement.outcome):
                    results += self._settle(consumer, piece, settlement, now)
        if results:
            self._state.emit(SettleDone(command.port, tuple(_joined(results))))

    def started(self, command: Started, now: Now) -> None:
        """Handlers began: the visibility clock starts. What is not the asker's is passed over."""
        consumer = self._state.consumers[command.port]
        if not self._sane(command.port, command.ranges):
            return
        for fences in command.ranges:
            for piece in self._pieces(consumer, fences, None):
                if piece.lease is not None:
                    deadline = now.steady_ms + piece.lease.queue.settings.visibility_timeout_ms
                    piece.lease.start(piece.lease.bits(piece.first, piece.last), deadline)
                    self._state.timers.remind(piece.lease, deadline)

    def extend(self, command: Extend, now: Now) -> None:
        """More time from now on."""
        consumer = self._state.consumers[command.port]
        if not self._sane(command.port, command.ranges):
            return
        if not 1 <= command.extension_ms <= EXTENSION_MS_MAX:
            text = f"extension_ms is {command.extension_ms}; it must lie between 1 and {EXTENSION_MS_MAX}"
            self._state.emit(PartRefused(command.port, Refusal(ErrorCode.FRAME_INVALID, text)))
            return
        results: list[SettleResult] = []
        for fences in command.ranges:
            for piece in self._pieces(consumer, fences, None):
                if piece.lease is not None:
                    deadline = now.steady_ms + command.extension_ms
                    piece.lease.extend(piece.lease.bits(piece.first, piece.last), deadline)
                    self._state.timers.remind(piece.lease, deadline)
                results.append(SettleResult(FenceRange(piece.first, piece.last), piece.status))
        self._state.emit(ExtendDone(command.port, tuple(_joined(results))))

    def expire(self, lease: Lease, now: Now) -> None:
        """A lease asked to be looked at: what is beyond its visibility timeout failed."""
        consumer = lease.consumer
        mask = lease.expired(now.steady_ms) & ~self._dying_bits(lease)
        expired = list(lease.spans(mask))
        for span in expired:
            for number in range(span.count):
                single = Span(span.first_fence + number, span.first_offset + number, 1)
                self._fail(lease, single, EXPIRED, now)
        if expired and consumer is not None and consumer.counts_start():
            ranges = tuple(FenceRange(s.first_fence, s.first_fence + s.count - 1) for s in expired)
            self._state.emit(Revoke(consumer.port, ranges, RevokeMode.LOST, RevokeReason.VISIBILITY_TIMEOUT))
        # What is dying keeps its passed deadline; nobody needs to be reminded of it.
        following = lease.next_deadline_ms(lease.live & ~self._dying_bits(lease))
        if following is not None:
            self._state.timers.remind(lease, following)

    def give_back(self, consumer: Consumer, reason: RedeliveryReason, *, begun: bool) -> int:
        """Take uncharged what has not begun, or with `begun` everything; how many messages that was."""
        spans: dict[int, list[Span]] = {}
        for lease in list(consumer.leases.values()):
            mask = lease.live & ~self._dying_bits(lease)
            if not begun:
                mask &= ~lease.started
            spans.setdefault(lease.queue.id, []).extend(lease.spans(mask))
        total = 0
        for queue_id, found in spans.items():
            if found:
                self._state.record(Returned(queue_id, reason, tuple(found)))
                consumer.lost += [(span.first_fence, span.first_fence + span.count - 1) for span in found]
                total += sum(span.count for span in found)
        return total

    def lose(self, consumer: Consumer, reason: RedeliveryReason, now: Now) -> int:
        """Take what had begun, a loss charged for each message; how many that was."""
        total = 0
        for lease in list(consumer.leases.values()):
            mask = lease.live & lease.started & ~self._dying_bits(lease)
            total += mask.bit_count()
            first_time: list[Span] = []
            for span in list(lease.spans(mask)):
                consumer.lost.append((span.first_fence, span.first_fence + span.count - 1))
                first_time += self._lose_repeated(lease, span, reason, now)
            if first_time:
                self._state.record(Lost(lease.queue.id, reason, tuple(first_time), consumer.consumer_id, 0))
        return total

    def _lose_repeated(self, lease: Lease, span: Span, reason: RedeliveryReason, now: Now) -> Iterator[Span]:
        """Handle the messages of a span that were lost before; yields the spans of those that were not."""
        queue = lease.queue
        losses_max = 0 if queue.is_dead_letter_queue else queue.settings.max_losses
        if not queue.troubles and losses_max != 1:
            yield span
            return
        fresh = 0
        for number in range(span.count):
            trouble = queue.troubles.get(span.first_offset + number)
            losses = 1 + (trouble.losses if trouble else 0)
            if losses == 1 and losses_max != 1:
                fresh |= 1 << number
                continue
            single = Span(span.first_fence + number, span.first_offset + number, 1)
            if losses_max and losses >= losses_max:
                dying = Dying(single, [], None, "lost_too_often", "", "", failed=False, lost=True)
                self._letters.write(queue, dying, now)
            else:
                due = now.steady_ms + self._backoff(queue, losses - 1)
                self._state.record(Lost(queue.id, reason, (single,), lease.consumer_id, due))
        for bit, length in runs_of(fresh):
            yield Span(span.first_fence + bit, span.first_offset + bit, length)

    def _settle(self, consumer: Consumer, piece: Piece, settlement: Settlement, now: Now) -> list[SettleResult]:
        """One piece of a settlement without publishes; empty when its answer comes later."""
        lease = piece.lease
        if piece.dying is not None:
            self._letters.ask(piece.dying, consumer.port)
            return []
        if lease is None:
            return [SettleResult(FenceRange(piece.first, piece.last), piece.status)]
        queue, outcome = lease.queue, settlement.outcome
        count = piece.last - piece.first + 1
        consumer.settled += count
        settled = queue.counters.settled
        settled[outcome.name] = settled.get(outcome.name, 0) + count
        offset = lease.first_offset + piece.first - lease.first_fence
        if outcome in (Outcome.ACK, Outcome.RELEASE):
            self._state.record(Settled(queue.id, outcome, (Span(piece.first, offset, count),)))
            return [SettleResult(FenceRange(piece.first, piece.last), SettleStatus.OK)]
        results = []
        for number in range(count):
            fence = piece.first + number
            if self._fails(consumer, lease, Span(fence, offset + number, 1), settlement, now):
                results.append(SettleResult(FenceRange(fence, fence), SettleStatus.OK))
        return results

    def _fails(self, consumer: Consumer, lease: Lease, span: Span, settlement: Settlement, now: Now) -> bool:
        """RETRY or DEAD_LETTER of one message; whether it is done."""
        queue = lease.queue
        if settlement.outcome is Outcome.DEAD_LETTER and not queue.is_dead_letter_queue:
            dying = Dying(
                span, [consumer.port], Outcome.DEAD_LETTER, settlement.reason or "dead_letter", settlement.error_type,
                settlement.reason, failed=True, lost=False,
            )  # fmt: skip
            return self._letters.write(queue, dying, now)
        failure = Failure(
            RedeliveryReason.RETRY, settlement.error_type, settlement.reason, settlement.outcome, consumer.port,
            settlement.delay_ms,
        )  # fmt: skip
        return self._fail(lease, span, failure, now)

    def _fail(self, lease: Lease, span: Span, failure: Failure, now: Now) -> bool:
        """Charge one failure: again after backoff, or the end. False: done once its message is read back."""
        queue = lease.queue
        settings = queue.settings
        trouble = queue.troubles.get(span.first_offset)
        failures = (trouble.failures if trouble else 0) + 1
        if not queue.is_dead_letter_queue:
            hopeless = bool(failure.error_type) and failure.error_type in settings.retry.non_retryable
            if hopeless or (settings.max_attempts and failures >= settings.max_attempts):
                ports = [] if failure.port is None else [failure.port]
                reason = "non_retryable" if hopeless else "max_attempts"
                dying = Dying(
                    span, ports, failure.outcome, reason, failure.error_type, failure.error, failed=True, lost=False
                )
                return self._letters.write(queue, dying, now)
        delay = self._backoff(queue, failures) if failure.delay_ms is None else failure.delay_ms
        due = now.steady_ms + delay if delay else 0
        self._state.record(
            Retried(queue.id, failure.reason, span, lease.consumer_id, due, failure.error_type, failure.error,
                    failure.outcome or Outcome.RETRY)
        )  # fmt: skip
        return True

    def _unit(self, consumer: Consumer, settlement: Settlement, now: Now) -> list[SettleResult]:
        """A settlement with publishes: everything or nothing, in one record."""
        pieces = [piece for fences in settlement.ranges for piece in self._pieces(consumer, fences, settlement.outcome)]
        answers = [SettleResult(FenceRange(piece.first, piece.last), piece.status) for piece in pieces]
        if all(piece.lease is None and piece.status is SettleStatus.OK for piece in pieces):
            return answers
        refusal: Refusal | None = None
        if _overlap(settlement.ranges):
            refusal = Refusal(ErrorCode.FRAME_INVALID, "a fence stands twice in one settlement; name each once")
        elif any(piece.lease is None for piece in pieces):
            text = "another delivery of this settlement is not valid, so nothing was done; settle again without it"
            refusal = Refusal(ErrorCode.FRAME_INVALID, text)
        elif settlement.outcome is not Outcome.ACK:
            text = f"publishes ride with ACK only, not with {settlement.outcome.name}; publish them on their own"
            refusal = Refusal(ErrorCode.UNSUPPORTED, text)
        else:
            refusal = settlement.refusal or self._publishing.refusal_of(settlement.publishes, now)
        if refusal is not None:
            return [
                SettleResult(answer.range, SettleStatus.REJECTED, refusal) if piece.lease else answer
                for piece, answer in zip(pieces, answers, strict=True)
            ]
        published = tuple(self._publishing.store_once(publish, now) for publish in settlement.publishes)
        for piece in pieces:
            self._settle(consumer, piece, settlement, now)
        return [SettleResult(answers[0].range, answers[0].status, published=published), *answers[1:]]

    def _pieces(self, consumer: Consumer, fences: FenceRange, outcome: Outcome | None) -> Iterator[Piece]:
        """Cut a range where its answer changes."""
        state = self._state
        first, last = fences.first, fences.last
        while first <= last:
            lease = state.leases.find(first)
            if lease is None:
                following = state.leases.next_first(first)
                upto = last if following is None else min(last, following - 1)
                yield from self._ended(first, upto, outcome)
                first = upto + 1
                continue
            upto = min(last, lease.first_fence + lease.count - 1)
            mask = lease.bits(first, upto)
            own = lease.live & mask & ~self._dying_bits(lease)
            position = first
            for bit, length in runs_of(own):
                start = lease.first_fence + bit
                if start > position:
                    yield from self._over(lease, position, start - 1, outcome)
                end = start + length - 1
                if lease.consumer is consumer:
                    yield Piece(start, end, SettleStatus.OK, lease)
                else:
                    yield Piece(start, end, SettleStatus.UNKNOWN)
                position = end + 1
            if position <= upto:
                yield from self._over(lease, position, upto, outcome)
            first = upto + 1

    def _over(self, lease: Lease, first: int, last: int, outcome: Outcome | None) -> Iterator[Piece]:
        """Fences of a lease that are nobody's now; what is dying is over for its consumer, too."""
        for fence in range(first, last + 1) if lease.queue.dying and outcome is not None else ():
            dying = lease.queue.dying.get(lease.first_offset + fence - lease.first_fence)
            if dying is not None and dying.span.first_fence == fence and dying.outcome is outcome:
                yield from self._ended(first, fence - 1, outcome)
                yield Piece(fence, fence, SettleStatus.STALE, dying=dying)
                first = fence + 1
        yield from self._ended(first, last, outcome)

    def _ended(self, first: int, last: int, outcome: Outcome | None) -> Iterator[Piece]:
        """Fences that are nobody's now."""
        state = self._state
        known = min(last, state.fences.next - 1)
        while first <= known:
            status = self._ended_status(first, outcome)
            upto = first
            while upto < known and self._ended_status(upto + 1, outcome) is status:
                upto += 1
            yield Piece(first, upto, status)
            first = upto + 1
        if first <= last:
            yield Piece(first, last, SettleStatus.UNKNOWN)

    def _ended_status(self, fence: int, outcome: Outcome | None) -> SettleStatus:
        said = self._state.settled.outcome(fence)
        return SettleStatus.OK if said is not None and said is outcome else SettleStatus.STALE

    def _dying_bits(self, lease: Lease) -> int:
        """Bits of a lease whose dead letters are being written."""
        mask = 0
        if lease.queue.dying:
            for bit in range(lease.count):
                if lease.first_offset + bit in lease.queue.dying:
                    mask |= 1 << bit
        return mask

    def _sane(self, port: int, ranges: tuple[FenceRange, ...]) -> bool:
        """Refuse ranges that are backwards or absurd; nothing of that part is done then."""
        for fences in ranges:
            if not 0 < fences.first <= fences.last < fences.first + FENCE_RANGE_MAX:
                text = (
                    f"range {fences.first} to {fences.last}: a range of fences counts up, from 1 on, "
                    f"over at most {FENCE_RANGE_MAX}; nothing of its part was done"
                )
                self._state.emit(PartRefused(port, Refusal(ErrorCode.FRAME_INVALID, text)))
                return False
        return True

    def _backoff(self, queue: Queue, failures: int) -> int:
        jitter = self._state.chance.below(RESOLUTION) / (RESOLUTION - 1)
        return retry.delay_ms(queue.settings.retry, failures, jitter=jitter)


def _overlap(ranges: tuple[FenceRange, ...]) -> bool:
    ordered = sorted((fences.first, fences.last) for fences in ranges)
    return any(before[1] >= after[0] for before, after in pairwise(ordered))


def _joined(results: list[SettleResult]) -> list[SettleResult]:
    """Neighbours with the same answer become one."""
    joined: list[SettleResult] = []
    for result in results:
        before = joined[-1] if joined else None
        if (
            before is not None and before.status is result.status and before.range.last + 1 == result.range.first
            and before.refusal is None and result.refusal is None and not result.published
        ):  # fmt: skip
            fences = FenceRange(before.range.first, result.range.last)
            joined[-1] = SettleResult(fences, before.status, published=before.published)
        else:
            joined.append(result)
    return joined
