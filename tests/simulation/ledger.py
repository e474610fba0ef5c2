"""What clients attempted and what they were told: the promises as they are seen from outside, by fence and message.

A message is told from others by its own number, which is part of its body; so whatever is delivered can be compared
with what was attempted. The broker's own idea of its state is not looked at here.
"""

from collections import Counter
from dataclasses import dataclass, field
from struct import Struct

from kyogo_broker.model.commands import Outcome
from kyogo_broker.model.effects import Delivery, PublishDone, SettleResult
from kyogo_broker.model.message import Batch
from kyogo_broker.model.settings import QueueSettings
from kyogo_broker.model.states import RedeliveryReason, SettleStatus
from tests.simulation.world import ViolationError

HEAD = Struct("<IH")
"""Number and length of a message, which stand before its filling."""
FILLING = bytes(index * 31 % 251 for index in range(1 << 16))
DLQ = ".dlq"

R = RedeliveryReason


def body(number: int, size: int) -> bytes:
    """The message `number`, `size` bytes in all."""
    start = number * 97 % 40_000
    return HEAD.pack(number, size) + FILLING[start : start + size - HEAD.size]


class Request:
    """One publish: a batch that is stored once, or never."""

    __slots__ = (
        "answer", "attempts", "batch", "digest", "fence", "first", "producer_id", "queue", "refusals", "request_id",
        "sizes", "tag",
    )  # fmt: skip

    def __init__(self, tag: int, queue: str, first: int, sizes: tuple[int, ...]) -> None:
        self.tag = tag
        self.queue = queue
        self.first = first
        """Number of its first message; the others follow."""
        self.sizes = sizes
        self.producer_id = ""
        self.request_id = 0
        self.attempts = 0
        self.refusals = 0
        self.answer: int | None = None
        """First offset; 0: stored, it was not said where."""
        self.fence = 0
        """Of the delivery with whose ACK it is stored; 0: on its own."""
        wire = b"".join(body(first + index, size) for index, size in enumerate(sizes))
        total, ends = 0, []
        for size in sizes:
            total += size
            ends.append(total)
        same = ends == list(range(sizes[0], total + 1, sizes[0]))
        self.batch = Batch(wire, range(sizes[0], total + 1, sizes[0]) if same else tuple(ends))
        self.digest = hash((first, total))


class Track:
    """One message in one queue."""

    __slots__ = ("acked", "delivery", "number", "offset", "queue", "sent")

    def __init__(self, queue: str, number: int, offset: int) -> None:
        self.queue = queue
        self.number = number
        self.offset = offset
        self.delivery: Given | None = None
        """The newest one."""
        self.acked = False
        """An ACK was answered OK."""
        self.sent = 0
        """Outcomes that anybody ever sent, as bits."""


class Session:
    """One stream's session."""

    __slots__ = ("announces", "consumer", "detached", "ended", "failed", "life", "port", "queues", "suspect")

    def __init__(self, life: int, port: int, consumer: str, queues: tuple[str, ...], *, announces: bool) -> None:
        self.life = life
        self.port = port
        self.consumer = consumer
        self.queues = queues
        self.announces = announces
        """Whether it says when a handler begins."""
        self.ended = self.detached = self.suspect = self.failed = False


class Given:
    """One delivery, by its fence."""

    __slots__ = ("at_ms", "attempt", "begun", "fence", "losses", "reason", "sent", "session", "settled", "track", "unit")

    def __init__(self, track: Track, session: Session, fence: int, run: Delivery, at_ms: int) -> None:
        self.track = track
        self.session = session
        self.fence = fence
        self.attempt = run.attempt
        self.losses = run.losses
        self.reason = run.reason
        self.at_ms = at_ms
        """Of the decision, on a clock that no process stops."""
        self.begun = not session.announces
        """Whether it may count as begun."""
        self.sent = 0
        """Outcomes sent for this fence, as bits."""
        self.settled: Outcome | None = None
        """The outcome that was answered OK."""
        self.unit: Request | None = None


