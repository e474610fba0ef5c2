"""`kyogo worker MODULE:APP`: run a worker that a module defines, in one process or in several."""

import asyncio
import importlib
import os
import sys
from dataclasses import replace
from typing import Annotated

import typer

from kyogo.cli.supervisor import Supervisor, end_with_parent
from kyogo.cli.terminal import Server, note, refuse_usage
from kyogo.worker import Worker

DEFAULT_NAME = "app"


def worker(
    target: Annotated[
        str,
        typer.Argument(metavar="MODULE:APP", help="Where the worker is, such as shop.jobs:app.", show_default=False),
    ],
    *,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1, help="Handlers at once in each process. Default: what the worker says.", show_default=False
        ),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes; those that die are started again.")] = 1,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
    _server: Server = None,
) -> None:
    """Run a worker. SIGTERM and Ctrl-C let what runs finish; the second one does not wait."""
    if processes > 1:
        command = [sys.executable, "-m", "kyogo.cli", "worker", target, "--supervised"]
        command += [] if concurrency is None else ["--concurrency", str(concurrency)]
        raise typer.Exit(asyncio.run(Supervisor(command, processes, note).run()))
    if supervised:
        end_with_parent()
    app = load(target)
    if concurrency is not None:
        app.settings = replace(app.settings, concurrency=concurrency)
    app.run()


def load(target: str) -> Worker:
    """The worker that MODULE:APP names; modules are looked for in the working directory too."""
    module_name, _, name = target.partition(":")
    name = name if name else DEFAULT_NAME
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  as `python -m` does
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:  # noqa: BLE001  whatever the module does when it is imported
        refuse_usage(
            f"{module_name!r} cannot be imported: {type(error).__name__}: {error}."
            f" `python -c 'import {module_name}'` shows where"
        )
    if not isinstance(found, Worker):
        what = "nothing of that name" if found is None else f"a {type(found).__name__}"
        refuse_usage(f"{module_name}:{name} is {what}: name the kyogo.Worker, as in MODULE:APP")
    return found
