"""`make demo`: real rows through a real broker, two accidents on the way, and the answer checked at the end.

Four worker processes compete for half-hours of New York taxi rides (10,320 of them). In the middle one
worker and then the broker are ended by kill -9. Each handler writes its row before it returns; at the end
the sums by day in what they wrote must be those of the CSV, or the exit code is 1.
"""

import asyncio
import contextlib
import logging
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console

from examples.demo.cast import BrokerFailedError, Cast
from examples.demo.ledger import Ledger, expected_sums, read
from examples.demo.view import Player, Scene, View, make_view
from kyogo import Publisher, UnavailableError
from kyogo.admin import Client

CSV = Path(__file__).resolve().parents[2] / "tests" / "data" / "nyc_taxi.csv"
QUEUE = "taxi"
WORKERS = ("worker-1", "worker-2", "worker-3", "worker-4")
VICTIM = "worker-2"
ROWS_A_REQUEST = 60
PUBLISH_SECONDS = 4.0
"""Spread over this time, so that the accidents come while rows are published and handled."""
KILL_WORKER_AT = 0.25
KILL_BROKER_AT = 0.5
"""Shares of the rows that are written when it happens."""
DEADLINE_SECONDS = 25.0
LOOK_SECONDS = 0.05


class Demo:
    """The story, from the first process to the last sum."""

    def __init__(self, cast: Cast, view: View, rows: list[dict[str, str]]) -> None:
        self._cast = cast
        self._view = view
        self._rows = rows
        self._ledger = Ledger(cast.ledger)
        self._began = time.monotonic()
        self._published = 0
        self._drained = False
        self._note = ""
        self._looked = asyncio.Condition()
        self._written: Counter[str] = Counter()

    async def run(self) -> None:
        """Everything until the last row is written."""
        await self._cast.start_broker()
        self._view.tell(f"broker listens on {self._cast.address}")
        for name in WORKERS:
            await self._cast.start_worker(name)
        async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as group:
            group.create_task(self._publish())
            group.create_task(self._accidents())
            group.create_task(self._watch())

    async def _publish(self) -> None:
        async with Publisher(self._cast.address) as publisher:
            pause = PUBLISH_SECONDS * ROWS_A_REQUEST / len(self._rows)
            for first in range(0, len(self._rows), ROWS_A_REQUEST):
                part = self._rows[first : first + ROWS_A_REQUEST]
                await publisher.publish_many(QUEUE, part)
                self._published += len(part)
                await asyncio.sleep(pause)
        self._view.tell(f"all {self._published:,} rows are published, and durable")
        await self._until_drained()

    async def _until_drained(self) -> None:
        async with Client(self._cast.address) as admin:
            while not self._drained:
                await asyncio.sleep(LOOK_SECONDS)
                with contextlib.suppress(UnavailableError):
                    stats = (await admin.get_queue(QUEUE)).stats
                    self._drained = stats.ready + stats.delayed + stats.in_flight == 0

    async def _accidents(self) -> None:
        await self._until_written(KILL_WORKER_AT)
        pid = self._cast.pid(VICTIM)
        await self._cast.kill(VICTIM)
        self._view.tell(f"kill -9 {pid}: {VICTIM} is dead, with what it held in its hands")
        await self._until_written(KILL_BROKER_AT)
        pid = self._cast.pid("broker")
        await self._cast.kill("broker")
        self._view.tell(f"kill -9 {pid}: the broker is dead")
        began = time.monotonic()
        await self._cast.start_broker()
        self._note = "started again"
        self._view.tell(f"the broker is back after {time.monotonic() - began:.1f} s; nobody else was told")

    async def _until_written(self, share: float) -> None:
        async with self._looked:
            await self._looked.wait_for(lambda: self._written.total() >= share * len(self._rows))

    async def _watch(self) -> None:
        """Ends with a last look, when the broker has nothing left."""
        while True:
            drained = self._drained
            async with self._looked:
                self._written = self._ledger.written_by()
                self._looked.notify_all()
            self._view.show(self._scene())
            if drained:
                return
            await asyncio.sleep(LOOK_SECONDS)

    def _scene(self) -> Scene:
        def player(name: str, note: str = "") -> Player:
            return Player(name, self._cast.pid(name), self._cast.alive(name), note)

        return Scene(
            seconds=time.monotonic() - self._began,
            total=len(self._rows),
            published=self._published,
            broker=player("broker", self._note),
            workers=tuple(player(name) for name in WORKERS),
            written=self._written,
        )


def report(console: Console, ledger: Ledger, expected: dict[str, int]) -> bool:
    """Compare the ledger's sums by day with the CSV's; returns whether they are the same."""
    found, written = ledger.sums_by_day(), ledger.written_by()
    different = {day for day in expected.keys() | found.keys() if expected.get(day) != found.get(day)}
    console.print(f"rows written   {written.total():,}")
    console.print(f"handled again  {ledger.repeated():,} (at least once; the offset is the key)")
    console.print(f"sums by day    {len(expected):,} days, {len(different):,} differ from the CSV")
    for day in sorted(different):
        console.print(f"  {day}: {found.get(day)} instead of {expected.get(day)}", style="red")
    console.print("[bold red]WRONG[/]" if different else "[bold green]nothing lost, nothing counted twice[/]")
    return not different


async def perform(console: Console) -> int:
    """The demo with all its processes; returns the exit code."""
    rows = read(CSV)
    expected = expected_sums(rows)
    with tempfile.TemporaryDirectory(prefix="kyogo-demo-") as directory:
        cast = Cast(Path(directory))
        view = make_view(console)
        try:
            await Demo(cast, view, rows).run()
        except (BrokerFailedError, ExceptionGroup, TimeoutError) as error:
            view.close()
            console.print(f"[bold red]the demo failed:[/] {error!r}")
            for name in ("broker", *WORKERS):
                console.print(f"--- {name}\n{cast.log(name)}", markup=False)
            return 1
        finally:
            view.close()
            await cast.close()
        return 0 if report(console, Ledger(cast.ledger), expected) else 1


async def main() -> int:
    """The same, ended early by SIGTERM and Ctrl-C without leaving a process behind."""
    logging.getLogger("kyogo").addHandler(logging.NullHandler())  # the view tells what happens
    performing = asyncio.create_task(perform(Console(highlight=False)))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, performing.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        return await performing
    return 130


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
