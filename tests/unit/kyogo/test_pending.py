"""Frames stay below what a broker takes, whatever has piled up."""

from typing import Any

import pytest

from kyogo import pending, wire
from kyogo.outcomes import ACK, Outcome, Settlement
from kyogo.v1 import broker_pb2 as pb
from tests.support.sdk_sessions import attached_session, begun, deliver, spans


def frames_of(session: Any) -> Any:
    found = []
    while (frame := session.next_frame()) is not None:
        found.append(frame)
    return found


def range_count(frame: Any) -> Any:
    return len(frame.started) + sum(len(s.ranges) for s in frame.settlements) + len(frame.extend.ranges)


@pytest.mark.parametrize(
    ("fences", "expected"),
    [
        ([5], [(5, 5)]),
        ([1, 2, 3], [(1, 3)]),
        ([3, 1, 2], [(1, 3)]),
        ([1, 3, 4, 9], [(1, 1), (3, 4), (9, 9)]),
        ([2**53 - 1, 2**53 - 2], [(2**53 - 2, 2**53 - 1)]),
    ],
)
def test_fences_become_as_few_ranges_as_they_make(fences: Any, expected: Any) -> None:
    assert spans(wire.fence_ranges(fences)) == expected


def test_scattered_fences_are_spread_over_frames() -> None:
    session = attached_session()
    messages = begun(session, 40_000)
    frames = frames_of(session)
    for number, message in enumerate(messages):
        session.finish(message, ACK if number % 2 else Settlement(Outcome.RETRY, reason=f"r{number % 3}"))
    frames += frames_of(session)
    assert all(range_count(frame) <= 16_384 for frame in frames)
    assert all(frame.ByteSize() < 1 << 20 for frame in frames)
    sent = sorted(f for frame in frames for s in frame.settlements for a, b in spans(s.ranges) for f in range(a, b + 1))
    assert sent == [m.fence for m in messages]


def test_long_reasons_are_spread_over_frames() -> None:
    session = attached_session()
    messages = begun(session, 2_000)
    frames_of(session)
    for number, message in enumerate(messages):
        session.finish(message, Settlement(Outcome.RETRY, reason=f"{number}".ljust(4_000, "x")))
    frames = frames_of(session)
    assert len(frames) >= 8
    assert all(frame.ByteSize() < pending.FRAME_BYTES + pending.FRAME_BYTES_SPARE for frame in frames)
    assert sum(len(frame.settlements) for frame in frames) == 2_000


def test_many_kinds_of_settlements_are_spread_over_frames() -> None:
    session = attached_session()
    for number, message in enumerate(begun(session, 3_000)):
        session.finish(message, Settlement(Outcome.RETRY, delay_ms=number))
    frames = frames_of(session)
    assert all(len(frame.settlements) <= pending.SETTLEMENTS_PER_FRAME for frame in frames)
    assert sum(len(frame.settlements) for frame in frames) == 3_000


def test_publishes_travel_with_their_own_ack_grouped_by_queue() -> None:
    session = attached_session()
    plain, publishing = begun(session, 2)
    publishing.publish("mails", {"to": "a"}, type="mail", headers={"k": "v"})
    publishing.publish("audit", b"x")
    publishing.publish("mails", {"to": "b"})
    session.finish(plain, ACK)
    session.finish(publishing, ACK)
    (frame,) = frames_of(session)
    first, unit = frame.settlements
    assert (spans(first.ranges), list(first.publish)) == ([(1, 1)], [])
    assert (unit.outcome, spans(unit.ranges)) == (pb.OUTCOME_ACK, [(2, 2)])
    requests = [(p.destination, p.request_id, [m.body for m in p.messages]) for p in unit.publish]
    assert requests == [("mails", 1, [b'{"to":"a"}', b'{"to":"b"}']), ("audit", 2, [b"x"])]
    assert unit.publish[0].messages[0].headers == {"k": "v"}


def test_publishes_of_what_failed_are_dropped() -> None:
    session = attached_session()
    (message,) = begun(session, 1)
    message.publish("mails", b"x")
    session.finish(message, Settlement(Outcome.RETRY))
    (frame,) = frames_of(session)
    assert not frame.settlements[0].publish


def test_a_large_unit_goes_without_others_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "FRAME_BYTES", 3_000)
    session = attached_session()
    for message in begun(session, 3):
        message.publish("mails", b"x" * 900)
        message.publish("mails", b"x" * 900)
        session.finish(message, ACK)
    assert [len(frame.settlements) for frame in frames_of(session)] == [1, 1, 1]


def test_a_delivery_that_ends_before_it_is_told_is_not_told() -> None:
    session = attached_session()
    (message,) = deliver(session, 1)
    session.begin(message)
    session.abandon()
    assert session.next_frame() is None
