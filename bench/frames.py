"""Bytes of the contract that are read or put together by hand, because a parser would cost more than the rest.

Fields stand in the order of their numbers, as every encoder writes them:

    PublishRequest   0a len destination | 10 request id | 7a len message | 7a len message | ...
    ConsumeResponse  12 len | DeliveryRun: 10 first fence | 18 first offset | 20 attempt | 7a len message | ...
"""

from kyogo.v1 import broker_pb2 as pb


def varint(number: int) -> bytes:
    """The protobuf encoding of a number from 0."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(wire: bytes, place: int) -> tuple[int, int]:
    """A number, and the place after it."""
    number = shift = 0
    while True:
        byte = wire[place]
        number |= (byte & 0x7F) << shift
        place += 1
        shift += 7
        if byte <= 0x7F:
            return number, place


def publish_head(raw: bytes) -> tuple[int, int]:
    """The request id of an encoded `PublishRequest`, and the place of its first message.

    Raises:
        ValueError: not destination, request id, messages, in this order and nothing else.
    """
    length, place = read_varint(raw, 1)
    request_id, start = read_varint(raw, place + length + 1)
    if (raw[0], raw[place + length], raw[start]) != (0x0A, 0x10, 0x7A):
        raise ValueError("the probe takes requests of destination, request_id and messages only")
    return request_id, start


def message_stride(wire: bytes) -> int:
    """Bytes from one message to the next in an encoded `repeated Message messages = 15`.

    Raises:
        ValueError: not messages of one size back to back.
    """
    length, place = read_varint(wire, 1)
    stride = place + length
    count, rest = divmod(len(wire), stride)
    if rest or any(wire[i::stride] != wire[i : i + 1] * count for i in range(place)):
        raise ValueError("the probe takes messages of one size a request")
    return stride


def delivery(first_fence: int, first_offset: int, wire: bytes) -> bytes:
    """A `ConsumeResponse` with one run of the encoded messages."""
    head = pb.DeliveryRun(first_fence=first_fence, first_offset=first_offset, attempt=1).SerializeToString()
    return b"".join((b"\x12", varint(len(head) + len(wire)), head, wire))
