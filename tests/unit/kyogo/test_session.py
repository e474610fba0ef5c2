"""The consumer's session, without IO: tables of what goes in and what comes out."""

from typing import Any

import pytest

from kyogo.actions import Answered, Arrived, Attached, DrainAsked, Fault, Load, Rejected, Stop
from kyogo.delivery import BUFFERED, GONE, PARKED, RUNNING, SETTLING
from kyogo.errors import ProtocolError
from kyogo.outcomes import ACK, RELEASE, Outcome, Settlement
from kyogo.session import CAPABILITIES, Phase, Session
from kyogo.v1 import broker_pb2 as pb
from tests.support.sdk_sessions import attached_session, begun, deliver, new_session, response, revoke, settled, spans

FAILED = Settlement(Outcome.RETRY, reason="boom", error_type="ValueError")


def session_in(phase: Phase) -> Session:
    """A session that has come so far by the way every session takes."""
    if phase is Phase.NEW:
        return new_session()
    if phase is Phase.ATTACHING:
        session = new_session()
        session.next_frame()
        return session
    session = attached_session()
    if phase is Phase.LEAVING:
        session.detach()
        session.next_frame()
    if phase is Phase.ENDED:
        session.abandon()
    assert session.phase is phase
    return session


# --- phase x input ---

ATTACHED = response(attached=pb.Attached(consumer_id="c1"))
OTHER = response(heartbeat=pb.BrokerHeartbeat(sequence=1))

FRAMES = [
    # phase, `attached` comes, any other frame comes
    (Phase.NEW, ProtocolError, ProtocolError),
    (Phase.ATTACHING, Phase.ATTACHED, ProtocolError),
    (Phase.ATTACHED, ProtocolError, Phase.ATTACHED),
    (Phase.LEAVING, ProtocolError, Phase.LEAVING),
    (Phase.ENDED, ProtocolError, ProtocolError),
]


@pytest.mark.parametrize(("phase", "on_attached", "on_other"), FRAMES, ids=lambda value: getattr(value, "name", ""))
def test_frames_in_every_phase(phase: Phase, on_attached: Any, on_other: Any) -> None:
    for frame, expected in ((ATTACHED, on_attached), (OTHER, on_other)):
        session = session_in(phase)
        if expected is ProtocolError:
            with pytest.raises(ProtocolError):
                session.receive(frame)
        else:
            session.receive(frame)
            assert session.phase is expected


OUTGOING = [
    # phase, what `next_frame` gives after a heartbeat and a detach were asked for
    (Phase.NEW, "attach"),
    (Phase.ATTACHING, None),
    (Phase.ATTACHED, "detach"),
    (Phase.LEAVING, None),
    (Phase.ENDED, None),
]


@pytest.mark.parametrize(("phase", "part"), OUTGOING, ids=lambda value: getattr(value, "name", value))
def test_what_is_sent_in_every_phase(phase: Phase, part: Any) -> None:
    session = session_in(phase)
    session.beat(Load(0.0, 0.0, 0))
    session.detach()
    frame = session.next_frame()
    if part is None:
        assert frame is None
    else:
        assert frame is not None
        assert frame.HasField(part)


# --- attaching ---


def test_attach_says_who_and_what() -> None:
    session = new_session(consumer_id="c", version="2", labels={"zone": "a"}, weight=3, session_token="t")
    frame = session.next_frame()
    assert frame is not None
    attach = frame.attach
    assert [s.queue for s in attach.subscriptions] == ["orders", "mails"]
    assert tuple(attach.capabilities) == CAPABILITIES == ("started", "return", "cancel", "drain")
    assert (attach.consumer_id, attach.client.version, attach.client.language) == ("c", "2", "python")
    assert (attach.prefetch.messages, attach.weight, attach.session_token) == (32, 3, "t")
    assert attach.labels == {"zone": "a"}


def test_attached_is_told() -> None:
    session = session_in(Phase.ATTACHING)
    frame = pb.Attached(
        consumer_id="c1",
        session_token="t",
        heartbeat_interval_ms=500,
        subscriptions=[pb.SubscriptionInfo(queue="orders", visibility_timeout_ms=7)],
    )
    (action,) = session.receive(response(attached=frame))
    assert isinstance(action, Attached)
    assert (action.consumer_id, action.session_token, action.heartbeat_interval_ms) == ("c1", "t", 500)
    assert action.visibility_timeouts_ms == {"orders": 7}


