"""`kyogo publish QUEUE`: messages from a file, from standard input or from the command line."""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from kyogo.admin import Client
from kyogo.cli.terminal import QueueName, Server, err, refuse_usage, say
from kyogo.cli.values import pairs
from kyogo.codec import JSON, TEXT
from kyogo.outgoing import PublishOptions
from kyogo.publisher import OffsetRun, Publisher

STDIN = "-"
RUNS_SHOWN = 3


def publish(
    queue: QueueName,
    source: Annotated[
        str, typer.Argument(metavar="-", help="`-`: each line of standard input.", show_default=False)
    ] = "",
    *,
    lines: Annotated[
        str | None, typer.Option(metavar="FILE", help="Each line of a file (- for standard input).", show_default=False)
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Each JSON document of a file: one a line, or one array of them.",
            show_default=False,
        ),
    ] = None,
    body: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="One message: a JSON object or array, else text.", show_default=False),
    ] = None,
    type_: Annotated[
        str, typer.Option("--type", help="The messages' type, such as order.paid.", show_default=False)
    ] = "",
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A header; may be repeated.", show_default=False)
    ] = None,
    _server: Server = None,
) -> None:
    """Publish messages; when this ends with 0 they are durable."""
    if source not in {"", STDIN}:
        refuse_usage(f"{source!r} is not understood: name a source, --body TEXT, --lines FILE, --json FILE or -")
    lines = STDIN if source and lines is None else lines
    if [lines, json_file, body].count(None) != 2 or (source and lines != STDIN):  # noqa: PLR2004  of three
        refuse_usage("name one of --body TEXT, --lines FILE, --json FILE or - (lines of standard input)")
    options: PublishOptions = {"type": type_, "headers": pairs(header if header else [], "--header")}
    if body is not None:
        runs = asyncio.run(_publish(queue, [body.encode()], {**options, "content_type": _content_type(body)}))
    elif json_file is not None:
        with _open(json_file) as file, _progress(file) as moved:
            runs = asyncio.run(_publish(queue, _documents(file, moved), {**options, "content_type": JSON}))
    else:
        with _open(str(lines)) as file, _progress(file) as moved:
            runs = asyncio.run(_publish(queue, _lines(file, moved), {**options, "content_type": TEXT}))
    _print(queue, runs)


async def _publish(queue: str, bodies: Iterable[bytes], options: PublishOptions) -> list[OffsetRun]:
    async with Client() as client:  # says at once when nobody is there; a publisher would go on trying
        await client.server_info()
    async with Publisher() as publisher:
        return await publisher.publish_many(queue, bodies, **options)


def _content_type(body: str) -> str:
    """What a body is that was typed: `{"id": 1}` is meant for a handler that takes a dict."""
    try:
        return JSON if isinstance(json.loads(body), dict | list) else TEXT
    except ValueError:
        return TEXT


def _print(queue: str, runs: list[OffsetRun]) -> None:
    count = sum(run.count for run in runs)
    if not count:
        say(f"nothing to publish to {queue}: the source is empty")
        return
    shown = [str(run.first) if run.count == 1 else f"{run.first} to {run.first + run.count - 1}" for run in runs]
    more = f" and {len(runs) - RUNS_SHOWN} more runs" if len(runs) > RUNS_SHOWN else ""
    where = f"offset {shown[0]}" if count == 1 else f"offsets {', '.join(shown[:RUNS_SHOWN])}{more}"
    say(f"{count:,} message{'' if count == 1 else 's'} published to {queue}, {where}")


# --- sources ---


def _open(name: str) -> BinaryIO:
    if name == STDIN:
        return sys.stdin.buffer
    try:
        return Path(name).open("rb")
    except OSError as error:
        refuse_usage(f"{name} cannot be read: {error.strerror}")


def _lines(file: BinaryIO, moved: Callable[[int], None]) -> Iterator[bytes]:
    for line in file:
        moved(len(line))
        yield line.rstrip(b"\r\n")


def _documents(file: BinaryIO, moved: Callable[[int], None]) -> Iterator[bytes]:
    """Documents as they stand in the file, a line each; or the elements of the one array that the file is."""
    first = file.readline()
    if first.lstrip().startswith(b"["):
        everything = first + file.read()
        try:
            array = json.loads(everything)
        except ValueError:
            array = None
        if isinstance(array, list):
            moved(len(everything))
            yield from (json.dumps(element, ensure_ascii=False).encode() for element in array)
            return
        rest: Iterable[bytes] = everything.splitlines(keepends=True)
    else:
        rest = chain([first], file)
    for number, line in enumerate(rest, 1):
        moved(len(line))
        if text := line.strip():
            _check(text, number)
            yield text


def _check(text: bytes, number: int) -> None:
    try:
        json.loads(text)
    except ValueError as error:
        refuse_usage(f"line {number} is no JSON: {error}. What stands before it is published")


# --- progress ---


@contextmanager
def _progress(file: BinaryIO) -> Iterator[Callable[[int], None]]:
    """What is called with the bytes that were read; a bar, if somebody watches."""
    if not err.is_terminal:
        yield lambda _: None
        return
    total = os.fstat(file.fileno()).st_size if file is not sys.stdin.buffer else None
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("reading", total=total)
        yield lambda count: bar.advance(task, count)
