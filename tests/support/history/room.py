"""I13: nobody holds more than was granted, and no frame is larger than asked for.

Counted at the consumer, from what it was told: a delivery is held until its settlement is answered or it is taken
away. The broker says both before it makes use of the room, on the same stream; so what is held here is never more
than what the broker knows of. A consumer of level 1 is not told that a lease is over, and its clock starts before the
delivery arrives: old ones count as gone, and so do those that turned out to have ended untold.
"""

from collections.abc import Container, Iterable
from itertools import pairwise

from tests.support.history.index import Index, Session
from tests.support.history.lines import Line, fences_of
from tests.support.history.report import Findings

BYTES_DEFAULT = 4 << 20
UNTOLD_ENDS = frozenset({"VISIBILITY_TIMEOUT", "SUSPECT", "FAILED"})
"""Reasons of the next delivery that say so."""


class Room:
    """Every session that writes down everything, event by event."""

    def __init__(self, index: Index, findings: Findings) -> None:
        self._index = index
        self._findings = findings

    def check(self) -> None:
        """All of them."""
        untold = self._ended_untold()
        for session in self._index.sessions.values():
            if session.events:
                _Held(session, self._findings, untold).check()

    def _ended_untold(self) -> set[int]:
        """Fences of level 1 whose end only a STALE answer or the next delivery shows, at some time after it."""
        fences: set[int] = set()
        for _, _, deliveries in self._index.messages():
            ends = {before.fence for before, after in pairwise(deliveries) if after.reason in UNTOLD_ENDS}
            fences.update(
                delivery.fence
                for delivery in deliveries
                if not delivery.session.counts_start
                and (delivery.fence in ends or any(attempt.status == "STALE" for attempt in delivery.settles))
            )
        return fences


class _Held:
    """What one session holds."""

    def __init__(self, session: Session, findings: Findings, untold: Container[int]) -> None:
        self._session = session
        self._untold = untold
        self._findings = findings
        self._held: dict[int, tuple[int, float]] = {}
        """(size, when it came) by fence."""
        messages, size = session.fields["prefetch"]
        self._granted: list[tuple[float, int, int]] = [(session.attached, messages, size or BYTES_DEFAULT)]
        self._frame_max = session.fields.get("max_frame", 0)
        self._sent: dict[int, float] = {}
        """When a settlement was sent that is not answered, by fence."""
        self._alive = 0.0
        """The latest time of something sent that the broker has dealt with by now."""

    def check(self) -> None:
        """The events in their order."""
        for line in self._session.events:
            match line["op"]:
                case "prefetch":
                    self._granted.append((line["t"], line["messages"], line["bytes"] or BYTES_DEFAULT))
                case "settle":
                    self._sent.update((fence, line["t"]) for fence in fences_of(line["ranges"]))
                case "settled":
                    self._settled(line)
                case "revoked":
                    if line["mode"] == "LOST":
                        self._drop(fences_of(line["ranges"]))
                case "deliver":
                    self._deliver(line)

    def _settled(self, line: Line) -> None:
        for fence in fences_of(line["ranges"]):
            self._alive = max(self._alive, self._sent.pop(fence, 0.0))
        if line["status"] != "REJECTED":
            self._drop(fences_of(line["ranges"]))

    def _drop(self, fences: Iterable[int]) -> None:
        for fence in fences:
            self._held.pop(fence, None)

    def _deliver(self, line: Line) -> None:
        if self._frame_max and line.get("frame", 0) > self._frame_max:
            case = f"{self._session.process}: {line['frame']:,} bytes, at most {self._frame_max:,}"
            self._findings.add("I13", "a frame is above its limit", case)
        if not self._session.counts_start:
            old = line["t"] - self._session.visibility(line["queue"]) / 2
            self._drop([fence for fence, (_, came) in self._held.items() if came < old])
        for number in range(len(line["uids"])):
            if line["fence"] + number not in self._untold:
                self._held[line["fence"] + number] = line["sizes"][number], line["t"]
        messages, size = self._limits()
        held = sum(size for size, _ in self._held.values())
        case = f"{self._session.process} ({self._session.name}) at fence {line['fence']}"
        if len(self._held) > messages:
            self._findings.add("I13", "more in flight than granted", f"{case}: {len(self._held)} of {messages}")
        if held > size and len(self._held) > 1:
            self._findings.add("I13", "more bytes in flight than granted", f"{case}: {held:,} of {size:,}")

    def _limits(self) -> tuple[int, int]:
        """The most that may be in force: a change counts for sure once something sent after it was answered."""
        known = [grant for grant in self._granted if grant[0] < self._alive]
        possible = self._granted[max(0, len(known) - 1) :]
        return max(messages for _, messages, _ in possible), max(size for _, _, size in possible)
