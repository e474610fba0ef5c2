"""What must hold, looked at while a history runs: at every step of the shard, every answer, every restart and the end.

I1 to I8, I11 to I15, I17, I18 and I20 of the checks; each violation begins with the one that is broken.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

from kyogo_broker.clock import Clock
from kyogo_broker.core.queue import Queue
from kyogo_broker.core.shard import Shard
from kyogo_broker.core.step import Step
from kyogo_broker.engine import Engine
from kyogo_broker.journal.base import Journal, Part
from kyogo_broker.journal.loading import load
from kyogo_broker.model.commands import (
    Attach,
    Command,
    Detach,
    Extend,
    Outcome,
    Publish,
    Settle,
    Started,
    StreamEnded,
    Tick,
)
from kyogo_broker.model.effects import (
    AttachDone,
    AttachRefused,
    Deliver,
    Effect,
    EndStream,
    ExtendDone,
    Load,
    Notice,
    PublishDone,
    SettleDone,
)
from kyogo_broker.model.facts import (
    Fact,
    Finished,
    Lost,
    Moved,
    Published,
    QueueCreated,
    QueueDeleted,
    QueueUpdated,
    Retried,
)
from kyogo_broker.model.now import Now
from tests.simulation.ledger import HEAD, Ledger, Request, Rules, Session, Track, body
from tests.simulation.machine import BEGINNING_US
from tests.simulation.network import Edge
from tests.simulation.shadow import Shadow, Written
from tests.simulation.world import ViolationError, World

LOOKED_AT_A_TURN = 16
"""Waiting messages that a turn's look at the shard's own books may cost: a short queue is looked at after every turn that
touched it or the next one, a long one after so many that looking costs little beside living. Restarts look at everything."""
SUSPECT_INTERVALS = {"consumer_suspect": 3, "consumer_failed": 10}
SCHEDULING_US = 60_000
"""Delays of the broker below 50 ms are not counted as its own stall."""
UNNOTICED_STALL_US = 300_000
"""The loop looks at its clock four times a second: of each stall so much may look like a sleep that was planned."""


class Check:
    """Watches one history."""

    encoding: ClassVar[Sequence[Fact]] = ()
    """What was encoded last: the facts of the record that is about to be appended."""

    def __init__(self, world: World, cover: Counter[str], *, remembered: int, stretch: int) -> None:
        self.world = world
        self.cover = cover
        self.faulty = True
        """Whether faults still happen."""
        self.ledger = Ledger(cover, remembered=remembered)
        self.shadow = Shadow(stretch)
        self.digest = 0
        """Of all that was written: the same seed, the same digest."""
        self._names: dict[int, str] = {}
        self._edges: dict[int, Edge] = {}
        self._frozen: list[tuple[int, int]] = []
        self._journal: Journal
        self._clock: Clock
        self._now = Now(0, 0)
        self._ms = 0
        """Of the last decision, on a clock that no restart moves."""
        self._intervals: dict[int, int] = {}
        self._turns = 0
        self._touched: set[int] = set()
        """Queues of the facts since they were looked at last."""
        self._look_at: dict[int, int] = {}
        """The turn from which on a queue is to be looked at again; that of all of them under 0."""
        self._before: Mapping[type, Callable[[Any, Now], None]] = {
            Publish: self._publish, Settle: self._settle, Started: self._started, StreamEnded: self._ended,
            Detach: self._detach,
        }  # fmt: skip
        self._facts: Mapping[type, Callable[[Any], None]] = {
            QueueCreated: self._queue_created, QueueUpdated: self._queue_updated, QueueDeleted: self._queue_deleted,
            Finished: self._purged, Retried: self._retried, Lost: self._lost, Published: self._published,
        }  # fmt: skip

    # Lives.

    def starting(self, journal: Journal, clock: Clock) -> None:
        """A process begins."""
        self._journal, self._clock = journal, clock
        self.ledger.life += 1
        self.ledger.sessions.clear()
        self.ledger.asked.clear()
        self.ledger.decided.clear()
        self.ledger.void.clear()
        self._edges.clear()
        self._frozen.clear()

    def recovered(self, shard: Shard) -> None:
        """It has restored its state, and has not begun its epoch yet."""
        self.shadow.check_recovered(shard, self._journal.sequence - 1)
        self._names = {queue.id: queue.name for queue in shard._state.queues.values()}
        shard.check_invariants()
        for queue in shard._state.queues.values():
            self._check_bodies(queue)
        self._check_promises(shard)

    def died(self, engine: Engine | None, *, graceful: bool = False) -> None:
        """It is no more."""
        if not graceful:
            self.ledger.crashes += 1
        if engine is not None:
            self.shadow.check_live(engine._shard, engine._pending, self._journal.position)

    def froze(self, since: int, until: int) -> None:
        """The process stands still for a while."""
        self._frozen.append((since, until))

    def thawed(self, now: int) -> None:
        """It goes on earlier than was said."""
        self._frozen = [(since, min(until, now)) for since, until in self._frozen if since < now]

    # The journal.

    def appending(self, sequence: int, position: int, parts: Sequence[Part]) -> None:
        """A record is handed to the journal."""
        self.digest = hash((self.digest, sequence, position, *map(len, parts), self._now.steady_ms, self.world.events))
        facts, Check.encoding = Check.encoding, ()
        self.shadow.appending(Written(sequence, position, facts))
        for fact in facts:
            self.cover[type(fact).__name__] += 1
            if type(fact) is Moved:
                self.cover["copied forward"] += 1

    def appended(self, _: int, done: Future[None]) -> None:
        """It is durable, or failed."""
        if done.exception() is None:
            self.shadow.durable()

    # The shard.

    def before(self, command: Command, now: Now) -> None:
        """A command is about to be handled."""
        self._now, self._ms = now, (BEGINNING_US + self.world.now) // 1000
        note = self._before.get(type(command))
        if note is not None:
            note(command, now)

    def after(self, shard: Shard, command: Command, step: Step, now: Now) -> None:
        """A command was handled."""
        for fact in step.facts:
            self._touched.add(getattr(fact, "queue_id", 0))
            note = self._facts.get(type(fact))
            if note is not None:
                note(fact)
        for effect in step.effects:
            match effect:
                case Deliver():
                    self._deliver(shard, effect, now)
                case AttachDone() if isinstance(command, Attach):
                    self._attached(command, effect)
                case AttachRefused():
                    self.cover[f"attach: {effect.refusal.code.name}"] += 1
                case EndStream() if isinstance(command, Attach):
                    self.cover["taken over"] += 1
                    self.ledger.sessions[effect.port].ended = True
                case Notice() if effect.event in SUSPECT_INTERVALS:
                    self._silent(effect)
                case PublishDone() if effect.refusal is None:
                    self.ledger.accepted(effect)
                case ExtendDone() if isinstance(command, Extend):
                    self._extended(command, effect, now)
        if type(command) is Tick and self._touched:
            self._check_turn(shard)

    # The edge.

    def opened(self, edge: Edge) -> None:
        """A stream was accepted."""
        self._edges[edge.port] = edge

    def released(self, edge: Edge, effect: Effect) -> None:
        """The engine let go of an effect: all that it tells of is durable."""
        if isinstance(effect, Deliver):
            for run in effect.runs:
                self.ledger.released(run)
        elif isinstance(effect, PublishDone):
            self.ledger.published(effect)
        elif isinstance(effect, SettleDone):
            session = self.ledger.sessions[edge.port]
            for result in effect.results:
                self.ledger.answered(session, result, self._ms)

    def notice(self, notice: Notice) -> None:
        """What operators are told."""
        self.cover[f"notice: {notice.event}"] += 1

    def _check_turn(self, shard: Shard) -> None:
        """What the facts of a turn have touched, and from time to time everything, each at most as often as it is short."""
        state, look_at = shard._state, self._look_at
        self._turns += 1
        turns = self._turns
        if turns >= look_at.get(0, 0):
            state.check_invariants()
            self._touched.clear()
            waiting = sum(queue.ready_count for queue in state.queues.values())
            look_at[0] = turns + 16 + waiting // LOOKED_AT_A_TURN
            return
        for queue_id in tuple(self._touched):
            if turns < look_at.get(queue_id, 0):
                continue
            self._touched.discard(queue_id)
            queue = state.queues.get(queue_id)
            if queue is None:
                continue
            queue.check_invariants()
            look_at[queue_id] = turns + 2 + queue.ready_count // LOOKED_AT_A_TURN
            for member in queue.members.values():
                member.consumer.check_invariants()
        if turns % 4 == 0:
            state.leases.check_invariants()

    # Commands.

    def _publish(self, command: Publish, _: Now) -> None:
        self.ledger.requests[command.tag].attempts += 1

    def _settle(self, command: Settle, _: Now) -> None:
        if command.port not in self.ledger.sessions or self.ledger.sessions[command.port].ended:
            return
        for settlement in command.settlements:
            unit = None
            if settlement.publishes:
                unit = self.ledger.requests[settlement.publishes[0].tag]
                unit.attempts += 1
            for fences in settlement.ranges:
                for fence in range(fences.first, fences.last + 1):
                    self.ledger.settling(command.port, fence, settlement.outcome, unit)

    def _started(self, command: Started, now: Now) -> None:
        session = self.ledger.sessions.get(command.port)
        if session is not None:
            for fences in command.ranges:
                for fence in range(fences.first, fences.last + 1):
                    self.ledger.began(session, fence, self._ms)

    def _ended(self, command: StreamEnded, _: Now) -> None:
        session = self.ledger.sessions.get(command.port)
        if session is not None:
            session.ended = True

    def _detach(self, command: Detach, _: Now) -> None:
        self.cover["detached"] += 1
        session = self.ledger.sessions.get(command.port)
        if session is not None:
            session.detached = True

    def _extended(self, command: Extend, effect: ExtendDone, now: Now) -> None:
        session = self.ledger.sessions[command.port]
        for result in effect.results:
            for fence in range(result.range.first, result.range.last + 1):
                self.ledger.extended(session, fence, result.status, self._ms + command.extension_ms)

    # Facts and effects.

    def _published(self, fact: Published) -> None:
        if fact.dead_letter is None:
            self.ledger.of_message[HEAD.unpack_from(fact.batch.wire)[0]].placed = fact.first_offset

    def _queue_created(self, fact: QueueCreated) -> None:
        self._names[fact.queue_id] = fact.name
        self.ledger.rules.setdefault(fact.name, Rules()).add(fact.settings)

    def _queue_updated(self, fact: QueueUpdated) -> None:
        self.ledger.rule(self._names[fact.queue_id]).add(fact.settings)

    def _queue_deleted(self, fact: QueueDeleted) -> None:
        self.cover["queue deleted"] += 1
        self.ledger.delete(self._names[fact.queue_id])

    def _purged(self, fact: Finished) -> None:
        name = self._names[fact.queue_id]
        for first, last in fact.ranges:
            self.cover["purged"] += last - first + 1
            self.ledger.purged |= {(name, offset) for offset in range(first, last + 1)}

    def _retried(self, fact: Retried) -> None:
        self.ledger.delayed(fact.span.first_fence, fact.due_ms)

    def _lost(self, fact: Lost) -> None:
        for span in fact.spans:
            for fence in range(span.first_fence, span.first_fence + span.count):
                self.ledger.delayed(fence, fact.due_ms)

    def _attached(self, command: Attach, effect: AttachDone) -> None:
        names = tuple(subscription.queue for subscription in command.subscriptions)
        self.ledger.sessions[command.port] = Session(
            self.ledger.life, command.port, command.consumer_id, names, announces="started" in effect.capabilities
        )
        self._intervals[command.port] = effect.heartbeat_interval_ms * 1_000

    def _deliver(self, shard: Shard, effect: Deliver, now: Now) -> None:
        consumer = shard._state.consumers[effect.port]
        if consumer.in_flight > consumer.prefetch_messages:
            raise ViolationError(f"I13: {consumer.in_flight} in flight, {consumer.prefetch_messages} granted")
        if consumer.in_flight_bytes > consumer.prefetch_bytes and consumer.in_flight > 1:
            raise ViolationError(f"I13: {consumer.in_flight_bytes} B in flight, {consumer.prefetch_bytes} granted")
        session = self.ledger.sessions[effect.port]
        for run in effect.runs:
            if len(run.wire) > consumer.message_bytes_max():
                self._check_frame(run.wire, consumer.message_bytes_max())
            self.ledger.deliver(session, run, self._ms, now.steady_ms)

    @staticmethod
    def _check_frame(wire: memoryview, most: int) -> None:
        at = 0
        while at < len(wire):
            _, size = HEAD.unpack_from(wire, at)
            if size > most:
                raise ViolationError(f"I13: a message of {size} B is delivered, frames take {most}")
            at += size

    def _silent(self, notice: Notice) -> None:
        """Nobody is suspected for the time in which the broker itself stood still."""
        name = notice.fields["consumer"]
        session = next(s for s in reversed(self.ledger.sessions.values()) if s.consumer == name and not s.ended)
        if notice.event == "consumer_suspect":
            session.suspect = True
        else:
            session.failed = True
        edge = self._edges[session.port]
        now, heard = self.world.now, edge.heard_at
        stalls = [min(until, now) - max(since, heard) for since, until in self._frozen if until > heard and since < now]
        stalled = sum(stalls)
        slack = SCHEDULING_US + sum(min(stall, UNNOTICED_STALL_US) for stall in stalls)
        least = SUSPECT_INTERVALS[notice.event] * self._intervals[session.port] - slack
        if now - heard - stalled < least and not edge.blocked:
            raise ViolationError(
                f"I18: {notice.event} after {(now - heard) // 1000} ms of silence, "
                f"{stalled // 1000} of which the broker stood still"
            )

    # Restarts and the end.

    def _check_bodies(self, queue: Queue) -> None:
        """Everything that is not finished can be read back, as it was published."""
        ranges = tuple(queue.live_ranges(1, queue.next_offset - 1))
        if not ranges:
            return
        stretches = sorted({(position, length) for position, length, _, _ in queue.extents.rows_from(1)})
        for batch in load(self._journal, Load(queue.id, 0, tuple(stretches), ranges)).batches:
            at = 0
            for offset in batch.offsets:
                number, size = HEAD.unpack_from(batch.batch.wire, at)
                request = self.ledger.of_message[number]
                if batch.batch.wire[at : at + size] != body(number, request.sizes[number - request.first]):
                    raise ViolationError(f"I2: the body of message {number} was changed on the disk")
                if request.queue == queue.name and request.answer and request.answer + number - request.first != offset:
                    raise ViolationError(f"I1: message {number} stands at {offset}, answered was {request.answer}")
                at += size

    def _check_promises(self, shard: Shard) -> None:
        """What was answered survives."""
        names = shard._state.names
        for request in self.ledger.requests.values():
            if request.answer and not request.gone:
                queue = names.get(request.queue)
                if queue is None or request.answer + len(request.sizes) > queue.next_offset:
                    raise ViolationError(f"I1: request {request.tag} was answered {request.answer}, and is lost")
        for track in self.ledger.tracks.values():
            queue = names.get(track.queue)
            if track.seen and (queue is None or track.offset >= queue.next_offset):
                raise ViolationError(f"I1: message {track.number} was delivered, and is lost")
            if track.acked and queue is not None and track.offset not in queue.finished:
                raise ViolationError(f"I3: message {track.number} was acked, and is not finished")

    def check_end(self) -> None:
        """All has drained: where did every message go?"""
        ledger = self.ledger
        ends = {number for queue, number in ledger.tracks if queue != ledger.of_message[number].queue}
        for request in ledger.requests.values():
            if request.gone:
                continue
            tracks = [ledger.tracks.get((request.queue, request.first + n)) for n in range(len(request.sizes))]
            there = [track for track in tracks if track is not None and track.seen is not None]
            if there and request.attempts == request.refusals:
                raise ViolationError(f"I2: request {request.tag} was refused, and is delivered")
            if request.answer is None and not there:
                continue
            for index, track in enumerate(tracks):
                self._check_whereabouts(request, index, track, ends)
            if request.fence and not any(track.gone for track in there):
                self._check_unit(request)

    def _check_whereabouts(self, request: Request, index: int, track: Track | None, letters: set[int]) -> None:
        ledger, number = self.ledger, request.first + index
        if (request.queue, (request.answer or request.placed) + index) in ledger.purged:
            return
        if track is None:
            raise ViolationError(f"I1: message {number} of request {request.tag} was stored, and never delivered")
        if track.acked or track.sent & 1 << Outcome.ACK or number in letters:
            return
        if ledger.rule(request.queue).keeps_letters:
            raise ViolationError(f"I1: message {number} is finished, nobody knows why")

    def _check_unit(self, request: Request) -> None:
        """A settlement and its publishes are both there."""
        given = self.ledger.given[request.fence]
        if not given.track.gone and given.track.delivery is not given:
            raise ViolationError(f"I20: publishes of fence {given.fence} are stored, its message is delivered again")
