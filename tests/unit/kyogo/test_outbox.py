"""A publisher's unconfirmed messages, without IO."""

from typing import Any

import pytest

from kyogo.codec import Codecs
from kyogo.errors import KyogoError, UnavailableError, refusal
from kyogo.outbox import BATCH_BYTES, BATCH_MESSAGES, REQUESTS_MAX, Outbox
from kyogo.outgoing import encode
from kyogo.v1 import broker_pb2 as pb

CODECS = Codecs()


class Ticket:
    def __init__(self, name: str) -> None:
        self.name = name
        self.dropped = False
        self.offset: int | None = None
        self.error: KyogoError | None = None
        self.told = 0

    def stored(self, offset: int, *, duplicate: bool) -> None:
        self.offset = offset
        self.told += 1

    def failed(self, error: KyogoError) -> None:
        self.error = error
        self.told += 1

    @property
    def code(self) -> str | None:
        return self.error.code if self.error is not None else None


class Driver:
    """An outbox, and what a publisher does with it."""

    def __init__(self) -> None:
        self.outbox = Outbox("p")
        self.now = 0.0
        self.next_offset = 1

    def add(self, *names: str, queue: str = "q", size: int = 0, timeout: float = 30.0) -> list[Ticket]:
        tickets = [Ticket(name) for name in names]
        for ticket in tickets:
            body = ticket.name.encode().ljust(size, b".")
            self.outbox.add(queue, encode(body, {}, codecs=CODECS), ticket, self.now + timeout)
        self.outbox.check_invariants()
        return tickets

    def sent(self) -> list[pb.PublishRequest]:
        """Everything that can be sent now."""
        found = []
        while (data := self.outbox.next_request(self.now)) is not None:
            found.append(pb.PublishRequest.FromString(data))
        self.outbox.check_invariants()
        return found

    def ok(self, request: pb.PublishRequest) -> None:
        run = pb.OffsetRun(first_offset=self.next_offset, count=len(request.messages))
        self.next_offset += run.count
        self.answer(request, offsets=[run])

    def refuse(self, request: pb.PublishRequest, code: str, **error: Any) -> None:
        wire = pb.Error(code=pb.ErrorCode.Value(f"ERROR_CODE_{code}"), message="no", **error)
        self.answer(request, error=wire)

    def answer(self, request: pb.PublishRequest, **fields: Any) -> None:
        self.outbox.answered(pb.PublishResponse(request_id=request.request_id, **fields), self.now)
        self.outbox.check_invariants()


def names(request: pb.PublishRequest) -> list[str]:
    return [message.body.decode().rstrip(".") for message in request.messages]


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_what_waits_travels_together(driver: Driver) -> None:
    tickets = driver.add("a")
    (first,) = driver.sent()
    tickets += driver.add("b", "c", "d")
    assert driver.sent() == []  # one request a destination is under way
    driver.ok(first)
    (second,) = driver.sent()
    assert (names(first), names(second)) == (["a"], ["b", "c", "d"])
    assert first.producer_id == second.producer_id == "p"
    assert second.request_id > first.request_id >= 1
    driver.ok(second)
    assert [t.offset for t in tickets] == [1, 2, 3, 4]
    assert driver.outbox.messages == driver.outbox.bytes == 0


