"""What the recording processes of a run have in common: command line, end, noticing that they stood still."""

import argparse
import asyncio
import logging
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.history import Recorder

LAG_LOOK_SECONDS = 0.1
LAG_SECONDS = 0.3
"""Standing still for so long is written down: a heartbeat may have been late."""


@dataclass(slots=True)
class Part:
    """One process's part in a run."""

    name: str
    address: str
    recorder: Recorder
    chance: random.Random
    options: argparse.Namespace
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    """SIGTERM came: finish."""


def play(run: Callable[[Part], Awaitable[int]], *add: Callable[[argparse.ArgumentParser], object]) -> int:
    """Parse the command line, run to the end, return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--directory", required=True, type=Path)
    parser.add_argument("--seed", required=True, type=int)
    for option in add:
        option(parser)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    return asyncio.run(_play(run, options))


async def _play(run: Callable[[Part], Awaitable[int]], options: argparse.Namespace) -> int:
    recorder = Recorder(options.directory, options.name)
    chance = random.Random(f"{options.seed}-{options.name}")
    part = Part(options.name, options.address, recorder, chance, options)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, part.leaving.set)
    watch = asyncio.create_task(watch_lag(recorder))
    try:
        return await run(part)
    finally:
        watch.cancel()
        recorder.close()


async def watch_lag(recorder: Recorder) -> None:
    """Write down when this process stood still: stopped, starved, or busy."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(LAG_LOOK_SECONDS)
        lag = time.monotonic() - before - LAG_LOOK_SECONDS
        if lag >= LAG_SECONDS:
            recorder.write("lagged", ms=round(lag * 1000))
