"""A worker and its stream: losses, heartbeats, prefetch."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from kyogo import AccessError, UnavailableError
from kyogo.v1 import broker_pb2 as pb
from tests.support.fake_broker import FakeBroker, FakeSession, bodies, eventually, fake_broker
from tests.support.sdk_workers import serving, waiting_handler, worker


@pytest.fixture
async def broker() -> AsyncIterator[Any]:
    async with fake_broker() as running:
        yield running


# --- losses ---


async def test_a_lost_stream_cancels_and_comes_back(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    app = worker(broker, concurrency=2, consumer_id="c")
    log = waiting_handler(app)
    async with serving(app):
        first = await broker.session(0)
        fences = first.deliver(b"a", b"b", b"c")
        await eventually(lambda: first.started == fences[:2])
        first.end(grpc.StatusCode.UNAVAILABLE)
        second = await broker.session(1)
        await eventually(lambda: len(log) == 4)
        assert sorted(log) == ["began a", "began b", "cancelled a lost", "cancelled b lost"]
        assert first.attach.session_token == ""
        assert second.attach.session_token == "token-1"  # takes its consumer id over
        assert [s.queue for s in second.attach.subscriptions] == ["orders"]
        assert second.settlements == {}
    assert app.stats().lost == 2
    assert "the stream was lost with 2 running handlers" in caplog.text


async def test_unanswered_settlements_are_lost_with_the_stream(broker: FakeBroker) -> None:
    broker.answer_settlements = False
    app, seen = worker(broker), []

    @app.handle("orders")
    async def handle(body: str) -> None:
        seen.append(body)

    async with serving(app):
        first = await broker.session(0)
        await first.settled(*first.deliver(b"a"))
        broker.answer_settlements = True
        first.end()
        second = await broker.session(1)
        await second.settled(*second.deliver(b"a", attempt=1, redelivery_reason=pb.REDELIVERY_REASON_STREAM_LOSS))
    assert seen == ["a", "a"]
    assert (app.stats().settlements_lost, app.stats().confirmed, app.stats().attachments) == (1, 1, 2)


async def test_it_never_gives_up_on_a_broker_that_is_away(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    app = worker(broker)

    @app.handle("orders")
    async def handle(body: bytes) -> None: ...

    async with serving(app) as task:
        await broker.session(0)
        port = broker.port
        await broker.stop()
        await eventually(lambda: caplog.text.count("not attached") > 10)
        assert not task.done()
        assert not app.stats().attached
        await broker.start(port)
        second = await broker.session(1)
        await second.settled(*second.deliver(b"x"))


async def test_a_queue_that_is_missing_is_waited_for(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    refused = 0

    def on_attach(session: Any) -> bool:
        nonlocal refused
        refused += 1
        if refused < 3:
            session.end(grpc.StatusCode.NOT_FOUND, "QUEUE_NOT_FOUND", "no queue 'ordres': did you mean 'orders'?")
            return False
        return True

    broker.on_attach = on_attach
    app = worker(broker)

    @app.handle("ordres")
    async def handle(body: bytes) -> None: ...

    async with serving(app):
        await app.attached()
    assert refused == 3
    assert "did you mean 'orders'?" in caplog.text


async def test_who_is_not_let_in_at_first_ends(broker: FakeBroker) -> None:
    def on_attach(session: FakeSession) -> bool:
        session.end(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "who?")
        return False

    broker.on_attach = on_attach
    app = worker(broker)

    @app.handle("orders")
    async def handle(body: bytes) -> None: ...

    with pytest.raises(AccessError, match="who"):
        await asyncio.wait_for(app.serve(), 10)


async def test_give_up_after() -> None:
    app = worker("kyogo://127.0.0.1:1", give_up_after=0.05)

    @app.handle("orders")
    async def handle(body: bytes) -> None: ...

    with pytest.raises(UnavailableError, match="KYOGO_URL"):
        await asyncio.wait_for(app.serve(), 10)


async def test_a_broker_that_asks_to_wait_is_left_alone_so_long(broker: FakeBroker) -> None:
    attached_at: list[float] = []

    def on_attach(session: Any) -> bool:
        attached_at.append(time.monotonic())
        if len(attached_at) == 1:
            session.end(grpc.StatusCode.UNAVAILABLE, "BROKER_DRAINING", "soon", 200)
            return False
        return True

    broker.on_attach = on_attach
    app = worker(broker)

    @app.handle("orders")
    async def handle(body: bytes) -> None: ...

    async with serving(app):
        await app.attached()
    assert attached_at[1] - attached_at[0] >= 0.2


async def test_a_broker_that_breaks_the_contract_is_left(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    broker.on_attach = lambda session: session.deliver(b"too early") == []
    app = worker(broker)

    @app.handle("orders")
    async def handle(body: bytes) -> None: ...

    async with serving(app):
        await broker.session(1)
        broker.on_attach = lambda session: True
        await app.attached()
    assert "PROTOCOL_VIOLATED" in caplog.text


async def test_a_frozen_broker_is_noticed_by_its_silence(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kyogo.stream._SILENCE_MIN", 0.2)
    broker.heartbeat_interval_ms = 20
    app = worker(broker)
    log = waiting_handler(app)
    async with serving(app):
        first = await broker.session(0)
        first.deliver(b"a")
        await eventually(lambda: log == ["began a"])
        first.answer_heartbeats = False
        await broker.session(1)
        await eventually(lambda: "cancelled a lost" in log)


async def test_a_broker_that_never_answers_attach_is_left(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kyogo.stream._ATTACH_TIMEOUT", 0.1)
    broker.on_attach = lambda session: False
    app = worker(broker, heartbeat=0.05)

    @app.handle("orders")
    async def handle(body: bytes) -> None: ...

    async with serving(app):
        await eventually(lambda: len(broker.sessions) >= 2)


async def test_a_frame_that_cannot_be_made_does_not_hang_the_worker(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = worker(broker)

    @app.handle("orders")
    async def handle(body: bytes) -> None: ...

    async with serving(app):
        first = await broker.session(0)
        with monkeypatch.context() as broken:
            broken.setattr("kyogo.wire.fence_ranges", lambda _: 1 / 0)
            first.deliver(b"x")
            await first.ended.wait()
        second = await broker.session(1)
        await second.settled(*second.deliver(b"x"))
    assert "bug" in caplog.text


# --- heartbeats ---


async def test_heartbeats_count_echo_and_tell_the_load(broker: FakeBroker) -> None:
    broker.heartbeat_interval_ms = 20
    app = worker(broker, concurrency=2)
    waiting_handler(app)
    async with serving(app):
        session = await broker.session()
        session.deliver(b"a", b"b", b"c")
        beats = await eventually(
            lambda: [b for f in session.frames if f.HasField("heartbeat") and (b := f.heartbeat).running == 2][3:]
        )
        last = beats[-1]
        assert last.echo in {last.sequence - 1 + 100, last.sequence - 2 + 100}
        assert (last.buffered, last.utilization) == (1, 1.0)
        assert last.rss_bytes > 1 << 20
        sequences = [f.heartbeat.sequence for f in session.frames if f.HasField("heartbeat")]
        assert sequences == list(range(1, len(sequences) + 1))


async def test_a_blocked_loop_is_noticed_and_not_taken_for_the_brokers_silence(
    broker: FakeBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kyogo.stream._SILENCE_MIN", 0.2)
    broker.heartbeat_interval_ms = 20
    app = worker(broker)

    @app.handle("orders")
    async def handle(body: bytes) -> None:
        time.sleep(0.5)  # noqa: ASYNC251 - blocking is the point

    async with serving(app):
        session = await broker.session()
        await session.settled(*session.deliver(b"x"))
    assert "the event loop was blocked" in caplog.text
    assert session.detached
    assert len(broker.sessions) == 1


# --- prefetch ---


async def test_prefetch_follows_the_handlers_speed(broker: FakeBroker) -> None:
    app = worker(broker, concurrency=4, heartbeat=30.0)
    slow = asyncio.Event()

    @app.handle("orders")
    async def handle(body: bytes) -> None:
        if slow.is_set():
            await asyncio.sleep(0.05)

    async with serving(app):
        session = await broker.session()
        assert session.attach.prefetch.messages == 8
        await session.settled(*session.deliver(*bodies(50)))
        await eventually(lambda: session.prefetch > 1_000)
        slow.set()
        for _ in range(12):
            await session.settled(*session.deliver(*[b"x"] * 4))
        await eventually(lambda: session.prefetch < 20)


async def test_a_fixed_prefetch_stays(broker: FakeBroker) -> None:
    app = worker(broker, concurrency=4, prefetch=5)

    @app.handle("orders")
    async def handle(body: bytes) -> None: ...

    async with serving(app):
        session = await broker.session()
        await session.settled(*session.deliver(*bodies(50)))
        await eventually(lambda: app.stats().confirmed == 50)
    asked = [session.attach.prefetch.messages] + [f.prefetch.messages for f in session.frames if f.HasField("prefetch")]
    assert asked == [5, 0]
