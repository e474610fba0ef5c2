"""All checks over one history."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from tests.support.history.books import Books
from tests.support.history.coverage import Expectations, gaps
from tests.support.history.failover import Failover
from tests.support.history.index import UNTOLD, Index
from tests.support.history.leases import Leases
from tests.support.history.letters import Letters
from tests.support.history.lines import Line
from tests.support.history.order import Order
from tests.support.history.report import Figures, Findings, Report
from tests.support.history.room import Room
from tests.support.history.stored import Stored


def check(lines: Iterable[Line], expectations: Expectations | None = None) -> Report:
    """The verdict over a history; `lines` are in the order of their times."""
    index = Index(lines)
    findings = Findings()
    stored = Stored(index, findings)
    failover = Failover(index, findings)
    for part in (stored, Leases(index, findings), Letters(index, findings), Order(index, findings)):
        part.check()
    Room(index, findings).check()
    Books(index, findings).check()
    failover.check()
    missing = () if expectations is None else gaps(index, expectations)
    return Report(findings.violations(), missing, _figures(index, stored, failover), index.ended - index.began)


def _figures(index: Index, stored: Stored, failover: Failover) -> Figures:
    gap, at, during = _longest_gap(index)
    effective = [fault for fault in index.faults.values() if fault.effect is not None]
    kills = Counter("broker" for life in index.lives if life.killed)
    kills.update(
        fault.fields.get("of", fault.target) for fault in effective if fault.kind == "kill" and fault.target != "broker"
    )
    return Figures(
        operations=index.operations,
        published=len(index.sources),
        answered=stored.answered,
        handled=sum(any(delivery.maybe("ACK") for delivery in deliveries) for _, _, deliveries in index.messages()),
        finished=stored.finished,
        lost=stored.lost,
        doubled=stored.doubled,
        unknown=stored.unknown,
        redelivered=Counter(d.reason for d in index.deliveries if d.reason not in {"UNSPECIFIED", UNTOLD}),
        faults=Counter(fault.fields.get("name", fault.kind) for fault in effective),
        kills=kills,
        longest_gap=gap,
        gap_at=at,
        gap_during=during,
        failover_max=failover.worst,
        failover_median=failover.middle,
    )


def _longest_gap(index: Index) -> tuple[float, float, str]:
    """(seconds, when it began, what was wrong then)."""
    until = index.ended if index.drained_at is None else index.drained_at
    gaps_found = [(after.t - before.t, before.t) for before, after in pairwise(index.deliveries) if after.t <= until]
    if not gaps_found:
        return 0.0, 0.0, ""
    seconds, at = max(gaps_found)
    during = sorted(
        {
            str(fault.fields.get("name", fault.kind))
            for fault in index.faults.values()
            if fault.began < at + seconds and (fault.ended is None or fault.ended > at)
        }
    )
    return seconds, at - index.began, ", ".join(during)
