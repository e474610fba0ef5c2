"""A delivered message, as a handler sees it."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kyogo.errors import DecodeError, MessageTooLargeError
from kyogo.message import RedeliveryReason
from kyogo.v1 import broker_pb2 as pb
from tests.support.sdk_sessions import Owner, attached_session, begun, deliver, response


def delivered(message: Any = None, **run: Any) -> Any:
    session = attached_session()
    run = {"first_fence": 5, "first_offset": 6, "attempt": 1} | run
    messages = [pb.Message() if message is None else message]
    session.receive(response(deliveries=[pb.DeliveryRun(messages=messages, **run)]))
    return session.take()


def test_fields() -> None:
    wire = pb.Message(
        id="i", body=b'{"a":1}', content_type="application/json", type="t", key="k", headers={"a": "b"}, priority=9
    )
    message = delivered(wire, attempt=3, losses=2, published_unix_ms=1_500)
    assert (message.id, message.type, message.key, message.content_type) == ("i", "t", "k", "application/json")
    assert (message.body, message.decode(), message.headers, message.priority) == (b'{"a":1}', {"a": 1}, {"a": "b"}, 9)
    assert (message.queue, message.offset, message.fence, message.attempt, message.losses) == ("orders", 6, 5, 3, 2)
    assert message.published_at == datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC)
    assert (message.redelivery_reason, message.dead_letter) == (None, None)
    assert "orders/6" in repr(message)


def test_priority_unset_is_none() -> None:
    assert delivered().priority is None
    assert delivered(pb.Message(priority=0)).priority == 0


@pytest.mark.parametrize(("name", "number"), [(n, v) for n, v in pb.RedeliveryReason.items() if v])
def test_every_redelivery_reason_has_a_word(name: Any, number: Any) -> None:
    message = delivered(redelivery_reason=number)
    assert message.redelivery_reason is RedeliveryReason(name.removeprefix("REDELIVERY_REASON_"))


def test_a_reason_of_a_newer_broker_is_unknown() -> None:
    assert delivered(redelivery_reason=99).redelivery_reason is RedeliveryReason.UNKNOWN


def test_a_dead_letter_knows_its_history() -> None:
    info = pb.DeadLetterInfo(queue="orders", offset=3, reason="max_attempts", attempts=5, dead_lettered_unix_ms=1_000)
    letter = delivered(dead_letter=info).dead_letter
    assert (letter.queue, letter.offset, letter.reason, letter.attempts) == ("orders", 3, "max_attempts", 5)
    assert letter.first_delivered_at is None
    assert letter.dead_lettered_at == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)


def test_a_body_that_is_not_what_it_says() -> None:
    with pytest.raises(DecodeError):
        delivered(pb.Message(body=b"{", content_type="application/json")).decode()


def test_extend_asks_the_owner() -> None:
    session = attached_session()
    (message,) = begun(session, 1)
    message.extend(1.5)
    message.extend(timedelta(minutes=1))
    owner = session._owner
    assert isinstance(owner, Owner)
    assert owner.extended == [(1, 1_500), (1, 60_000)]
    for wrong in (0, -1, float("nan"), float("inf"), 12 * 3_600 + 1):
        with pytest.raises(ValueError, match="out of bounds"):
            message.extend(wrong)


def test_publishes_of_one_handler_have_a_limit_together() -> None:
    (message,) = begun(attached_session(), 1)
    for _ in range(2):
        message.publish("q", b"x" * 900)
    with pytest.raises(MessageTooLargeError, match="together"):
        message.publish("q", b"x" * 900)
    with pytest.raises(MessageTooLargeError):
        message.publish("q", b"x" * 1_001)


def test_lost_is_seen_by_whoever_looked_before_and_after() -> None:
    (first, second) = deliver(attached_session(), 2)
    event = first.lost
    assert not event
    assert not event.wait(0)
    first.stop()
    second.stop()
    assert event
    assert first.lost is event
    assert second.lost.is_set()


def test_a_thread_that_waits_on_lost_is_woken() -> None:
    (message,) = deliver(attached_session(), 1)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(message.lost.wait(10)))
    thread.start()
    message.stop()
    thread.join(10)
    assert seen == [True]
