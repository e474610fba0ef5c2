"""`python -m bench`: run the rows, print the table, write `bench/RESULTS.md`."""

import datetime as dt
import signal
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench.figures import Figure, markdown_table, terminal_table
from bench.machine import Others, describe
from bench.processes import ChildError
from bench.rows import ROWS, Bench

RESULTS: Final = Path(__file__).with_name("RESULTS.md")
WIDTH: Final = 150
"""Of the table where there is no terminal to ask."""
HEAD: Final = """# Results

Written by the benchmark; do not edit. *probe* is a bare grpc.aio server that does the same work without a broker's
features (`bench/probe.py`), under the same load processes, in turn with the broker. Ratios are what lasts; the
figures are of this machine on this day. CPU is that of the server's process for each message.
"""


def main(
    rows: Annotated[str, typer.Option(help=f"which, separated by commas: {', '.join(ROWS)}")] = ",".join(ROWS),
    sides: Annotated[str, typer.Option(help="probe, broker, or both")] = "probe,broker",
    *,
    quick: Annotated[bool, typer.Option(help="a tenth of the work")] = False,
    output: Annotated[
        Path | None, typer.Option(help="where the results go; a whole run: bench/RESULTS.md, else nowhere")
    ] = None,
) -> None:
    """Measure the broker against a bare probe."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = check(rows, ROWS)
    machine, others = describe(), Others()
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    text = TextColumn("{task.description}")
    columns = (SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    figures: list[Figure] = []
    with Progress(*columns, console=console, transient=True) as progress:
        bench = Bench(sides=check(sides, ("probe", "broker")), quick=quick, progress=progress)
        whole = progress.add_task("rows", total=len(chosen))
        for row in chosen:
            try:
                figures += ROWS[row](bench)
            except ChildError as error:
                console.print(f"[red]row {row} failed:[/] {error}", highlight=False)
                raise typer.Exit(1) from error
            progress.advance(whole)
    machine["used by other programs meanwhile"] = f"{others.share():.0%} of all cores"
    for name, value in machine.items():
        console.print(f"{name}: {value}", highlight=False)
    console.print(terminal_table(figures, quick=quick))
    whole_run = not quick and len(chosen) == len(ROWS) and len(bench.sides) == 2
    if output is not None or whole_run:
        path = RESULTS if output is None else output
        path.write_text(document(figures, machine, quick=quick), encoding="utf-8")
        console.print(f"written to {path.name}")


def check(text: str, known: Collection[str]) -> tuple[str, ...]:
    """The names in the text, in the order of the known ones."""
    asked = {name.strip() for name in text.split(",")}
    if unknown := asked - set(known):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    return tuple(name for name in known if name in asked)


def document(figures: list[Figure], machine: dict[str, str], *, quick: bool) -> str:
    """The results as Markdown."""
    rows = list(dict.fromkeys(figure.row for figure in figures))
    command = "python -m bench" + (" --quick" if quick else "") + f" --rows {','.join(rows)}"
    facts = {"date": dt.datetime.now(dt.UTC).date().isoformat(), "command": f"`{command}`", **machine}
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return f"{HEAD}\n{lines}\n\n{markdown_table(figures, quick=quick)}"


if __name__ == "__main__":
    typer.run(main)
