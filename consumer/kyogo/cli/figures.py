"""`kyogo consumers`, `kyogo stats` and `kyogo version`: what is there, and how it does."""

from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from kyogo.admin import Client, Consumer
from kyogo.cli import tables
from kyogo.cli.terminal import AsJson, Server, ask_broker, out, print_json, say
from kyogo.errors import UnavailableError
from kyogo.target import Target

OneQueue = Annotated[str, typer.Argument(metavar="QUEUE", help="Only this queue's.", show_default=False)]


def consumers(queue: OneQueue = "", *, as_json: AsJson = False, _server: Server = None) -> None:
    """List attached consumers and what they hold."""

    async def ask(client: Client) -> list[Consumer]:
        return [consumer async for consumer in client.consumers(queue)]

    found = ask_broker(ask)
    if as_json:
        print_json(found)
    elif found:
        out.print(tables.consumers(found))
    else:
        say("no consumers: start one with `kyogo worker MODULE:APP`")


def stats(queue: OneQueue = "", *, as_json: AsJson = False, _server: Server = None) -> None:
    """Show the broker's figures and its queues'."""
    found = ask_broker(lambda client: client.stats(queue))
    if as_json:
        print_json(found)
    else:
        out.print(tables.stats(found))


def version(*, as_json: AsJson = False, _server: Server = None) -> None:
    """Show this client's version, and the broker's if one is in reach."""
    client = installed_version("kyogo")
    try:
        server = ask_broker(lambda admin: admin.server_info())
    except UnavailableError:
        server = None
    if as_json:
        print_json({"client": client, "broker": server})
        return
    say(f"kyogo {client}")
    if server is None:
        say(f"no broker answers at {Target.resolve()}")
    else:
        say(f"broker {server.version} at {Target.resolve()}, node {server.node}, {server.durability}")
