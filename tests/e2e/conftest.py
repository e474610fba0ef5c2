"""Fixtures of the end-to-end tests: real processes that end with their test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.command import Kyogo
from tests.support.processes import Broker, Processes, processes


@pytest_asyncio.fixture
async def children(tmp_path: Path) -> AsyncIterator[Processes]:
    """Starts processes; ends them with the test."""
    async with processes(tmp_path) as started:
        yield started


@pytest_asyncio.fixture
async def broker(children: Processes) -> Broker:
    """A running broker with a fresh data directory."""
    return await children.broker()


@pytest.fixture
def kyogo(broker: Broker, tmp_path: Path) -> Kyogo:
    """The command line, pointed at the broker."""
    return Kyogo(tmp_path, broker.address)


@pytest.fixture
def offline(tmp_path: Path) -> Kyogo:
    """The command line, with no broker in reach."""
    return Kyogo(tmp_path, "127.0.0.1:1")
