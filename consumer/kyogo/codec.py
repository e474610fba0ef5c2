"""Bodies to bytes and back, by content type and by a handler's annotation.

Out: bytes and str go as they are, protobuf messages and pydantic models as they serialise themselves, everything
else as JSON. In: the annotation of a handler's first parameter decides, and the content type where it leaves a
choice; JSON when nothing says otherwise. Neither protobuf's JSON nor pydantic is imported unless such a type is
used, and pydantic is no dependency.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias, get_origin

from google.protobuf import json_format
from google.protobuf.message import DecodeError as _ProtobufError
from google.protobuf.message import Message as ProtobufMessage

from kyogo.errors import ConfigurationError, DecodeError, EncodeError

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
BYTES: Final = "application/octet-stream"
PROTOBUF: Final = "application/protobuf"

Decoder: TypeAlias = Callable[[bytes, str], object]
"""A body and its content type to what a handler is given."""

_JSON_PLAIN = frozenset({"", JSON})
_PROTOBUF_TYPES = frozenset({"", BYTES, PROTOBUF, "application/x-protobuf", "application/vnd.google.protobuf"})
_JSON_VALUES = frozenset({dict, list})
_CHECKED = (dict, list, int, float, bool)

_dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_loads = json.JSONDecoder().decode


class Codec(Protocol):
    """How bodies of one content type are written and read."""

    def encode(self, body: Any) -> bytes:  # noqa: ANN401 - whatever the application publishes
        """The body as bytes."""

    def decode(self, body: bytes) -> Any:  # noqa: ANN401 - whatever the application reads
        """The bytes as a body."""


class Codecs:
    """The codecs of one worker or publisher: the built-in ones and those registered."""

    def __init__(self) -> None:
        self._own: dict[str, Codec] = {}

    def register(self, content_type: str, codec: Codec) -> None:
        """Use a codec for a content type, a built-in one included."""
        self._own[_media_type(content_type)] = codec

    def encode(self, body: object, content_type: str | None = None) -> tuple[bytes, str]:
        """A body as bytes, and its content type.

        Args:
            body: bytes and str are taken as they are, whatever the content type.
            content_type: None: what the body's type suggests.

        Raises:
            EncodeError: the body cannot be written so.
        """
        if isinstance(body, bytes):
            return body, BYTES if content_type is None else content_type
        if isinstance(body, str):
            return body.encode(), TEXT if content_type is None else content_type
        try:
            return self._encode_value(body, content_type)
        except (TypeError, ValueError) as error:
            kind = type(body).__name__
            raise EncodeError(f"a body of type {kind} cannot be published: {error}. Make it JSON or bytes") from error

    def decode(self, body: bytes, content_type: str) -> object:
        """A body by its content type alone: JSON, text, or bytes for what is not known.

        Raises:
            DecodeError: the bytes are not what the content type says.
        """
        if content_type in _JSON_PLAIN and not self._own:
            return _from_json(body)
        media_type = _media_type(content_type)
        own = self._own.get(media_type)
        if own is not None:
            return _by_codec(own, body, media_type)
        if _is_json(media_type):
            return _from_json(body)
        return _from_text(body) if media_type.startswith("text/") else body

    def decoder_for(self, annotation: object) -> Decoder:
        """How to read bodies for a parameter of this annotation.

        Raises:
            ConfigurationError: nothing here can make such a value.
        """
        if annotation is bytes:
            return lambda body, _content_type: body
        if annotation is str:
            return lambda body, _content_type: _from_text(body)
        if isinstance(annotation, type):
            if issubclass(annotation, ProtobufMessage):
                return functools.partial(_to_protobuf, annotation)
            if hasattr(annotation, "model_validate_json"):
                return functools.partial(_to_model, annotation)
            if dataclasses.is_dataclass(annotation):
                return functools.partial(_to_dataclass, _type_adapter(annotation))
        origin = get_origin(annotation)
        expected = annotation if origin is None else origin
        if expected in _CHECKED and isinstance(expected, type):
            return functools.partial(self._decode_checked, expected)
        return self.decode

    def _encode_value(self, body: object, content_type: str | None) -> tuple[bytes, str]:
        if content_type is None and type(body) in _JSON_VALUES:  # the usual case
            return _dumps(body).encode(), JSON
        own = self._own.get(_media_type(content_type)) if content_type is not None else None
        if own is not None and content_type is not None:
            return own.encode(body), content_type
        if isinstance(body, (bytearray, memoryview)):
            return bytes(body), BYTES if content_type is None else content_type
        if isinstance(body, ProtobufMessage):
            if content_type is not None and _is_json(_media_type(content_type)):
                return json_format.MessageToJson(body, indent=None).encode(), content_type
            return body.SerializeToString(), PROTOBUF if content_type is None else content_type
        if content_type is not None and not _is_json(_media_type(content_type)):
            raise EncodeError(f"no codec for {content_type!r}: pass bytes, or register one with Codecs.register")
        label = JSON if content_type is None else content_type
        if hasattr(body, "model_dump_json"):
            return body.model_dump_json().encode(), label
        if dataclasses.is_dataclass(body) and not isinstance(body, type):
            body = dataclasses.asdict(body)
        return _dumps(body).encode(), label

    def _decode_checked(self, expected: type, body: bytes, content_type: str) -> object:
        value = self.decode(body, content_type)
        if isinstance(value, expected) or (expected is float and isinstance(value, int)):
            return value
        raise DecodeError(
            f"the handler takes {expected.__name__}, the body ({content_type or 'no content type'}) is"
            f" {type(value).__name__}: publish another, or annotate the handler with what comes"
        )


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _is_json(media_type: str) -> bool:
    return media_type in _JSON_PLAIN or media_type.endswith("+json")


def _from_json(body: bytes) -> object:
    try:
        return _loads(str(body, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"the body is no JSON: {error}. Give it a content type, or annotate the handler") from error


def _from_text(body: bytes) -> str:
    try:
        return str(body, "utf-8")
    except ValueError as error:
        raise DecodeError(f"the body is no UTF-8: {error}. Annotate the handler with bytes") from error


def _by_codec(codec: Codec, body: bytes, media_type: str) -> object:
    try:
        return codec.decode(body)
    except Exception as error:
        raise DecodeError(f"the codec of {media_type} failed: {type(error).__name__}: {error}") from error


def _to_protobuf(kind: type[ProtobufMessage], body: bytes, content_type: str) -> object:
    media_type = _media_type(content_type)
    try:
        if media_type in _PROTOBUF_TYPES:
            return kind.FromString(body)
        if _is_json(media_type):
            return json_format.Parse(body, kind())
    except (_ProtobufError, json_format.ParseError, ValueError) as error:
        raise DecodeError(f"the body is no {kind.__name__}: {error}") from error
    raise DecodeError(f"the handler takes {kind.__name__}, the body is {content_type!r}: publish it as {PROTOBUF}")


def _to_model(kind: Any, body: bytes, _content_type: str) -> object:  # noqa: ANN401 - a pydantic model, untyped here
    try:
        return kind.model_validate_json(body)
    except ValueError as error:  # pydantic's ValidationError is one
        raise DecodeError(f"the body is no {kind.__name__}: {error}") from error


def _to_dataclass(adapter: Any, body: bytes, _content_type: str) -> object:  # noqa: ANN401 - pydantic's
    try:
        return adapter.validate_json(body)
    except ValueError as error:
        raise DecodeError(f"the body does not fit the handler: {error}") from error


def _type_adapter(kind: type) -> Any:  # noqa: ANN401 - pydantic's
    try:
        from pydantic import TypeAdapter  # noqa: PLC0415 - not a dependency: used when the application has it
    except ImportError as error:
        raise ConfigurationError(
            f"{kind.__name__} is a dataclass, which takes pydantic to decode: install it, or annotate dict"
        ) from error
    return TypeAdapter(kind)
