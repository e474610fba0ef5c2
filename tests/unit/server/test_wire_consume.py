"""A consumer's frame becomes commands; what is bad in it is answered, and the rest stands."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.model import commands
from kyogo_broker.model.commands import Outcome
from kyogo_broker.model.effects import PartRefused
from kyogo_broker.model.errors import ErrorCode, Refusal, RefusedError
from kyogo_broker.model.message import FenceRange
from kyogo_broker.server import limits as bounds
from kyogo_broker.server.limits import Limits
from kyogo_broker.server.wire import ConsumerFrame, Session, UndecodableError, decode_consume

SESSION = Session(port=3, session_id=11, session_token="secret", consumer_id="consumer-x")
LIMITS = Limits()


def decode(**parts: Any) -> ConsumerFrame:
    return decode_consume(pb.ConsumeRequest(**parts).SerializeToString(), SESSION, LIMITS)


def attach(**fields: Any) -> commands.Attach:
    fields.setdefault("subscriptions", [pb.Subscription(queue="orders")])
    [command] = decode(attach=pb.Attach(**fields)).commands
    assert isinstance(command, commands.Attach)
    return command


def refused_part(**parts: Any) -> Refusal:
    frame = decode(**parts)
    assert frame.commands == ()
    [answer] = frame.answers
    assert isinstance(answer, PartRefused)
    assert answer.port == 3
    return answer.refusal


def fences(first: int, last: int) -> pb.FenceRange:
    return pb.FenceRange(first=first, last=last)


def ack(*ranges: pb.FenceRange, **fields: Any) -> pb.Settlement:
    return pb.Settlement(**{"outcome": pb.OUTCOME_ACK, "ranges": ranges, **fields})


def test_the_parts_of_a_frame_keep_the_order_of_the_contract() -> None:
    frame = decode(
        detach=pb.Detach(),
        extend=pb.Extend(ranges=[fences(1, 2)], extension_ms=5),
        settlements=[ack(fences(3, 4))],
        started=[fences(5, 6)],
        heartbeat=pb.ConsumerHeartbeat(
            sequence=8, echo=1, running=2, buffered=3, utilization=0.5, cpu=1.5, rss_bytes=9
        ),
        prefetch=pb.Prefetch(messages=10),
        attach=pb.Attach(subscriptions=[pb.Subscription(queue="orders")]),
    )
    assert frame.commands[1:] == (
        commands.SetPrefetch(3, 10, bounds.DEFAULT_PREFETCH_BYTES),
        commands.Heartbeat(3, 8, 1, 2, 3, 0.5, 1.5, 9),
        commands.Started(3, (FenceRange(5, 6),)),
        commands.Settle(3, (commands.Settlement(Outcome.ACK, (FenceRange(3, 4),)),)),
        commands.Extend(3, (FenceRange(1, 2),), 5),
        commands.Detach(3),
    )
    assert isinstance(frame.commands[0], commands.Attach)
    assert frame.heartbeat == 8


def test_an_empty_frame_is_no_command() -> None:
    assert decode() == ConsumerFrame((), (), 0, 0)


def test_a_bare_attach_gets_the_defaults() -> None:
    assert attach() == commands.Attach(
        port=3,
        session_id=11,
        session_token="secret",
        consumer_id="consumer-x",
        subscriptions=(commands.Subscription("orders"),),
        prefetch_messages=16,
        prefetch_bytes=4 << 20,
        max_frame_bytes=(4 << 20) - (64 << 10),
    )


def test_all_of_attach_arrives() -> None:
    command = attach(
        subscriptions=[pb.Subscription(queue="a", weight=2, max_unsettled=3), pb.Subscription(queue="b.dlq")],
        consumer_id="me",
        client=pb.ClientInfo(name="n", version="1", language="go"),
        capabilities=["started", "unheard-of"],
        prefetch=pb.Prefetch(messages=0, bytes=7),
        weight=0,
        labels={"zone": "a"},
        heartbeat_interval_ms=250,
        max_frame_bytes=100_000,
        session_token="token",
        resume_window_ms=60,
        held=[fences(4, 9)],
    )
    assert command == commands.Attach(
        port=3,
        session_id=11,
        session_token="secret",
        consumer_id="me",
        subscriptions=(commands.Subscription("a", 2, 3), commands.Subscription("b.dlq")),
        client=commands.Client("n", "1", "go"),
        capabilities=frozenset({"started", "unheard-of"}),
        prefetch_messages=0,
        prefetch_bytes=7,
        weight=0,
        labels={"zone": "a"},
        heartbeat_interval_ms=250,
        max_frame_bytes=100_000,
        resumed_token="token",
        resume_window_ms=60,
        held=(FenceRange(4, 9),),
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"subscriptions": [pb.Subscription(queue="a/b")]}, "name"),
        ({"subscriptions": [pb.Subscription(queue="x" * 200)]}, "name"),
        ({"consumer_id": "x" * 257}, "consumer_id"),
        ({"consumer_id": "a\nb"}, "consumer_id"),
        ({"client": pb.ClientInfo(version="\x1b[31m")}, "client.version"),
        ({"session_token": "x" * 257}, "session_token"),
        ({"labels": {str(n): "" for n in range(33)}}, "labels"),
        ({"labels": {"a": "x" * 257}}, "label"),
        ({"capabilities": [str(n) for n in range(65)]}, "capabilities"),
        ({"heartbeat_interval_ms": -1}, "heartbeat_interval_ms"),
        ({"max_frame_bytes": 1_000}, "max_frame_bytes"),
        ({"resume_window_ms": -1}, "resume_window_ms"),
        ({"resume_window_ms": 1 << 40}, "resume_window_ms"),
        ({"held": [fences(2, 1)]}, "range"),
    ],
)
def test_a_bad_attach_is_raised(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RefusedError) as caught:
        attach(**fields)
    assert caught.value.refusal.code is ErrorCode.FRAME_INVALID
    assert words in caught.value.refusal.message
    assert caught.value.refusal.message.isprintable()


@pytest.mark.parametrize(
    "bad", [fences(0, 1), fences(5, 4), fences(1, 1 << 53), fences(1, (1 << 18) + 1), fences(1 << 60, 1 << 61)]
)
def test_a_range_that_is_none_is_refused(bad: pb.FenceRange) -> None:
    assert refused_part(started=[fences(1, 1), bad]).metadata["part"] == "started"
    assert refused_part(extend=pb.Extend(ranges=[bad], extension_ms=1)).metadata["part"] == "extend"
    metadata = refused_part(settlements=[ack(bad)]).metadata
    assert (metadata["part"], metadata["index"]) == ("settlements", "0")


def test_fences_and_ranges_are_counted_over_the_whole_frame() -> None:
    half = bounds.FENCES_PER_PREFETCH * LIMITS.max_prefetch_messages // 2
    assert len(decode(started=[fences(1, half)], settlements=[ack(fences(1, half))]).commands) == 2
    assert refused_part(started=[fences(1, half), fences(1, half + 1)]).code is ErrorCode.LIMIT_EXCEEDED
    many = [fences(n, n) for n in range(1, bounds.MAX_RANGES_PER_FRAME + 1)]
    assert len(decode(started=many).commands) == 1
    assert refused_part(started=[*many, fences(1, 1)]).code is ErrorCode.LIMIT_EXCEEDED


def test_a_bad_settlement_does_not_touch_the_others() -> None:
    frame = decode(
        settlements=[
            ack(fences(1, 1)),
            ack(),
            ack(fences(2, 2), outcome=0),
            ack(fences(3, 3), outcome=9),
            ack(fences(4, 4), outcome=pb.OUTCOME_RETRY, delay_ms=-1),
            ack(fences(5, 5), delay_ms=1),
            ack(fences(6, 6), outcome=pb.OUTCOME_RETRY, delay_ms=0, reason="r", error_type="E"),
        ],
        heartbeat=pb.ConsumerHeartbeat(),
    )
    [_, settle] = frame.commands
    assert settle == commands.Settle(
        3,
        (
            commands.Settlement(Outcome.ACK, (FenceRange(1, 1),)),
            commands.Settlement(Outcome.RETRY, (FenceRange(6, 6),), 0, "r", "E"),
        ),
    )
    indexes = [answer.refusal.metadata["index"] for answer in frame.answers if isinstance(answer, PartRefused)]
    assert indexes == ["1", "2", "3", "4", "5"]


def test_long_reasons_are_cut_at_whole_characters() -> None:
    [settle] = decode(
        settlements=[ack(fences(1, 1), outcome=pb.OUTCOME_RETRY, reason="é" * 3_000, error_type="x" * 300)]
    ).commands
    assert isinstance(settle, commands.Settle)
    [settlement] = settle.settlements
    assert settlement.reason == "é" * 2_048
    assert settlement.error_type == "x" * 256


def test_a_settlement_carries_its_publishes() -> None:
    publish = pb.PublishRequest(destination="mails", messages=[pb.Message(body=b"hi"), pb.Message(body=b"you")])
    [settle] = decode(settlements=[ack(fences(1, 1), publish=[publish])]).commands
    assert isinstance(settle, commands.Settle)
    [carried] = settle.settlements[0].publishes
    assert (carried.queue, carried.batch.count) == ("mails", 2)


def test_a_publish_that_cannot_be_stored_rejects_its_settlement() -> None:
    bad = pb.PublishRequest(destination="mails", messages=[pb.Message(key="k")])
    frame = decode(settlements=[ack(fences(1, 2), fences(4, 4), publish=[bad]), ack(fences(3, 3))])
    [settle] = frame.commands
    assert isinstance(settle, commands.Settle)
    rejected, good = settle.settlements
    assert rejected.ranges == (FenceRange(1, 2), FenceRange(4, 4))
    assert rejected.publishes == ()
    assert rejected.refusal is not None
    assert rejected.refusal.code is ErrorCode.UNSUPPORTED
    assert good.refusal is None


def test_settlements_and_their_publishes_are_counted() -> None:
    said = refused_part(settlements=[ack(fences(1, 1))] * (bounds.MAX_SETTLEMENTS_PER_FRAME + 1))
    assert (said.code, said.metadata["part"]) == (ErrorCode.LIMIT_EXCEEDED, "settlements")
    one = pb.PublishRequest(destination="mails", messages=[pb.Message()])
    most = bounds.MAX_PUBLISHES_PER_SETTLEMENT
    assert decode(settlements=[ack(fences(1, 1), publish=[one] * most)]).answers == ()
    [settle] = decode(settlements=[ack(fences(1, 1), publish=[one] * (most + 1))]).commands
    assert isinstance(settle, commands.Settle)
    refusal = settle.settlements[0].refusal
    assert refusal is not None
    assert refusal.code is ErrorCode.LIMIT_EXCEEDED


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), -1.0, -float("inf")])
def test_strange_figures_are_made_harmless(figure: float) -> None:
    [beat] = decode(heartbeat=pb.ConsumerHeartbeat(utilization=figure, cpu=figure)).commands
    assert isinstance(beat, commands.Heartbeat)
    assert 0.0 <= beat.cpu <= 1e6
    assert 0.0 <= beat.utilization <= 1e6


def test_a_frame_too_large_is_refused() -> None:
    with pytest.raises(RefusedError, match="split"):
        decode_consume(bytes(LIMITS.max_request_bytes + 1), SESSION, LIMITS)


@given(st.binary(max_size=100))
@settings(max_examples=500)
def test_any_bytes_are_decoded_refused_or_undecodable(raw: bytes) -> None:
    with suppress(RefusedError, UndecodableError):
        decode_consume(raw, SESSION, LIMITS)
