"""What a check found, in words that one can act on."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

EXAMPLES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Violation:
    """One kind of breach of one invariant, with all its cases."""

    invariant: str
    kind: str
    cases: tuple[str, ...]

    def text(self) -> str:
        """A line, and a few cases below it."""
        count = len(self.cases)
        shown = [f"      {case}" for case in self.cases[:EXAMPLES_SHOWN]]
        more = [f"      and {count - EXAMPLES_SHOWN:,} more"] if count > EXAMPLES_SHOWN else []
        times = f" ({count:,} times)" if count > 1 else ""
        return "\n".join([f"{self.invariant:>5} {self.kind}{times}", *shown, *more])


class Findings:
    """Collects cases by invariant and kind, in the order in which kinds first came up."""

    def __init__(self) -> None:
        self._cases: dict[tuple[str, str], list[str]] = {}

    def add(self, invariant: str, kind: str, case: str) -> None:
        """One more."""
        self._cases.setdefault((invariant, kind), []).append(case)

    def violations(self) -> tuple[Violation, ...]:
        """By invariant."""
        found = [Violation(invariant, kind, tuple(cases)) for (invariant, kind), cases in self._cases.items()]
        return tuple(sorted(found, key=lambda violation: int(violation.invariant.removeprefix("I"))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What happened, in numbers."""

    operations: Mapping[str, int]
    """Lines by kind, and kind with result."""
    published: int
    """Messages that somebody tried to publish, those that were refused included."""
    answered: int
    """Of these: their publish was answered, so they are stored."""
    handled: int
    """Messages that somebody acked, for sure or as far as anybody knows; dead letters count anew."""
    finished: int
    """Of those answered: acked, dead-lettered or purged, for sure or as far as anybody knows."""
    lost: int
    doubled: int
    unknown: int
    """Messages whose publish was never answered."""
    redelivered: Mapping[str, int]
    """By reason."""
    faults: Mapping[str, int]
    """That took effect, by kind."""
    kills: Mapping[str, int]
    """Of processes, by kind of process."""
    longest_gap: float
    """Seconds in which nobody was given anything."""
    gap_at: float
    """Seconds after the first line."""
    gap_during: str
    """Faults under way then."""
    failover_max: float
    """Seconds from the loss of a consumer to the last of its messages' next delivery; 0: none was lost."""
    failover_median: float


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict over a history."""

    violations: tuple[Violation, ...]
    gaps: tuple[str, ...]
    """What was to happen and did not: the run does not count."""
    figures: Figures
    seconds: float = 0.0
    """The history's length."""
    notes: tuple[str, ...] = field(default=())

    @property
    def clean(self) -> bool:
        """Nothing is wrong, and everything was tried."""
        return not self.violations and not self.gaps

    def invariants(self) -> set[str]:
        """Those broken."""
        return {violation.invariant for violation in self.violations}

    def text(self) -> str:
        """For people."""
        lines = [*_figures(self.figures, self.seconds), *(f"note: {note}" for note in self.notes)]
        if self.violations:
            lines += ["BROKEN", *(violation.text() for violation in self.violations)]
        if self.gaps:
            lines += ["DOES NOT COUNT", *(f"      {gap}" for gap in self.gaps)]
        if self.clean:
            lines.append("clean: every invariant held, every operation succeeded, every fault took effect")
        return "\n".join(lines)


def _figures(figures: Figures, seconds: float) -> list[str]:
    total = sum(count for name, count in figures.operations.items() if " " not in name)
    detail = Counter({name: count for name, count in figures.operations.items() if " " in name})
    median, worst = figures.failover_median * 1000, figures.failover_max * 1000
    gap = f"longest gap without a delivery: {figures.longest_gap:.2f} s, at {figures.gap_at:.1f} s"
    return [
        f"history of {seconds:.0f} s, {total:,} lines: {_counts(figures.operations, plain=True)}",
        f"results: {_counts(detail)}",
        f"faults: {sum(figures.faults.values())}: {_counts(figures.faults)}",
        f"kills survived: {_counts(figures.kills)}",
        f"messages: published {figures.published:,}, confirmed {figures.answered:,}, handled {figures.handled:,}",
        f"of those confirmed: finished {figures.finished:,}, lost {figures.lost}, doubled {figures.doubled}",
        f"never answered: {figures.unknown:,}",
        f"redelivered: {_counts(figures.redelivered)}",
        f"failover of what a killed consumer held: median {median:.0f} ms, worst {worst:.0f} ms",
        f"{gap}, during {figures.gap_during}" if figures.gap_during else gap,
    ]


def _counts(counts: Mapping[str, int], *, plain: bool = False) -> str:
    shown = {name: count for name, count in counts.items() if count and not (plain and " " in name)}
    return ", ".join(f"{name} {count:,}" for name, count in sorted(shown.items())) or "none"
