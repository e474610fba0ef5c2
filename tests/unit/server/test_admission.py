"""What is open is counted, and one too many is told so."""

from contextlib import ExitStack

import pytest

from kyogo_broker.model.errors import ErrorCode, RefusedError
from kyogo_broker.server.admission import Admission, AdmissionStats
from kyogo_broker.server.limits import Limits


def test_streams_are_limited_altogether() -> None:
    admission = Admission(Limits(max_streams=2))
    with admission.stream("a"), admission.stream("b"):
        with pytest.raises(RefusedError, match="max_streams is reached") as caught, admission.stream("c"):
            pass
        assert caught.value.refusal.code is ErrorCode.LIMIT_EXCEEDED
        assert caught.value.refusal.retry_after_ms is not None
        assert admission.stats() == AdmissionStats(streams=2, calls=0, refused=1)
    with admission.stream("c"):
        pass


def test_streams_are_limited_for_each_client() -> None:
    admission = Admission(Limits(max_streams_per_client=2))
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(admission.stream("a"))
        with pytest.raises(RefusedError, match="max_streams_per_client"), admission.stream("a"):
            pass
        stack.enter_context(admission.stream("b"))
    assert admission.stats().streams == 0
    assert admission._streams == {}, "clients that left are forgotten"


def test_calls_are_limited() -> None:
    admission = Admission(Limits(max_calls=1))
    with admission.call(), pytest.raises(RefusedError, match="max_calls"), admission.call():
        pass
    with admission.call():
        assert admission.stats().calls == 1


def test_room_is_given_back_when_a_stream_fails() -> None:
    admission = Admission(Limits(max_streams=1))
    with pytest.raises(ZeroDivisionError), admission.stream("a"):
        raise ZeroDivisionError
    assert admission.stats().streams == 0


@pytest.mark.parametrize(
    "fields",
    [{"max_message_bytes": 4 << 20}, {"max_request_bytes": 100}, {"max_streams": 0}, {"max_prefetch_messages": 0}],
)
def test_limits_that_cannot_work_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(RefusedError, match=next(iter(fields))):
        Limits(**fields)