# --- deliveries ---


def test_a_run_becomes_messages_with_consecutive_fences_and_offsets() -> None:
    session = attached_session()
    messages = deliver(session, 3, first=10, first_offset=100, subscription=1, attempt=2, losses=1)
    assert [(m.queue, m.fence, m.offset, m.attempt, m.losses) for m in messages] == [
        ("mails", 10, 100, 2, 1),
        ("mails", 11, 101, 2, 1),
        ("mails", 12, 102, 2, 1),
    ]
    assert [m.body for m in messages] == [b"0", b"1", b"2"]
    assert session.buffered == 3


def test_arrival_is_told_once_for_a_frame() -> None:
    session = attached_session()
    runs = [pb.DeliveryRun(first_fence=f, first_offset=f, messages=[pb.Message()] * 2) for f in (1, 10)]
    assert session.receive(response(deliveries=runs)) == [Arrived(4)]


def test_a_delivery_for_an_unknown_subscription_is_against_the_contract() -> None:
    with pytest.raises(ProtocolError):
        deliver(attached_session(), 1, subscription=2)


def test_started_and_acks_travel_as_ranges_in_one_frame() -> None:
    session = attached_session()
    messages = begun(session, 6)
    for message in reversed(messages[:3]):
        assert session.finish(message, ACK)
    session.check_invariants()
    frame = session.next_frame()
    assert frame is not None
    assert spans(frame.started) == [(4, 6)]  # what began and ended meanwhile needs no clock
    (acked,) = frame.settlements
    assert (acked.outcome, spans(acked.ranges)) == (pb.OUTCOME_ACK, [(1, 3)])
    assert session.next_frame() is None
    assert (session.running, session.unanswered, session.buffered) == (3, 3, 0)


def test_equal_settlements_travel_together_and_others_apart() -> None:
    session = attached_session()
    messages = begun(session, 4)
    session.finish(messages[0], FAILED)
    session.finish(messages[1], Settlement(Outcome.RETRY, delay_ms=0))
    session.finish(messages[2], Settlement(Outcome.RETRY, reason="boom", error_type="ValueError"))
    session.finish(messages[3], Settlement(Outcome.DEAD_LETTER, reason="no"))
    frame = session.next_frame()
    assert frame is not None
    sent = {
        (pb.Outcome.Name(s.outcome), s.reason, s.delay_ms if s.HasField("delay_ms") else None): spans(s.ranges)
        for s in frame.settlements
    }
    assert sent == {
        ("OUTCOME_RETRY", "boom", None): [(1, 1), (3, 3)],
        ("OUTCOME_RETRY", "", 0): [(2, 2)],
        ("OUTCOME_DEAD_LETTER", "no", None): [(4, 4)],
    }


def test_what_is_finished_twice_is_sent_once() -> None:
    session = attached_session()
    (message,) = begun(session, 1)
    assert session.finish(message, ACK)
    assert not session.finish(message, FAILED)
    frame = session.next_frame()
    assert frame is not None
    assert len(frame.settlements) == 1


# --- answers ---


def test_answers_free_what_they_name() -> None:
    session = attached_session()
    for message in begun(session, 3):
        session.finish(message, ACK)
    session.next_frame()
    assert session.receive(settled("OK", 1, 2)) == [Answered(ok=2, stale=0)]
    assert session.receive(settled("STALE", 3)) == [Answered(ok=0, stale=1)]
    session.check_invariants()
    assert (session.unanswered, session.buffered, session.running) == (0, 0, 0)


def test_an_answer_for_what_was_not_settled_changes_nothing() -> None:
    session = attached_session()
    begun(session, 1)
    assert session.receive(settled("OK", 1, 99)) == []
    session.check_invariants()
    assert session.running == 1


def test_an_endless_range_costs_no_more_than_what_is_held() -> None:
    session = attached_session()
    (message,) = begun(session, 1)
    session.finish(message, ACK)
    everything = pb.SettleResult(range=pb.FenceRange(first=1, last=2**53), status=pb.SETTLE_STATUS_OK)
    assert session.receive(response(settled=[everything])) == [Answered(1, 0)]


