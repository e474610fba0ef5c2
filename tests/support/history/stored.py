"""I1, I2, I12, I20: what was published is there once, as it was, or not at all.

A message has ended for certain, or as far as anybody knows, when somebody acked it (an ACK whose answer nobody saw
may have counted), when its dead letter was seen, or when its queue was purged or deleted.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict

from tests.support.history.index import OK, Delivery, Index, Life, Request
from tests.support.history.report import Findings


class Stored:
    """What became of every message."""

    def __init__(self, index: Index, findings: Findings) -> None:
        self._index = index
        self._findings = findings
        self._places: dict[tuple[str, str], set[int]] = defaultdict(set)
        """Offsets at which a message was seen, by queue and uid; dead letters aside."""
        self._letters: dict[tuple[str, int], set[tuple[str, int]]] = defaultdict(set)
        """Places of the letters of a message, by its own."""
        self._lettered: set[tuple[str, int, str]] = set()
        self.answered = self.unknown = self.finished = self.lost = self.doubled = 0

    def check(self) -> None:
        """All four."""
        for delivery in self._index.deliveries:
            self._see(delivery)
        self._check_offsets()
        self._check_twice()
        self._check_lost()
        self._check_units()

    # --- I2 ---

    def _see(self, delivery: Delivery) -> None:
        letter = delivery.letter
        home = letter["queue"] if letter else delivery.queue
        if letter:
            self._letters[home, letter["offset"]].add((delivery.queue, delivery.offset))
            self._lettered.add((home, letter["offset"], delivery.uid))
        else:
            self._places[delivery.queue, delivery.uid].add(delivery.offset)
        sources = self._index.sources.get((home, delivery.uid))
        if not sources or min(attempt.t for source in sources for attempt in source.tries) > delivery.t:
            self._findings.add("I2", "delivered, and never published", delivery.place)
            return
        if not any(source.digests[source.uids.index(delivery.uid)] == delivery.digest for source in sources):
            self._findings.add("I2", "not delivered as it was published", delivery.place)
        if all(source.stored is False for source in sources):
            names = ", ".join(source.name for source in sources)
            self._findings.add("I2", "refused, and yet delivered", f"{delivery.place}, published as {names}")

    # --- I12 ---

    def _check_offsets(self) -> None:
        """What an answer said about offsets."""
        owners: dict[tuple[str, int], str] = {}
        for request in self._index.requests.values():
            said = {tuple((run[0], run[1]) for run in a.offsets) for a in request.tries if a.status == "ok"}
            if len(said) > 1:
                self._findings.add("I12", "a resend was answered with other offsets", f"{request.name}: {sorted(said)}")
            for number, uid in enumerate(request.uids):
                offset = request.offset(number)
                if offset is None:
                    continue
                owner = owners.setdefault((request.queue, offset), uid)
                if owner != uid:
                    case = f"{request.queue}/{offset}: {owner} and {uid}"
                    self._findings.add("I12", "one offset was answered for two messages", case)

    def _check_twice(self) -> None:
        for (queue, uid), offsets in self._places.items():
            sources = self._index.sources.get((queue, uid), [])
            possible = sum(1 if source.name.partition("/")[0] else len(source.tries) for source in sources)
            if len(offsets) > max(1, possible):
                self.doubled += len(offsets) - max(1, possible)
                case = f"{queue}: {uid} at offsets {sorted(offsets)}"
                self._findings.add("I12", "published once, stored more often", case)
            for source in sources:
                said = source.offset(source.uids.index(uid))
                if said is not None and len(sources) == 1 and said not in offsets:
                    case = f"{queue}: {uid} was answered with offset {said} and delivered at {sorted(offsets)}"
                    self._findings.add("I12", "delivered at another offset than answered", case)
        for (queue, offset), places in self._letters.items():
            if len(places) > 1:
                self.doubled += len(places) - 1
                self._findings.add("I12", "one message has several dead letters", f"{queue}/{offset}: {sorted(places)}")

    # --- I1 ---

    def _check_lost(self) -> None:
        times: list[float] = []
        left: dict[str, list[tuple[Request, str]]] = defaultdict(list)
        for (queue, uid), sources in self._index.sources.items():
            certain = [source for source in sources if source.stored]
            if not certain:
                self.unknown += any(source.stored is None for source in sources)
                continue
            self.answered += 1
            times.append(certain[0].answered)
            if self._has_ended(queue, uid, certain):
                self.finished += 1
            elif queue in self._index.drained:
                left[queue].append((certain[0], uid))
        lost = [each for queue, messages in left.items() for each in self._not_purged(queue, messages)]
        self.finished += sum(map(len, left.values())) - len(lost)
        self.lost = len(lost)
        if lost:
            kind = f"lost: {len(lost):,} of {self.answered:,} answered{_when(self._index, lost)}"
            self._findings.add("I1", kind, _where(lost, sorted(times)))
            for source, uid in lost[:20]:
                said = f"answered {source.answered - self._index.began:.3f} s after the beginning"
                self._findings.add("I1", "lost, one by one", f"{source.queue}: {uid}, {said} as {source.name}")

    def _has_ended(self, queue: str, uid: str, certain: list[Request]) -> bool:
        home = self._index.queue(queue)
        offsets = set(self._places.get((queue, uid), ()))
        offsets |= {said for source in certain if (said := source.offset(source.uids.index(uid))) is not None}
        if any((queue, offset, uid) in self._lettered for offset in offsets):
            return True
        # A newer delivery shows that whatever was said of an older one had no effect.
        newest = [home.deliveries[offset][-1] for offset in offsets if offset in home.deliveries]
        newest = [delivery for delivery in newest if delivery.uid == uid]
        if any(delivery.maybe("ACK") for delivery in newest):
            return True
        if home.settings.get("dead_letter_queue") == {""} and any(map(self._may_be_given_up, newest)):
            return True
        return home.deleted is not None

    def _may_be_given_up(self, delivery: Delivery) -> bool:
        """Where no letters are kept: by a settlement, or by the last failure or loss, of which nobody is told."""
        settings = self._index.queue(delivery.queue).settings
        return (
            delivery.maybe("DEAD_LETTER", "RETRY")
            or delivery.attempt >= min(settings["max_attempts"], default=delivery.attempt + 1)
            or delivery.losses + 1 >= min(settings["max_losses"], default=delivery.losses + 2)
        )

    def _not_purged(self, queue: str, messages: list[tuple[Request, str]]) -> list[tuple[Request, str]]:
        """Purges account for as many as they said, of those sent before; for any number when nobody saw the answer.

        The latest first: fewest purges came after them, so that none is left out for an earlier one.
        """
        purges = self._index.queue(queue).purges
        lost: list[tuple[Request, str]] = []
        purged = 0
        for source, uid in sorted(messages, key=lambda each: each[0].tries[0].t, reverse=True):
            later = [purge for purge in purges if purge["t"] >= source.tries[0].t]
            if any(purge.get("status", "ok") != "ok" for purge in later):
                continue
            if purged < sum(purge["count"] for purge in later):
                purged += 1
            else:
                lost.append((source, uid))
        return lost[::-1]

    # --- I20 ---

    def _check_units(self) -> None:
        for queue, offset, deliveries in self._index.messages():
            newest = deliveries[-1].fence
            for delivery in deliveries:
                for attempt in delivery.settles:
                    if attempt.unit is None:
                        continue
                    seen = [uid for r in attempt.unit.requests for uid in r.uids if (r.queue, uid) in self._places]
                    unseen = [
                        uid for r in attempt.unit.requests for uid in r.uids
                        if (r.queue, uid) not in self._places and r.queue in self._index.drained
                        and not self._index.queue(r.queue).purges
                    ]  # fmt: skip
                    case = f"{queue.name}/{offset} fence {delivery.fence} with {attempt.unit.requests[0].uids}"
                    if seen and newest > delivery.fence:
                        self._findings.add("I20", "published with a settlement that had no effect", case)
                    if seen and unseen:
                        self._findings.add("I20", "half of a settlement's publishes is there", case)
                    if unseen and attempt.status == OK:
                        self._findings.add("I20", "settled, and what it published is not there", case)


def _when(index: Index, lost: list[tuple[Request, str]]) -> str:
    """From how long before which kill, if there is one behind all of them."""
    ends = sorted((life.ended, life.node) for life in index.lives if life.ended is not None and _abrupt(life))
    last: Counter[str] = Counter()
    before: dict[str, float] = {}
    for source, _ in lost:
        at = bisect_right(ends, (source.answered, ""))
        if at == len(ends):
            return ", not all before a kill"
        end, node = ends[at]
        last[node] += 1
        before[node] = max(before.get(node, 0.0), end - source.answered)
    if len(last) > 1:
        return ", before " + ", ".join(f"the kill of {node} ({count})" for node, count in last.items())
    [(node, seconds)] = before.items()
    return f", all from the last {seconds * 1000:.0f} ms before the kill of {node}"


def _abrupt(life: Life) -> bool:
    return life.killed or life.code not in {0, None}


def _where(lost: list[tuple[Request, str]], times: list[float]) -> str:
    """From the front, the middle or the end of what was answered, by time."""
    thirds = Counter(min(2, 3 * bisect_left(times, source.answered) // len(times)) for source, _ in lost)
    queues = Counter(source.queue for source, _ in lost)
    names = ", ".join(f"{queue} {count}" for queue, count in queues.items())
    return f"front {thirds[0]}, middle {thirds[1]}, end {thirds[2]} of the run; {names}"
