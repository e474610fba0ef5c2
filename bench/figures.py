"""Figures, goals and verdicts, and the two forms of the table: for the terminal and for `RESULTS.md`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.table import Table

DIGITS: Final = 3
"""Significant ones: the machine is not steadier than that."""
HEADINGS: Final = ("row", "figure", "unit", "machine", "probe", "broker", "broker / probe", "goal", "verdict")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed (nearest rank).

    Raises:
        ValueError: no values, or a share outside of 0 < share <= 1.
    """
    if not values or not 0 < share <= 1:
        raise ValueError("a percentile needs values, and a share above 0 and up to 1")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def median(values: Sequence[float]) -> float:
    """The middle one, or the mean of the two in the middle."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure has to be."""

    limit: float
    at_least: bool = False
    """Else at most."""
    of_ratio: bool = False
    """Judges broker / probe instead of the broker's figure."""
    full_only: bool = False
    """Stands for the full size of the row, so a quick run does not judge it."""

    def text(self, unit: str) -> str:
        """For people."""
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.limit:.0%} of the probe" if self.of_ratio else f"{sign} {self.limit:g} {unit}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. A side that was not measured is None."""

    row: str
    name: str
    unit: str
    probe: float | None = None
    broker: float | None = None
    machine: float | None = None
    """Of neither side."""
    ratio: float | None = None
    """The median of the rounds' ratios, where there were rounds; else of the two figures."""
    goal: Goal | None = None

    def verdict(self, *, quick: bool) -> str:
        """`met`, `missed`, or empty when there is nothing to judge."""
        if self.goal is None or (quick and self.goal.full_only):
            return ""
        value = self.ratio_or_quotient() if self.goal.of_ratio else self.broker
        if value is None:
            return ""
        return "met" if (value >= self.goal.limit if self.goal.at_least else value <= self.goal.limit) else "missed"

    def ratio_or_quotient(self) -> float | None:
        """Broker / probe."""
        if self.ratio is not None or self.probe is None or self.broker is None or not self.probe:
            return self.ratio
        return self.broker / self.probe

    def cells(self, *, quick: bool) -> tuple[str, ...]:
        """Texts under the headings."""
        ratio = self.ratio_or_quotient()
        return (
            self.row,
            self.name,
            self.unit,
            number(self.machine),
            number(self.probe),
            number(self.broker),
            "" if ratio is None else f"{ratio:.2f}",
            "" if self.goal is None else self.goal.text(self.unit),
            self.verdict(quick=quick),
        )


def number(value: float | None) -> str:
    """With three significant digits, thousands set apart."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = DIGITS - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(0, places)}f}"


def terminal_table(figures: Sequence[Figure], *, quick: bool) -> Table:
    """For people at the terminal; a line between rows instead of their names."""
    table = Table(*HEADINGS[1:])
    for column in table.columns[2:6]:
        column.justify = "right"
    for place, figure in enumerate(figures):
        if place and figures[place - 1].row != figure.row:
            table.add_section()
        *cells, verdict = figure.cells(quick=quick)[1:]
        colour = {"met": "green", "missed": "red"}.get(verdict, "")
        table.add_row(*cells, f"[{colour}]{verdict}[/]" if colour else verdict)
    return table


def markdown_table(figures: Sequence[Figure], *, quick: bool) -> str:
    """For the file."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|---|---|--:|--:|--:|--:|---|---|"]
    lines += ["| " + " | ".join(figure.cells(quick=quick)) + " |" for figure in figures]
    return "\n".join(lines) + "\n"
