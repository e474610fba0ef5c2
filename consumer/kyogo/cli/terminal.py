"""How every verb talks: results to standard output, the rest to standard error, and what exit codes mean."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, is_dataclass
from enum import IntEnum
from typing import Annotated, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from kyogo.admin import Client
from kyogo.errors import ConfigurationError, KyogoError, UnavailableError
from kyogo.target import Target

_Answer = TypeVar("_Answer")


class Exit(IntEnum):
    """Exit codes, the same for all verbs; the help names them."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    WORKER_FAILED = 4
    INTERRUPTED = 130


EXIT_CODES = (
    "Exit codes: 0 done, 1 refused by the broker, 2 wrong usage or not confirmed, 3 no broker in reach,"
    " 4 a worker process failed, 130 interrupted."
)


def point_at(url: str | None) -> str | None:
    """Make this broker the one for everything in this process and for its children."""
    if url is not None:
        os.environ["KYOGO_URL"] = url
    return url


Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        callback=point_at,
        help="The broker. Default: KYOGO_URL, else 127.0.0.1:7440.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
QueueName = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue's name.", show_default=False)]

out = Console(highlight=False)
"""Results."""
err = Console(stderr=True, highlight=False)
"""Progress, notes, questions and errors. Wrapped for people; one line a message anywhere else."""


def ask_broker(call: Callable[[Client], Awaitable[_Answer]]) -> _Answer:
    """What some admin calls return.

    Raises:
        KyogoError: refused or not reachable; `main` turns it into a line and an exit code.
    """

    async def ask() -> _Answer:
        async with Client() as client:
            return await call(client)

    return asyncio.run(ask())


def print_json(value: object) -> None:
    """One JSON document: figures as they are, what is absent as null."""
    typer.echo(json.dumps(_plain(value), ensure_ascii=False, indent=2))


def say(text: str) -> None:
    """A line of the result; names that users gave are text here, never markup."""
    out.print(text, markup=False, soft_wrap=not out.is_terminal)


def note(text: str) -> None:
    """A line about what happens."""
    err.print(text, markup=False, soft_wrap=not err.is_terminal)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is destroyed.

    Raises:
        typer.Exit: with code 2, when nobody says yes.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        refuse_usage(f"{question} Nobody is there to ask: repeat with --yes.")
    if not typer.confirm(question, err=True):
        note("Nothing was done.")
        raise typer.Exit(Exit.USAGE)


def refuse_usage(text: str) -> NoReturn:
    """End with code 2 and a line that says what to do."""
    _error(text)
    raise typer.Exit(Exit.USAGE)


def fail(error: KyogoError) -> Exit:
    """One line with the remedy; returns the exit code."""
    if isinstance(error, UnavailableError) and error.code == UnavailableError.default_code:
        _error(
            f"no broker answers at {Target.resolve()}. Start one with `broker serve` (in a checkout:"
            " `make run`), or name yours with --server or KYOGO_URL."
        )
        return Exit.UNREACHABLE
    _error(f"{error.message} ({error.code})")
    if isinstance(error, UnavailableError):
        return Exit.UNREACHABLE
    return Exit.USAGE if isinstance(error, ConfigurationError) else Exit.REFUSED


def _error(text: str) -> None:
    err.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=not err.is_terminal)


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
