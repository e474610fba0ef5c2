"""`python -m bench.deep`: run the deep rows, print the table, and write it where it is asked to."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench.__main__ import WIDTH, check, document
from bench.deep.backlog import backlog, engine
from bench.deep.holds import holds
from bench.deep.leaks import leaks
from bench.deep.stragglers import idle, stragglers
from bench.figures import Figure, terminal_table
from bench.machine import Others, describe
from bench.processes import ChildError
from bench.rows import Bench

BACKLOG: Final = 10_000_000
SINGLES: Final = 1_000_000
ROWS: Final[dict[str, Callable[[Bench, float, float], list[Figure]]]] = {
    "backlog": lambda bench, scale, _: backlog(bench, int(BACKLOG * scale), batch=256, window=16),
    "singles": lambda bench, scale, _: backlog(bench, int(SINGLES * scale), batch=1, window=512),
    "engine": lambda bench, scale, _: engine(bench, int(BACKLOG * scale)),
    "stragglers": lambda bench, scale, _: stragglers(bench, scale),
    "idle": lambda bench, scale, _: idle(bench, scale),
    "leaks": lambda bench, _, minutes: leaks(bench, minutes),
    "holds": lambda bench, scale, _: holds(bench, scale),
}


def main(
    rows: Annotated[str, typer.Option(help=f"which, separated by commas: {', '.join(ROWS)}")] = ",".join(ROWS),
    *,
    scale: Annotated[float, typer.Option(help="of the messages; goals are judged at 1 only", min=0.001, max=10)] = 1.0,
    minutes: Annotated[float, typer.Option(help="of churn", min=0.1)] = 30.0,
    output: Annotated[Path | None, typer.Option(help="where the table goes, as Markdown")] = None,
) -> None:
    """Measure what only shows with millions of messages, or after a while."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    machine, others = describe(), Others()
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    text = TextColumn("{task.description}")
    columns = (SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    figures: list[Figure] = []
    with Progress(*columns, console=console, transient=True) as progress:
        bench = Bench(sides=("broker",), quick=False, progress=progress)
        for row in check(rows, ROWS):
            try:
                figures += ROWS[row](bench, scale, minutes)
            except ChildError as error:
                console.print(f"[red]row {row} failed:[/] {error}", highlight=False)
                raise typer.Exit(1) from error
    machine["used by other programs meanwhile"] = f"{others.share():.0%} of all cores"
    for name, value in machine.items():
        console.print(f"{name}: {value}", highlight=False)
    console.print(terminal_table(figures, quick=False))
    if output is not None:
        output.write_text(document(figures, machine, quick=False), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