@dataclass(slots=True)
class Rules:
    """What a queue's settings ever were: under a change both the old and the new may hold."""

    visibility_ms: int = 1 << 60
    attempts: set[int] = field(default_factory=set)
    losses: set[int] = field(default_factory=set)
    letters: set[bool] = field(default_factory=set)
    """Whether it keeps dead letters."""

    def add(self, settings: QueueSettings) -> None:
        self.visibility_ms = min(self.visibility_ms, settings.visibility_timeout_ms)
        self.attempts.add(settings.max_attempts)
        self.losses.add(settings.max_losses)
        self.letters.add(settings.dead_letter_queue != "")


class Ledger:
    """Requests, messages, deliveries and sessions of one history."""

    def __init__(self, cover: Counter[str], *, remembered: int) -> None:
        self.cover = cover
        self.remembered = remembered
        """Settled fences of a queue that the broker keeps."""
        self.life = 0
        """Processes so far."""
        self.crashes = 0
        self.requests: dict[int, Request] = {}
        self.of_message: dict[int, Request] = {}
        self.tracks: dict[tuple[str, int], Track] = {}
        self.given: dict[int, Given] = {}
        self.sessions: dict[int, Session] = {}
        """Of this life, by port."""
        self.rules: dict[str, Rules] = {}
        self.asked: dict[tuple[int, int], Outcome] = {}
        """What each (port, fence) still waits to hear about."""
        self.gone: set[tuple[str, int]] = set()
        """(queue, number) of what was purged or went with its queue."""
        self.settled = Counter[str]()
        self.last_fence = 0

    def rule(self, queue: str) -> Rules:
        """What holds for a queue."""
        found = self.rules.get(queue)
        if found is None:
            found = self.rules[queue] = Rules()
            found.add(QueueSettings())
        return found

    # what clients do

    def attempt(self, request: Request) -> None:
        """A request is sent, again or for the first time."""
        request.attempts += 1
        if request.attempts == 1:
            self.requests[request.tag] = request
            for index in range(len(request.sizes)):
                self.of_message[request.first + index] = request

    def settling(self, port: int, fence: int, outcome: Outcome, unit: Request | None) -> None:
        """A settlement came in at the broker's edge."""
        given = self.given[fence]
        bit = 1 << outcome
        given.sent |= bit
        given.track.sent |= bit
        self.asked[port, fence] = outcome
        if unit is not None:
            given.unit = unit

    # what the broker says

    def published(self, done: PublishDone) -> None:
        """A publish was answered."""
        request = self.requests[done.tag]
        if done.refusal is not None:
            request.refusals += 1
            self.cover[f"publish refused: {done.refusal.code.name}"] += 1
            return
        runs = done.offsets
        if sum(run.count for run in runs) != len(request.sizes):
            raise ViolationError(f"I12: request {request.tag} of {len(request.sizes)} was answered {runs}")
        self.stored(request, runs[0].first_offset)

    def stored(self, request: Request, offset: int) -> None:
        """A request is durable, so it was said."""
        if request.answer and offset and request.answer != offset:
            raise ViolationError(f"I12: request {request.tag} was stored at {request.answer} and again at {offset}")
        if request.answer:
            self.cover["resend recognised"] += 1
        request.answer = offset or request.answer or 0

    def deliver(self, session: Session, run: Delivery, at_ms: int) -> None:
        """A run was released to a consumer."""
        queue = session.queues[run.subscription]
        if run.first_fence <= self.last_fence:
            raise ViolationError(f"I3: fence {run.first_fence} was issued after {self.last_fence}")
        self.last_fence = run.first_fence + run.count - 1
        wire, at = run.wire, 0
        for index in range(run.count):
            number, size = HEAD.unpack_from(wire, at)
            self._check_body(queue, number, bytes(wire[at : at + size]))
            at += size
            track = self._track(queue, number, run.first_offset + index)
            given = Given(track, session, run.first_fence + index, run, at_ms)
            self._check_history(track, given)
            if run.dead_letter is not None:
                self._check_letter(track, run)
            track.delivery = self.given[given.fence] = given
        if at != len(wire):
            raise ViolationError(f"I2: a run of {run.count} messages has {len(wire)} bytes instead of {at}")

    def answered(self, session: Session, result: SettleResult) -> None:
        """Fences of a settlement were answered."""
        for fence in range(result.range.first, result.range.last + 1):
            outcome = self.asked.pop((session.port, fence), None)
            if outcome is None:
                raise ViolationError(f"fence {fence} was answered {result.status.name}, nobody had asked")
            given = self.given[fence]
            self.cover[f"settle {outcome.name}: {result.status.name}"] += 1
            if result.status is SettleStatus.OK:
                self._settled(given, outcome, result)
            else:
                self._not_settled(given, outcome, session, result)

    def extended(self, session: Session, result: SettleResult, now_ms: int) -> None:
        """Fences of an extension were answered."""
        for fence in range(result.range.first, result.range.last + 1):
            given = self.given[fence]
            self.cover[f"extend: {result.status.name}"] += 1
            if result.status is SettleStatus.OK:
                given.begun = True
                if given.session is not session or given.track.delivery is not given or given.settled is not None:
                    raise ViolationError(f"I6: the lost lease of fence {fence} was extended")

    # the promises

    def _check_body(self, queue: str, number: int, found: bytes) -> None:
        request = self.of_message.get(number)
        if request is None:
            raise ViolationError(f"I2: message {number} was delivered, nobody published it")
        if found != body(number, request.sizes[number - request.first]):
            raise ViolationError(f"I2: the body of message {number} was changed")
        if queue != request.queue and not queue.endswith((DLQ, "grave")):
            raise ViolationError(f"I2: message {number} of {request.queue} was delivered from {queue}")

    def _track(self, queue: str, number: int, offset: int) -> Track:
        track = self.tracks.get((queue, number))
        if track is None:
            track = self.tracks[queue, number] = Track(queue, number, offset)
            request = self.of_message[number]
            expected = request.answer and request.answer + number - request.first
            if expected and queue == request.queue and expected != offset:
                raise ViolationError(f"I12: message {number} was answered {expected} and delivered as {offset}")
        elif track.offset != offset:
            raise ViolationError(f"I12: message {number} stands in {queue} at {track.offset} and at {offset}")
        return track

    def _check_history(self, track: Track, given: Given) -> None:
        before = track.delivery
        reason = given.reason
        if track.acked:
            raise ViolationError(f"I3: message {track.number} was acked, and is delivered with fence {given.fence}")
        self.cover[f"delivered: {reason.name}"] += 1
        if before is None:
            # What was delivered to nobody's knowledge before a crash has a history.
            if reason is not R.UNSPECIFIED and not self.crashes:
                raise ViolationError(f"I5: first delivery of {track.number} for {reason.name}")
            return
        crashed = before.session.life != given.session.life
        if not _valid_reason(before, reason, self.rule(track.queue), given.at_ms, crashed=crashed):
            raise ViolationError(
                f"I5: message {track.number}, fence {before.fence}, is delivered again as {given.fence}: {reason.name}"
            )
        if not _valid_counts(before, given, crashed=crashed):
            raise ViolationError(
                f"I7: message {track.number} goes from attempt {before.attempt}, losses {before.losses} to "
                f"{given.attempt}, {given.losses} by {reason.name}"
            )

    def _check_letter(self, track: Track, run: Delivery) -> None:
        letter = run.dead_letter
        assert letter is not None
        request = self.of_message[track.number]
        source = self.tracks.get((letter.queue, track.number))
        if letter.queue != request.queue or source is None or source.offset != letter.offset:
            raise ViolationError(f"I8: the letter of message {track.number} says {letter.queue}, {letter.offset}")
        self.cover[f"letter: {letter.reason}"] += 1
        rules = self.rule(letter.queue)
        if letter.reason == "max_attempts" and letter.attempts not in rules.attempts and len(rules.attempts) == 1:
            raise ViolationError(f"I8: dead-lettered after {letter.attempts} attempts, not {rules.attempts}")
        if letter.reason == "lost_too_often" and letter.losses not in rules.losses and len(rules.losses) == 1:
            raise ViolationError(f"I8: dead-lettered after {letter.losses} losses, not {rules.losses}")

    def _settled(self, given: Given, outcome: Outcome, result: SettleResult) -> None:
        track = given.track
        if given.settled is not None:
            if given.settled is not outcome:
                raise ViolationError(f"I6: fence {given.fence}: {given.settled.name} was OK, then {outcome.name}")
            self.cover["settled again: OK"] += 1
            return
        newest = track.delivery
        assert newest is not None
        if newest is not given:
            # It was done by a process that died before it could say so, and the message went on.
            expected = {Outcome.RETRY: R.RETRY, Outcome.RELEASE: R.RELEASE}.get(outcome)
            if expected is None or newest.session.life == given.session.life:
                raise ViolationError(
                    f"I4: {outcome.name} of fence {given.fence} was OK; message {track.number} is at {newest.fence}"
                )
        given.settled = outcome
        self.settled[track.queue] += 1
        if outcome is Outcome.ACK:
            if track.acked:
                raise ViolationError(f"I4: message {track.number} was acked twice")
            track.acked = True
        if given.unit is not None:
            runs = result.published
            self.cover["settled with publishes"] += 1
            self.stored(given.unit, runs[0][0].first_offset if runs else 0)

    def _not_settled(self, given: Given, outcome: Outcome, session: Session, result: SettleResult) -> None:
        if given.unit is not None:
            given.unit.refusals += 1
        if given.settled is outcome and self.settled[given.track.queue] < self.remembered:
            raise ViolationError(f"I4: {outcome.name} of fence {given.fence} was OK, repeated it is {result.status.name}")
        if result.status is SettleStatus.REJECTED:
            if given.unit is None:
                raise ViolationError(f"fence {given.fence} was rejected, it had no publishes")
            return
        unended = given.session is session and given.settled is None and given.track.delivery is given
        if unended and not (session.suspect or session.failed or session.ended or session.detached):
            self._must_have_expired(given, result)

    def _must_have_expired(self, given: Given, result: SettleResult) -> None:
        """A lease of a healthy consumer is over: only time can have done that."""
        if (given.track.queue, given.track.number) in self.gone or given.sent & (given.sent - 1):
            return
        given.session.suspect = given.session.suspect or False
        self.expiries = getattr(self, "expiries", 0) + 1
        if not given.begun:
            raise ViolationError(f"fence {given.fence} is {result.status.name}, it never began and nothing ended it")


