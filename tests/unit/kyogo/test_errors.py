"""One tree, by code."""

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from kyogo import errors, wire
from kyogo.errors import (
    AccessError,
    BrokerError,
    KyogoError,
    QueueFullError,
    QueueNotFoundError,
    UnavailableError,
    UnsupportedError,
)
from kyogo.v1 import broker_pb2 as pb


class Ended(grpc.RpcError):
    def __init__(self, code: Any, details: Any = "text", trailing: Any = ()) -> None:
        super().__init__()
        self._code, self._details, self._trailing = code, details, trailing

    def code(self) -> Any:
        return self._code

    def details(self) -> Any:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailing


def packed(reason: Any, *, domain: Any = "kyogo", retry_ms: Any = None) -> Any:
    details = [any_pb2.Any()]
    details[0].Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata={"queue": "q"}))
    if retry_ms is not None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromMilliseconds(retry_ms)
        details.append(any_pb2.Any())
        details[1].Pack(info)
    status = status_pb2.Status(code=9, message="make it first", details=details)
    return (("other", "x"), ("grpc-status-details-bin", status.SerializeToString()))


def test_the_brokers_details_make_the_error() -> None:
    error = errors.from_rpc(Ended(grpc.StatusCode.NOT_FOUND, trailing=packed("QUEUE_NOT_FOUND")))
    assert isinstance(error, QueueNotFoundError)
    assert (error.code, error.message, error.metadata) == ("QUEUE_NOT_FOUND", "make it first", {"queue": "q"})
    assert not error.retryable
    assert str(error) == "QUEUE_NOT_FOUND: make it first"


def test_retry_info_makes_it_retryable() -> None:
    error = errors.from_rpc(Ended(grpc.StatusCode.RESOURCE_EXHAUSTED, trailing=packed("QUEUE_FULL", retry_ms=1_500)))
    assert isinstance(error, QueueFullError)
    assert (error.retry_after_ms, error.retryable) == (1_500, True)


BARE = [
    (grpc.StatusCode.UNAVAILABLE, UnavailableError, "UNAVAILABLE", True),
    (grpc.StatusCode.UNIMPLEMENTED, UnsupportedError, "UNSUPPORTED", False),
    (grpc.StatusCode.UNAUTHENTICATED, AccessError, "UNAUTHENTICATED", False),
    (grpc.StatusCode.PERMISSION_DENIED, AccessError, "PERMISSION_DENIED", False),
    (grpc.StatusCode.INTERNAL, BrokerError, "INTERNAL", False),
]


@pytest.mark.parametrize(("status", "kind", "code", "retryable"), BARE)
def test_a_bare_status(status: Any, kind: Any, code: Any, retryable: Any) -> None:
    error = errors.from_rpc(Ended(status), address="h:1")
    assert type(error) is kind
    assert (error.code, error.retryable) == (code, retryable)
    assert "h:1" in error.message


@pytest.mark.parametrize(
    "trailing",
    [
        (("grpc-status-details-bin", b"\xff\xff"),),
        packed("QUOTA", domain="other"),
        None,
        (("grpc-status-details-bin", "x"),),
    ],
)
def test_details_of_others_are_passed_over(trailing: Any) -> None:
    error = errors.from_rpc(Ended(grpc.StatusCode.INTERNAL, trailing=trailing))
    assert error.code == "INTERNAL"


def test_an_error_in_a_frame_is_the_same_error() -> None:
    error = wire.error_from(pb.Error(code=pb.ERROR_CODE_QUEUE_FULL, message="m", retry_after_ms=0, metadata={"a": "b"}))
    assert isinstance(error, QueueFullError)
    assert (error.retry_after_ms, error.retryable, error.metadata) == (0, True, {"a": "b"})
    assert wire.error_from(pb.Error(code=pb.ERROR_CODE_QUEUE_FULL)).retry_after_ms is None


def test_a_code_of_a_newer_broker_is_its_number() -> None:
    error = wire.error_from(pb.Error.FromString(b"\x08\xe7\x07"))
    assert error.code == "999"


def test_a_draining_broker_is_an_unavailable_one() -> None:
    error = errors.refusal("BROKER_DRAINING", "soon", retry_after_ms=5)
    assert isinstance(error, UnavailableError)
    assert error.code == "BROKER_DRAINING"


def test_all_errors_are_of_one_tree() -> None:
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == "kyogo.errors"]
    assert len(kinds) > 15
    assert all(issubclass(kind, KyogoError) for kind in kinds)


STREAMS = [
    (grpc.StatusCode.INTERNAL, (), "UNAVAILABLE"),
    (grpc.StatusCode.UNKNOWN, (), "UNAVAILABLE"),
    (grpc.StatusCode.CANCELLED, (), "UNAVAILABLE"),
    (grpc.StatusCode.DEADLINE_EXCEEDED, (), "UNAVAILABLE"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, (), "UNAVAILABLE"),
    (grpc.StatusCode.UNAVAILABLE, (), "UNAVAILABLE"),
    (grpc.StatusCode.UNIMPLEMENTED, (), "UNSUPPORTED"),
    (grpc.StatusCode.UNAUTHENTICATED, (), "UNAUTHENTICATED"),
    (grpc.StatusCode.INVALID_ARGUMENT, (), "INVALID_ARGUMENT"),
    (grpc.StatusCode.NOT_FOUND, packed("QUEUE_NOT_FOUND"), "QUEUE_NOT_FOUND"),
    (grpc.StatusCode.INTERNAL, packed("LIMIT_EXCEEDED"), "LIMIT_EXCEEDED"),
]


@pytest.mark.parametrize(("status", "trailing", "code"), STREAMS)
def test_a_stream_that_breaks_is_a_lost_connection(status: Any, trailing: Any, code: Any) -> None:
    error = errors.from_stream(Ended(status, trailing=trailing))
    assert error.code == code
    assert error.retryable is (code == "UNAVAILABLE")
