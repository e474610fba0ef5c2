"""A worker of the SDK against the scripted broker, in one loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from kyogo import Message, Worker, WorkerSettings
from kyogo.backoff import BackoffSettings
from tests.support.fake_broker import DEADLINE, FakeBroker

QUICK = BackoffSettings(initial=0.001, maximum=0.01)


def worker(broker: FakeBroker | str, **settings: Any) -> Worker:
    """A worker that comes back quickly, with the usual settings otherwise."""
    url = broker if isinstance(broker, str) else broker.url
    return Worker(settings=replace(WorkerSettings(url=url, reconnect=QUICK), **settings))


@asynccontextmanager
async def serving(app: Worker) -> AsyncIterator["asyncio.Task[None]"]:
    """The worker at work; drained at the end, or stopped if the test failed or the worker did not leave."""
    task = asyncio.create_task(app.serve())
    try:
        yield task
        app.drain(1.0)
        await asyncio.wait_for(asyncio.shield(task), DEADLINE)
    finally:
        task.cancel()
        await asyncio.wait({task})


def waiting_handler(app: Worker, **options: Any) -> list[str]:
    """A handler that waits, and what became of it."""
    log: list[str] = []

    @app.handle("orders", **options)
    async def handle(body: str, message: Message) -> None:
        log.append(f"began {body}")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log.append(f"cancelled {body}{' lost' if message.lost else ''}")
            raise

    return log
