"""The control plane from Python: queues, consumers and figures, a method for each call."""

from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Self

from google.protobuf.field_mask_pb2 import FieldMask

from kyogo.admin.calls import Calls
from kyogo.admin.figures import Consumer, Queue, ServerInfo, Stats
from kyogo.admin.settings import QueueSettings
from kyogo.admin.wire import (
    changed_paths,
    consumer_from_wire,
    queue_from_wire,
    server_info_from_wire,
    settings_to_wire,
    stats_from_wire,
)
from kyogo.target import Target
from kyogo.v1 import admin_pb2, broker_pb2

PAGE_SIZE = 1_000
"""The contract's most: the fewest round trips."""


class Client:
    """An operator's view of a broker. Use it as `async with`, or call `close`.

    Every method raises `UnavailableError` when the broker cannot be reached or does not answer in time, and
    another `KyogoError` with the broker's code and its remedy when it refuses.
    """

    def __init__(self, url: str | None = None, *, token: str | None = None, timeout: float = 10.0) -> None:
        """Nothing is opened before the first call.

        Args:
            url: `host:port` or `kyogo://host:port`. None: KYOGO_URL, else the broker on this machine.
            token: shown to the broker. None: KYOGO_TOKEN.
            timeout: seconds for one call.

        Raises:
            ConfigurationError: the address cannot be understood.
        """
        self._calls = Calls(Target.resolve(url, token), timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        await self._calls.close()

    # --- queues ---

    async def create_queue(self, queue: str, settings: QueueSettings | None = None) -> Queue:
        """Make a queue; the same settings again are a success.

        Args:
            queue: its name, `[A-Za-z0-9._-]{1,116}`.
            settings: what differs from the defaults.

        Raises:
            BrokerError: `QUEUE_EXISTS` with other settings, `SETTINGS_INVALID`, `LIMIT_EXCEEDED`.
        """
        wire = settings_to_wire(QueueSettings() if settings is None else settings)
        request = admin_pb2.CreateQueueRequest(queue=queue, settings=wire)
        return queue_from_wire((await self._calls.admin(lambda stub: stub.CreateQueue, request)).queue)

    async def get_queue(self, queue: str) -> Queue:
        """One queue with its settings and figures.

        Raises:
            QueueNotFoundError: the message names the nearest.
        """
        request = admin_pb2.GetQueueRequest(queue=queue)
        return queue_from_wire((await self._calls.admin(lambda stub: stub.GetQueue, request)).queue)

    async def list_queues(self, prefix: str = "") -> AsyncIterator[Queue]:
        """All queues whose names begin with `prefix`, by name; fetched a page at a time."""
        token = ""
        while True:
            request = admin_pb2.ListQueuesRequest(prefix=prefix, page_size=PAGE_SIZE, page_token=token)
            page = await self._calls.admin(lambda stub: stub.ListQueues, request)
            for queue in page.queues:
                yield queue_from_wire(queue)
            if not (token := page.next_page_token):
                return

    async def update_queue(self, queue: str, settings: QueueSettings, *, reset: Iterable[str] = ()) -> Queue:
        """Change settings under load.

        Args:
            queue: its name.
            settings: the new values; what is None stays as it is.
            reset: names of settings that go back to their default, such as `max_attempts` or `retry.max_ms`.

        Raises:
            QueueNotFoundError: no such queue.
            BrokerError: `SETTINGS_INVALID`, naming the field and its bounds.
        """
        mask = FieldMask(paths=changed_paths(settings, reset))
        wire = settings_to_wire(settings)
        request = admin_pb2.UpdateQueueRequest(queue=queue, settings=wire, update_mask=mask)
        return queue_from_wire((await self._calls.admin(lambda stub: stub.UpdateQueue, request)).queue)

    async def delete_queue(self, queue: str, *, confirm: str) -> int:
        """Remove a queue and all its messages.

        Args:
            queue: its name.
            confirm: the same name again; else nothing is done.

        Returns:
            Unfinished messages that went with it.

        Raises:
            QueueNotFoundError: no such queue.
        """
        request = admin_pb2.DeleteQueueRequest(queue=queue, confirm=confirm)
        return (await self._calls.admin(lambda stub: stub.DeleteQueue, request)).deleted_messages

    async def purge_queue(self, queue: str, *, confirm: str) -> int:
        """Finish all messages of a queue that are not in flight; those are settled by who holds them.

        Args:
            queue: its name.
            confirm: the same name again; else nothing is done.

        Returns:
            Messages finished by it.

        Raises:
            QueueNotFoundError: no such queue.
        """
        request = admin_pb2.PurgeQueueRequest(queue=queue, confirm=confirm)
        return (await self._calls.admin(lambda stub: stub.PurgeQueue, request)).purged_messages

    async def pause_queue(self, queue: str) -> Queue:
        """Stop delivery, not publishing; what is in flight goes on. A paused queue stays paused.

        Raises:
            QueueNotFoundError: no such queue.
        """
        request = admin_pb2.PauseQueueRequest(queue=queue)
        return queue_from_wire((await self._calls.admin(lambda stub: stub.PauseQueue, request)).queue)

    async def unpause_queue(self, queue: str) -> Queue:
        """Let delivery go on.

        Raises:
            QueueNotFoundError: no such queue.
        """
        request = admin_pb2.UnpauseQueueRequest(queue=queue)
        return queue_from_wire((await self._calls.admin(lambda stub: stub.UnpauseQueue, request)).queue)

    # --- consumers and figures ---

    async def consumers(self, queue: str = "") -> AsyncIterator[Consumer]:
        """Attached consumers by id, of one queue or of all; fetched a page at a time."""
        token = ""
        while True:
            request = admin_pb2.ListConsumersRequest(queue=queue, page_size=PAGE_SIZE, page_token=token)
            page = await self._calls.admin(lambda stub: stub.ListConsumers, request)
            for consumer in page.consumers:
                yield consumer_from_wire(consumer)
            if not (token := page.next_page_token):
                return

    async def stats(self, queue: str = "") -> Stats:
        """The broker's figures and one queue's, or all queues', of one moment."""
        request = admin_pb2.GetStatsRequest(queue=queue)
        return stats_from_wire(await self._calls.admin(lambda stub: stub.GetStats, request))

    async def server_info(self) -> ServerInfo:
        """Who the broker is and what it allows."""
        request = broker_pb2.GetServerInfoRequest()
        return server_info_from_wire(await self._calls.broker(lambda stub: stub.GetServerInfo, request))
