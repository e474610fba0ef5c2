"""A publish from bytes to a command: whatever its form, what is stored is what was sent."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.model.commands import Publish
from kyogo_broker.model.errors import ErrorCode, Refusal, RefusedError
from kyogo_broker.server.limits import MAX_MESSAGES_PER_REQUEST, Limits
from kyogo_broker.server.wire import UndecodableError, decode_publish, request_id_of

LIMITS = Limits()

TEXTS = st.text(max_size=20)
MESSAGES = st.builds(
    pb.Message,
    id=TEXTS,
    body=st.binary(max_size=300),
    content_type=TEXTS,
    headers=st.dictionaries(TEXTS, TEXTS, max_size=3),
    type=TEXTS,
)


def decode(request: pb.PublishRequest | bytes, limits: Limits = LIMITS) -> Publish:
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    return decode_publish(raw, port=7, limits=limits)


def refusal(request: pb.PublishRequest | bytes, limits: Limits = LIMITS) -> Refusal:
    with pytest.raises(RefusedError) as caught:
        decode(request, limits)
    return caught.value.refusal


def request(*messages: pb.Message, **fields: Any) -> pb.PublishRequest:
    return pb.PublishRequest(**{"destination": "orders", "request_id": 9, "messages": messages, **fields})


def cut(publish: Publish) -> list[pb.Message]:
    """The messages of a batch, taken apart by its ends."""
    batch, found = publish.batch, []
    for index in range(batch.count):
        one = bytes(batch.part(index, index))
        parsed = pb.PublishRequest.FromString(one)
        assert len(parsed.messages) == 1, "a part between two ends is one message"
        found.append(parsed.messages[0])
    return found


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def framed(message: bytes) -> bytes:
    return b"\x7a" + varint(len(message)) + message


@given(st.lists(MESSAGES, min_size=1, max_size=40), st.sampled_from(["", "p-1"]))
def test_messages_come_out_as_they_went_in(messages: list[pb.Message], producer: str) -> None:
    publish = decode(request(*messages, producer_id=producer))
    assert cut(publish) == messages
    assert (publish.queue, publish.request_id, publish.producer_id) == ("orders", 9, producer)
    assert publish.port == 7
    assert publish.tag == 9


@given(MESSAGES, st.integers(1, 300))
def test_equal_sizes_need_no_list_of_ends(message: pb.Message, count: int) -> None:
    publish = decode(request(*[message] * count))
    assert isinstance(publish.batch.ends, range)
    assert cut(publish) == [message] * count


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 128, 16_380, 16_384, 70_000])
def test_ends_stand_right_at_every_length_of_a_length(size: int) -> None:
    messages = [pb.Message(body=bytes(size)), pb.Message(body=bytes(size + 1)), pb.Message()]
    assert cut(decode(request(*messages))) == messages


def test_a_body_that_looks_like_messages_is_a_body() -> None:
    bodies = [b"\x7a\x02\x12\x00" * n for n in (1, 2, 3)]
    messages = [pb.Message(body=body) for body in bodies]
    assert cut(decode(request(*messages))) == messages


def test_bytes_of_messages_are_stored_as_they_came() -> None:
    # A field of a later release inside of a message, and a length written longer than needed.
    strange = b"\x12\x01a" + b"\xf2\x3f\x03new"
    raw = request().SerializeToString() + framed(strange) + b"\x7a" + b"\x83\x00" + b"\x12\x01b"
    publish = decode(raw)
    assert strange in publish.batch.wire
    assert [message.body for message in cut(publish)] == [b"a", b"b"]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(framed(b"\x12\x01a") + request().SerializeToString() + framed(b"\x12\x01b"), id="head in between"),
        pytest.param(
            request().SerializeToString() + b"\xf2\x3f\x03new" + framed(b"\x12\x01a") + framed(b"\x12\x01b"),
            id="unknown field of the request",
        ),
        pytest.param(
            request().SerializeToString() + framed(b"\x12\x01a") + framed(b"\x12\x01b") + b"\xf2\x3f\x03new",
            id="unknown field at the end",
        ),
        pytest.param(request().SerializeToString() * 2 + framed(b"\x12\x01a") + framed(b"\x12\x01b"), id="head twice"),
    ],
)
def test_any_order_of_fields_gives_a_clean_batch(raw: bytes) -> None:
    publish = decode(raw)
    assert publish.batch.wire == framed(b"\x12\x01a") + framed(b"\x12\x01b")
    assert [message.body for message in cut(publish)] == [b"a", b"b"]
    assert publish.queue == "orders"


def test_an_unknown_field_that_looks_like_the_header_of_a_message_is_none() -> None:
    # Field 4 with the number 5, and a message of 5 bytes behind it: read as a header they would make one of 7.
    publish = decode(request().SerializeToString() + b"\x20\x05" + framed(b"\x12\x01a"))
    assert publish.batch.wire == framed(b"\x12\x01a")


def test_sizes_that_only_add_up_like_equal_ones_are_not_equal() -> None:
    messages = [pb.Message(body=bytes(size)) for size in (5, 4, 6)]
    publish = decode(request(*messages))
    assert list(publish.batch.ends) == [9, 17, 27]
    assert cut(publish) == messages


def test_a_plain_batch_is_not_looked_at_message_by_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kyogo_broker.server.wire.publish._refuse_features", None)
    monkeypatch.setattr("kyogo_broker.server.wire.publish._ends", None)
    headers = {"traceparent": "x"}
    message = pb.Message(id="1", body=b"x", content_type="c", headers=headers, type="t")
    assert decode(request(*[message] * 256)).batch.count == 256


@given(st.binary(max_size=200))
@settings(max_examples=500)
def test_any_bytes_are_decoded_refused_or_undecodable(raw: bytes) -> None:
    try:
        publish = decode(raw)
    except (RefusedError, UndecodableError):
        return
    assert cut(publish) == list(pb.PublishRequest.FromString(raw).messages)


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff",
        request().SerializeToString() + b"\x7a\x05\x12",
        request().SerializeToString() + framed(b"\x0a\x01\xff"),
        request().SerializeToString() + framed(b"\x22\x03\x0a\x01\xff"),
    ],
    ids=["garbage", "cut off", "id not UTF-8", "header not UTF-8"],
)
def test_what_is_no_request_is_undecodable(raw: bytes) -> None:
    with pytest.raises(UndecodableError, match="PublishRequest"):
        decode(raw)


@pytest.mark.parametrize(
    ("field", "value"),
    [("key", "k"), ("priority", 9), ("priority", 0), ("delay_ms", 5), ("deliver_at_unix_ms", 5), ("ttl_ms", 5)],
)
def test_what_is_not_built_is_refused_by_name_and_index(field: str, value: Any) -> None:
    plain = pb.Message(body=b"x")
    said = refusal(request(plain, plain, pb.Message(body=b"x", **{field: value}), plain))
    assert said.code is ErrorCode.UNSUPPORTED
    assert said.metadata == {"index": "2", "field": field}
    assert field in said.message


@pytest.mark.parametrize("fields", [{"priority": 4}, {"ttl_ms": 0}])
def test_a_default_that_is_said_is_no_feature(fields: dict[str, Any]) -> None:
    assert decode(request(pb.Message(body=b"x", **fields))).batch.count == 1


@pytest.mark.parametrize(
    ("bad", "code", "words"),
    [
        (request(), ErrorCode.FRAME_INVALID, "no messages"),
        (request(pb.Message(), destination=""), ErrorCode.FRAME_INVALID, "name"),
        (request(pb.Message(), destination="a b"), ErrorCode.FRAME_INVALID, "name"),
        (request(pb.Message(), destination="../x"), ErrorCode.FRAME_INVALID, "name"),
        (request(pb.Message(), destination="a\n"), ErrorCode.FRAME_INVALID, "name"),
        (request(pb.Message(), destination="x" * 10_000), ErrorCode.FRAME_INVALID, "name"),
        (request(pb.Message(), request_id=1 << 53), ErrorCode.FRAME_INVALID, "2^53"),
        (request(pb.Message(), producer_id="p", request_id=0), ErrorCode.FRAME_INVALID, "request_id"),
        (request(pb.Message(), producer_id="p" * 300), ErrorCode.FRAME_INVALID, "producer_id"),
        (request(pb.Message(), producer_id="p\x00"), ErrorCode.FRAME_INVALID, "producer_id"),
    ],
)
def test_a_bad_head_is_refused(bad: pb.PublishRequest, code: ErrorCode, words: str) -> None:
    said = refusal(bad)
    assert said.code is code
    assert words in said.message
    assert len(said.message) < 400
    assert said.message.isprintable()


def test_a_message_too_large_is_named() -> None:
    limits = Limits(max_message_bytes=2_000)
    fits = pb.Message(body=bytes(2_000 - 3))
    beyond = pb.Message(body=bytes(2_000 - 2))
    assert fits.ByteSize() == 2_000
    assert decode(request(fits, fits), limits).batch.count == 2
    for messages, index in (((fits, beyond), "1"), ((beyond,) * 3, "0"), ((pb.Message(), fits, beyond), "2")):
        said = refusal(request(*messages), limits)
        assert said.code is ErrorCode.MESSAGE_TOO_LARGE
        assert said.metadata == {"index": index, "size": "2001", "limit": "2000"}


def test_a_request_too_large_is_refused_before_it_is_read() -> None:
    said = refusal(b"\xff" * (LIMITS.max_request_bytes + 1))
    assert said.code is ErrorCode.MESSAGE_TOO_LARGE
    assert str(LIMITS.max_request_bytes) in said.message


def test_too_many_messages_are_refused_before_each_becomes_an_object() -> None:
    head = request().SerializeToString()
    assert decode(head + b"\x7a\x00" * MAX_MESSAGES_PER_REQUEST).batch.count == MAX_MESSAGES_PER_REQUEST
    said = refusal(head + b"\x7a\x00" * (MAX_MESSAGES_PER_REQUEST + 1))
    assert said.code is ErrorCode.LIMIT_EXCEEDED


def test_the_digest_is_of_ids_and_bodies_only() -> None:
    def digest(*messages: pb.Message) -> int:
        return decode(request(*messages, producer_id="p")).digest

    first, second = pb.Message(id="1", body=b"a"), pb.Message(id="2", body=b"b")
    base = digest(first, second)
    assert 0 < base < 1 << 64
    assert digest(pb.Message(id="1", body=b"a", headers={"traceparent": "x"}, type="t"), second) == base
    others = [
        digest(second, first),
        digest(first),
        digest(pb.Message(id="1", body=b"A"), second),
        digest(pb.Message(id="3", body=b"a"), second),
        digest(first, second, pb.Message()),
        digest(pb.Message(id="1", body=b"ab"), pb.Message(id="2")),
    ]
    assert len({base, *others}) == len(others) + 1


def test_without_a_producer_there_is_no_digest() -> None:
    assert decode(request(pb.Message(body=b"x"))).digest == 0


def test_the_id_of_a_refused_request_is_still_known() -> None:
    assert request_id_of(request(pb.Message(key="k")).SerializeToString()) == 9
    assert request_id_of(b"\xff") == 0
