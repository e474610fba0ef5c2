"""Handlers at work: what they are given, and what becomes of the message."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest

from kyogo import ConfigurationError, DeadLetter, Message, Release, Retry, Worker
from kyogo.v1 import broker_pb2 as pb
from tests.support.fake_broker import FakeBroker, bodies, eventually, fake_broker
from tests.support.sdk_workers import serving, worker


@pytest.fixture
async def broker() -> AsyncIterator[Any]:
    async with fake_broker() as running:
        yield running


async def test_returning_means_ack_whatever_the_value(broker: FakeBroker) -> None:
    app, seen = worker(broker), []

    @app.handle("orders")
    async def handle(order: dict[str, Any], message: Message) -> bool:
        seen.append((order, message.fence))
        return False

    async with serving(app):
        session = await broker.session()
        session.deliver(*bodies(3))
        assert await session.settled(1, 2, 3) == {1: "ACK", 2: "ACK", 3: "ACK"}
    assert seen == [({"n": 0}, 1), ({"n": 1}, 2), ({"n": 2}, 3)]
    assert session.detached


async def test_a_batch_takes_few_frames(broker: FakeBroker) -> None:
    app = worker(broker)

    @app.handle("orders")
    async def handle(order: dict[str, Any]) -> None: ...

    async with serving(app):
        session = await broker.session()
        session.deliver(*bodies(1_000))
        await session.settled(1_000)
        await eventually(lambda: app.stats().confirmed == 1_000)
    carrying = [frame for frame in session.frames if frame.settlements]
    assert len(carrying) < 50
    assert sum(len(s.ranges) for frame in carrying for s in frame.settlements) < 50


def outcomes(app: Worker) -> None:
    @app.handle("orders", no_retry=KeyError)
    async def handle(body: str) -> None:
        match body:
            case "retry":
                raise Retry(after=2.5)
            case "dead":
                raise DeadLetter("negative total")
            case "release":
                raise Release
            case "boom":
                raise ValueError("boom")
            case "never again":
                raise KeyError("k")
            case "exit":
                raise SystemExit(1)
            case "cancelled":
                raise asyncio.CancelledError
            case "stop":
                raise StopAsyncIteration


EXPECTED = {
    "fine": ("ACK", "", "", None),
    "retry": ("RETRY", "", "", 2_500),
    "dead": ("DEAD_LETTER", "negative total", "", None),
    "release": ("RELEASE", "", "", None),
    "boom": ("RETRY", "boom", "ValueError", None),
    "never again": ("DEAD_LETTER", "'k'", "KeyError", None),
    "exit": ("RETRY", "1", "SystemExit", None),
    "cancelled": ("RETRY", "", "CancelledError", None),
    "stop": ("RETRY", "", "StopAsyncIteration", None),
}


async def test_what_is_raised_decides_and_never_ends_the_worker(broker: FakeBroker) -> None:
    app = worker(broker)
    outcomes(app)
    async with serving(app):
        session = await broker.session()
        fences = session.deliver(*(text.encode() for text in EXPECTED))
        await session.settled(*fences)
        found = {}
        for text, fence in zip(EXPECTED, fences, strict=True):
            s = session.settlements[fence]
            delay = s.delay_ms if s.HasField("delay_ms") else None
            found[text] = (session.outcomes[fence], s.reason, s.error_type, delay)
        assert found == EXPECTED
        session.deliver(b"fine")
        await session.settled(len(EXPECTED) + 1)
    stats = app.stats()
    assert (stats.acked, stats.retried, stats.released, stats.dead_lettered) == (2, 5, 1, 2)


async def test_failures_are_logged_once_a_second(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    app = worker(broker)

    @app.handle("orders")
    async def handle(body: str) -> None:
        raise ValueError(body)

    async with serving(app):
        session = await broker.session()
        fences = session.deliver(*[b"x"] * 50)
        await session.settled(*fences)
    assert sum("failed" in record.message for record in caplog.records) <= 2
    assert any(record.exc_info for record in caplog.records)


async def test_a_body_that_cannot_be_decoded_is_a_retry(broker: FakeBroker) -> None:
    app = worker(broker)

    @app.handle("orders")
    async def handle(order: dict[str, Any]) -> None: ...

    async with serving(app):
        session = await broker.session()
        session.deliver(b"{")
        await session.settled(1)
        assert (session.outcomes[1], session.settlements[1].error_type) == ("RETRY", "DecodeError")


async def test_handlers_by_queue_and_type(broker: FakeBroker) -> None:
    app, seen = worker(broker), []

    @app.handle("orders", "paid")
    async def paid(body: str) -> None:
        seen.append(("paid", body))

    @app.handle("orders")
    async def other(body: str) -> None:
        seen.append(("other", body))

    @app.handle("mails")
    async def mails(body: str) -> None:
        seen.append(("mails", body))

    async with serving(app):
        session = await broker.session()
        assert [s.queue for s in session.attach.subscriptions] == ["orders", "mails"]
        session.deliver(pb.Message(body=b"1", type="paid"), pb.Message(body=b"2", type="new"))
        session.deliver(pb.Message(body=b"3", type="paid"), subscription=1)
        await session.settled(1, 2, 3)
    assert sorted(seen) == [("mails", "3"), ("other", "2"), ("paid", "1")]
    assert len(broker.sessions) == 1


async def test_an_unknown_type_is_held_then_released_and_reported(
    broker: FakeBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kyogo.parking.HOLD_SECONDS", 0.05)
    app = worker(broker, concurrency=1)

    @app.handle("orders", "paid")
    async def paid(body: bytes) -> None: ...

    async with serving(app):
        session = await broker.session()
        unknown = session.deliver(*[pb.Message(type="new")] * 3)
        known = session.deliver(pb.Message(type="paid"))
        await session.settled(*known)
        assert not set(unknown) & set(session.outcomes)  # held, so that they do not come round at once
        await eventually(lambda: app.stats().parked == 3 or len(session.outcomes) == 4)
        await session.settled(*unknown)
        assert {session.outcomes[fence] for fence in unknown} == {"RELEASE"}
        assert not set(unknown) & set(session.started)
    assert app.stats().unknown == 3
    assert "no handler" in caplog.text


async def test_what_is_held_makes_room_for_others_and_goes_back_when_called(broker: FakeBroker) -> None:
    app = worker(broker, concurrency=4)

    @app.handle("orders", "paid")
    async def paid(body: bytes) -> None: ...

    async with serving(app):
        session = await broker.session()
        unknown = session.deliver(*[pb.Message(type="new")] * 8)
        await eventually(lambda: app.stats().parked == 8)
        await session.settled(*session.deliver(pb.Message(type="paid")))
        await eventually(lambda: session.prefetch > 8 + 4)
        session.revoke("RETURN", *unknown)
        await session.settled(*unknown)
        assert app.stats().parked == 0


async def test_never_more_than_concurrency_at_once_and_started_says_which(broker: FakeBroker) -> None:
    app, running, most, gate = worker(broker, concurrency=3), 0, 0, asyncio.Event()

    @app.handle("orders")
    async def handle(body: bytes) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    async with serving(app):
        session = await broker.session()
        fences = session.deliver(*[b"x"] * 10)
        await eventually(lambda: session.started == fences[:3])
        assert (app.stats().running, app.stats().buffered) == (3, 7)
        gate.set()
        await session.settled(*fences)
    assert most == 3


async def test_context_variables_of_one_message_are_not_seen_by_the_next(broker: FakeBroker) -> None:
    app, seen = worker(broker, concurrency=1), []
    variable = contextvars.ContextVar("variable", default="clean")

    @app.handle("orders")
    async def handle(body: str) -> None:
        seen.append(variable.get())
        variable.set(body)

    async with serving(app):
        session = await broker.session()
        await session.settled(*session.deliver(b"1", b"2", b"3"))
    assert seen == ["clean"] * 3


async def test_a_timeout_in_a_handler_is_the_handlers_own(broker: FakeBroker) -> None:
    app = worker(broker, concurrency=1)

    @app.handle("orders")
    async def handle(body: bytes) -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    async with serving(app):
        session = await broker.session()
        await session.settled(*session.deliver(b"1", b"2"))
        assert [session.settlements[f].error_type for f in (1, 2)] == ["TimeoutError"] * 2


async def test_the_loop_breathes_between_handlers_that_never_wait(broker: FakeBroker) -> None:
    app, done, done_by_turn = worker(broker), 0, [0]

    async def count_turns() -> None:
        while True:
            done_by_turn.append(done)
            await asyncio.sleep(0)

    @app.handle("orders")
    async def handle(body: bytes) -> None:
        nonlocal done
        done += 1
        sum(range(20_000))

    async with serving(app):
        session = await broker.session()
        counting = asyncio.create_task(count_turns())
        await session.settled(*session.deliver(*[b"x"] * 500))
        counting.cancel()
    assert max(after - before for before, after in pairwise(done_by_turn)) < 250


# --- threads ---


async def test_plain_functions_run_in_threads(broker: FakeBroker) -> None:
    app, names = worker(broker, concurrency=2), set()
    barrier = threading.Barrier(2, timeout=10)

    @app.handle("orders")
    def handle(order: dict[str, Any]) -> None:
        names.add(threading.current_thread().name)
        barrier.wait()  # both have to be here at once

    async with serving(app):
        session = await broker.session()
        await session.settled(*session.deliver(*bodies(6)))
        assert set(session.outcomes.values()) == {"ACK"}
    assert len(names) == 2
    assert threading.main_thread().name not in names


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError, "ValueError"),
        (SystemExit, "SystemExit"),
        (StopIteration, "RuntimeError"),  # as Python makes of it in any coroutine
    ],
)
async def test_whatever_a_thread_raises_is_a_retry(broker: FakeBroker, error: Any, name: Any) -> None:
    app = worker(broker)

    @app.handle("orders")
    def handle(body: bytes) -> None:
        raise error("x")

    async with serving(app):
        session = await broker.session()
        await session.settled(*session.deliver(b"1"))
        assert (session.outcomes[1], session.settlements[1].error_type) == ("RETRY", name)


async def test_a_coroutine_out_of_a_thread_is_an_error(broker: FakeBroker) -> None:
    app = worker(broker)

    async def real(body: bytes) -> None: ...

    @app.handle("orders")
    def handle(body: bytes) -> Any:
        return real(body)

    async with serving(app):
        session = await broker.session()
        await session.settled(*session.deliver(b"1"))
        assert "decorator" in session.settlements[1].reason


# --- middleware and publishes ---


async def test_middleware_decides_and_after_does_not(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    app, told = worker(broker), []

    @app.before
    async def check(message: Message) -> None:
        if message.type == "dead":
            raise DeadLetter("checked")

    @app.around
    async def skip(message: Message, call_next: Any) -> None:
        if message.type != "skip":
            await call_next()

    @app.after
    def after(message: Message, settlement: Any) -> None:
        told.append(settlement.outcome.name)
        raise RuntimeError("in after")

    @app.handle("orders")
    def handle(body: bytes) -> None:
        assert body == b"fine"

    async with serving(app):
        session = await broker.session()
        session.deliver(pb.Message(type="dead"), pb.Message(type="skip"), pb.Message(body=b"fine"))
        assert await session.settled(1, 2, 3) == {1: "DEAD_LETTER", 2: "ACK", 3: "ACK"}
    assert sorted(told) == ["ACK", "ACK", "DEAD_LETTER"]
    assert "in after" in caplog.text


async def test_publishes_go_with_the_ack_only(broker: FakeBroker) -> None:
    app = worker(broker)

    @app.handle("orders")
    def handle(body: str, message: Message) -> None:
        message.publish("mails", {"to": body}, type="mail")
        if body == "fail":
            raise ValueError

    async with serving(app):
        session = await broker.session()
        await session.settled(*session.deliver(b"fine", b"fail"))
        (request,) = session.settlements[1].publish
        assert (request.destination, request.messages[0].body, request.messages[0].type) == (
            "mails",
            b'{"to":"fine"}',
            "mail",
        )
        assert not session.settlements[2].publish


async def test_rejected_publishes_make_it_a_retry(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    broker.answer_settlements = False
    app = worker(broker)

    @app.handle("orders")
    async def handle(body: bytes, message: Message) -> None:
        message.publish("mails", b"x")

    async with serving(app):
        session = await broker.session()
        session.deliver(b"1")
        await session.settled(1)
        error = pb.Error(code=pb.ERROR_CODE_UNSUPPORTED, message="not built", retry_after_ms=70)
        session.answer_settlements = True
        result = pb.SettleResult(range=pb.FenceRange(first=1, last=1), status=pb.SETTLE_STATUS_REJECTED, error=error)
        session.send(settled=[result])
        await eventually(lambda: session.outcomes[1] == "RETRY")
        second = session.settlements[1]
        assert (second.error_type, second.delay_ms) == ("UNSUPPORTED", 70)
        assert "not built" in second.reason
        await eventually(lambda: app.stats().unanswered == 0)
    assert app.stats().rejected == 1
    assert "rejected" in caplog.text


# --- set-up ---


async def test_a_worker_without_handlers_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no handler"):
        await Worker().serve()


@pytest.mark.parametrize("options", [{"isolation": "process"}, {"time_limit": 0}, {"isolation": "thread"}], ids=str)
def test_options_that_cannot_work_are_refused(options: Any) -> None:
    with pytest.raises(ConfigurationError):

        @Worker().handle("orders", **options)
        async def handle(body: bytes) -> None: ...


async def test_the_clients_name_and_token_travel(broker: FakeBroker) -> None:
    app = worker(broker, name="billing", version="1.2", token="secret", labels={"zone": "a"}, consumer_id="b-1")

    @app.handle("orders")
    async def handle(body: bytes) -> None: ...

    async with serving(app):
        session = await broker.session()
    attach = session.attach
    assert (attach.client.name, attach.client.version, attach.client.language) == ("billing", "1.2", "python")
    assert (attach.consumer_id, dict(attach.labels)) == ("b-1", {"zone": "a"})
    assert session.metadata["authorization"] == "Bearer secret"


async def test_log_levels(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kyogo")
    app = worker(broker)

    @app.handle("orders")
    async def handle(body: bytes) -> None: ...

    async with serving(app):
        await broker.session()
        await app.attached()
    assert "attached as assigned" in caplog.text
