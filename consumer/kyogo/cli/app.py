"""The command `kyogo`: its verbs, and the one place that turns errors into a line and an exit code."""

import os
import sys

import typer

from kyogo.cli import consume, figures, publish, queue, worker
from kyogo.cli.terminal import EXIT_CODES, Exit, Server, fail
from kyogo.errors import KyogoError

app = typer.Typer(
    name="kyogo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Publish to, consume from and look after a Kyogo broker.",
    epilog=EXIT_CODES,
)
app.command(no_args_is_help=True)(publish.publish)
app.command(no_args_is_help=True)(worker.worker)
app.command(no_args_is_help=True)(consume.consume)
app.add_typer(queue.app, name="queue")
app.command()(figures.consumers)
app.command()(figures.stats)
app.command()(figures.version)


@app.callback()
def kyogo(_server: Server = None) -> None:
    """Publish to, consume from and look after a Kyogo broker."""


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        app()
    except KyogoError as error:
        sys.exit(fail(error))
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        # Who read the output has seen enough; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.OK)
