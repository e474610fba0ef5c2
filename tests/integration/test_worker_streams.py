"""A worker and its stream: losses, revokes, heartbeats, time limits, drain."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from kyogo import AccessError, Message, UnavailableError
from kyogo.v1 import broker_pb2 as pb
from tests.support.fake_broker import FakeBroker, bodies, eventually, fake_broker
from tests.support.sdk_workers import serving, worker


@pytest.fixture
async def broker() -> AsyncIterator[Any]:
    async with fake_broker() as running:
        yield running


def waiting_handler(app: Any, **options: Any) -> Any:
    """A handler that waits, and what became of it."""
    log: list[str] = []

    @app.handle("orders", **options)
    async def handle(body: str, message: Message) -> None:
        log.append(f"began {body}")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log.append(f"cancelled {body}{' lost' if message.lost else ''}")
            raise

    return log


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
    broker.on_attach = lambda session: session.end(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "who?") or False
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
        time.sleep(0.5)

    async with serving(app):
        session = await broker.session()
        await session.settled(*session.deliver(b"x"))
    assert "the event loop was blocked" in caplog.text
    assert len(broker.sessions) == 1


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
    assert not session.detached
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


# --- prefetch ---


async def test_prefetch_follows_the_handlers_speed(broker: FakeBroker) -> None:
    app = worker(broker, concurrency=4)
    slow = asyncio.Event()

    @app.handle("orders")
    async def handle(body: bytes) -> None:
        if slow.is_set():
            await asyncio.sleep(0.2)

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
