"""The asyncio publisher against the scripted broker."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from kyogo import (
    AccessError,
    ClosedError,
    ConfigurationError,
    KyogoError,
    MessageTooLargeError,
    NewMessage,
    OffsetRun,
    Publisher,
    PublishTimeoutError,
    QueueFullError,
    QueueNotFoundError,
    UnavailableError,
)
from kyogo.v1 import broker_pb2 as pb
from tests.support.fake_broker import FakeBroker, eventually, fake_broker


@pytest.fixture
async def broker() -> AsyncIterator[Any]:
    async with fake_broker() as running:
        yield running


def error(request: Any, code: Any, **fields: Any) -> Any:
    wire = pb.Error(code=pb.ErrorCode.Value(f"ERROR_CODE_{code}"), message="no", **fields)
    return pb.PublishResponse(request_id=request.request_id, error=wire)


async def test_one_message(broker: FakeBroker) -> None:
    async with Publisher(broker.url, token="secret") as publisher:
        offset = await publisher.publish("orders", {"total": 12}, type="order.paid", id="a", headers={"k": "v"})
    assert offset == 1
    (message,) = broker.stored["orders"]
    assert message == pb.Message(
        id="a", body=b'{"total":12}', content_type="application/json", type="order.paid", headers={"k": "v"}
    )
    assert broker.requests[0].producer_id
    assert broker.open_publish_streams == 0


async def test_what_waits_travels_together_and_in_order(broker: FakeBroker) -> None:
    async with Publisher(broker.url) as publisher:
        offsets = await asyncio.gather(*(publisher.publish("orders", f"{n}") for n in range(2_000)))
    assert offsets == list(range(1, 2_001))
    assert broker.bodies("orders") == [b"%d" % n for n in range(2_000)]
    assert len(broker.requests) <= 10
    assert broker.publish_streams == 1
    ids = [request.request_id for request in broker.requests]
    assert ids == sorted(set(ids))


async def test_two_publishers_are_two_producers(broker: FakeBroker) -> None:
    async with Publisher(broker.url) as one, Publisher(broker.url) as two:
        await one.publish("orders", b"1")
        await two.publish("orders", b"2")
    assert len({request.producer_id for request in broker.requests}) == 2
    assert broker.bodies("orders") == [b"1", b"2"]


async def test_publish_many_of_any_kind(broker: FakeBroker) -> None:
    async def each() -> AsyncIterator[Any]:
        for n in range(3):
            yield {"n": n}

    async with Publisher(broker.url) as publisher:
        assert await publisher.publish_many("orders", (f"{n}" for n in range(1_000)), type="t") == [OffsetRun(1, 1_000)]
        assert await publisher.publish_many("orders", each()) == [OffsetRun(1_001, 3)]
        assert await publisher.publish_many("orders", []) == []
        own = NewMessage(b"x", type="own", id="i")
        assert await publisher.publish_many("orders", [own, b"y"], type="t") == [OffsetRun(1_004, 2)]
    assert [(m.type, m.id) for m in broker.stored["orders"][-2:]] == [("own", "i"), ("t", "")]


async def test_publish_many_keeps_memory_bounded(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kyogo.publisher.MESSAGES_MAX", 500)
    made = 0

    def each() -> Iterator[Any]:
        nonlocal made
        for n in range(5_000):
            made += 1
            assert made <= len(broker.stored.get("orders", ())) + 800
            yield b"%d" % n

    async with Publisher(broker.url) as publisher:
        await publisher.publish_many("orders", each())
    assert broker.bodies("orders") == [b"%d" % n for n in range(5_000)]


async def test_room_is_given_first_come_first_served(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kyogo.publisher.MESSAGES_MAX", 3)
    async with Publisher(broker.url) as publisher:
        waiting = [asyncio.create_task(publisher.publish("orders", f"{n}")) for n in range(50)]
        await eventually(lambda: broker.requests)
        waiting[30].cancel()
        done = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(done[30], asyncio.CancelledError)
    assert broker.bodies("orders") == [b"%d" % n for n in range(50) if n != 30]


async def test_duplicates_are_told_in_runs(broker: FakeBroker) -> None:
    run = pb.OffsetRun(first_offset=7, count=2, duplicate=True)
    broker.on_publish = lambda request: pb.PublishResponse(request_id=request.request_id, offsets=[run])
    async with Publisher(broker.url) as publisher:
        assert await publisher.publish_many("orders", [b"a", b"b"]) == [OffsetRun(7, 2, duplicate=True)]


# --- refusals ---


async def test_a_refusal_is_raised_at_once_with_its_code_and_remedy(broker: FakeBroker) -> None:
    broker.on_publish = lambda request: error(request, "QUEUE_NOT_FOUND", metadata={"queue": "ordres"})
    async with Publisher(broker.url) as publisher:
        with pytest.raises(QueueNotFoundError) as raised:
            await publisher.publish("ordres", b"x")
    assert (raised.value.code, raised.value.message, raised.value.metadata) == (
        "QUEUE_NOT_FOUND",
        "no",
        {"queue": "ordres"},
    )
    assert len(broker.requests) == 1


async def test_a_full_queue_is_tried_again(broker: FakeBroker) -> None:
    def on_publish(request: Any) -> Any:
        if len(broker.requests) < 3:
            return error(request, "QUEUE_FULL", retry_after_ms=1)
        return broker.store(request)

    broker.on_publish = on_publish
    async with Publisher(broker.url) as publisher:
        assert await asyncio.gather(*(publisher.publish("orders", f"{n}") for n in range(5))) == [1, 2, 3, 4, 5]
    assert broker.bodies("orders") == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_queue_that_stays_full_is_told_after_the_timeout(broker: FakeBroker) -> None:
    broker.on_publish = lambda request: error(request, "QUEUE_FULL", retry_after_ms=1)
    async with Publisher(broker.url, timeout=0.3) as publisher:
        with pytest.raises(QueueFullError):
            await publisher.publish("orders", b"x")
    assert len(broker.requests) > 1


async def test_one_bad_message_does_not_fail_the_others(broker: FakeBroker) -> None:
    def on_publish(request: Any) -> Any:
        bad = [n for n, message in enumerate(request.messages) if message.body == b"bad"]
        return error(request, "MESSAGE_INVALID", metadata={"index": str(bad[0])}) if bad else broker.store(request)

    broker.on_publish = on_publish
    async with Publisher(broker.url) as publisher:
        bodies = ["a", "b", "bad", "c", "bad", "d"]
        done = await asyncio.gather(*(publisher.publish("orders", body) for body in bodies), return_exceptions=True)
    assert [getattr(result, "code", result) for result in done] == [1, 2, "MESSAGE_INVALID", 3, "MESSAGE_INVALID", 4]


async def test_an_error_ends_publish_many_and_says_how_far_it_came(broker: FakeBroker) -> None:
    def on_publish(request: Any) -> Any:
        return broker.store(request) if len(broker.requests) == 1 else error(request, "QUEUE_NOT_FOUND")

    broker.on_publish = on_publish
    async with Publisher(broker.url) as publisher:
        with pytest.raises(QueueNotFoundError) as raised:
            await publisher.publish_many("orders", (b"x" for _ in range(600)))
    assert "256 messages of this publish_many were confirmed" in raised.value.__notes__


async def test_the_size_is_checked_with_the_brokers_limit(broker: FakeBroker) -> None:
    broker.limits.max_message_bytes = 1_000
    async with Publisher(broker.url) as publisher:
        await publisher.publish("orders", b"x")
        with pytest.raises(MessageTooLargeError):
            await publisher.publish("orders", b"x" * 1_000)
    assert len(broker.requests) == 1


async def test_who_is_not_let_in_is_told_at_once(broker: FakeBroker) -> None:
    broker.publish_status = (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    async with Publisher(broker.url) as publisher:
        with pytest.raises(AccessError):
            await publisher.publish("orders", b"x")
        broker.publish_status = None
        assert await publisher.publish("orders", b"x") == 1


async def test_a_bad_address_is_told_at_once() -> None:
    async with Publisher("http://nowhere") as publisher:
        with pytest.raises(ConfigurationError):
            await publisher.publish("orders", b"x")


# --- losses ---


async def test_unanswered_requests_are_sent_again_with_their_ids(broker: FakeBroker) -> None:
    answered = False

    def on_publish(request: Any) -> Any:
        response = broker.store(request)
        return response if answered else None  # stored, and the answer is lost

    broker.on_publish = on_publish
    async with Publisher(broker.url) as publisher:
        waiting = [asyncio.create_task(publisher.publish(queue, b"x")) for queue in ("a", "b")]
        await eventually(lambda: len(broker.requests) == 2)
        answered = True
        broker.ends[0].set()
        assert await asyncio.gather(*waiting) == [1, 1]
    first, second = broker.requests[:2], broker.requests[2:]
    assert first == second
    assert broker.bodies("a") == broker.bodies("b") == [b"x"]
    assert broker.publish_streams == 2


async def test_a_broker_that_restarts_is_waited_for(broker: FakeBroker) -> None:
    async with Publisher(broker.url) as publisher:
        await publisher.publish("orders", b"1")
        port = broker.port
        await broker.stop()
        waiting = asyncio.create_task(publisher.publish_many("orders", [b"2", b"3"]))
        await eventually(lambda: publisher._outbox.unreachable)
        await broker.start(port)
        await waiting
    assert broker.bodies("orders") == [b"1", b"2", b"3"]


async def test_nobody_there_is_unavailable_and_not_unknown() -> None:
    async with Publisher("127.0.0.1:1", timeout=0.3) as publisher:
        with pytest.raises(UnavailableError) as raised:
            await publisher.publish("orders", b"x")
    assert raised.value.retryable


async def test_no_answer_is_unknown(broker: FakeBroker) -> None:
    broker.on_publish = lambda request: None
    async with Publisher(broker.url, timeout=0.3) as publisher:
        with pytest.raises(PublishTimeoutError, match="unknown"):
            await publisher.publish("orders", b"x")
        broker.on_publish = broker.store
        assert await publisher.publish("orders", b"y") == 1  # on a fresh stream
    assert broker.publish_streams == 2


async def test_a_caller_that_gives_up_takes_nothing_with_it(broker: FakeBroker) -> None:
    held: list[pb.PublishRequest] = []
    broker.on_publish = held.append
    async with Publisher(broker.url) as publisher:
        first = asyncio.create_task(publisher.publish("orders", b"a"))
        await eventually(lambda: held)
        second = asyncio.create_task(publisher.publish("orders", b"b"))
        third = asyncio.create_task(publisher.publish("orders", b"c"))
        await eventually(lambda: publisher._outbox.messages == 3)
        second.cancel()
        broker.on_publish = broker.store
        broker.ends[0].set()
        assert list(await asyncio.gather(first, third)) == [1, 2]
    assert broker.bodies("orders") == [b"a", b"c"]


# --- the end ---


async def test_close_waits_for_confirms(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kyogo.publisher._END_TIMEOUT", 0.01)
    broker.on_publish = lambda request: None
    publisher = Publisher(broker.url)
    waiting = [asyncio.create_task(publisher.publish("orders", f"{n}")) for n in range(10)]
    await eventually(lambda: broker.requests)
    closing = asyncio.create_task(publisher.close())
    done, _ = await asyncio.wait({closing}, timeout=0.1)
    assert not done
    broker.on_publish = broker.store
    broker.ends[0].set()
    await asyncio.wait_for(closing, 10)
    await publisher.close()
    assert [await task for task in waiting] == list(range(1, 11))
    with pytest.raises(ClosedError):
        await publisher.publish("orders", b"x")


async def test_flush(broker: FakeBroker) -> None:
    async with Publisher(broker.url) as publisher:
        waiting = asyncio.create_task(publisher.publish("orders", b"x"))
        await eventually(lambda: publisher._outbox.messages == 1)
        await publisher.flush()
        assert broker.bodies("orders") == [b"x"]
        await waiting


async def test_nothing_is_left_behind(broker: FakeBroker) -> None:
    before = asyncio.all_tasks()
    async with Publisher(broker.url) as publisher:
        await publisher.publish("orders", b"x")
    await eventually(lambda: broker.open_publish_streams == 0)
    assert {task for task in asyncio.all_tasks() - before if task.get_name().startswith("kyogo")} == set()


async def test_an_unused_publisher_connects_to_nothing(broker: FakeBroker) -> None:
    async with Publisher(broker.url):
        pass
    assert broker.publish_streams == 0


def test_a_timeout_has_to_be_positive() -> None:
    with pytest.raises(ConfigurationError):
        Publisher(timeout=0)


async def test_a_bug_leaves_nobody_waiting(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(broker.url)
    monkeypatch.setattr(publisher._outbox, "next_request", lambda now: 1 / 0)
    monkeypatch.setattr(publisher, "_serve", lambda call: (_ for _ in ()).throw(ZeroDivisionError))
    with pytest.raises(Exception, match="ZeroDivisionError"):
        await asyncio.wait_for(publisher.publish("orders", b"x"), 10)
    assert "bug" in caplog.text
    await publisher.close()


async def test_a_request_that_cannot_be_made_leaves_nobody_waiting(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(broker.url)
    with monkeypatch.context() as broken:
        broken.setattr("kyogo.wire.publish_request", lambda *_: 1 / 0)
        with pytest.raises(KyogoError, match="ZeroDivisionError"):
            await asyncio.wait_for(publisher.publish("orders", b"x"), 10)
    assert "bug" in caplog.text
    assert await asyncio.wait_for(publisher.publish("orders", b"x"), 10) == 1
    await publisher.close()


def test_one_publisher_can_serve_one_loop_after_the_other() -> None:
    publisher = Publisher("127.0.0.1:1", timeout=0.3)
    for _ in range(2):
        with pytest.raises(UnavailableError):
            asyncio.run(publisher.publish("orders", b"x"))