def test_requests_are_bounded_in_messages_and_bytes(driver: Driver) -> None:
    driver.add(*(str(n) for n in range(300)))
    (request,) = driver.sent()
    assert len(request.messages) == BATCH_MESSAGES
    driver.add(*"abcdef", queue="large", size=BATCH_BYTES // 3)
    (request,) = driver.sent()
    assert names(request) == ["a", "b"]
    driver.add("x", queue="huge", size=BATCH_BYTES * 2)
    (request,) = driver.sent()
    assert names(request) == ["x"]


def test_destinations_do_not_wait_for_each_other_up_to_a_bound(driver: Driver) -> None:
    for number in range(REQUESTS_MAX + 10):
        driver.add("a", queue=f"q{number}")
    sent = driver.sent()
    assert len(sent) == REQUESTS_MAX
    for request in sent:
        driver.ok(request)
    assert len(driver.sent()) == 10


def test_an_answer_may_come_in_many_runs(driver: Driver) -> None:
    tickets = driver.add("a", "b", "c")
    (request,) = driver.sent()
    runs = [pb.OffsetRun(first_offset=9, count=1, duplicate=True), pb.OffsetRun(first_offset=40, count=2)]
    driver.answer(request, offsets=runs)
    assert [t.offset for t in tickets] == [9, 40, 41]


def test_too_few_confirmations_are_an_error_of_the_broker(driver: Driver) -> None:
    first, second = driver.add("a", "b")
    (request,) = driver.sent()
    driver.answer(request, offsets=[pb.OffsetRun(first_offset=1, count=1)])
    assert (first.offset, second.code) == (1, "PROTOCOL_VIOLATED")


def test_an_answer_to_nothing_is_passed_over(driver: Driver) -> None:
    driver.answer(pb.PublishRequest(request_id=77))


# --- a lost stream ---


def test_unanswered_requests_are_sent_again_as_they_were(driver: Driver) -> None:
    tickets = driver.add("a", queue="q1") + driver.add("b", queue="q2")
    before = driver.sent()
    driver.add("c", queue="q1")
    driver.outbox.stream_lost()
    after = driver.sent()
    assert after == before
    assert driver.sent() == []
    for request in after:
        driver.ok(request)
    assert [t.told for t in tickets] == [1, 1]
    (request,) = driver.sent()
    assert names(request) == ["c"]


# --- refusals ---


def test_a_refusal_that_passes_is_tried_again_in_order(driver: Driver) -> None:
    first = driver.add("a")
    (request,) = driver.sent()
    second = driver.add("b")
    driver.refuse(request, "QUEUE_FULL", retry_after_ms=1_000)
    assert driver.sent() == []
    due = driver.outbox.due()
    assert due is not None
    assert 1.0 <= due <= 1.1
    driver.now = due
    (again,) = driver.sent()
    assert names(again) == ["a", "b"]
    assert again.request_id > request.request_id
    driver.ok(again)
    assert [t.offset for t in first + second] == [1, 2]


def test_a_lane_that_waits_holds_up_no_other(driver: Driver) -> None:
    driver.add("a", queue="full")
    (request,) = driver.sent()
    driver.refuse(request, "QUEUE_FULL", retry_after_ms=60_000)
    driver.add("b", queue="other")
    assert [r.destination for r in driver.sent()] == ["other"]


def test_a_refusal_that_does_not_pass_is_told_at_once(driver: Driver) -> None:
    tickets = driver.add("a", "b")
    (request,) = driver.sent()
    driver.refuse(request, "QUEUE_NOT_FOUND")
    assert [t.code for t in tickets] == ["QUEUE_NOT_FOUND"] * 2
    assert driver.outbox.messages == 0
    assert driver.sent() == []


def test_one_bad_message_does_not_take_others_with_it(driver: Driver) -> None:
    tickets = driver.add("a", "bad", "c")
    (request,) = driver.sent()
    driver.refuse(request, "MESSAGE_INVALID", metadata={"index": "1"})
    (request,) = driver.sent()
    assert names(request) == ["a", "c"]
    driver.ok(request)
    assert [(t.offset, t.code) for t in tickets] == [(1, None), (None, "MESSAGE_INVALID"), (2, None)]


def test_a_bad_message_that_is_not_named_is_found(driver: Driver) -> None:
    tickets = driver.add("a", "bad", "c")
    (request,) = driver.sent()
    late = driver.add("d", "e")
    driver.refuse(request, "MESSAGE_TOO_LARGE")
    order = []
    while sent := driver.sent():
        (request,) = sent
        order.append(names(request))
        if "bad" in names(request):
            driver.refuse(request, "MESSAGE_TOO_LARGE")
        else:
            driver.ok(request)
    assert order == [["a"], ["bad"], ["c"], ["d", "e"]]
    assert [t.code for t in tickets + late] == [None, "MESSAGE_TOO_LARGE", None, None, None]


@pytest.mark.parametrize("index", ["3", "-1", "x", ""])
def test_an_index_that_is_none_does_not_mislead(driver: Driver, index: Any) -> None:
    tickets = driver.add("a", "b", "c")
    (request,) = driver.sent()
    driver.refuse(request, "MESSAGE_INVALID", metadata={"index": index})
    assert [t.told for t in tickets] == [0, 0, 0]
    assert [names(r) for r in driver.sent()] == [["a"]]


# --- deadlines ---


def test_unanswered_in_time_is_unknown(driver: Driver) -> None:
    (ticket,) = driver.add("a", timeout=5.0)
    (request,) = driver.sent()
    assert driver.outbox.due() == 5.0
    driver.now = 5.0
    assert driver.outbox.expire(driver.now) == 0.0  # when it was sent
    assert (ticket.code, driver.outbox.messages) == ("TIMEOUT", 0)
    assert "unknown" in str(ticket.error)
    driver.ok(request)  # too late
    assert ticket.told == 1


def test_each_message_has_its_own_deadline(driver: Driver) -> None:
    (first,) = driver.add("a", timeout=5.0)
    driver.now = 3.0
    (second,) = driver.add("b", timeout=5.0)
    (request,) = driver.sent()
    driver.now = 5.0
    driver.outbox.expire(driver.now)
    driver.outbox.check_invariants()
    assert (first.told, second.told) == (1, 0)
    driver.ok(request)
    assert (first.code, second.offset) == ("TIMEOUT", 2)


def test_what_was_refused_until_its_deadline_says_so(driver: Driver) -> None:
    (ticket,) = driver.add("a", timeout=5.0)
    (request,) = driver.sent()
    driver.refuse(request, "QUEUE_FULL", retry_after_ms=60_000)
    driver.now = 5.0
    assert driver.outbox.expire(driver.now) is None
    assert (ticket.code, driver.outbox.messages) == ("QUEUE_FULL", 0)


def test_what_was_never_sent_says_why(driver: Driver) -> None:
    (ticket,) = driver.add("a", timeout=5.0)
    driver.outbox.unreachable = UnavailableError("nobody there")
    driver.now = 5.0
    driver.outbox.expire(driver.now)
    assert ticket.code == "UNAVAILABLE"
    driver.outbox.check_invariants()
    assert driver.outbox.due() is None


def test_an_expired_message_is_not_sent_again_after_a_refusal(driver: Driver) -> None:
    driver.add("a", timeout=5.0)
    driver.now = 3.0
    (second,) = driver.add("b", timeout=5.0)
    (request,) = driver.sent()
    driver.now = 5.0
    driver.outbox.expire(driver.now)
    driver.refuse(request, "QUEUE_FULL", retry_after_ms=0)
    driver.now = 5.5
    (again,) = driver.sent()
    assert names(again) == ["b"]
    driver.ok(again)
    assert second.offset == 1


def test_an_expired_request_is_not_sent_again_after_a_loss(driver: Driver) -> None:
    driver.add("a", timeout=5.0)
    driver.sent()
    driver.outbox.stream_lost()
    driver.now = 5.0
    driver.outbox.expire(driver.now)
    assert driver.sent() == []


def test_what_nobody_waits_for_is_not_sent(driver: Driver) -> None:
    first, second = driver.add("a", "b")
    first.dropped = True
    assert [names(r) for r in driver.sent()] == [["b"]]
    second.dropped = True  # too late: it is under way
    assert driver.outbox.messages == 1


def test_fail_all_tells_everybody(driver: Driver) -> None:
    tickets = driver.add("a")
    driver.sent()
    tickets += driver.add("b") + driver.add("c", queue="other")
    driver.outbox.fail_all(refusal("UNAUTHENTICATED", "who?"))
    assert [t.code for t in tickets] == ["UNAUTHENTICATED"] * 3
    assert driver.outbox.messages == 0
    driver.add("d")
    assert len(driver.sent()) == 1


def test_empty_lanes_are_forgotten(driver: Driver) -> None:
    for number in range(3_000):
        driver.add("a", queue=f"q{number}")
        (request,) = driver.sent()
        driver.ok(request)
    assert len(driver.outbox._lanes) <= 1_001
