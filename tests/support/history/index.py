"""A history sorted by what it is about: requests, messages, deliveries, sessions, queues, brokers and faults.

One pass over the lines. Everything below works on this and not on lines.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.support.history.lines import Line, fences_of

OK = "OK"
UNTOLD = "?"
"""The reason of a delivery whose consumer does not tell it."""
NO = frozenset({"STALE", "UNKNOWN", "REJECTED"})
"""Answers that say: nothing was done."""


@dataclass(slots=True)
class Try:
    """One attempt at a publish, a settlement of one fence, or its extension."""

    t: float
    process: str
    session: str = ""
    outcome: str = ""
    """Of a settlement; empty: an extension."""
    status: str | None = None
    """None: never answered."""
    answered: float = 0.0
    delay_ms: int | None = None
    reason: str = ""
    unit: "Unit | None" = None
    extension_ms: int = 0
    offsets: list[list[int]] = field(default_factory=list)

    @property
    def possible(self) -> bool:
        """It was done, or may have been."""
        return self.status not in NO


@dataclass(slots=True)
class Request:
    """What one producer wants stored under one number; a settlement's publish is one, too."""

    name: str
    queue: str
    uids: list[str]
    digests: list[str]
    tries: list[Try] = field(default_factory=list)
    fields: dict[str, list[Any]] = field(default_factory=dict)
    """`delays_ms`, `ttls_ms`, `keys`, `priorities`, a value a message."""

    @property
    def stored(self) -> bool | None:
        """None: nobody knows."""
        if any(attempt.status in {OK, "ok"} for attempt in self.tries):
            return True
        refused = all(attempt.status == "refused" or attempt.status in NO for attempt in self.tries)
        return False if refused else None

    @property
    def answered(self) -> float:
        """When it was first answered as stored."""
        return min(attempt.answered for attempt in self.tries if attempt.status in {OK, "ok"})

    def offset(self, index: int) -> int | None:
        """The offset of its message `index`, as answered."""
        for attempt in self.tries:
            at = index
            for first, count, *_ in attempt.offsets:
                if at < count:
                    return int(first) + at
                at -= count
        return None


@dataclass(slots=True)
class Unit:
    """A settlement with its publishes: both or neither."""

    fence: int
    requests: list[Request]


@dataclass(slots=True)
class Delivery:
    """One message in one session's hands."""

    queue: str
    offset: int
    fence: int
    attempt: int
    losses: int
    reason: str
    uid: str
    digest: str
    t: float
    session: "Session"
    size: int = 0
    letter: dict[str, Any] | None = None
    started: float | None = None
    revoked: float | None = None
    settles: list[Try] = field(default_factory=list)
    extends: list[Try] = field(default_factory=list)

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.queue}/{self.offset} fence {self.fence} ({self.uid})"

    def settled(self, *outcomes: str) -> bool:
        """Answered OK with one of these."""
        return any(attempt.status == OK and attempt.outcome in outcomes for attempt in self.settles)

    def maybe(self, *outcomes: str) -> bool:
        """Settled with one of these, as far as anybody knows."""
        return any(attempt.possible and attempt.outcome in outcomes for attempt in self.settles)


@dataclass(slots=True)
class Session:
    """One stream of one consumer."""

    name: str
    process: str
    node: str | None = None
    """The broker's start that it belongs to; None: it was not said."""
    fields: Line = field(default_factory=dict)
    attached: float = 0.0
    ended: float | None = None
    detached: float | None = None
    alive: float = 0.0
    """The latest moment at which something was sent that the broker answered: it lived then."""
    events: list[Line] = field(default_factory=list)
    """In their order; only of those that write down everything (`raw`)."""

    @property
    def counts_start(self) -> bool:
        """Whether it says what has begun."""
        return "started" in self.fields.get("capabilities", ())

    def visibility(self, queue: str) -> float:
        """Seconds; 0: unknown."""
        return float(self.fields.get("visibility_ms", {}).get(queue, 0)) / 1000


@dataclass(slots=True)
class Queue:
    """One queue, as operators made and changed it."""

    name: str
    deliveries: dict[int, list[Delivery]] = field(default_factory=dict)
    """By offset, each list by fence."""
    settings: dict[str, set[Any]] = field(default_factory=lambda: defaultdict(set))
    """Every value that each setting ever had."""
    purges: list[Line] = field(default_factory=list)
    deleted: float | None = None


@dataclass(slots=True)
class Life:
    """One start of a broker."""

    node: str
    data: str
    ready: float
    ended: float | None = None
    killed: bool = False
    code: int | None = None


@dataclass(slots=True)
class Fault:
    """Something done to them on purpose."""

    id: str
    kind: str
    target: str
    began: float
    fields: Line
    ended: float | None = None
    effect: str | None = None


