"""Every code has a status, and travels with its reason."""

from typing import Any

import grpc
import pytest

from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.model.errors import ErrorCode, Refusal
from kyogo_broker.server import status
from kyogo_broker.server.wire.answers import error
from tests.support.edge import Failure, failure_from


class Context:
    def __init__(self) -> None:
        self.status: grpc.Status | None = None

    async def abort_with_status(self, given: grpc.Status) -> None:
        self.status = given
        raise grpc.aio.AbortError

    def code(self) -> grpc.StatusCode:
        assert self.status is not None
        return self.status.code

    def details(self) -> str:
        assert self.status is not None
        return self.status.details

    def trailing_metadata(self) -> Any:
        assert self.status is not None
        return self.status.trailing_metadata


async def aborted(refusal: Refusal, code: grpc.StatusCode | None = None) -> Failure:
    context: Any = Context()
    with pytest.raises(grpc.aio.AbortError):
        await status.abort(context, refusal, code)
    return failure_from(context)


@pytest.mark.parametrize("code", list(ErrorCode), ids=lambda code: code.name)
async def test_every_code_has_a_status_and_a_reason(code: ErrorCode) -> None:
    failure = await aborted(Refusal(code, "do this", metadata={"queue": "q"}))
    assert failure.code is status.STATUS[code]
    assert failure.reason == code.name
    assert failure.text == "do this"
    assert failure.metadata == {"queue": "q"}
    assert failure.retry_after_ms is None
    assert error(Refusal(code, "x")).code == pb.ErrorCode.Value(f"ERROR_CODE_{code.name}")


def test_the_wire_has_no_code_that_the_model_lacks() -> None:
    names = {name.removeprefix("ERROR_CODE_"): number for name, number in pb.ErrorCode.items()}
    assert names == {code.name: code.value for code in ErrorCode}


async def test_a_wait_travels_along() -> None:
    assert (await aborted(Refusal(ErrorCode.DISK_LOW, "x", 1_234))).retry_after_ms == 1_234
    assert (await aborted(Refusal(ErrorCode.DISK_LOW, "x", 0))).retry_after_ms == 0


async def test_a_status_fits_into_a_clients_headers() -> None:
    metadata = {f"{n}" * 1_000: "v" * 10_000 for n in range(50)}
    context: Any = Context()
    with pytest.raises(grpc.aio.AbortError):
        await status.abort(context, Refusal(ErrorCode.INTERNAL, "ü" * 10_000, 5, metadata))
    assert context.status is not None
    size = len(context.status.details.encode()) * 3 + sum(len(v) * 4 / 3 for _, v in context.status.trailing_metadata)
    assert size < 8_000, "gRPC's own limit of a client is 8 KiB"


async def test_another_status_can_be_chosen() -> None:
    failure = await aborted(Refusal(ErrorCode.FRAME_INVALID, "x"), grpc.StatusCode.FAILED_PRECONDITION)
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FRAME_INVALID")