def test_a_rejected_ack_runs_again_and_can_be_settled_otherwise() -> None:
    session = attached_session()
    (message,) = begun(session, 1)
    message.publish("mails", b"x")
    session.finish(message, ACK)
    first = session.next_frame()
    assert first is not None
    assert first.settlements[0].publish[0].destination == "mails"
    error = pb.Error(code=pb.ERROR_CODE_UNSUPPORTED, message="not built")
    (action,) = session.receive(settled("REJECTED", 1, error=error))
    assert isinstance(action, Rejected)
    assert action.error.code == "UNSUPPORTED"
    session.check_invariants()
    assert session.finish(message, FAILED)
    second = session.next_frame()
    assert second is not None
    assert second.settlements[0].outcome == pb.OUTCOME_RETRY
    assert not second.settlements[0].publish


# --- revokes: state x mode ---

REVOKES = [
    # state, mode, state after, outcome sent, handler told
    (BUFFERED, "RETURN", SETTLING, pb.OUTCOME_RELEASE, None),
    (BUFFERED, "LOST", GONE, None, None),
    (BUFFERED, "CANCEL", SETTLING, pb.OUTCOME_RELEASE, None),
    (PARKED, "RETURN", SETTLING, pb.OUTCOME_RELEASE, None),
    (PARKED, "LOST", GONE, None, None),
    (PARKED, "CANCEL", SETTLING, pb.OUTCOME_RELEASE, None),
    (RUNNING, "RETURN", RUNNING, None, None),
    (RUNNING, "LOST", GONE, None, "lost"),
    (RUNNING, "CANCEL", RUNNING, None, "cancelled"),
    (SETTLING, "RETURN", SETTLING, pb.OUTCOME_ACK, None),
    (SETTLING, "LOST", SETTLING, pb.OUTCOME_ACK, None),
    (SETTLING, "CANCEL", SETTLING, pb.OUTCOME_ACK, None),
]


@pytest.mark.parametrize(("state", "mode", "after", "outcome", "told"), REVOKES)
def test_revokes(state: Any, mode: Any, after: Any, outcome: Any, told: Any) -> None:
    session = attached_session()
    (message,) = deliver(session, 1)
    if state == PARKED:
        session.park(message)
    elif state != BUFFERED:
        session.begin(message)
        if state == SETTLING:
            session.finish(message, ACK)
    actions = session.receive(response(revokes=[revoke(mode, 1)]))
    session.check_invariants()
    assert message.state == after
    frame = session.next_frame()
    sent = [s.outcome for s in frame.settlements] if frame is not None else []
    assert sent == ([] if outcome is None else [outcome])
    if told is None:
        assert actions == []
    else:
        assert actions == [Stop(message, lost=told == "lost", reason="REBALANCE")]


def test_what_was_returned_is_not_taken() -> None:
    session = attached_session()
    session.receive(
        response(
            deliveries=[pb.DeliveryRun(first_fence=1, first_offset=1, messages=[pb.Message()] * 3)],
            revokes=[],
        )
    )
    session.receive(response(revokes=[revoke("RETURN", 1, 3)]))
    taken = session.take()
    assert taken is not None
    assert taken.fence == 2
    assert session.take() is None


def test_what_was_lost_cannot_be_settled_or_extended() -> None:
    session = attached_session()
    (message,) = begun(session, 1)
    session.next_frame()
    session.receive(response(revokes=[revoke("LOST", 1)]))
    session.extend(message, 1_000)
    assert not session.finish(message, ACK)
    assert session.next_frame() is None


# --- extending ---


def test_extends_are_grouped_by_length_one_group_a_frame() -> None:
    session = attached_session()
    messages = begun(session, 3)
    for message, length in zip(messages, (5, 7, 5), strict=True):
        session.extend(message, length)
    frames = [session.next_frame(), session.next_frame()]
    assert session.next_frame() is None
    sent = {f.extend.extension_ms: spans(f.extend.ranges) for f in frames if f is not None}
    assert sent == {5: [(1, 1), (3, 3)], 7: [(2, 2)]}


