"""Bodies to bytes and back."""

import json
import sys
from dataclasses import dataclass
from typing import Any

import pydantic
import pytest
from google.protobuf import struct_pb2, wrappers_pb2

from kyogo.codec import BYTES, JSON, PROTOBUF, TEXT, Codecs
from kyogo.errors import ConfigurationError, DecodeError, EncodeError


class Order(pydantic.BaseModel):
    total: int


@dataclass
class Mail:
    to: str


STRING = wrappers_pb2.StringValue(value="hi")

ENCODED = [
    # body, content type asked for, bytes, content type
    (b"\x00\xff", None, b"\x00\xff", BYTES),
    (b"{}", JSON, b"{}", JSON),
    (bytearray(b"a"), None, b"a", BYTES),
    (memoryview(b"a"), "image/png", b"a", "image/png"),
    ("grüß", None, "grüß".encode(), TEXT),
    ('{"a":1}', JSON, b'{"a":1}', JSON),
    ({"a": [1, None, True, "ü"]}, None, '{"a":[1,null,true,"ü"]}'.encode(), JSON),
    ([1, 2], "application/vnd.x+json", b"[1,2]", "application/vnd.x+json"),
    (7, None, b"7", JSON),
    (None, None, b"null", JSON),
    ((1, 2), None, b"[1,2]", JSON),
    (Order(total=3), None, b'{"total":3}', JSON),
    (Mail("a@b"), None, b'{"to":"a@b"}', JSON),
    (STRING, None, STRING.SerializeToString(), PROTOBUF),
    (STRING, JSON, b'"hi"', JSON),
]


@pytest.mark.parametrize(("body", "asked", "data", "content_type"), ENCODED)
def test_encode(body: Any, asked: Any, data: Any, content_type: Any) -> None:
    assert Codecs().encode(body, asked) == (data, content_type)


@pytest.mark.parametrize("body", [object(), {"a": object()}, float("nan"), {1, 2}])
def test_what_cannot_be_written_is_refused(body: Any) -> None:
    with pytest.raises(EncodeError) as raised:
        Codecs().encode(body)
    assert raised.value.code == "ENCODE_FAILED"


def test_an_unknown_content_type_takes_bytes_only() -> None:
    with pytest.raises(EncodeError, match="register"):
        Codecs().encode({}, "application/x-yaml")


DECODED = [
    # annotation, body, content type, value
    (Any, b'{"a":1}', "", {"a": 1}),
    (Any, b'{"a":1}', JSON, {"a": 1}),
    (Any, b"[1]", "application/cloudevents+json; charset=utf-8", [1]),
    (Any, b"hi", "Text/Plain", "hi"),
    (Any, b"\xff", "image/png", b"\xff"),
    (bytes, b'{"a":1}', JSON, b'{"a":1}'),
    (str, b'{"a":1}', JSON, '{"a":1}'),
    (dict, b'{"a":1}', JSON, {"a": 1}),
    (dict[str, int], b'{"a":1}', "", {"a": 1}),
    (list[int], b"[1]", JSON, [1]),
    (int, b"1", JSON, 1),
    (float, b"1", JSON, 1),
    (Order, b'{"total":3}', "", Order(total=3)),
    (Mail, b'{"to":"x"}', JSON, Mail("x")),
    (wrappers_pb2.StringValue, STRING.SerializeToString(), PROTOBUF, STRING),
    (wrappers_pb2.StringValue, STRING.SerializeToString(), "", STRING),
    (struct_pb2.Value, b"7", JSON, struct_pb2.Value(number_value=7)),
]


@pytest.mark.parametrize(("annotation", "body", "content_type", "value"), DECODED)
def test_decode(annotation: Any, body: Any, content_type: Any, value: Any) -> None:
    assert Codecs().decoder_for(annotation)(body, content_type) == value


UNDECODABLE = [
    (Any, b"{", ""),
    (Any, b"\xff", JSON),
    (Any, b"[" * 100_000, JSON),
    (str, b"\xff", ""),
    (dict, b"[1]", JSON),
    (dict, b"\xff", "image/png"),
    (int, b'"1"', JSON),
    (Order, b'{"total":"x"}', JSON),
    (Mail, b"{}", JSON),
    (wrappers_pb2.StringValue, b"\xff", PROTOBUF),
    (wrappers_pb2.StringValue, b"{", JSON),
    (wrappers_pb2.StringValue, b"hi", "text/plain"),
]


@pytest.mark.parametrize(("annotation", "body", "content_type"), UNDECODABLE)
def test_what_is_not_what_it_says_is_refused(annotation: Any, body: Any, content_type: Any) -> None:
    with pytest.raises(DecodeError) as raised:
        Codecs().decoder_for(annotation)(body, content_type)
    assert raised.value.code == "DECODE_FAILED"


class Reversed:
    def encode(self, body: Any) -> bytes:
        return json.dumps(body)[::-1].encode()

    def decode(self, body: bytes) -> Any:
        return json.loads(body.decode()[::-1])


def test_a_codec_of_ones_own_goes_both_ways() -> None:
    codecs = Codecs()
    codecs.register("Application/X-Reversed", Reversed())
    data, content_type = codecs.encode({"a": 1}, "application/x-reversed")
    assert data == b'}1 :"a"{'
    assert codecs.decoder_for(dict)(data, content_type) == {"a": 1}
    assert codecs.decode(b"{}", "") == {}
    with pytest.raises(DecodeError, match="JSONDecodeError"):
        codecs.decode(b"{", "application/x-reversed")


def test_a_dataclass_needs_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(ConfigurationError, match="pydantic"):
        Codecs().decoder_for(Mail)
