"""Data that a release has written is read by every later one: the same queues, messages, histories and windows.

A directory under `tests/fixtures` is never changed. To add one: `python -m tests.upgrade.data_directory data-v1-2`.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any, get_args

import pytest

from kyogo_broker.journal.codec import decode
from kyogo_broker.model.commands import Outcome, Publish, Settle, Settlement
from kyogo_broker.model.effects import PublishDone, SettleDone
from kyogo_broker.model.facts import Fact
from kyogo_broker.model.message import FenceRange
from kyogo_broker.model.states import SettleStatus
from tests.support.processes import Processes, processes
from tests.upgrade.data_directory import FIXTURES, Running, batch_of, opened, seen, write

DIRECTORIES = sorted(path.name for path in FIXTURES.glob("data-v*") if path.is_dir())
PORT = 90
EXIT_SECONDS = 150.0
"""A process starts in half a second, and in a minute where every core is taken twenty times over."""


def told(name: str) -> dict[str, Any]:
    """What users saw when a directory was written."""
    found: dict[str, Any] = json.loads((FIXTURES / f"{name}.json").read_text())
    return found


@pytest.fixture(params=DIRECTORIES)
def name(request: pytest.FixtureRequest) -> str:
    directory: str = request.param
    return directory


@pytest.fixture
def broker(name: str, tmp_path: Path) -> Iterator[Running]:
    running = opened(copytree(FIXTURES / name, tmp_path / "data"), told(name))
    yield running
    running.journal.close()


def lacking(found: Any, expected: Any, where: str = "") -> list[str]:
    """Where `found` does not have what was expected; what came with later releases may stand beside it."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [each for key in expected for each in lacking(found.get(key), expected[key], f"{where}/{key}")]
    return [] if found == expected else [f"{where}: {found!r} instead of {expected!r}"]


def test_everything_that_users_saw_is_there(name: str, broker: Running) -> None:
    found, expected = seen(broker.shard, broker.journal), told(name)["queues"]
    assert lacking(found, expected) == []
    assert found.keys() == expected.keys()
    for queue in expected:
        assert found[queue]["messages"].keys() == expected[queue]["messages"].keys()
    broker.shard.check_invariants()


def test_the_comparison_sees_a_difference(name: str) -> None:
    expected = told(name)["queues"]
    message = next(iter(expected["first.work.dlq"]["messages"].values()))
    message["dead_letter"]["attempts"] += 1
    assert lacking(told(name)["queues"], expected) == [
        "/first.work.dlq/messages/1/dead_letter/attempts: 1 instead of 2"
    ]


def test_no_fence_is_issued_twice(name: str, broker: Running) -> None:
    fences = broker.attach(PORT, "first.work", prefetch=2)
    assert len(fences) == 2
    assert min(fences) > told(name)["last_fence"]


def test_a_settlement_of_then_can_be_repeated(name: str, broker: Running) -> None:
    broker.attach(PORT, "first.work", prefetch=1)
    settled = told(name)["settled"]
    assert {"ACK", "RELEASE", "RETRY", "DEAD_LETTER"} == set(settled.values())
    for fence, outcome in settled.items():
        settlement = Settlement(Outcome[outcome], (FenceRange(int(fence), int(fence)),))
        effects = broker.do(Settle(PORT, (settlement,)))
        answers = [result.status for effect in effects if isinstance(effect, SettleDone) for result in effect.results]
        assert answers == [SettleStatus.OK], f"fence {fence}, {outcome}"


def test_a_publish_of_then_is_recognised_when_it_is_sent_again(name: str, broker: Running) -> None:
    resends = 0
    for queue, state in told(name)["queues"].items():
        for producer_id, window in state["producers"].items():
            for request_id, offset, count, digest in window["requests"]:
                batch = batch_of(*["again"] * count)
                effects = broker.do(Publish(0, 0, queue, batch, producer_id, request_id, digest))
                (done,) = [effect for effect in effects if isinstance(effect, PublishDone)]
                assert [run.first_offset for run in done.offsets] == [offset]
                resends += 1
        assert broker.shard._state.names[queue].accepted == state["accepted"]
    assert resends >= 3


