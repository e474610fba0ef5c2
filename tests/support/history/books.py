"""I14 to I17 and I19: what the broker says of itself adds up, outlives it, and agrees with what happened."""

from collections.abc import Mapping
from itertools import combinations

from tests.support.history.index import OK, Index
from tests.support.history.lines import Line
from tests.support.history.report import Findings

PLACES = ("ready", "delayed", "parked", "in_flight")
SHARED = ("ready", "delayed", "parked", "in_flight", "accepted")
"""Figures that the HTTP port shows as well."""
GROWTH_MAX: Mapping[str, int] = {"rss": 96 << 20, "fds": 16, "threads": 8}
"""Between an idle broker that has just started and one that is idle again: connections that gRPC keeps for a while,
what Python's allocator and the windows over the backlogs keep."""


class Books:
    """Figures against each other and against the history."""

    def __init__(self, index: Index, findings: Findings) -> None:
        self._index = index
        self._findings = findings

    def check(self) -> None:
        """All of them."""
        self._check_sums()
        self._check_restores()
        self._check_owners()
        self._check_resources()
        self._check_against_history()
        self._check_metrics()

    def _figures(self, op: str) -> list[Line]:
        return [line for line in self._index.figures if line["op"] == op]

    # --- I14 ---

    def _check_sums(self) -> None:
        for line in self._figures("stats"):
            total = sum(line[place] for place in PLACES) + sum(line["finished"].values())
            if total != line["accepted"]:
                at = line["t"] - self._index.began
                case = f"{line['queue']} at {at:.3f} s: {total} of {line['accepted']} accepted: {_shown(line)}"
                self._findings.add("I14", "messages are not accounted for", case)

    # --- I15 ---

    def _check_restores(self) -> None:
        live: dict[int, Line] = {}
        for line in self._figures("state"):
            if line["of"] == "live":
                live[line["round"]] = line
            elif line["round"] in live:
                before, after = live[line["round"]]["queues"], line["queues"]
                for queue in sorted({*before, *after}):
                    if before.get(queue) != after.get(queue):
                        case = f"{queue}: {before.get(queue)} before, {after.get(queue)} after"
                        self._findings.add("I15", "a restart has changed the state", case)

    # --- I16 ---

    def _check_owners(self) -> None:
        for one, other in combinations(sorted(self._index.lives, key=lambda life: life.ready), 2):
            if one.data == other.data and (one.ended is None or one.ended > other.ready):
                case = f"{one.node} had not ended when {other.node} was ready"
                self._findings.add("I16", "two brokers own one journal", case)
        ready = sorted((life.ready, life.node) for life in self._index.lives)
        order = {node: number for number, (_, node) in enumerate(ready)}
        for delivery in self._index.deliveries:
            node = delivery.session.node
            if node not in order or order[node] + 1 == len(ready):
                continue
            after, successor = ready[order[node] + 1]
            for attempt in delivery.settles:
                if attempt.status == OK and attempt.session == delivery.session.name and attempt.t > after:
                    case = f"{delivery.place}: {node} said OK {attempt.t - after:.3f} s after {successor} was ready"
                    self._findings.add("I16", "a former owner said OK", case)

    # --- I17 ---

    def _check_resources(self) -> None:
        before: dict[str, Line] = {}
        for line in self._figures("resources"):
            if line["when"] == "before":
                before[line["who"]] = line
            elif line["who"] in before:
                first = before[line["who"]]
                for name, most in GROWTH_MAX.items():
                    if line[name] - first[name] > most:
                        case = f"{line['who']}: {first[name]:,} before, {line[name]:,} after"
                        self._findings.add("I17", f"{name} did not return to where it was", case)
        for line in self._figures("stats"):
            if line.get("quiet") and line["queue"] in self._index.drained and any(line[place] for place in PLACES):
                self._findings.add("I17", "a queue is not empty after everything drained", _shown(line))

    # --- I19 ---

    def _check_against_history(self) -> None:
        last = {line["queue"]: line for line in self._figures("stats") if line.get("quiet")}
        letters: dict[str, int] = {}
        for line in last.values():
            named = self._index.queue(line["queue"]).settings.get("dead_letter_queue")
            home = next(iter(named)) if named else f"{line['queue']}.dlq"
            letters[home] = letters.get(home, 0) + line["finished"].get("dead_lettered", 0)
        for name, line in last.items():
            stored, maybe = self._stored(name, line["t"])
            extra = letters.get(name, 0)
            self._within(line, "accepted", line["accepted"], stored + extra, stored + maybe + extra)
            acked, maybe = self._acked(name, line["t"])
            self._within(line, "acked", line["finished"].get("acked", 0), acked, acked + maybe)
            purged = [purge.get("count", 0) for purge in self._index.queue(name).purges]
            if all(purge.get("status", "ok") == "ok" for purge in self._index.queue(name).purges):
                self._within(line, "purged", line["finished"].get("purged", 0), sum(purged), sum(purged))
            seen = sum(
                d.session.node == line["node"] and d.queue == name and d.t <= line["t"] for d in self._index.deliveries
            )
            self._within(line, "delivered", line["delivered"], seen, None)

    def _within(self, line: Line, figure: str, value: int, least: int, most: int | None) -> None:
        if value < least or (most is not None and value > most):
            bounds = f"{least:,}" if least == most else f"{least:,} to {'any' if most is None else f'{most:,}'}"
            case = f"{line['queue']}: {figure} {value:,}, by the history {bounds}"
            self._findings.add("I19", "figures disagree with what happened", case)

    def _stored(self, queue: str, until: float) -> tuple[int, int]:
        """Messages stored for certain, and those that may have been; each request counts, resends do not."""
        certain = possible = 0
        for (name, _), sources in self._index.sources.items():
            for source in sources if name == queue else ():
                if source.tries[0].t <= until:
                    certain += source.stored is True
                    possible += source.stored is None
                    if source.name.startswith("/") and source.stored is not False:
                        possible += len(source.tries) - 1  # without a producer each try may be stored
        return certain, possible

    def _acked(self, queue: str, until: float) -> tuple[int, int]:
        certain = possible = 0
        for deliveries in self._index.queue(queue).deliveries.values():
            if deliveries[0].t > until:
                continue
            if any(delivery.settled("ACK") for delivery in deliveries):
                certain += 1
            elif deliveries[-1].maybe("ACK"):
                possible += 1
        return certain, possible

    def _check_metrics(self) -> None:
        stats = {line["queue"]: line for line in self._figures("stats") if line.get("quiet")}
        for line in self._figures("metrics"):
            said = stats.get(line["queue"])
            if said is None:
                continue
            wrong = [name for name in SHARED if line[name] != said[name]]
            if wrong or line["finished"] != said["finished"]:
                case = f"{line['queue']}: {_shown(line)}, and {_shown(said)}"
                self._findings.add("I19", "metrics and stats disagree", case)


def _shown(line: Line) -> str:
    return ", ".join(f"{name} {line[name]}" for name in (*SHARED, "finished"))
