"""I9 to I11: what comes when."""

from collections import defaultdict
from itertools import pairwise

from tests.support.history.index import Delivery, Index, Request
from tests.support.history.report import Findings

KEYED = "KEYED"
LATE_SECONDS = 60.0
"""A delayed message that has waited this long beyond its time was forgotten, whatever else went on."""
CLOCK_SECONDS = 0.005
"""Brokers count in milliseconds."""


class Order:
    """Order in keyed and standard queues, delays and expiry."""

    def __init__(self, index: Index, findings: Findings) -> None:
        self._index = index
        self._findings = findings

    def check(self) -> None:
        """All three."""
        self._check_keys()
        self._check_single()
        self._check_times()
        self._check_retry_delays()

    def _source(self, delivery: Delivery) -> tuple[Request, int] | None:
        sources = self._index.sources.get((delivery.queue, delivery.uid))
        return (sources[0], sources[0].uids.index(delivery.uid)) if sources else None

    # --- I9 ---

    def _check_keys(self) -> None:
        for queue in self._index.queues.values():
            if queue.settings.get("mode") != {KEYED} or queue.settings.get("key_concurrency", {1}) != {1}:
                continue
            keys: dict[str, list[Delivery]] = defaultdict(list)
            for deliveries in queue.deliveries.values():
                found = self._source(deliveries[0])
                if found is not None and "keys" in found[0].fields:
                    keys[found[0].fields["keys"][found[1]]] += deliveries
            for key, deliveries in keys.items():
                deliveries.sort(key=lambda delivery: delivery.fence)
                for before, after in pairwise(deliveries):
                    self._check_key(key, before, after)

    def _check_key(self, key: str, before: Delivery, after: Delivery) -> None:
        case = f"key {key!r}: {before.place}, then {after.place}"
        if after.offset < before.offset:
            self._findings.add("I9", "a key went back", case)
        elif after.offset > before.offset:
            over = [a.t for a in before.settles if a.possible and a.outcome in {"ACK", "DEAD_LETTER", "RETRY"}]
            if before.session.fields.get("raw") and not any(t <= after.t for t in over):
                self._findings.add("I9", "two unsettled deliveries of one key", case)

    # --- I10 ---

    def _check_single(self) -> None:
        """What was there when one consumer with room for one took over comes by priority, then by offset."""
        begun: dict[str, tuple[float, float | None]] = {}
        for line in self._index.figures:
            if line["op"] != "order":
                continue
            if line["what"] == "begin":
                bound = line.get("aging_bound_ms")
                begun[line["queue"]] = line["t"], None if bound is None else bound / 1000
            elif line["queue"] in begun:
                since, bound = begun.pop(line["queue"])
                self._check_window(line["queue"], since, line["t"], bound)

    def _check_window(self, queue: str, since: float, until: float, bound: float | None) -> None:
        ranked: list[tuple[int, int, Delivery]] = []
        for deliveries in self._index.queue(queue).deliveries.values():
            first = deliveries[0]
            found = self._source(first)
            if first.reason != "UNSPECIFIED" or found is None or not since <= first.t <= until:
                continue
            request, number = found
            if bound is not None and request.stored and first.t - max(since, request.answered) > bound:
                waited = first.t - max(since, request.answered)
                self._findings.add("I10", "waited beyond its bound", f"{first.place}: {waited:.3f} s")
            if bound is None and request.stored and request.answered <= since:
                priorities = request.fields.get("priorities")
                ranked.append((-(priorities[number] if priorities else 4), first.offset, first))
        ranked.sort(key=lambda entry: entry[2].fence)
        for before, after in pairwise(ranked):
            if after[:2] < before[:2]:
                self._findings.add("I10", "out of order", f"{before[2].place}, then {after[2].place}")

    # --- I11 ---

    def _check_times(self) -> None:
        timed = [r for r in self._index.requests.values() if "delays_ms" in r.fields or "ttls_ms" in r.fields]
        seen = {(d.queue, d.uid): d for d in reversed(self._index.deliveries)}
        for request in timed:
            sent = min(attempt.t for attempt in request.tries)
            for number, uid in enumerate(request.uids):
                first = seen.get((request.queue, uid))
                delay = request.fields.get("delays_ms", [0] * len(request.uids))[number] / 1000
                if first is not None and delay and first.t < sent + delay - CLOCK_SECONDS:
                    case = f"{first.place}: {first.t - sent:.3f} s after it was sent, with a delay of {delay} s"
                    self._findings.add("I11", "delivered before its delay was over", case)
                if first is not None and delay and request.stored:
                    self._check_lateness(first, first.t - request.answered - delay)
                self._check_expiry(request, number, first)

    def _check_lateness(self, first: Delivery, late: float) -> None:
        if late > LATE_SECONDS:
            self._findings.add("I11", "delivered long after its delay was over", f"{first.place}: {late:.1f} s late")

    def _check_expiry(self, request: Request, number: int, first: Delivery | None) -> None:
        ttls = request.fields.get("ttls_ms")
        if first is None or not ttls or not ttls[number] or not request.stored:
            return
        # The lease may be older than its arrival by what its stream held up.
        over = first.t - request.answered - ttls[number] / 1000
        if over > 1.0:
            self._findings.add("I11", "delivered after its expiry", f"{first.place}: {over:.3f} s after")

    def _check_retry_delays(self) -> None:
        """RETRY with a delay of its own: never sooner."""
        for _, _, deliveries in self._index.messages():
            for before, after in pairwise(deliveries):
                asked = [attempt for attempt in before.settles if attempt.outcome == "RETRY"][:1]  # the rest repeat it
                for attempt in asked if asked and asked[0].status == "OK" and asked[0].delay_ms else ():
                    if after.t < attempt.t + (attempt.delay_ms or 0) / 1000 - CLOCK_SECONDS:
                        case = f"{before.place}: {after.t - attempt.t:.3f} s, not {attempt.delay_ms} ms"
                        self._findings.add("I11", "retried before the delay that was asked for", case)
