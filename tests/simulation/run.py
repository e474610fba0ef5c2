"""What holds while histories run: small limits, and watched doubles where the broker makes its parts."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from tests.simulation.check import WatchedShard, watched_encode
from tests.simulation.limits import SMALL, limits


@contextmanager
def simulating() -> Iterator[None]:
    """Around any number of histories."""
    with (
        limits(SMALL),
        patch("kyogo_broker.recovery.Shard", WatchedShard),
        patch("kyogo_broker.recovery.encode", watched_encode),
        patch("kyogo_broker.engine.encode", watched_encode),
        patch("kyogo_broker.checkpointing.wait", _wait),
    ):
        yield


def _wait(futures: Iterable[Future[Any]]) -> None:
    """A simulated future is done by whoever waits for it."""
    for future in futures:
        future.exception()
