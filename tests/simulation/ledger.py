"""What clients attempted and what they were told: the promises as they are seen from outside, by fence and message.

A message is told from others by its own number, which is part of its body; so whatever is delivered can be compared
with what was attempted. Deliveries and commands count from the moment at which the shard decides, since what is
released to a stream that has just closed is seen by nobody; answers count from their release, since that is when a
promise is made. The shard's own idea of its state is not looked at here.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from struct import Struct

from kyogo_broker.model.commands import Outcome
from kyogo_broker.model.effects import Delivery, PublishDone, SettleResult
from kyogo_broker.model.message import Batch
from kyogo_broker.model.settings import QueueSettings
from kyogo_broker.model.states import RedeliveryReason, SettleStatus
from tests.simulation.world import ViolationError

PLAIN_ACK = 1 << 5
"""Beside the outcomes: an ACK without publishes was sent."""
ROUNDING_MS = 1
"""Between two clocks in whole milliseconds."""
HEAD = Struct("<IH")
"""Number and length of a message, which stand before its filling."""
FILLING = bytes(index * 31 % 251 for index in range(1 << 16))

R = RedeliveryReason


def body(number: int, size: int) -> bytes:
    """The message `number`, `size` bytes in all."""
    start = number * 97 % 40_000
    return HEAD.pack(number, size) + FILLING[start : start + size - HEAD.size]


class Request:
    """One publish: a batch that is stored once, or never."""

    __slots__ = (
        "answer", "attempts", "batch", "digest", "fence", "first", "gone", "placed", "producer_id", "queue", "refusals",
        "request_id", "sizes", "tag",
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
        self.placed = 0
        """First offset that it was given last, said or not."""
        self.fence = 0
        """Of the delivery with whose ACK it is stored; 0: on its own."""
        self.gone = False
        """It went with its queue."""
        wire = b"".join([body(first + index, size) for index, size in enumerate(sizes)])
        ends = tuple(accumulate(sizes))
        same = range(sizes[0], ends[-1] + 1, sizes[0])
        self.batch = Batch(wire, same if ends == tuple(same) else ends)
        self.digest = first * 1_000_003 + ends[-1]


class Track:
    """One message in one queue."""

    __slots__ = ("acked", "delivery", "due_life", "due_ms", "gone", "number", "offset", "queue", "seen", "sent")

    def __init__(self, queue: str, number: int, offset: int) -> None:
        self.queue = queue
        self.number = number
        self.offset = offset
        self.delivery: Given | None = None
        """The newest one."""
        self.seen: Given | None = None
        """The newest one that was released."""
        self.acked = False
        """An ACK was answered OK."""
        self.gone = False
        """It went with its queue."""
        self.sent = 0
        """Outcomes that anybody ever sent, as bits."""
        self.due_ms = 0
        self.due_life = 0
        """Steady instant before which the process `due_life` may not deliver it again."""


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

    @property
    def healthy(self) -> bool:
        """Whether only a settlement or time ends what it holds."""
        return not (self.ended or self.detached or self.suspect or self.failed)


class Given:
    """One delivery, by its fence."""

    __slots__ = ("attempt", "before", "deadline_ms", "fence", "losses", "reason", "sent", "session", "settled", "track")

    def __init__(self, track: Track, session: Session, fence: int, run: Delivery) -> None:
        self.track = track
        self.session = session
        self.fence = fence
        self.attempt = run.attempt
        self.losses = run.losses
        self.reason = run.reason
        self.before: Given | None = None
        """The delivery before."""
        self.deadline_ms = 0
        """Steady instant before which its visibility cannot be over; 0: it has not begun."""
        self.sent = 0
        """Outcomes sent for this fence, as bits."""
        self.settled: Outcome | None = None
        """The outcome that was answered OK."""


@dataclass(slots=True)
class Rules:
    """What a queue's settings ever were: under a change both the old and the new may hold."""

    visibility_ms: int = 1 << 60
    attempts: set[int] = field(default_factory=set)
    losses: set[int] = field(default_factory=set)
    keeps_letters: bool = True

    def add(self, settings: QueueSettings) -> None:
        """These hold from now on."""
        self.visibility_ms = min(self.visibility_ms, settings.visibility_timeout_ms)
        self.attempts.add(settings.max_attempts)
        self.losses.add(settings.max_losses)
        self.keeps_letters &= settings.dead_letter_queue != ""


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
        self.asked: dict[tuple[int, int], tuple[Outcome, Request | None]] = {}
        """What each (port, fence) still waits to hear about."""
        self.purged: set[tuple[str, int]] = set()
        """(queue, offset)."""
        self.decided: dict[int, PublishDone] = {}
        """Answers of this life that were not released yet, by identity."""
        self.void: set[int] = set()
        """Those of them that tell of a queue which was deleted meanwhile."""
        self.settled = Counter[str]()
        self.last_fence = 0

    def rule(self, queue: str) -> Rules:
        """What holds for a queue; one that was made by a publish has the defaults."""
        found = self.rules.get(queue)
        if found is None:
            found = self.rules[queue] = Rules()
            found.add(QueueSettings())
        return found

    # What the shard is asked, and decides.

    def created(self, request: Request) -> None:
        """A client thought of a request."""
        self.requests[request.tag] = request
        for index in range(len(request.sizes)):
            self.of_message[request.first + index] = request

    def began(self, session: Session, fence: int, now_ms: int) -> None:
        """A consumer says that a handler began."""
        given = self.given[fence]
        if given.session is session and not given.deadline_ms:
            given.deadline_ms = now_ms + self.rule(given.track.queue).visibility_ms

    def settling(self, port: int, fence: int, outcome: Outcome, unit: Request | None) -> None:
        """A consumer settles."""
        given = self.given[fence]
        given.sent |= 1 << outcome
        given.track.sent |= 1 << outcome
        self.asked[port, fence] = outcome, unit
        if outcome is Outcome.ACK and unit is None:
            given.sent |= PLAIN_ACK

    def deliver(self, session: Session, run: Delivery, now_ms: int, steady_ms: int) -> None:
        """A run is to be delivered."""
        queue = session.queues[run.subscription]
        if run.first_fence <= self.last_fence:
            raise ViolationError(f"I3: fence {run.first_fence} was issued after {self.last_fence}")
        self.last_fence = run.first_fence + run.count - 1
        visible_ms = 0 if session.announces else now_ms + self.rule(queue).visibility_ms
        wire, at = run.wire, 0
        self.cover[f"delivered: {run.reason.name}"] += run.count
        for index in range(run.count):
            number, size = HEAD.unpack_from(wire, at)
            self._check_body(queue, number, wire[at : at + size], letter=run.dead_letter is not None)
            at += size
            track = self._track(queue, number, run.first_offset + index)
            given = Given(track, session, run.first_fence + index, run)
            given.deadline_ms = visible_ms
            self._check_history(track, given, now_ms)
            if steady_ms < track.due_ms and track.due_life == self.life:
                raise ViolationError(f"I11: message {number} is delivered {track.due_ms - steady_ms} ms too early")
            track.due_ms = 0
            given.before = track.delivery
            if run.dead_letter is not None and track.delivery is None:
                self._check_letter(track, run)
            track.delivery = self.given[given.fence] = given
        if at != len(wire):
            raise ViolationError(f"I2: a run of {run.count} messages has {len(wire)} bytes instead of {at}")

    def delete(self, queue: str) -> None:
        """A queue is deleted; what is stored there later begins anew."""
        for key in [key for key in self.tracks if key[0] == queue]:
            self.tracks.pop(key).gone = True
        for request in self.requests.values():
            if request.queue == queue:
                request.gone, request.answer = True, None
        self.purged = {entry for entry in self.purged if entry[0] != queue}
        self.rules.pop(queue, None)
        self.void |= {key for key, done in self.decided.items() if self.requests[done.tag].queue == queue}

    def delayed(self, fence: int, due_ms: int) -> None:
        """A delivery ended, and its message waits."""
        track = self.given[fence].track
        track.due_ms, track.due_life = due_ms, self.life

    # What the broker answers.

    def accepted(self, done: PublishDone) -> None:
        """A publish is stored, or was; nobody knows yet."""
        self.requests[done.tag].gone = False
        self.decided[id(done)] = done

    def published(self, done: PublishDone) -> None:
        """A publish was answered."""
        request = self.requests[done.tag]
        self.decided.pop(id(done), None)
        if id(done) in self.void:
            self.void.remove(id(done))
            return
        if done.refusal is not None:
            request.refusals += 1
            self.cover[f"publish: {done.refusal.code.name}"] += 1
            return
        if [run.count for run in done.offsets] != [len(request.sizes)]:
            raise ViolationError(f"I12: request {request.tag} of {len(request.sizes)} was answered {done.offsets}")
        self.stored(request, done.offsets[0].first_offset)

    def stored(self, request: Request, offset: int) -> None:
        """A request is durable, so it was said."""
        if request.answer and offset:
            if request.answer != offset:
                raise ViolationError(f"I12: request {request.tag} was stored at {request.answer} and at {offset}")
            self.cover["resend recognised"] += 1
        if not request.gone:
            request.answer = offset or request.answer or 0

    def released(self, run: Delivery) -> None:
        """A delivery left the broker, so its messages are durable."""
        given = self.given
        for fence in range(run.first_fence, run.first_fence + run.count):
            given[fence].track.seen = given[fence]

    def answered(self, session: Session, result: SettleResult, now_ms: int) -> None:
        """Fences of a settlement were answered."""
        for fence in range(result.range.first, result.range.last + 1):
            asked = self.asked.pop((session.port, fence), None)
            if asked is None:
                raise ViolationError(f"fence {fence} was answered {result.status.name}, nobody had asked")
            outcome, unit = asked
            given = self.given[fence]
            self.cover[f"settle {outcome.name}: {result.status.name}"] += 1
            if given.track.gone:
                continue
            if result.status is SettleStatus.OK:
                self._settled(given, outcome)
                if unit is not None:
                    self.cover["settled with publishes"] += 1
                    self.stored(unit, result.published[0][0].first_offset if result.published else 0)
                continue
            if unit is not None:
                unit.refusals += 1
            elif result.status is SettleStatus.REJECTED:
                raise ViolationError(f"fence {fence} was rejected, it had no publishes")
            if result.status is not SettleStatus.REJECTED:
                self._not_settled(given, outcome, session, result, now_ms)

    def extended(self, session: Session, fence: int, status: SettleStatus, deadline_ms: int) -> None:
        """A fence of an extension was answered."""
        given = self.given[fence]
        self.cover[f"extend: {status.name}"] += 1
        if status is SettleStatus.OK and not given.track.gone:
            if given.session is not session or given.track.delivery is not given or given.settled is not None:
                raise ViolationError(f"I6: the lost lease of fence {fence} was extended")
            given.deadline_ms = min(deadline_ms, given.deadline_ms or deadline_ms)

    # The promises.

    def _check_body(self, queue: str, number: int, found: memoryview, *, letter: bool) -> None:
        request = self.of_message.get(number)
        if request is None:
            raise ViolationError(f"I2: message {number} was delivered, nobody published it")
        if found != body(number, request.sizes[number - request.first]):
            raise ViolationError(f"I2: the body of message {number} was changed")
        if not letter and queue != request.queue:
            raise ViolationError(f"I2: message {number} of {request.queue} was delivered from {queue}")

    def _track(self, queue: str, number: int, offset: int) -> Track:
        track = self.tracks.get((queue, number))
        if (
            track is not None
            and track.seen is None
            and track.delivery is not None
            and track.offset != offset
            and track.delivery.session.life != self.life
        ):
            # It was decided by a process that died over it, and left no trace.
            track = None
        if track is None:
            track = self.tracks[queue, number] = Track(queue, number, offset)
            request = self.of_message[number]
            expected = request.answer + number - request.first if request.answer else offset
            if queue == request.queue and expected != offset:
                raise ViolationError(f"I12: message {number} was answered {expected} and delivered as {offset}")
        elif track.offset != offset:
            raise ViolationError(f"I12: message {number} stands in {queue} at {track.offset} and at {offset}")
        return track

    def _check_history(self, track: Track, given: Given, now_ms: int) -> None:
        before, reason = track.delivery, given.reason
        if track.acked:
            raise ViolationError(f"I3: message {track.number} was acked, and is delivered with fence {given.fence}")
        if before is None:
            # What was delivered to nobody's knowledge before a crash has a history.
            if not self.crashes and (reason, given.attempt, given.losses) != (R.UNSPECIFIED, 1, 0):
                raise ViolationError(f"I5: first delivery of {track.number} for {reason.name}")
            return
        crashed = before.session.life != given.session.life
        if not _valid_reason(before, reason, now_ms, crashed=crashed):
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
        source = self.tracks.get((letter.queue, track.number))
        if source is None or source.offset != letter.offset:
            raise ViolationError(f"I8: the letter of message {track.number} says {letter.queue}, {letter.offset}")
        self.cover[f"letter: {letter.reason}"] += 1
        rules = self.rule(letter.queue)
        if letter.reason == "max_attempts":
            _check_limit("attempts", letter.attempts, rules.attempts)
        if letter.reason == "lost_too_often":
            _check_limit("losses", letter.losses, rules.losses)

    def _settled(self, given: Given, outcome: Outcome) -> None:
        track = given.track
        if given.settled is not None:
            if given.settled is not outcome:
                raise ViolationError(f"I6: fence {given.fence}: {given.settled.name} was OK, then {outcome.name}")
            self.cover["settled again: OK"] += 1
            return
        newest = track.delivery
        assert newest is not None
        if newest is not given and not (outcome in (Outcome.RETRY, Outcome.RELEASE) and given.sent == 1 << outcome):
            raise ViolationError(
                f"I4: {outcome.name} of fence {given.fence} was OK; message {track.number} is at {newest.fence}"
            )
        given.settled = outcome
        self.settled[track.queue] += 1
        if outcome is Outcome.ACK:
            track.acked = True

    def _not_settled(self, given: Given, outcome: Outcome, session: Session, result: SettleResult, now_ms: int) -> None:
        if given.settled is outcome and self.settled[given.track.queue] < self.remembered:
            raise ViolationError(f"I4: {outcome.name} of fence {given.fence} was OK, then it is {result.status.name}")
        held = given.session is session and given.settled is None and given.track.delivery is given
        if held and session.healthy and not 0 < given.deadline_ms <= now_ms + ROUNDING_MS:
            raise ViolationError(f"fence {given.fence} of a healthy consumer is {result.status.name} for no reason")