def kinds_in(running: Running) -> set[type]:
    """Of all facts that a journal holds, whatever its checkpoint contains."""
    return {type(fact) for record in running.journal.replay(0) for fact in decode(record.payload)}


def test_every_kind_of_fact_stands_in_a_directory(tmp_path: Path) -> None:
    found: set[type] = set()
    for name in DIRECTORIES:
        running = opened(copytree(FIXTURES / name, tmp_path / name), told(name))
        found |= kinds_in(running)
        running.journal.close()
    missing = sorted(kind.__name__ for kind in set(get_args(Fact)) - found)
    assert not missing, (
        f"{', '.join(missing)}: no data directory under tests/fixtures holds it. Let it happen in "
        "tests/upgrade/data_directory.py and run `python -m tests.upgrade.data_directory data-v1-<n>` with the next "
        "free number; those that are there stay as they are"
    )


def test_what_the_script_writes_today_is_read_as_well(tmp_path: Path) -> None:
    account = write(tmp_path / "data", kyogo="1.2.3")
    running = opened(tmp_path / "data", account)
    assert kinds_in(running) == set(get_args(Fact))
    assert seen(running.shard, running.journal).keys() >= {"first.work", "second.work", "second.work.dlq"}
    running.journal.close()


# With the real command.


def newer_fact(path: Path) -> None:
    """A release to come has written a fact that this one does not know."""
    running = Running(path, opened_clock(path), kyogo="9.9.0")
    running.journal.append(running.journal.sequence, [struct.pack("<BBI", 77, 1, 4) + b"what"]).result()
    running.journal.close()


def newer_version_of_a_fact(path: Path) -> None:
    running = Running(path, opened_clock(path), kyogo="9.9.0")
    running.journal.append(running.journal.sequence, [struct.pack("<BBI", 1, 2, 2) + b"{}"]).result()
    running.journal.close()


def newer_layout(path: Path) -> None:
    """A release to come lays the directory out in another way."""
    running = Running(path, opened_clock(path), kyogo="9.9.0")
    meta = running.journal._meta
    running.journal.close()
    assert meta is not None
    later = type(meta)(meta.shard, meta.key, meta.epoch + 1, "9.9.0", format=2)
    with (path / "meta").open("r+b") as file:
        file.write(later.pack() * 2)


def opened_clock(path: Path) -> Any:
    running = opened(path, told("data-v1"))
    running.journal.close()
    return running.clock


async def refused(children: Processes, path: Path) -> str:
    """What `broker serve` says of a directory that it does not take."""
    arguments = ("--listen", "127.0.0.1:0", "--http", "off", "--data", str(path))
    process = children.python("broker", "-m", "kyogo_broker", "serve", *arguments)
    assert await process.exited(EXIT_SECONDS) == 1
    return process.log()


@pytest.mark.timeout(200)
@pytest.mark.parametrize("newer", [newer_fact, newer_version_of_a_fact, newer_layout])
async def test_an_older_broker_refuses_newer_data_and_says_whose_it_is(newer: Any, tmp_path: Path) -> None:
    path = copytree(FIXTURES / "data-v1", tmp_path / "data")
    newer(path)
    meta = (path / "meta").read_bytes()
    async with processes(tmp_path) as children:
        said = await refused(children, path)
    assert "was written by Kyogo 9.9.0; start that version, or restore a backup" in said
    assert "Traceback" not in said
    # Whose it is, it stays: the next one that tries is told the same.
    assert b'"kyogo": "9.9.0"' in meta
    assert (path / "meta").read_bytes().count(b'"kyogo": "9.9.0"') >= meta.count(b'"kyogo": "9.9.0"')


@pytest.mark.timeout(200)
async def test_the_real_broker_serves_the_data_of_then(name: str, tmp_path: Path) -> None:
    copytree(FIXTURES / name, tmp_path / "broker.data")
    async with processes(tmp_path) as children:
        broker = await children.broker()
        listed = children.python("list", "-m", "kyogo.cli", "queue", "list", KYOGO_URL=broker.address, COLUMNS="200")
        assert await listed.exited(EXIT_SECONDS) == 0
        assert [queue for queue in told(name)["queues"] if queue not in listed.log()] == []
        assert await broker.stop() == 0
