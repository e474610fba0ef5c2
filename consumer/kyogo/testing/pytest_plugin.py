"""The fixture `kyogo_broker`: a fresh in-memory broker for each test, found by everything that reads KYOGO_URL.

Where it is not found by itself, add to the top conftest.py: `pytest_plugins = ["kyogo.testing.pytest_plugin"]`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kyogo.testing.broker import InMemoryBroker


@pytest.fixture
def kyogo_broker(monkeypatch: pytest.MonkeyPatch) -> "Iterator[InMemoryBroker]":
    """A broker in memory; KYOGO_URL points to it, and KYOGO_TOKEN is unset."""
    from kyogo.testing.broker import InMemoryBroker  # noqa: PLC0415 - the broker is loaded when a test wants one

    with InMemoryBroker() as broker:
        monkeypatch.setenv("KYOGO_URL", broker.url)
        monkeypatch.delenv("KYOGO_TOKEN", raising=False)
        yield broker
