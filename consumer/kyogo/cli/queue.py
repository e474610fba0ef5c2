"""`kyogo queue ...`: make, see, change and remove queues."""

from typing import Annotated

import typer

from kyogo.admin import BalancePolicy, Client, Queue, QueueSettings, RetryBackoff, RetryPolicy
from kyogo.cli import tables
from kyogo.cli.terminal import (
    AsJson,
    QueueName,
    Server,
    Yes,
    ask_broker,
    confirm,
    out,
    print_json,
    refuse_usage,
    say,
)
from kyogo.cli.values import duration_ms, pairs

app = typer.Typer(no_args_is_help=True, help="Make, see, change and remove queues.")

Policy = Annotated[
    BalancePolicy | None,
    typer.Option(
        "--policy",
        metavar="NAME",
        case_sensitive=False,
        help="Who gets the next message: least_in_flight, round_robin.",
        show_default=False,
    ),
]
Visibility = Annotated[
    int | None,
    typer.Option(
        "--visibility-timeout",
        parser=duration_ms,
        metavar="TIME",
        help="How long a handler may run, such as 30s or 5m.",
        show_default=False,
    ),
]
Attempts = Annotated[
    int | None,
    typer.Option("--max-attempts", min=0, help="The failure that dead-letters; 0: none.", show_default=False),
]
Losses = Annotated[
    int | None,
    typer.Option("--max-losses", min=0, help="The loss of a worker that dead-letters; 0: none.", show_default=False),
]
Backoff = Annotated[
    RetryBackoff | None,
    typer.Option(
        "--backoff",
        metavar="NAME",
        case_sensitive=False,
        help="How retry delays grow: exponential, linear.",
        show_default=False,
    ),
]
Initial = Annotated[
    int | None,
    typer.Option("--retry-initial", parser=duration_ms, metavar="TIME", help="First delay.", show_default=False),
]
Longest = Annotated[
    int | None,
    typer.Option("--retry-max", parser=duration_ms, metavar="TIME", help="Longest delay.", show_default=False),
]
DeadLetterQueue = Annotated[
    str | None,
    typer.Option(
        "--dead-letter-queue",
        metavar="QUEUE",
        help="Where dead letters go; empty: nowhere.",
        show_default=False,
    ),
]
Label = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="NAME=VALUE", help="A label; may be repeated.", show_default=False),
]


@app.command("list")
def list_queues(
    prefix: Annotated[str, typer.Argument(help="Only names that begin so.", show_default=False)] = "",
    *,
    as_json: AsJson = False,
    _server: Server = None,
) -> None:
    """List queues with their figures."""

    async def ask(client: Client) -> list[Queue]:
        return [queue async for queue in client.list_queues(prefix)]

    queues = ask_broker(ask)
    if as_json:
        print_json(queues)
    elif queues:
        out.print(tables.queues(queues))
    else:
        say("no queues" + (f" begin with {prefix}" if prefix else ": a publish makes one, or `kyogo queue create`"))


@app.command()
def show(queue: QueueName, *, as_json: AsJson = False, _server: Server = None) -> None:
    """Show one queue: its settings and its figures."""
    _print_queue(ask_broker(lambda client: client.get_queue(queue)), as_json=as_json)


@app.command()
def create(  # noqa: PLR0913  a verb's options are its arguments
    queue: QueueName,
    *,
    policy: Policy = None,
    visibility_timeout: Visibility = None,
    max_attempts: Attempts = None,
    max_losses: Losses = None,
    backoff: Backoff = None,
    retry_initial: Initial = None,
    retry_max: Longest = None,
    dead_letter_queue: DeadLetterQueue = None,
    label: Label = None,
    as_json: AsJson = False,
    _server: Server = None,
) -> None:
    """Make a queue; what is not said has the broker's default."""
    settings = QueueSettings(
        balance_policy=policy,
        visibility_timeout_ms=visibility_timeout,
        max_attempts=max_attempts,
        max_losses=max_losses,
        retry=RetryPolicy(backoff=backoff, initial_ms=retry_initial, max_ms=retry_max),
        dead_letter_queue=dead_letter_queue,
        labels=None if label is None else pairs(label, "--label"),
    )
    _print_queue(ask_broker(lambda client: client.create_queue(queue, settings)), as_json=as_json)


@app.command()
def update(  # noqa: PLR0913  a verb's options are its arguments
    queue: QueueName,
    *,
    policy: Policy = None,
    visibility_timeout: Visibility = None,
    max_attempts: Attempts = None,
    max_losses: Losses = None,
    backoff: Backoff = None,
    retry_initial: Initial = None,
    retry_max: Longest = None,
    dead_letter_queue: DeadLetterQueue = None,
    label: Label = None,
    reset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING",
            help="Back to its default, such as max_attempts or retry.max_ms; may be repeated.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    _server: Server = None,
) -> None:
    """Change settings under load; what is not said stays as it is."""
    settings = QueueSettings(
        balance_policy=policy,
        visibility_timeout_ms=visibility_timeout,
        max_attempts=max_attempts,
        max_losses=max_losses,
        retry=RetryPolicy(backoff=backoff, initial_ms=retry_initial, max_ms=retry_max),
        dead_letter_queue=dead_letter_queue,
        labels=None if label is None else pairs(label, "--label"),
    )
    if settings == QueueSettings() and not reset:
        refuse_usage("nothing to change: name a setting, see `kyogo queue update --help`")
    changed = ask_broker(lambda client: client.update_queue(queue, settings, reset=reset if reset else ()))
    _print_queue(changed, as_json=as_json)


@app.command()
def delete(queue: QueueName, *, yes: Yes = False, as_json: AsJson = False, _server: Server = None) -> None:
    """Remove a queue and all its messages."""
    confirm(f"Delete the queue {queue} with all its messages?", yes=yes)
    count = ask_broker(lambda client: client.delete_queue(queue, confirm=queue))
    _print_count(count, "deleted", queue, as_json=as_json)


@app.command()
def purge(queue: QueueName, *, yes: Yes = False, as_json: AsJson = False, _server: Server = None) -> None:
    """Finish all messages of a queue that no worker holds."""
    confirm(f"Finish all messages that wait in the queue {queue}?", yes=yes)
    count = ask_broker(lambda client: client.purge_queue(queue, confirm=queue))
    _print_count(count, "purged", queue, as_json=as_json)


@app.command()
def pause(queue: QueueName, *, as_json: AsJson = False, _server: Server = None) -> None:
    """Stop delivery, not publishing; what is in flight goes on."""
    _print_paused(ask_broker(lambda client: client.pause_queue(queue)), as_json=as_json)


@app.command()
def unpause(queue: QueueName, *, as_json: AsJson = False, _server: Server = None) -> None:
    """Let delivery go on."""
    _print_paused(ask_broker(lambda client: client.unpause_queue(queue)), as_json=as_json)


def _print_queue(queue: Queue, *, as_json: bool) -> None:
    if as_json:
        print_json(queue)
    else:
        out.print(tables.queue(queue))


def _print_count(count: int, verb: str, queue: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"queue": queue, f"{verb}_messages": count})
    elif verb == "deleted":
        say(f"{queue} is gone, and {count:,} unfinished messages with it")
    else:
        say(f"{count:,} messages of {queue} finished")


def _print_paused(queue: Queue, *, as_json: bool) -> None:
    if as_json:
        print_json(queue)
    else:
        say(f"{queue.name} is paused: {queue.stats.ready:,} wait" if queue.paused else f"{queue.name} delivers")
