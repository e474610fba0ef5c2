"""What is watched of a broker while load runs: its journal, its memory, and how long its loop was held."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from bench.deep.jobs import Ping
from bench.figures import Figure, Goal, percentile
from bench.load import Report
from bench.processes import Load, Server
from bench.rows import Bench

EVERY_S: Final = 0.5
HELD_MS: Final = 20.0
MB: Final = 1e6
STATES: Final = ("ready", "delayed", "in_flight")
OVERHEAD_BYTES: Final = 4
"""Of a message's body, encoded."""


@dataclass(slots=True)
class Seen:
    """The worst of what a sampler saw."""

    journal: list[tuple[float, float]] = field(default_factory=list)
    """(bytes on disk, bytes of messages that were not finished)."""
    rss: float = 0.0
    written: float = 0.0
    copied: float = 0.0

    def over(self, times: float) -> float:
        """The most that the journal ever was above so many times the live data."""
        return max(disk - times * live for disk, live in self.journal)


class Sampler:
    """Reads a broker's metrics again and again while the block runs."""

    def __init__(self, server: Server, *, message_bytes: int) -> None:
        self._server = server
        self._size = message_bytes + OVERHEAD_BYTES
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.seen = Seen()
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._over.wait(EVERY_S):
                self.look()
        except BaseException as error:  # noqa: BLE001 - raised where the block ends
            self._failure = error

    def look(self) -> None:
        """One sample."""
        found = self._server.metrics()
        waiting = sum(
            value
            for name, value in found.items()
            if name.startswith("kyogo_queue_messages{") and name.rpartition(",")[2][:-1] in STATES
        )
        seen = self.seen
        seen.journal.append((self._server.disk_bytes(), waiting * self._size))
        seen.rss = max(seen.rss, found["process_resident_memory_bytes"])
        seen.written, seen.copied = found["kyogo_commit_bytes_total"], found["kyogo_journal_copied_bytes_total"]


@contextmanager
def pinged(server: Server) -> Iterator[list[Report]]:
    """Ask the broker who it is meanwhile; the report is there after the block."""
    reports: list[Report] = []
    with Load(Ping(server.target)) as load:
        load.go()
        yield reports
        load.stop()
        reports.append(load.result())


def journal_figures(row: str, seen: Seen, *, live_times: float = 3, spare_mb: float = 256) -> list[Figure]:
    """The journal's size and what was copied forward."""
    share = seen.copied / seen.written if seen.written else 0.0
    return [
        Figure(row, "journal at most", "MB", broker=max(disk for disk, _ in seen.journal) / MB),
        Figure(
            row, f"journal above {live_times:g} x live data, at most", "MB", broker=seen.over(live_times) / MB,
            goal=Goal(spare_mb),
        ),
        Figure(row, "copied forward, of all that was written", "%", broker=100 * share, goal=Goal(25)),
    ]  # fmt: skip


def held(
    bench: Bench, row: str, holds: Sequence[dict[str, Any]], pings: Report | None = None, *, of: str = ""
) -> list[Figure]:
    """How long the loop was held, by its own watch and as others felt it.

    The goal is for processor time: on a machine with other people on it the wall counts them too.
    """
    bench.say(describe(sorted(holds, key=lambda hold: -float(hold["cpu_ms"]))))
    cpu = max((hold["cpu_ms"] for hold in holds), default=0.0)
    by_wall = sum(1 for hold in holds if hold["wall_ms"] > HELD_MS)
    figures = [
        Figure(row, f"{of}loop held at most, processor time", "ms", broker=cpu, goal=Goal(HELD_MS)),
        Figure(row, f"{of}loop held over {HELD_MS:g} ms by the wall", "times", broker=by_wall),
    ]
    if pings is not None:
        for share, name in ((0.5, "p50"), (0.999, "p99.9"), (1.0, "worst")):
            value = percentile(pings.latencies, share) * 1e3
            figures.append(Figure(row, f"{of}GetServerInfo each 5 ms, {name}", "ms", broker=value))
    return figures


def describe(holds: Sequence[dict[str, Any]], most: int = 6) -> str:
    """The longest holds, and what the loop was doing, for people."""
    lines = []
    for hold in holds[:most]:
        lines.append(f"{hold['cpu_ms']:7.1f} ms processor, {hold['wall_ms']:7.1f} ms wall: {hold['what']}")
        lines += [f"            {stack}" for stack in hold["stacks"]]
    return "\n".join(lines)