def _check_limit(what: str, found: int, limits: set[int]) -> None:
    """Exactly at the limit; one that was lowered may have been passed already."""
    if found < min(limits) or (len(limits) == 1 and found > min(limits)):
        raise ViolationError(f"I8: dead-lettered after {found} {what}, the limits were {limits}")


def _valid_reason(before: Given, reason: RedeliveryReason, now_ms: int, *, crashed: bool) -> bool:
    """Whether something happened to the delivery before that is a reason for another one."""
    if crashed:
        # The last deliveries before a crash may have left no trace.
        if reason in (R.BROKER_RESTART, R.UNSPECIFIED, before.reason) or _ended(before, reason, now_ms):
            return True
        return before.before is not None and _valid_reason(before.before, reason, now_ms, crashed=True)
    return _ended(before, reason, now_ms)


def _ended(before: Given, reason: RedeliveryReason, now_ms: int) -> bool:
    """Whether a delivery ended for this reason."""
    session = before.session
    match reason:
        case R.RETRY:
            return bool(before.sent & (1 << Outcome.RETRY | 1 << Outcome.DEAD_LETTER))
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
            return 0 < before.deadline_ms <= now_ms + ROUNDING_MS
    return False


def _valid_counts(before: Given, given: Given, *, crashed: bool) -> bool:
    """Whether attempt and losses count by the table, each by one."""
    failures, losses = given.attempt - before.attempt, given.losses - before.losses
    if crashed:
        seen = before.track.seen
        return (1 if seen is None else seen.attempt) <= given.attempt <= before.attempt + 1 and losses <= 1
    match given.reason:
        case R.RETRY | R.VISIBILITY_TIMEOUT:
            return (failures, losses) == (1, 0)
        case R.FAILED:
            return (failures, losses) == (0, 1)
        case R.STREAM_LOSS:
            return (failures, losses) == (0, 1 if before.deadline_ms else 0)
    return (failures, losses) == (0, 0)