def _valid_reason(before: Given, reason: RedeliveryReason, rules: Rules, at_ms: int, *, crashed: bool) -> bool:
    """Whether something happened to the delivery before that is a reason for another one."""
    session = before.session
    if crashed and reason in (R.BROKER_RESTART, R.UNSPECIFIED, before.reason):
        # The last deliveries before a crash may have left no trace.
        return True
    match reason:
        case R.RETRY:
            return bool(before.sent & 1 << Outcome.RETRY) or bool(before.sent & 1 << Outcome.DEAD_LETTER)
        case R.RELEASE:
            return bool(before.sent & 1 << Outcome.RELEASE)
        case R.STREAM_LOSS:
            return session.ended
        case R.SUSPECT:
            return session.suspect or session.failed
        case R.FAILED:
            return session.failed
        case R.DETACH:
            return session.detached
        case R.VISIBILITY_TIMEOUT:
            return before.begun and at_ms - before.at_ms >= rules.visibility_ms
    return False


def _valid_counts(before: Given, given: Given, *, crashed: bool) -> bool:
    """Whether attempt and losses count by the table, each by one."""
    failures, losses = given.attempt - before.attempt, given.losses - before.losses
    if crashed:
        return failures in (0, 1) and losses <= 1
    match given.reason:
        case R.RETRY | R.VISIBILITY_TIMEOUT:
            return (failures, losses) == (1, 0)
        case R.FAILED:
            return (failures, losses) == (0, 1)
        case R.STREAM_LOSS:
            charged = (0, 1) if before.begun else (0,)
            return failures == 0 and losses in (charged if before.session.announces else (1,))
    return (failures, losses) == (0, 0)
