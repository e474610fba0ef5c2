"""What Kyogo is for, through real processes: several workers share a queue, and one of them may die."""

import time
from collections import Counter
from pathlib import Path

from tests.support.processes import Broker, Processes
from tests.support.queues import drained, make_queue
from tests.support.raw_consumer import publish
from tests.support.workers import Workers

QUEUE = "orders"
JSON = "application/json"
FAILOVER_SECONDS = 2.0
"""From kill -9 to the handler elsewhere. It takes milliseconds; the rest is for a loaded machine."""


async def test_basic_operation(children: Processes, broker: Broker) -> None:
    await make_queue(broker.address, QUEUE)
    workers = Workers(children, broker, QUEUE)
    await workers.start("worker")

    offsets = await publish(broker.address, QUEUE, *(b'{"number": %d}' % n for n in range(200)), content_type=JSON)
    done = await workers.done(offsets)

    assert [entry.offset for entry in sorted(done, key=lambda entry: entry.offset)] == offsets
    assert all(entry.body == {"number": entry.offset - offsets[0]} for entry in done)
    assert {(entry.attempt, entry.losses) for entry in done} == {(1, 0)}
    stats = await drained(broker.address, QUEUE)
    assert (stats.accepted, stats.finished, stats.delivered) == (200, {"acked": 200}, 200)


async def test_load_balancing(children: Processes, broker: Broker, tmp_path: Path) -> None:
    await make_queue(broker.address, QUEUE)
    workers = Workers(children, broker, QUEUE)
    names = ["one", "two", "three", "four"]
    await workers.start(*names, concurrency=4)

    gate = tmp_path / "gate"
    held = b'{"until": "%s"}' % str(gate).encode()
    offsets = await publish(broker.address, QUEUE, *[held] * 16, content_type=JSON)
    begun = await workers.begun(16)
    assert Counter(entry.worker for entry in begun) == dict.fromkeys(names, 4)

    gate.touch()
    done = await workers.done(offsets)
    assert len(done) == 16
    # With everyone free, a stream of short ones reaches all of them, in about equal shares.
    offsets = await publish(broker.address, QUEUE, *[b'{"seconds": 0.01}'] * 2_000, content_type=JSON)
    shares = Counter(entry.worker for entry in await workers.done(offsets))
    assert sorted(shares) == sorted(names)
    assert min(shares.values()) > 250, shares


async def test_failover(children: Processes, broker: Broker, tmp_path: Path) -> None:
    await make_queue(broker.address, QUEUE)
    workers = Workers(children, broker, QUEUE)
    await workers.start("victim", "heir", concurrency=4)
    gate = tmp_path / "gate"
    held = b'{"until": "%s"}' % str(gate).encode()
    offsets = await publish(broker.address, QUEUE, *[held] * 4, content_type=JSON)
    begun = await workers.begun(4)
    inherited = {entry.offset: entry for entry in begun if entry.worker == "victim"}
    assert len(inherited) == 2

    killed_at = time.monotonic()
    workers.kill("victim")
    again = (await workers.begun(6))[4:]

    assert {entry.offset for entry in again} == set(inherited)
    for entry in again:
        before = inherited[entry.offset]
        # A loss is charged for what the broker knew to have begun; a killed worker may not have said so yet.
        assert (entry.worker, entry.attempt, entry.losses in {0, 1}) == ("heir", 1, True)
        assert entry.fence > before.fence
        assert entry.at - killed_at < FAILOVER_SECONDS
    gate.touch()
    assert {entry.worker for entry in await workers.done(offsets)} == {"heir"}
    stats = await drained(broker.address, QUEUE)
    assert (stats.finished, stats.redelivered) == ({"acked": 4}, {"stream_loss": 2})
