"""A message on its way out: the options of publishing, checked and encoded in one place.

Used by `Publisher`, by its blocking twin and by `Message.publish`, so that all take the same words. What only the
broker can know (whether the queue exists, is keyed, has room) is its to refuse.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, TypeAlias, TypedDict, Unpack

from kyogo import wire
from kyogo.codec import Codecs
from kyogo.errors import MessageInvalidError, MessageTooLargeError

Seconds: TypeAlias = float | timedelta
"""A duration: seconds, or a timedelta."""

MESSAGE_BYTES_MAX: Final = 3 * 1024 * 1024
"""The broker's default `max_message_bytes`, used until it has said its own."""


class PublishOptions(TypedDict, total=False):
    """What can be said about a message beside its body. All may be left out."""

    id: str
    """The publisher's id, the key of deduplication; at most 256 bytes."""
    type: str
    """The kind of message, such as "order.paid": handlers, breakers and metrics go by it."""
    key: str
    """Order and fairness go by it in a keyed queue, affinity in any."""
    headers: Mapping[str, str]
    """The application's own words; travel unchanged."""
    content_type: str
    """The media type of the body. Left out: by the body's type."""
    priority: int
    """0 to 9, 9 first. Left out: the queue's default, 4."""
    delay: Seconds
    """Not delivered before this long from now. Not with `deliver_at`."""
    deliver_at: datetime
    """Not delivered before this instant; with a time zone. Not with `delay`."""
    ttl: Seconds
    """Expires this long after it was accepted. 0: never. Left out: the queue's."""


class NewMessage:
    """A body with options of its own, for `publish_many`."""

    __slots__ = ("body", "options")

    def __init__(self, body: object, **options: Unpack[PublishOptions]) -> None:
        self.body = body
        self.options = options


def encode(
    body: object, options: PublishOptions, *, codecs: Codecs, message_bytes_max: int = MESSAGE_BYTES_MAX
) -> bytes:
    """The message as one entry of a request's `messages`, see `wire.message_field`.

    Raises:
        EncodeError: the body cannot be written in its content type.
        MessageInvalidError: an option contradicts another or lies outside of its bounds.
        MessageTooLargeError: the encoded message is above the limit.
        TypeError: an option is unknown, or of the wrong type.
    """
    data, content_type = codecs.encode(body, options.get("content_type"))
    message = wire.Message(body=data, content_type=content_type)
    for name, value in options.items():
        if name in _PLAIN:
            setattr(message, name, value)
        elif name != "content_type":
            _set_special(message, name, value)
    if "delay" in options and "deliver_at" in options:
        raise MessageInvalidError("delay and deliver_at contradict each other: give one of them")
    field = wire.message_field(message)
    if len(field) > message_bytes_max:
        raise MessageTooLargeError(
            f"the message has {len(field):,} bytes, the limit is {message_bytes_max:,}: store the body elsewhere and"
            " publish where it is, or raise the broker's max_message_bytes"
        )
    return field


_PLAIN = frozenset({"id", "type", "key"})
_PRIORITIES = range(10)


def _set_special(message: wire.Message, name: str, value: object) -> None:
    match name, value:
        case "headers", Mapping():
            message.headers.update(value)
        case "priority", int():
            if value not in _PRIORITIES:
                raise MessageInvalidError(f"priority={value} is outside of 0 to 9 (9 first)")
            message.priority = value
        case "delay", int() | float() | timedelta():
            message.delay_ms = _milliseconds(name, value)
        case "ttl", int() | float() | timedelta():
            message.ttl_ms = _milliseconds(name, value)
        case "deliver_at", datetime():
            if value.tzinfo is None:
                raise MessageInvalidError("deliver_at has no time zone: use datetime.now(timezone.utc) or the like")
            message.deliver_at_unix_ms = round(value.timestamp() * 1_000)
        case (("headers" | "priority" | "delay" | "ttl" | "deliver_at"), _):
            raise TypeError(f"{name}={value!r} has the wrong type, see PublishOptions")
        case _:
            raise TypeError(
                f"publishing has no option {name!r}; there are: {', '.join(PublishOptions.__annotations__)}"
            )


def _milliseconds(name: str, value: Seconds) -> int:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds < 0:
        raise MessageInvalidError(f"{name}={value} is negative: give the seconds from now")
    return round(seconds * 1_000)
