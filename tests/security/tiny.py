"""Frames made of the smallest fields there are: few bytes each, and work for every one of them.

They are made when they are asked for, since making them takes longer than sending them.
"""

from collections.abc import Callable, Iterable

from google.protobuf.message import Message

from kyogo.v1 import admin_pb2 as admin
from kyogo.v1 import broker_pb2 as pb
from tests.security.sizes import SIZES

FRAME_BYTES = SIZES.frame_bytes - 1_024
"""The largest that is looked into, in a full run."""
MESSAGE_BYTES = FRAME_BYTES * 3 // 4


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def field(kind: type[Message], name: str, content: bytes = b"") -> bytes:
    """One length-delimited field on the wire."""
    return _varint(kind.DESCRIPTOR.fields_by_name[name].number << 3 | 2) + _varint(len(content)) + content


def filled(unit: bytes, size: int = FRAME_BYTES) -> bytes:
    return unit * (size // len(unit))


def counted(unit: Callable[[bytes], bytes], size: int = FRAME_BYTES) -> bytes:
    """Units that all differ."""
    return b"".join(unit(b"%07d" % number) for number in range(size // len(unit(b"0000000"))))


def _text(text: bytes) -> bytes:
    return b"\x0a" + _varint(len(text)) + text


def _to_queue(content: bytes) -> bytes:
    return TO_QUEUE + field(pb.PublishRequest, "messages", content)


def _attach(content: bytes) -> bytes:
    return field(pb.ConsumeRequest, "attach", content)


def _settlement(content: bytes) -> bytes:
    return field(pb.ConsumeRequest, "settlements", content)


ONE_RANGE = field(pb.Settlement, "ranges", pb.FenceRange(first=1, last=1).SerializeToString())
ONE_PUBLISH = field(
    pb.Settlement, "publish", pb.PublishRequest(destination="q", messages=[pb.Message()]).SerializeToString()
)
ACK = b"\x08\x01"
TO_QUEUE = field(pb.PublishRequest, "destination", b"orders")

Make = Callable[[], bytes]

CONSUME: dict[str, Make] = {
    "started": lambda: filled(field(pb.ConsumeRequest, "started")),
    "settlements": lambda: filled(field(pb.ConsumeRequest, "settlements")),
    "ranges of a settlement": lambda: _settlement(ACK + filled(field(pb.Settlement, "ranges"))),
    "ranges of an extension": lambda: field(pb.ConsumeRequest, "extend", filled(field(pb.Extend, "ranges"))),
    "extensions": lambda: filled(field(pb.ConsumeRequest, "extend")),
    "publishes of a settlement": lambda: _settlement(ACK + ONE_RANGE + filled(field(pb.Settlement, "publish"))),
    "publishes of many settlements": lambda: filled(_settlement(ACK + ONE_RANGE + ONE_PUBLISH * 256)),
    "unknown fields": lambda: filled(b"\xf8\x07\x00"),
}
"""After an `attach`."""

ATTACH: dict[str, Make] = {
    "subscriptions": lambda: _attach(filled(field(pb.Attach, "subscriptions", _text(b"orders")))),
    "capabilities": lambda: _attach(counted(lambda text: field(pb.Attach, "capabilities", text))),
    "labels": lambda: _attach(counted(lambda text: field(pb.Attach, "labels", _text(text)))),
    "held ranges": lambda: _attach(filled(field(pb.Attach, "held"))),
}

PUBLISH: dict[str, Make] = {
    "messages": lambda: TO_QUEUE + filled(field(pb.PublishRequest, "messages")),
    "headers of a message": lambda: _to_queue(
        counted(lambda text: field(pb.Message, "headers", _text(text)), MESSAGE_BYTES)
    ),
    "unknown fields of a message": lambda: _to_queue(filled(b"\xf8\x07\x00", MESSAGE_BYTES)),
}

ADMIN: dict[str, tuple[str, Make]] = {
    "paths of an update": (
        "UpdateQueue",
        lambda: field(admin.UpdateQueueRequest, "update_mask", filled(b"\x0a\x04mode")),
    ),
    "labels of a list": (
        "ListQueues",
        lambda: counted(lambda text: field(admin.ListQueuesRequest, "labels", _text(text))),
    ),
    "settings": ("CreateQueue", lambda: filled(field(admin.CreateQueueRequest, "settings"))),
}


def ranges(fences: Iterable[int]) -> list[pb.FenceRange]:
    """A range for each."""
    return [pb.FenceRange(first=fence, last=fence) for fence in fences]
