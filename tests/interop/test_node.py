"""A consumer and a publisher in Node, straight from the .proto files, against the real broker."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.processes import ROOT, Broker, Process, Processes, processes, until
from tests.support.queues import drained, make_queue, stats_of, stats_when
from tests.support.raw_consumer import ACK, attached, publish

EXAMPLE = ROOT / "examples" / "node"
QUEUE = "orders"
INSTALL_SECONDS = 120
LEVELS = pytest.mark.parametrize("options", [(), ("--started",)], ids=["level-1", "started"])


@pytest.fixture(scope="module", autouse=True)
def node_modules() -> None:
    """Installs what the example needs, once; without Node there is nothing to test, except in CI."""
    missing = [program for program in ("node", "npm") if shutil.which(program) is None]
    if missing:
        text = f"{' and '.join(missing)} not installed: on Debian `apt install nodejs npm`"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    if not (EXAMPLE / "node_modules" / "@grpc" / "grpc-js").is_dir():
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=EXAMPLE, check=True, timeout=INSTALL_SECONDS, capture_output=True)


@pytest_asyncio.fixture
async def children(tmp_path: Path) -> AsyncIterator[Processes]:
    async with processes(tmp_path) as started:
        yield started


@pytest_asyncio.fixture
async def broker(children: Processes) -> Broker:
    broker = await children.broker()
    await make_queue(broker.address, QUEUE)
    return broker


def consume(children: Processes, broker: Broker, *options: str, name: str = "consume") -> Process:
    script = str(EXAMPLE / "consume.js")
    return children.run(name, "node", script, QUEUE, "--server", broker.address, *options)


def printed(process: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.log().splitlines() if line.startswith("{")]


@LEVELS
async def test_node_consumes_acks_and_detaches(children: Processes, broker: Broker, options: tuple[str, ...]) -> None:
    bodies = [f"row {number} ü".encode() for number in range(100)]
    offsets = await publish(broker.address, QUEUE, *bodies, type="row", headers={"n": "1"}, content_type="text/plain")
    node = consume(children, broker, "--count", "90", *options)

    assert await node.exited(30) == 0
    assert [(row["offset"], row["body"]) for row in printed(node)] == [
        (offset, body.decode()) for offset, body in zip(offsets, bodies, strict=True)
    ][:90]
    first = printed(node)[0]
    assert (first["type"], first["headers"]) == ("row", {"n": "1"})
    assert (first["content_type"], first["attempt"], first["losses"]) == ("text/plain", 1, 0)
    # It held more than it took, and left politely: that went back at once, and uncharged.
    stats = await stats_of(broker.address, QUEUE)
    assert (stats.finished, stats.ready, stats.in_flight, stats.consumers) == ({"acked": 90}, 10, 0, 0)
    async with attached(broker.address, QUEUE) as consumer:
        delivery = await consumer.delivery()
        assert (delivery.offset, delivery.attempt, delivery.losses) == (offsets[90], 1, 0)


@LEVELS
async def test_node_stays_alive_by_its_heartbeats(
    children: Processes, broker: Broker, options: tuple[str, ...]
) -> None:
    node = consume(children, broker, *options)
    await node.wrote("attached to orders")
    # Three heartbeats of the broker's after the silence that would have made it suspect are proof enough.
    async with attached(broker.address, QUEUE, heartbeats=True) as watcher:
        beats = lambda: sum(frame.HasField("heartbeat") for frame in watcher.frames)  # noqa: E731
        await until(lambda: beats() >= 5, "five heartbeats", 20)
    assert (await stats_when(broker.address, QUEUE, lambda s: s.consumers == 1, "one consumer")).consumers == 1
    await publish(broker.address, QUEUE, b"still there?")
    await until(lambda: printed(node), "a message at the consumer")
    node.send(signal.SIGTERM)
    assert await node.exited() == 0
    assert (await drained(broker.address, QUEUE)).finished == {"acked": 1}


@LEVELS
async def test_what_a_killed_node_consumer_held_goes_to_another(
    children: Processes, broker: Broker, options: tuple[str, ...]
) -> None:
    node = consume(children, broker, *options)
    await node.wrote("attached to orders")
    node.send(signal.SIGSTOP)  # so that it holds what it is given
    [offset] = await publish(broker.address, QUEUE, b"x")
    await stats_when(broker.address, QUEUE, lambda stats: stats.in_flight == 1, "held by node")
    node.kill()
    async with attached(broker.address, QUEUE) as consumer:
        delivery = await consumer.delivery()
    # Level 1 counts as started from delivery on; who says `started` is charged only for what it began.
    assert (delivery.offset, delivery.attempt, delivery.losses) == (offset, 1, 0 if options else 1)
    assert delivery.reason == "STREAM_LOSS"


async def test_node_publishes(children: Processes, broker: Broker) -> None:
    lines = [f"line {number} ü" for number in range(1_000)]
    command = ["node", str(EXAMPLE / "publish.js"), QUEUE, "--server", broker.address]
    command += ["--type", "line", "--header", "from=node"]
    done = subprocess.run(  # noqa: ASYNC221  nothing else runs in this test
        command, input="\n".join(lines).encode(), capture_output=True, timeout=30, check=False
    )
    assert (done.returncode, json.loads(done.stdout)) == (0, {"stored": 1_000}), done.stderr

    async with attached(broker.address, QUEUE, prefetch=1_000) as consumer:
        found = [await consumer.delivery() for _ in lines]
        assert [delivery.body.decode() for delivery in found] == lines
        assert found[0].message.type == "line"
        assert dict(found[0].message.headers) == {"from": "node"}
        assert set(await consumer.settle(ACK, *(delivery.fence for delivery in found))) == {"OK"}


async def test_node_says_so_when_there_is_no_broker(children: Processes) -> None:
    node = children.run("consume", "node", str(EXAMPLE / "consume.js"), QUEUE, "--server", "127.0.0.1:1")
    assert await node.exited() == 3
    assert "the stream to 127.0.0.1:1 ended" in node.log()
