"""What ends a handler early: revokes, late extensions, time limits; and what is announced before it begins."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from kyogo import Message
from kyogo.v1 import broker_pb2 as pb
from tests.support.fake_broker import FakeBroker, eventually, fake_broker
from tests.support.sdk_workers import serving, waiting_handler, worker


@pytest.fixture
async def broker() -> AsyncIterator[Any]:
    async with fake_broker() as running:
        yield running


# --- revokes ---


async def test_return_gives_back_what_has_not_begun(broker: FakeBroker) -> None:
    app = worker(broker, concurrency=1)
    waiting_handler(app)
    async with serving(app):
        session = await broker.session()
        session.deliver(b"a", b"b", b"c")
        await eventually(lambda: session.started == [1])
        session.revoke("RETURN", 1, 2, 3)
        assert await session.settled(2, 3) == {2: "RELEASE", 3: "RELEASE"}


@pytest.mark.parametrize(("mode", "settled"), [("LOST", False), ("CANCEL", True)])
async def test_lost_and_cancel_stop_an_async_handler(broker: FakeBroker, mode: Any, settled: Any) -> None:
    app = worker(broker, concurrency=1)
    log = waiting_handler(app)
    async with serving(app):
        session = await broker.session()
        session.deliver(b"a", b"b")
        await eventually(lambda: session.started == [1])
        session.revoke(mode, 1, reason="CANCELLED")
        await eventually(lambda: "began b" in log)  # its slot goes on with the next one
        assert "cancelled a lost" in log
        if settled:
            assert (await session.settled(1))[1] == "RELEASE"
        assert (1 in session.outcomes) is settled


async def test_a_thread_is_told_and_its_settlement_not_sent(broker: FakeBroker) -> None:
    app, seen = worker(broker, concurrency=1), []

    @app.handle("orders")
    def handle(body: str, message: Message) -> None:
        seen.append((body, message.lost.wait(10) if body == "a" else bool(message.lost)))

    async with serving(app):
        session = await broker.session()
        session.deliver(b"a", b"b")
        await eventually(lambda: session.started == [1])
        session.revoke("LOST", 1, reason="VISIBILITY_TIMEOUT")
        await session.settled(2)
        assert 1 not in session.outcomes
    assert seen == [("a", True), ("b", False)]
    assert app.stats().lost == 1


async def test_a_lost_thread_keeps_its_slot_until_it_returns(broker: FakeBroker) -> None:
    app, gate = worker(broker, concurrency=1), threading.Event()

    @app.handle("orders")
    def handle(body: str) -> None:
        if body == "a":
            gate.wait(10)

    async with serving(app):
        first = await broker.session(0)
        first.deliver(b"a")
        await eventually(lambda: first.started == [1])
        first.end(grpc.StatusCode.UNAVAILABLE)
        second = await broker.session(1)
        second.deliver(b"b")
        await eventually(lambda: app.stats().buffered == 1)
        assert app.stats().running == 1
        gate.set()
        await second.settled(1)


# --- what may have killed its last consumer ---


@pytest.mark.parametrize("reason", ["STREAM_LOSS", "FAILED", "SUSPECT"])
async def test_a_suspicious_message_is_announced_before_it_begins(broker: FakeBroker, reason: Any) -> None:
    app, known = worker(broker), []

    @app.handle("orders")
    async def handle(body: bytes, message: Message) -> None:
        deadline = time.monotonic() + 5
        session = broker.sessions[0]
        await eventually(lambda: message.fence in session.started or time.monotonic() > deadline)
        known.append(message.fence in session.started)

    async with serving(app):
        session = await broker.session()
        number = pb.RedeliveryReason.Value(f"REDELIVERY_REASON_{reason}")
        await session.settled(*session.deliver(b"x", b"y", redelivery_reason=number))
    assert known == [True, True]


async def test_a_suspicious_message_that_ends_at_once_was_announced(broker: FakeBroker) -> None:
    app = worker(broker)

    @app.handle("orders")
    async def handle(body: bytes) -> None: ...

    async with serving(app):
        session = await broker.session()
        await session.settled(*session.deliver(b"x"))
        await session.settled(*session.deliver(b"y", redelivery_reason=pb.REDELIVERY_REASON_STREAM_LOSS))
    assert session.started == [2]


# --- extending and time limits ---


async def test_extend_from_the_loop_and_from_a_thread(broker: FakeBroker) -> None:
    app = worker(broker)

    @app.handle("orders")
    async def on_loop(body: bytes, message: Message) -> None:
        message.extend(5)
        await eventually(lambda: any(f.extend.ranges for f in broker.sessions[0].frames))

    @app.handle("mails")
    def in_thread(body: bytes, message: Message) -> None:
        message.extend(7)
        message.lost.wait(0.05)

    async with serving(app):
        session = await broker.session()
        fences = session.deliver(b"x") + session.deliver(b"y", subscription=1)
        await session.settled(*fences)
    asked = {f.extend.extension_ms: f.extend.ranges[0].first for f in session.frames if f.extend.ranges}
    assert asked == {5_000: 1, 7_000: 2}


async def test_an_extension_that_comes_too_late_stops_the_handler(broker: FakeBroker) -> None:
    broker.extend_status = pb.SETTLE_STATUS_STALE
    app, log = worker(broker), []

    @app.handle("orders")
    async def handle(body: bytes, message: Message) -> None:
        message.extend(5)
        try:
            await asyncio.Event().wait()
        finally:
            log.append(bool(message.lost))

    async with serving(app):
        session = await broker.session()
        session.deliver(b"x")
        await eventually(lambda: log == [True])


async def test_a_time_limit_cancels_and_charges(broker: FakeBroker) -> None:
    app = worker(broker, concurrency=1)
    log = waiting_handler(app, time_limit=0.05)
    async with serving(app):
        session = await broker.session()
        await session.settled(*session.deliver(b"a", b"b"))
        assert session.outcomes == {1: "RETRY", 2: "RETRY"}
        assert session.settlements[1].error_type == "TimeLimitExceeded"
        assert "0.05" in session.settlements[1].reason
    assert log == ["began a", "cancelled a lost", "began b", "cancelled b lost"]


async def test_a_time_limit_in_a_thread_tells_and_charges_at_once(broker: FakeBroker) -> None:
    app, told, gate = worker(broker, concurrency=1), [], threading.Event()

    @app.handle("orders", time_limit=0.05)
    def handle(body: str, message: Message) -> None:
        if body == "a":
            told.append(message.lost.wait(10))
            gate.wait(10)

    async with serving(app):
        session = await broker.session()
        session.deliver(b"a", b"b")
        assert await session.settled(1) == {1: "RETRY"}
        assert session.settlements[1].error_type == "TimeLimitExceeded"
        await eventually(lambda: told == [True])
        assert app.stats().running == 1  # the thread still has its slot
        gate.set()
        await session.settled(2)
        assert session.outcomes == {1: "RETRY", 2: "ACK"}


async def test_a_limit_beyond_the_visibility_timeout_is_warned_about(
    broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    app = worker(broker)

    @app.handle("orders", time_limit=31)
    async def handle(body: bytes) -> None: ...

    @app.handle("mails", time_limit=30)
    async def other(body: bytes) -> None: ...

    async with serving(app):
        await app.attached()
    warned = [record.message for record in caplog.records if "visibility_timeout_ms" in record.message]
    assert len(warned) == 1
    assert "'orders'" in warned[0]
