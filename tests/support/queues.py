"""One queue of a real broker, as tests make it and look at it."""

import asyncio
from collections.abc import Callable

from kyogo.admin import Client, QueueSettings, QueueStats

POLL_SECONDS = 0.02


async def make_queue(address: str, queue: str, settings: QueueSettings | None = None) -> None:
    """Make it."""
    async with Client(address) as admin:
        await admin.create_queue(queue, settings)


async def stats_of(address: str, queue: str) -> QueueStats:
    """Its figures, now."""
    async with Client(address) as admin:
        return (await admin.get_queue(queue)).stats


async def stats_when(
    address: str, queue: str, condition: Callable[[QueueStats], bool], what: str, seconds: float = 20.0
) -> QueueStats:
    """Its figures, once they are so."""
    deadline = asyncio.get_running_loop().time() + seconds
    async with Client(address) as admin:
        while not condition(stats := (await admin.get_queue(queue)).stats):
            assert asyncio.get_running_loop().time() < deadline, f"not within {seconds} s: {what}: {stats}"
            await asyncio.sleep(POLL_SECONDS)
    return stats


async def drained(address: str, queue: str) -> QueueStats:
    """Its figures, once everything in it is finished."""
    return await stats_when(address, queue, lambda stats: stats.ready + stats.delayed + stats.in_flight == 0, "drained")
