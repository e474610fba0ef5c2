"""A message on its way out."""

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from kyogo import outgoing, wire
from kyogo.codec import Codecs
from kyogo.errors import MessageInvalidError, MessageTooLargeError
from kyogo.v1 import broker_pb2 as pb


def encoded(body: Any, **options: Any) -> Any:
    field = outgoing.encode(body, cast("outgoing.PublishOptions", options), codecs=Codecs())
    request = pb.PublishRequest.FromString(wire.publish_request("q", 7, "p", [field, field]))
    assert (request.destination, request.request_id, request.producer_id) == ("q", 7, "p")
    first, second = request.messages
    assert first == second
    return first


def test_every_option_arrives() -> None:
    message = encoded(
        {"a": 1}, id="i", type="t", key="k", headers={"h": "v"}, priority=0, delay=timedelta(seconds=1.5), ttl=0
    )
    assert message == pb.Message(
        body=b'{"a":1}',
        content_type="application/json",
        id="i",
        type="t",
        key="k",
        headers={"h": "v"},
        priority=0,
        delay_ms=1_500,
        ttl_ms=0,
    )
    assert message.HasField("priority")
    assert message.HasField("ttl_ms")


def test_what_is_left_out_is_unset() -> None:
    message = encoded(b"x")
    assert not message.HasField("priority")
    assert not message.HasField("ttl_ms")


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 129, 16_383, 16_384, 100_000])
def test_every_length_is_framed_rightly(size: Any) -> None:
    assert encoded(b"x" * size).body == b"x" * size


def test_an_instant_needs_a_time_zone() -> None:
    when = datetime(2030, 1, 1, tzinfo=UTC)
    assert encoded(b"", deliver_at=when).deliver_at_unix_ms == 1_893_456_000_000
    with pytest.raises(MessageInvalidError, match="time zone"):
        encoded(b"", deliver_at=when.replace(tzinfo=None))


@pytest.mark.parametrize(
    "options",
    [{"priority": 10}, {"priority": -1}, {"delay": -1}, {"ttl": -0.1}, {"delay": 1, "deliver_at": datetime.now(UTC)}],
)
def test_options_out_of_bounds_are_refused(options: Any) -> None:
    with pytest.raises(MessageInvalidError):
        encoded(b"", **options)


@pytest.mark.parametrize(
    "options", [{"delya": 1}, {"priority": "9"}, {"headers": ["a"]}, {"id": 7}, {"headers": {"a": 1}}]
)
def test_options_that_are_none_are_refused(options: Any) -> None:
    with pytest.raises(TypeError):
        encoded(b"", **options)


def test_the_size_is_checked_before_anything_is_sent() -> None:
    with pytest.raises(MessageTooLargeError) as raised:
        outgoing.encode(b"x" * 101, {}, codecs=Codecs(), message_bytes_max=100)
    assert raised.value.code == "MESSAGE_TOO_LARGE"
