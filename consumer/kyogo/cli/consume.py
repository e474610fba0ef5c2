"""`kyogo consume QUEUE`: print messages as they come, and ack them or give them back."""

import asyncio
import base64
import json
import signal
from typing import Annotated

import typer

from kyogo.cli.terminal import QueueName, Server, out
from kyogo.cli.values import duration_ms
from kyogo.message import Message
from kyogo.outcomes import Release
from kyogo.settings import WorkerSettings
from kyogo.worker import Worker

RELEASE_COUNT = 10
"""How many are held and given back when nothing else is said."""


def consume(
    queue: QueueName,
    *,
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many. Default: go on.", show_default=False)
    ] = None,
    wait: Annotated[
        int | None,
        typer.Option(
            parser=duration_ms, metavar="TIME", help="End when none came for so long, such as 5s.", show_default=False
        ),
    ] = None,
    release: Annotated[
        bool, typer.Option("--release", help=f"Give them back instead ({RELEASE_COUNT} unless --count says otherwise).")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each, with all it carries.")
    ] = False,
    _server: Server = None,
) -> None:
    """Print the bodies of messages, a line each, and ack them."""
    limit = RELEASE_COUNT if release and count is None else count
    asyncio.run(_Reader(queue, limit, release=release, as_json=as_json).run(wait))


class _Reader:
    """A worker whose handler prints."""

    def __init__(self, queue: str, limit: int | None, *, release: bool, as_json: bool) -> None:
        held = limit if release and limit is not None else 1
        # The first failure to attach is told to the user, who is there to do something about it.
        self._worker = Worker(settings=WorkerSettings(concurrency=held, name="kyogo consume", give_up_after=0))
        self._worker.handle(queue)(self._print)
        self._limit = limit
        self._release = release
        self._as_json = as_json
        self._printed = 0
        self._came = asyncio.Event()
        self._over = asyncio.Event()
        self._broken = False

    async def run(self, wait_ms: int | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._end)
        watch = None if wait_ms is None else asyncio.create_task(self._end_when_quiet(wait_ms / 1_000))
        try:
            await self._worker.serve()
        finally:
            if watch is not None:
                watch.cancel()
        if self._broken:
            raise BrokenPipeError

    async def _print(self, message: Message) -> None:
        if self._over.is_set():
            raise Release
        try:
            typer.echo(_line(message) if self._as_json else _text(message))
        except BrokenPipeError as error:  # who read it has gone; what was not read goes to others
            self._broken = True
            self._end()
            raise Release from error
        self._printed += 1
        self._came.set()
        if self._printed == self._limit:
            self._end()
        if self._release:
            await self._over.wait()
            raise Release

    def _end(self) -> None:
        self._worker.drain()  # first, so that what is given back does not come here again
        self._over.set()

    async def _end_when_quiet(self, seconds: float) -> None:
        await self._worker.attached()
        while not self._over.is_set():
            self._came.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._came.wait()
            except TimeoutError:
                self._end()


def _text(message: Message) -> str:
    """The body, on one line; on a terminal nothing in it is a command to the terminal."""
    text = message.body.decode("utf-8", "replace")
    if not out.is_terminal:
        return text
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def _line(message: Message) -> str:
    row: dict[str, object] = {
        "queue": message.queue,
        "offset": message.offset,
        "fence": message.fence,
        "attempt": message.attempt,
        "losses": message.losses,
        "id": message.id,
        "type": message.type,
        "headers": dict(message.headers),
        "content_type": message.content_type,
        "published_at": message.published_at.isoformat(timespec="milliseconds"),
    }
    try:
        row["body"] = message.body.decode()
    except UnicodeDecodeError:
        row["body_base64"] = base64.b64encode(message.body).decode()
    if (letter := message.dead_letter) is not None:
        row["dead_letter"] = {
            "queue": letter.queue,
            "offset": letter.offset,
            "reason": letter.reason,
            "attempts": letter.attempts,
            "losses": letter.losses,
            "first_error": letter.first_error,
            "last_error": letter.last_error,
            "error_type": letter.error_type,
            "last_consumer_id": letter.last_consumer_id,
            "dead_lettered_at": letter.dead_lettered_at.isoformat(timespec="milliseconds"),
        }
    return json.dumps(row, ensure_ascii=False)
