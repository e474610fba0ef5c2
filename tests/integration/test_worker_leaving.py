"""A worker that leaves: drain by the program and by the broker, and what gets in the way."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kyogo.v1 import broker_pb2 as pb
from tests.support.fake_broker import FakeBroker, eventually, fake_broker
from tests.support.sdk_workers import serving, waiting_handler, worker


@pytest.fixture
async def broker() -> AsyncIterator[Any]:
    async with fake_broker() as running:
        yield running


# --- leaving ---


async def test_drain_finishes_settles_and_leaves(broker: FakeBroker) -> None:
    app, gate = worker(broker, concurrency=1), asyncio.Event()

    @app.handle("orders")
    async def handle(body: str) -> None:
        await gate.wait()

    task = asyncio.create_task(app.serve())
    session = await broker.session()
    session.deliver(b"a", b"b")
    await eventually(lambda: session.started == [1])
    app.drain(10)
    app.drain(10)
    assert await session.settled(2) == {2: "RELEASE"}
    assert session.prefetch == 0
    late = session.deliver(b"c")
    assert (await session.settled(*late))[3] == "RELEASE"
    assert not any(frame.HasField("detach") for frame in session.frames)
    gate.set()
    await asyncio.wait_for(task, 10)
    assert session.outcomes == {1: "ACK", 2: "RELEASE", 3: "RELEASE"}
    assert session.detached
    assert len(broker.sessions) == 1


async def test_leaving_waits_for_the_last_answers(broker: FakeBroker) -> None:
    broker.answer_settlements = False
    app = worker(broker)

    @app.handle("orders")
    async def handle(body: str) -> None: ...

    task = asyncio.create_task(app.serve())
    session = await broker.session()
    await session.settled(*session.deliver(b"a"))
    app.drain(10)
    await eventually(lambda: session.prefetch == 0)
    assert not session.detached
    session.send(settled=[pb.SettleResult(range=pb.FenceRange(first=1, last=1), status=pb.SETTLE_STATUS_OK)])
    await asyncio.wait_for(task, 10)
    assert (session.detached, app.stats().confirmed) == (True, 1)


async def test_past_the_deadline_handlers_are_stopped_and_released(broker: FakeBroker) -> None:
    app = worker(broker, concurrency=2)
    log = waiting_handler(app)
    task = asyncio.create_task(app.serve())
    session = await broker.session()
    session.deliver(b"a")
    await eventually(lambda: session.started == [1])
    app.drain(0.05)
    await asyncio.wait_for(task, 10)
    assert (session.outcomes, session.detached) == ({1: "RELEASE"}, True)
    assert "cancelled a lost" in log


async def test_a_drain_of_the_broker_ends_the_worker(broker: FakeBroker) -> None:
    app = worker(broker)

    @app.handle("orders")
    async def handle(body: str) -> None: ...

    task = asyncio.create_task(app.serve())
    session = await broker.session()
    await session.settled(*session.deliver(b"a"))
    session.send(drain=pb.Drain(reason="scaled in", deadline_ms=5_000))
    await asyncio.wait_for(task, 10)
    assert session.detached


@pytest.mark.parametrize("how", ["reason", "error"])
async def test_a_broker_that_stops_is_come_back_to(broker: FakeBroker, how: Any) -> None:
    app = worker(broker)

    @app.handle("orders")
    async def handle(body: str) -> None: ...

    async with serving(app):
        first = await broker.session(0)
        if how == "reason":
            first.send(drain=pb.Drain(reason="the broker is stopping", deadline_ms=5_000))
        else:
            draining = pb.Error(code=pb.ERROR_CODE_BROKER_DRAINING, message="bye")
            first.send(drain=pb.Drain(reason="x"), errors=[draining])
        second = await broker.session(1)
        assert first.detached
        await second.settled(*second.deliver(b"a"))


async def test_a_broker_that_does_not_let_go_is_left(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kyogo.consumer._LEAVE_TIMEOUT", 0.05)
    broker.answer_detach = False
    app = worker(broker)

    @app.handle("orders")
    async def handle(body: str) -> None: ...

    async with serving(app):
        await app.attached()


async def test_drain_before_it_is_attached(broker: FakeBroker) -> None:
    broker.on_attach = lambda session: False
    app = worker(broker)

    @app.handle("orders")
    async def handle(body: str) -> None: ...

    task = asyncio.create_task(app.serve())
    await broker.session()
    app.drain()
    await asyncio.wait_for(task, 10)


async def test_drain_while_the_broker_is_away(caplog: pytest.LogCaptureFixture) -> None:
    app = worker("kyogo://127.0.0.1:1")

    @app.handle("orders")
    async def handle(body: str) -> None: ...

    task = asyncio.create_task(app.serve())
    await eventually(lambda: "not attached" in caplog.text)
    app.drain()
    await asyncio.wait_for(task, 10)


async def test_cancelling_serve_stops_at_once_and_leaves_nothing_behind(broker: FakeBroker) -> None:
    app = worker(broker)
    log = waiting_handler(app)
    task = asyncio.create_task(app.serve())
    session = await broker.session()
    session.deliver(b"a")
    await eventually(lambda: log == ["began a"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log[1].startswith("cancelled a")
    await eventually(lambda: not [t for t in asyncio.all_tasks() if t.get_name().startswith("kyogo")])
