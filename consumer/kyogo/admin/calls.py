"""Unary calls to a broker: one channel, opened with the first call, replaced when the broker is out of reach.

Calls that change nothing are repeated by gRPC while the broker is away (see `kyogo.connection`), others not:
what was not answered is unknown, and only the caller knows whether a repeat does harm.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio

from kyogo.connection import open_channel
from kyogo.errors import UnavailableError, from_rpc
from kyogo.target import Target
from kyogo.v1.admin_pb2_grpc import AdminServiceStub
from kyogo.v1.broker_pb2_grpc import BrokerServiceStub

if TYPE_CHECKING:
    from kyogo.v1.admin_pb2_grpc import AdminServiceAsyncStub
    from kyogo.v1.broker_pb2_grpc import BrokerServiceAsyncStub

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


class Calls:
    """Both services of one target."""

    def __init__(self, target: Target, timeout: float) -> None:
        """Nothing is opened yet.

        Args:
            target: where, and as whom.
            timeout: seconds for one call, its repetitions included.
        """
        self.target = target
        self._timeout = timeout
        self._attempt = 0
        self._channel: grpc.aio.Channel | None = None

    async def admin(
        self,
        method: "Callable[[AdminServiceAsyncStub], grpc.aio.UnaryUnaryMultiCallable[_Request, _Answer]]",
        request: _Request,
    ) -> _Answer:
        """One call of the control plane."""
        return await self._ask(method(AdminServiceStub(self._open())), request)

    async def broker(
        self,
        method: "Callable[[BrokerServiceAsyncStub], grpc.aio.UnaryUnaryMultiCallable[_Request, _Answer]]",
        request: _Request,
    ) -> _Answer:
        """One call of the data plane."""
        return await self._ask(method(BrokerServiceStub(self._open())), request)

    async def close(self) -> None:
        """Close the channel; the next call would open another. Idempotent."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(grace=None)

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = open_channel(self.target, attempt=self._attempt)
        return self._channel

    async def _ask(self, call: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Answer]", request: _Request) -> _Answer:
        asked_on = self._channel
        try:
            return await call(request, timeout=self._timeout, metadata=self.target.metadata())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                text = f"no answer from {self.target} within {self._timeout:g} s: whether it was done is unknown"
                raise UnavailableError(text, code="TIMEOUT") from error
            translated = from_rpc(error, address=str(self.target))
            if isinstance(translated, UnavailableError) and asked_on is self._channel:
                self._attempt += 1
                await self.close()
            raise translated from error
