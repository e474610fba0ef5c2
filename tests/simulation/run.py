"""What holds while histories run: small limits, and watched doubles where the broker makes its parts."""

import gc
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from tests.simulation.limits import SMALL, limits
from tests.simulation.watched import WatchedShard, watched_encode


@contextmanager
def simulating() -> Iterator[None]:
    """Around any number of histories."""
    with (
        _few_collections(),
        limits(SMALL),
        patch("kyogo_broker.recovery.Shard", WatchedShard),
        patch("kyogo_broker.recovery.encode", watched_encode),
        patch("kyogo_broker.engine.encode", watched_encode),
        patch("kyogo_broker.checkpointing.wait", _wait),
    ):
        yield


@contextmanager
def _few_collections() -> Iterator[None]:
    """Nearly nothing of a history is garbage before its end: looking for it all the time is a tenth of what it costs."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _wait(futures: Iterable[Future[Any]]) -> None:
    """A simulated future is done by whoever waits for it."""
    for future in futures:
        future.exception()
