"""The examples do what they say, and the demo tells the truth."""

import asyncio
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from examples.demo.__main__ import CSV, report
from examples.demo.ledger import Ledger, Trip, expected_sums, read
from tests.support.processes import ROOT, Broker, Processes, until
from tests.support.queues import drained, stats_of

EXAMPLES = ROOT / "examples"
DEMO_SECONDS = 120


async def test_the_publisher_and_the_ten_line_worker(children: Processes, broker: Broker) -> None:
    publisher = children.python("publish", str(EXAMPLES / "publish.py"), KYOGO_URL=broker.address)
    assert await publisher.exited(30) == 0
    worker = children.python("worker", str(EXAMPLES / "worker.py"), KYOGO_URL=broker.address)
    for number in (1, 2, 3):
        await worker.wrote(f"order {number}: offset {number}, attempt 1")
    assert await worker.stop() == 0
    assert (await drained(broker.address, "orders")).finished == {"acked": 3}


async def test_a_forking_web_server_publishes_from_every_process(children: Processes, broker: Broker) -> None:
    web = children.python("web", str(EXAMPLES / "web_prefork" / "app.py"), "0", KYOGO_URL=broker.address)
    await web.wrote("listening on")
    match = re.search(r"listening on (\d+)", web.log())
    assert match is not None
    address = f"http://127.0.0.1:{match[1]}/"

    def order(number: int) -> dict[str, int]:
        with urllib.request.urlopen(address, json.dumps({"id": number}).encode(), timeout=20) as answer:
            assert answer.status == 202
            read: dict[str, int] = json.loads(answer.read())
            return read

    answers = await asyncio.gather(*(asyncio.to_thread(order, number) for number in range(40)))
    assert sorted(answer["offset"] for answer in answers) == list(range(1, 41))
    assert len({answer["pid"] for answer in answers}) > 1
    assert (await stats_of(broker.address, "orders")).ready == 40
    await web.stop()


def demo(*, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
    )


@pytest.mark.timeout(DEMO_SECONDS + 30)
async def test_the_demo_survives_its_accidents_and_gets_the_sums_right() -> None:
    with demo() as process:
        printed = (await asyncio.to_thread(process.communicate, timeout=DEMO_SECONDS))[0]
    assert process.returncode == 0, printed
    assert "worker-2 is dead" in printed
    assert "the broker is back" in printed
    assert "rows written   10,320" in printed
    assert "215 days, 0 differ" in printed
    assert "\x1b" not in printed


@pytest.mark.timeout(DEMO_SECONDS + 30)
async def test_the_demo_ends_all_its_processes_when_it_is_stopped() -> None:
    with demo() as process:
        children = await until(
            lambda: found if len(found := psutil.Process(process.pid).children()) == 5 else None, "five processes", 20
        )
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.communicate, timeout=DEMO_SECONDS)
    assert process.returncode == 130
    assert [child.pid for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE trips SET value = value + 1 WHERE offset = 5000",
        "DELETE FROM trips WHERE offset = 1",
        "INSERT INTO trips (offset, day, value, worker) VALUES (20000, '2014-07-01', 1, 'x')",
    ],
)
def test_the_demo_notices_a_wrong_sum(tmp_path: Path, damage: str) -> None:
    """The comparison itself, with a ledger that is right and then is not."""
    rows = read(CSV)
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    for offset, row in enumerate(rows, 1):
        ledger.write(offset, Trip.of(row), "worker")
    console = Console(file=io.StringIO())
    assert report(console, ledger, expected_sums(rows))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(damage)
    assert not report(console, ledger, expected_sums(rows))
    ledger.close()
