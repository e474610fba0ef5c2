"""The admin client against a fake control plane on a real channel."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from kyogo.admin import Client, QueueSettings, RetryPolicy
from kyogo.errors import BrokerError, UnavailableError
from kyogo.v1 import admin_pb2, admin_pb2_grpc


class FakeAdmin(admin_pb2_grpc.AdminServiceServicer):
    """Answers what the tests ask for, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def ListQueues(self, request: Any, context: Any) -> admin_pb2.ListQueuesResponse:  # noqa: N802
        self.asked.append(request)
        page = int(request.page_token or 0)
        queues = [admin_pb2.Queue(name=f"{request.prefix}{page}-{index}") for index in range(2)]
        return admin_pb2.ListQueuesResponse(queues=queues, next_page_token=str(page + 1) if page < 2 else "")

    async def UpdateQueue(self, request: Any, context: Any) -> admin_pb2.UpdateQueueResponse:  # noqa: N802
        self.asked.append(request)
        return admin_pb2.UpdateQueueResponse(queue=admin_pb2.Queue(name=request.queue))

    async def DeleteQueue(self, request: Any, context: Any) -> admin_pb2.DeleteQueueResponse:  # noqa: N802
        self.asked.append((request, dict(context.invocation_metadata())))
        return admin_pb2.DeleteQueueResponse(deleted_messages=5)

    async def PurgeQueue(self, request: Any, context: Any) -> admin_pb2.PurgeQueueResponse:  # noqa: N802
        await asyncio.Event().wait()
        raise AssertionError

    async def PauseQueue(self, request: Any, context: Any) -> admin_pb2.PauseQueueResponse:  # noqa: N802
        await context.abort(grpc.StatusCode.NOT_FOUND, "no queue of that name")
        raise AssertionError


async def serve(fake: FakeAdmin, address: str = "127.0.0.1:0") -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    admin_pb2_grpc.add_AdminServiceServicer_to_server(fake, server)
    port = server.add_insecure_port(address)
    await server.start()
    return server, f"127.0.0.1:{port}"


@pytest.fixture
def fake() -> FakeAdmin:
    return FakeAdmin()  # type: ignore[abstract]  # what is not asked for is UNIMPLEMENTED


@pytest_asyncio.fixture
async def address(fake: FakeAdmin) -> AsyncIterator[str]:
    server, address = await serve(fake)
    yield address
    await server.stop(None)


async def test_lists_fetch_page_after_page(fake: FakeAdmin, address: str) -> None:
    async with Client(address) as admin:
        names = [queue.name async for queue in admin.list_queues("q")]
    assert names == ["q0-0", "q0-1", "q1-0", "q1-1", "q2-0", "q2-1"]
    assert [request.page_token for request in fake.asked] == ["", "1", "2"]


async def test_an_update_says_what_changes(fake: FakeAdmin, address: str) -> None:
    settings = QueueSettings(max_attempts=0, retry=RetryPolicy(max_ms=5))
    async with Client(address) as admin:
        await admin.update_queue("orders", settings, reset=["max_losses"])
    [request] = fake.asked
    assert list(request.update_mask.paths) == ["max_attempts", "retry.max_ms", "max_losses"]
    assert (request.settings.max_attempts, request.settings.retry.max_ms) == (0, 5)


async def test_a_destructive_call_carries_its_confirmation_and_the_token(fake: FakeAdmin, address: str) -> None:
    async with Client(address, token="secret") as admin:
        assert await admin.delete_queue("orders", confirm="other") == 5
    [(request, metadata)] = fake.asked
    assert (request.queue, request.confirm) == ("orders", "other")
    assert metadata["authorization"] == "Bearer secret"


async def test_a_refusal_is_an_error_of_the_sdk(address: str) -> None:
    async with Client(address) as admin:
        with pytest.raises(BrokerError, match="no queue of that name"):
            await admin.pause_queue("orders")


async def test_a_broker_out_of_reach_is_unavailable_until_it_is_there(fake: FakeAdmin, address: str) -> None:
    server, other = await serve(fake)
    async with Client(other) as admin:
        await server.stop(None)
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1"):
            await admin.delete_queue("orders", confirm="orders")
        server, _ = await serve(fake, other)
        assert await admin.delete_queue("orders", confirm="orders") == 5
        await server.stop(None)


async def test_no_answer_in_time_is_unknown(address: str) -> None:
    async with Client(address, timeout=0.05) as admin:
        with pytest.raises(UnavailableError, match="unknown") as caught:
            await admin.purge_queue("orders", confirm="orders")
    assert caught.value.code == "TIMEOUT"