@pytest.mark.parametrize(
    ("status", "state", "kinds"), [("OK", RUNNING, []), ("STALE", GONE, [Stop]), ("REJECTED", RUNNING, [Fault])]
)
def test_an_extension_that_came_too_late_loses_the_message(status: Any, state: Any, kinds: Any) -> None:
    session = attached_session()
    (message,) = begun(session, 1)
    result = pb.ExtendResult(
        range=pb.FenceRange(first=1, last=1), status=pb.SettleStatus.Value(f"SETTLE_STATUS_{status}")
    )
    actions = session.receive(response(extended=[result]))
    assert [type(action) for action in actions] == kinds
    assert message.state == state


# --- heartbeats, prefetch, drain ---


def test_heartbeats_count_up_and_echo_the_brokers() -> None:
    session = attached_session()
    begun(session, 2)
    deliver(session, 3, first=10)
    session.receive(response(heartbeat=pb.BrokerHeartbeat(sequence=41)))
    for expected in (1, 2):
        session.beat(Load(utilization=0.5, cpu=0.25, rss_bytes=9))
        frame = session.next_frame()
        assert frame is not None
        beat = frame.heartbeat
        assert (beat.sequence, beat.echo, beat.running, beat.buffered) == (expected, 41, 2, 3)
        assert (beat.utilization, beat.cpu, beat.rss_bytes) == (0.5, 0.25, 9)


def test_prefetch_is_sent_when_it_changes() -> None:
    session = attached_session()
    session.set_prefetch(32)
    assert session.next_frame() is None
    session.set_prefetch(64)
    frame = session.next_frame()
    assert frame is not None
    assert frame.prefetch.messages == 64


def test_stop_taking_releases_what_has_not_begun_now_and_later() -> None:
    session = attached_session()
    running = begun(session, 1)[0]
    waiting = deliver(session, 2, first=10)
    session.park(waiting[1])
    session.stop_taking()
    session.check_invariants()
    frame = session.next_frame()
    assert frame is not None
    assert frame.prefetch.messages == 0
    assert frame.HasField("prefetch")
    assert [(s.outcome, spans(s.ranges)) for s in frame.settlements] == [(pb.OUTCOME_RELEASE, [(10, 11)])]
    assert deliver(session, 1, first=20) == []
    frame = session.next_frame()
    assert frame is not None
    assert [spans(s.ranges) for s in frame.settlements] == [[(20, 20)]]
    assert running.state == RUNNING


def test_detach_goes_after_everything_else() -> None:
    session = attached_session()
    messages = begun(session, 5_000)
    session.next_frame()
    session.next_frame()
    for message in messages:
        session.finish(message, ACK)
    session.detach()
    first, second, third = session.next_frame(), session.next_frame(), session.next_frame()
    assert first is not None
    assert not first.HasField("detach")
    assert second is not None
    assert second.HasField("detach")
    assert second.settlements
    assert third is None


def test_deliveries_that_cross_the_detach_are_passed_over() -> None:
    session = session_in(Phase.LEAVING)
    assert deliver(session, 2) == []
    assert session.buffered == 0


def test_drain_and_errors_are_told() -> None:
    session = attached_session()
    frame = response(
        drain=pb.Drain(reason="bye", deadline_ms=100),
        errors=[pb.Error(code=pb.ERROR_CODE_FRAME_INVALID, message="what?", retry_after_ms=5)],
    )
    drain, fault = session.receive(frame)
    assert drain == DrainAsked("bye", 100)
    assert isinstance(fault, Fault)
    assert (fault.error.code, fault.error.retry_after_ms) == ("FRAME_INVALID", 5)
    assert session.receive(response(drain=pb.Drain(reason="bye"))) == [DrainAsked("bye", None)]


def test_release_is_for_what_has_not_begun() -> None:
    session = attached_session()
    (message,) = begun(session, 1)
    session.release(message)
    assert message.state == RUNNING


def test_abandon_takes_everything() -> None:
    session = attached_session()
    running, settling = begun(session, 2)
    session.finish(settling, RELEASE)
    deliver(session, 3, first=10)
    lost = session.abandon()
    assert (lost.running, lost.buffered, lost.unanswered) == ((running,), 3, 1)
    assert running.state == settling.state == GONE
    assert session.next_frame() is None
    assert not session.finish(running, ACK)
    session.check_invariants()
