import pytest

from bench.frames import delivery, message_stride, publish_head, varint
from kyogo.v1 import broker_pb2 as pb


def request(*sizes: int, request_id: int = 1) -> bytes:
    messages = [pb.Message(body=bytes(size)) for size in sizes]
    return pb.PublishRequest(destination="jazz", request_id=request_id, messages=messages).SerializeToString()


@pytest.mark.parametrize("value", [1, 127, 128, 300, 2**53])
def test_varint_is_protobufs(value: int) -> None:
    assert b"\x08" + varint(value) == pb.FenceRange(first=value).SerializeToString()


@pytest.mark.parametrize("request_id", [1, 0x7A, 122 << 7, 2**52])
@pytest.mark.parametrize("size", [0, 100, 1024])
def test_a_publish_is_taken_apart_and_delivered_as_it_came(request_id: int, size: int) -> None:
    raw = request(size, size, size, request_id=request_id)
    found, start = publish_head(raw)
    wire = raw[start:]
    assert (found, len(wire) // message_stride(wire)) == (request_id, 3)
    (run,) = pb.ConsumeResponse.FromString(delivery(2**50, 7, wire)).deliveries
    assert (run.first_fence, run.first_offset) == (2**50, 7)
    assert list(run.messages) == list(pb.PublishRequest.FromString(raw).messages)


@pytest.mark.parametrize("sizes", [(100, 101), (100, 20, 180), (1024, 100)])
def test_messages_of_different_sizes_are_refused(sizes: tuple[int, ...]) -> None:
    raw = request(*sizes)
    with pytest.raises(ValueError, match="one size"):
        message_stride(raw[publish_head(raw)[1] :])


def test_a_request_with_a_producer_id_is_refused() -> None:
    raw = pb.PublishRequest(destination="q", request_id=1, producer_id="p", messages=[pb.Message()])
    with pytest.raises(ValueError, match="only"):
        publish_head(raw.SerializeToString())