class Index:
    """A whole history."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.began = self.ended = 0.0
        self.operations: Counter[str] = Counter()
        self.requests: dict[tuple[str, str, str], Request] = {}
        self.sources: dict[tuple[str, str], list[Request]] = {}
        """By queue and uid, whatever may have stored it."""
        self.by_fence: dict[int, Delivery] = {}
        self.reissued: list[tuple[Delivery, Delivery]] = []
        self.deliveries: list[Delivery] = []
        """In the order in which they came."""
        self.sessions: dict[str, Session] = {}
        self.queues: dict[str, Queue] = {}
        self.lives: list[Life] = []
        self.faults: dict[str, Fault] = {}
        self.lagged: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.figures: list[Line] = []
        """Lines of stats, metrics, state, resources and order, as they are."""
        self.drained: set[str] = set()
        self.drained_at: float | None = None
        """When nothing was left to be delivered."""
        self._open_settles: dict[tuple[str, int], deque[Try]] = defaultdict(deque)
        self._open_extends: dict[tuple[str, int], deque[Try]] = defaultdict(deque)
        self._units: dict[tuple[str, tuple[str, ...]], Request] = {}
        for line in lines:
            self._take(line)
        self._fences = sorted(self.by_fence)
        for queue in self.queues.values():
            for deliveries in queue.deliveries.values():
                deliveries.sort(key=lambda delivery: delivery.fence)

    def messages(self) -> Iterator[tuple[Queue, int, list[Delivery]]]:
        """Every delivered message with its deliveries by fence."""
        for queue in self.queues.values():
            for offset, deliveries in queue.deliveries.items():
                yield queue, offset, deliveries

    def queue(self, name: str) -> Queue:
        """Known from here on."""
        found = self.queues.get(name)
        if found is None:
            found = self.queues[name] = Queue(name)
        return found

    def session(self, name: str, process: str) -> Session:
        """Known from here on."""
        found = self.sessions.get(name)
        if found is None:
            found = self.sessions[name] = Session(name, process)
        return found

    def fences_between(self, low: int, high: int) -> int:
        """Fences above `low` and below `high` that somebody wrote down."""
        return bisect_left(self._fences, high) - bisect_right(self._fences, low)

    def same_life(self, one: Session, other: Session) -> bool:
        """For certain the same start of the broker."""
        return one is other or (one.node is not None and one.node == other.node)

    def letters(self) -> Iterator[Delivery]:
        """Deliveries of dead letters."""
        return (delivery for delivery in self.deliveries if delivery.letter)

    # --- one line ---

    def _take(self, line: Line) -> None:
        self.began = self.began or line["t"]
        self.ended = line["t"]
        op = line["op"]
        self.operations[op] += 1
        detail = line.get("what") or line.get("status") or line.get("how") or line.get("mode")
        if detail and op != "effect":  # which is free text
            self.operations[f"{op} {detail}"] += 1
        take = getattr(self, f"_{op}", None)
        if take is None:
            raise ValueError(f"a history knows no {op!r}: see lines.py")
        take(line)

    # --- publishing ---

    def _publish(self, line: Line) -> None:
        key = (line["producer"], line["queue"], str(line["request"]))
        request = self.requests.get(key)
        if request is None:
            request = Request("/".join(key), line["queue"], line["uids"], line["digests"])
            request.fields = {
                name: line[name] for name in ("delays_ms", "ttls_ms", "keys", "priorities") if name in line
            }
            self.requests[key] = request
            self._source(request)
        elif len(request.tries) == 1:
            self.operations["publish again"] += 1
        request.tries.append(Try(line["t"], line["p"]))

    def _source(self, request: Request) -> None:
        for uid in request.uids:
            self.sources.setdefault((request.queue, uid), []).append(request)

    def _published(self, line: Line) -> None:
        request = self.requests.get((line["producer"], line["queue"], str(line["request"])))
        assert request is not None, f"an answer to what was never sent: {line}"
        for attempt in request.tries:
            if attempt.status is None and not attempt.answered:
                attempt.answered = line["t"]
                attempt.status = None if line["status"] == "unknown" else line["status"]
                attempt.offsets = line.get("offsets", [])
                if line["status"] == "ok" and any(other.status != "refused" for other in request.tries[:-1]):
                    self.operations["published again ok"] += 1
                return

    # --- consuming ---

    def _attached(self, line: Line) -> None:
        session = self.session(line["session"], line["p"])
        session.node, session.fields, session.attached = line.get("node"), line, line["t"]

    def _deliver(self, line: Line) -> None:
        session = self.session(line["session"], line["p"])
        queue = self.queue(line["queue"])
        sizes = line.get("sizes") or [0] * len(line["uids"])
        for index, uid in enumerate(line["uids"]):
            delivery = Delivery(
                line["queue"], line["offset"] + index, line["fence"] + index, line["attempt"], line["losses"],
                line["reason"], uid, line["digests"][index], line["t"], session, sizes[index], line.get("letter"),
            )  # fmt: skip
            before = self.by_fence.get(delivery.fence)
            if before is not None:
                self.reissued.append((before, delivery))
                continue
            self.by_fence[delivery.fence] = delivery
            self.deliveries.append(delivery)
            queue.deliveries.setdefault(delivery.offset, []).append(delivery)
        self.operations[f"deliver {line['reason']}"] += 1
        self._event(session, line)

    def _event(self, session: Session, line: Line) -> None:
        if session.fields.get("raw"):
            session.events.append(line)

    def _started(self, line: Line) -> None:
        for fence in fences_of(line["ranges"]):
            delivery = self.by_fence.get(fence)
            if delivery is not None and delivery.started is None:
                delivery.started = line["t"]

    def _settle(self, line: Line) -> None:
        for fence in fences_of(line["ranges"]):
            attempt = Try(line["t"], line["p"], line["session"], line["outcome"], delay_ms=line.get("delay_ms"),
                          reason=line.get("reason", ""))  # fmt: skip
            if line.get("publish"):
                attempt.unit = Unit(fence, [self._unit_request(fence, said, attempt) for said in line["publish"]])
            self._open_settles[line["session"], fence].append(attempt)
            if fence in self.by_fence:
                self.by_fence[fence].settles.append(attempt)
        self._event(self.session(line["session"], line["p"]), line)

    def _unit_request(self, fence: int, said: Line, attempt: Try) -> Request:
        key = (said["queue"], tuple(said["uids"]))
        request = self._units.get(key)
        if request is None:
            request = self._units[key] = Request(f"fence {fence}", said["queue"], said["uids"], said["digests"])
            self._source(request)
        request.tries.append(attempt)
        return request

    def _settled(self, line: Line) -> None:
        session = self.session(line["session"], line["p"])
        for fence in fences_of(line["ranges"]):
            waiting = self._open_settles[line["session"], fence]
            if waiting:
                attempt = waiting.popleft()
                attempt.status, attempt.answered = line["status"], line["t"]
                session.alive = max(session.alive, attempt.t)
                self.operations[f"settle {attempt.outcome} {line['status']}"] += 1
                if attempt.unit is not None:
                    self.operations[f"settle with publish {line['status']}"] += 1
        self._event(session, line)

    def _extend(self, line: Line) -> None:
        for fence in fences_of(line["ranges"]):
            attempt = Try(line["t"], line["p"], line["session"], extension_ms=line["ms"])
            self._open_extends[line["session"], fence].append(attempt)
            if fence in self.by_fence:
                self.by_fence[fence].extends.append(attempt)

    def _extended(self, line: Line) -> None:
        session = self.session(line["session"], line["p"])
        for fence in fences_of(line["ranges"]):
            waiting = self._open_extends[line["session"], fence]
            if waiting:
                attempt = waiting.popleft()
                attempt.status, attempt.answered = line["status"], line["t"]
                session.alive = max(session.alive, attempt.t)

    def _prefetch(self, line: Line) -> None:
        self._event(self.session(line["session"], line["p"]), line)

    def _revoked(self, line: Line) -> None:
        if line["mode"] == "LOST":
            for fence in fences_of(line["ranges"]):
                if fence in self.by_fence and self.by_fence[fence].revoked is None:
                    self.by_fence[fence].revoked = line["t"]
        self._event(self.session(line["session"], line["p"]), line)

    def _detach(self, line: Line) -> None:
        self.session(line["session"], line["p"]).detached = line["t"]

    def _ended(self, line: Line) -> None:
        self.session(line["session"], line["p"]).ended = line["t"]

    def _lagged(self, line: Line) -> None:
        self.lagged[line["p"]].append((line["t"] - line["ms"] / 1000, line["t"]))

    # --- operators and the machine ---

    def _queue(self, line: Line) -> None:
        queue = self.queue(line["queue"])
        for name, value in line.get("settings", {}).items():
            queue.settings[name].add(value)
        if line["what"] == "purged":
            queue.purges.append(line)
        elif line["what"] == "deleted" and line.get("status", "ok") == "ok":
            queue.deleted = line["t"]

    def _broker(self, line: Line) -> None:
        if line["what"] == "ready":
            self.lives.append(Life(line["node"], line.get("data", ""), line["t"]))
            return
        for life in self.lives:
            if life.node == line["node"] and life.ended is None:
                life.ended, life.killed, life.code = line["t"], line["what"] == "killed", line.get("code")

    def _fault(self, line: Line) -> None:
        self.faults[line["id"]] = Fault(line["id"], line["kind"], line["target"], line["t"], line)

    def _effect(self, line: Line) -> None:
        self.faults[line["id"]].effect = line.get("what", "seen")

    def _over(self, line: Line) -> None:
        self.faults[line["id"]].ended = line["t"]

    def _figure(self, line: Line) -> None:
        self.figures.append(line)

    _stats = _metrics = _state = _resources = _order = _figure

    def _drained(self, line: Line) -> None:
        self.drained.update(line["queues"])
        self.drained_at = line["t"]
