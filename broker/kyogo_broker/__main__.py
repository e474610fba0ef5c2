"""The command `broker`: serve, inspect, salvage, version. Everything else an operator does goes through `kyogo`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

EXTRAS = "pip install 'kyogo[broker]'"
EXIT_MISSING = 1
EXIT_CANNOT = 1
EXIT_WRONG_SETTINGS = 2
EXIT_DAMAGED = 4
OWN_OPTIONS = frozenset({"--help", "-h", "--version", "--install-completion", "--show-completion"})

cli = typer.Typer(
    name="broker", no_args_is_help=False, add_completion=False, pretty_exceptions_enable=False,
    help="A message broker for competing consumers. Without a command it serves.",
)  # fmt: skip


@cli.command()
def serve(  # noqa: PLR0913  # the options of a command are its arguments
    *,
    listen: Annotated[str | None, typer.Option(help="gRPC address [127.0.0.1:7440]; port 0 takes a free one")] = None,
    http: Annotated[str | None, typer.Option(help="HTTP address [127.0.0.1:7441], or off")] = None,
    data: Annotated[Path | None, typer.Option(help="data directory [./data]; made if missing")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any setting")] = None,
    ephemeral: Annotated[bool | None, typer.Option("--ephemeral", help="keep nothing on disk")] = None,
    ready_file: Annotated[Path | None, typer.Option(help="gets the real addresses, as JSON, once serving")] = None,
    node: Annotated[str | None, typer.Option(help="name of this broker; the host's if not said")] = None,
    grace_seconds: Annotated[float | None, typer.Option(help="for consumers to finish in, at a stop [10]")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, console or json")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error")] = None,
    insecure: Annotated[bool | None, typer.Option("--insecure", help="listen off loopback without TLS")] = None,
) -> None:
    """Run a broker until Ctrl-C or SIGTERM. Every setting is also KYOGO_<NAME>, and a line in the file."""
    flags = {name: value for name, value in locals().items() if name != "config" and value is not None}
    sys.exit(_serve(flags, config))


@cli.command()
def inspect(
    directory: Annotated[Path, typer.Argument(help="a data directory; a broker may be using it")],
    *,
    facts: Annotated[bool, typer.Option("--facts", help="every record and fact, never a body")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Show what stands in a data directory, whole or damaged, without changing it."""
    from kyogo_broker.journal.inspect import describe  # noqa: PLC0415  # without the extras `--help` still works

    damaged = False
    for finding in describe(directory, facts=facts):
        typer.echo(finding.json() if json else finding.text())
        damaged = damaged or finding.damaged
    sys.exit(EXIT_DAMAGED if damaged else 0)


@cli.command()
def salvage(
    directory: Annotated[Path, typer.Argument(help="a damaged data directory; nothing is written to it")],
    to: Annotated[Path, typer.Argument(help="where the copy goes: a directory that is empty, or not there yet")],
    *,
    json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Copy what is whole of a damaged data directory to a new one, and list what is not.

    Ends with 0 if nothing was damaged, with 4 if something was, and with 1 if it could not be done.
    """
    from importlib.metadata import version as installed  # noqa: PLC0415  # its name is another command's

    from kyogo_broker.model.errors import BrokerStopError  # noqa: PLC0415  # without the extras `--help` still works
    from kyogo_broker.salvage import Salvage, shown  # noqa: PLC0415  # the same

    progress = _tell_progress if sys.stderr.isatty() else lambda *_: None
    damaged = False
    try:
        for finding in Salvage(directory, to, version=installed("kyogo"), progress=progress).run():
            for line in (finding.json(),) if json else shown(finding):
                typer.echo(line)
            damaged = damaged or finding.damaged
    except (BrokerStopError, OSError) as error:
        sys.stderr.write(f"broker: {error}\n")
        sys.exit(EXIT_CANNOT)
    sys.exit(EXIT_DAMAGED if damaged else 0)


@cli.command()
def version() -> None:
    """Show the version."""
    from importlib.metadata import version as installed  # noqa: PLC0415  # its name is this command's

    typer.echo(f"kyogo {installed('kyogo')}")


def main(arguments: list[str] | None = None) -> None:
    """The command line; `broker --listen ...` means `broker serve --listen ...`."""
    # The C core writes lines of its own format to the log; every error that matters comes back as an exception.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    given = sys.argv[1:] if arguments is None else arguments
    if not given or (given[0].startswith("-") and given[0] not in OWN_OPTIONS):
        given = ["serve", *given]
    try:
        cli(given)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "kyogo_broker":
            raise
        sys.stderr.write(f"broker: {missing} is not installed; the broker needs its extra: {EXTRAS}\n")
        sys.exit(EXIT_MISSING)


def _tell_progress(done: int, total: int) -> None:
    """One line that is written over, on a terminal only."""
    sys.stderr.write(f"\r{done / (1 << 30):,.1f} of {total / (1 << 30):,.1f} GiB read\033[K\r")
    sys.stderr.flush()


def _serve(flags: dict[str, Any], file: Path | None) -> int:
    from kyogo_broker import app  # noqa: PLC0415  # without the extras `--help` still works
    from kyogo_broker.config import ConfigError, load_config  # noqa: PLC0415  # the same

    try:
        config = load_config(flags, file)
    except ConfigError as error:
        for line in error.lines:
            sys.stderr.write(f"broker: {line}\n")
        return EXIT_WRONG_SETTINGS
    return app.serve(config)


if __name__ == "__main__":
    main()
