"""What could hold the loop: a purge, storms of restarts, a broken handler, with a deep backlog behind them."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bench.deep.control import create_queue, purge_queue
from bench.deep.jobs import Storm
from bench.deep.watching import held, pinged
from bench.figures import Figure
from bench.load import Produce
from bench.processes import Server
from bench.rows import Bench

BODY_BYTES: Final = 100
BACKLOG: Final = 5_000_000
PURGED: Final = 1_000_000
FAILED: Final = 100_000
CONSUMERS: Final = 500
ROUNDS: Final = 3
BEFORE_S: Final = 0.5
"""And after a phase: the broker is asked then too."""


def holds(bench: Bench, share: float) -> list[Figure]:
    """One after the other on one broker; at the end it is killed, and all come back."""
    figures: list[Figure] = []
    with Server("broker", watched=True) as server:
        phases = Phases(bench, server, figures)
        with phases.of("publishing and checkpoints"):
            fill(bench, server, "backlog", int(BACKLOG * share))
            fill(bench, server, "purged", int(PURGED * share))
        with phases.of(f"purge of {int(PURGED * share):,}"):
            purge_queue(server.target, "purged")
        failed = int(FAILED * share)
        storm = Storm(server.target, "backlog", CONSUMERS, ROUNDS, fails=failed)
        with phases.of(f"{failed:,} fail; {CONSUMERS} consumers come and are killed, {ROUNDS} times"):
            bench.work("storm", CONSUMERS * ROUNDS, storm)
        with phases.of(f"checkpoints with {failed:,} that failed"):
            fill(bench, server, "more", int(BACKLOG * share))
        server.stop(signal.SIGKILL)
        server.start()
        with phases.of(f"{CONSUMERS} consumers come back after a kill -9 of the broker"):
            bench.work("coming back", CONSUMERS, Storm(server.target, "backlog", CONSUMERS, 1))
    return figures


class Phases:
    """Figures for each part of the row."""

    def __init__(self, bench: Bench, server: Server, figures: list[Figure]) -> None:
        self._bench = bench
        self._server = server
        self._figures = figures

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Watch while the block runs."""
        began = time.monotonic()
        with pinged(self._server) as pings:
            time.sleep(BEFORE_S)
            yield
            time.sleep(BEFORE_S)
        found = self._server.holds(began)
        self._figures += held(self._bench, "holds", found, pings[0], of=f"{name}: ")


def fill(bench: Bench, server: Server, queue: str, messages: int) -> None:
    """Publish in batches."""
    create_queue(server.target, queue)
    job = Produce(server.target, queue, messages, BODY_BYTES, 256, 16, timed=False)
    bench.work(f"publish {messages:,}", messages, job)
