"""Fixtures of the integration tests: a broker in the test's loop, behind real gRPC."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.edge import Broker, running_broker


@pytest_asyncio.fixture
async def edge() -> AsyncIterator[Broker]:
    """A running broker with a journal in memory."""
    async with running_broker() as broker:
        yield broker
