"""The control plane: queues, consumers, figures."""

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import islice

from kyogo_broker.engine import Engine
from kyogo_broker.model.commands import Command, CreateQueue, DeleteQueue, PauseQueue, PurgeQueue, UpdateQueue
from kyogo_broker.model.effects import AdminDone
from kyogo_broker.model.errors import ErrorCode, Refusal, RefusedError, refuse
from kyogo_broker.model.stats import ConsumerStats, QueueStats
from kyogo_broker.server.calls import Calls
from kyogo_broker.server.handlers import Call, Watch
from kyogo_broker.server.limits import MAX_WATCHES
from kyogo_broker.server.pictures import Pictures
from kyogo_broker.server.status import Context
from kyogo_broker.server.wire import admin as wire


class Admin:
    """Answers `AdminService`; reads go by the figures of the last turn, changes through the shard."""

    def __init__(
        self,
        engine: Engine,
        calls: Calls,
        figures: Callable[[], wire.BrokerFigures],
        peers: Callable[[], Mapping[int, str]],
        closing: asyncio.Event,
    ) -> None:
        """Answers for one broker.

        Args:
            engine: of the broker.
            calls: its port.
            figures: the broker's own, now.
            peers: the network address of each port with a stream.
            closing: set when the broker stops.
        """
        self._engine = engine
        self._calls = calls
        self._figures = figures
        self._peers = peers
        self._closing = closing
        self._updating = asyncio.Lock()
        """An update reads settings, changes some and writes them all: one at a time."""
        self._all = Pictures(self._sorted)
        self._all_stats = Pictures(self._encoded)
        self._watches = 0

    def calls(self) -> Mapping[str, Call]:
        """The unary rpcs that are built, by name."""
        return {
            "CreateQueue": self.create_queue,
            "GetQueue": self.get_queue,
            "ListQueues": self.list_queues,
            "UpdateQueue": self.update_queue,
            "DeleteQueue": self.delete_queue,
            "PurgeQueue": self.purge_queue,
            "PauseQueue": lambda raw: self._pause("PauseQueue", raw, paused=True),
            "UnpauseQueue": lambda raw: self._pause("UnpauseQueue", raw, paused=False),
            "ListConsumers": self.list_consumers,
            "GetStats": self.get_stats,
        }

    def watches(self) -> Mapping[str, Watch]:
        """The rpcs with many answers that are built, by name."""
        return {"WatchStats": self.watch_stats}

    async def create_queue(self, raw: bytes) -> bytes:
        """Make a queue."""
        queue, settings = wire.decode_create(raw)
        await self._ask(lambda port, tag: CreateQueue(port, tag, queue, settings), len(raw))
        return wire.encode_queue("CreateQueue", self._queue(queue))

    async def get_queue(self, raw: bytes) -> bytes:
        """Show one queue."""
        return wire.encode_queue("GetQueue", self._queue(wire.decode_queue("GetQueue", raw)))

    async def list_queues(self, raw: bytes) -> bytes:
        """Show queues by name, a page at a time."""
        prefix, labels, page = wire.decode_list_queues(raw)
        wanted = set(labels.items())
        queues, _ = await self._all.get()
        begin = bisect_right(queues, page.after, key=lambda queue: queue.name)
        found = (
            queue
            for queue in islice(queues, begin, None)
            if queue.name.startswith(prefix) and wanted <= set(queue.settings.labels)
        )
        return wire.encode_queues(found, page.size)

    async def update_queue(self, raw: bytes) -> bytes:
        """Change some settings of a queue."""
        queue, change = wire.decode_update(raw)
        async with self._updating:
            settings = change(self._queue(queue).settings)
            await self._ask(lambda port, tag: UpdateQueue(port, tag, queue, settings), len(raw))
        return wire.encode_queue("UpdateQueue", self._queue(queue))

    async def delete_queue(self, raw: bytes) -> bytes:
        """Remove a queue and all its messages."""
        queue = wire.decode_confirmed("DeleteQueue", raw)
        done = await self._ask(lambda port, tag: DeleteQueue(port, tag, queue), len(raw))
        return wire.encode_deleted(done.count)

    async def purge_queue(self, raw: bytes) -> bytes:
        """Finish the messages of a queue."""
        queue = wire.decode_confirmed("PurgeQueue", raw)
        done = await self._ask(lambda port, tag: PurgeQueue(port, tag, queue), len(raw))
        return wire.encode_purged(done.count)

    async def list_consumers(self, raw: bytes) -> bytes:
        """Show consumers by id, a page at a time."""
        queue, page = wire.decode_list_consumers(raw)
        if queue:
            self._queue(queue)
        _, consumers = await self._all.get()
        begin = bisect_right(consumers, page.after, key=lambda consumer: consumer.consumer_id)
        peers = self._peers()
        found = (
            (consumer, peers.get(consumer.port, ""))
            for consumer in islice(consumers, begin, None)
            if not queue or queue in consumer.queues
        )
        return wire.encode_consumers(found, page.size)

    async def get_stats(self, raw: bytes) -> bytes:
        """Show the figures of the broker and its queues."""
        return await self._stats(wire.decode_stats(raw))

    async def watch_stats(self, raw: bytes, context: Context) -> None:
        """Show the figures again and again, until the client ends the call or the broker stops."""
        queue, interval_ms = wire.decode_watch_stats(raw)
        if self._watches >= MAX_WATCHES:
            raise refuse(ErrorCode.LIMIT_EXCEEDED, f"{MAX_WATCHES} calls of WatchStats are open: end some")
        self._watches += 1
        try:
            while not self._closing.is_set():
                await context.write(await self._stats(queue))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), interval_ms / 1000)
        finally:
            self._watches -= 1

    async def _pause(self, rpc: str, raw: bytes, *, paused: bool) -> bytes:
        queue = wire.decode_queue(rpc, raw)
        await self._ask(lambda port, tag: PauseQueue(port, tag, queue, paused), len(raw))
        return wire.encode_queue(rpc, self._queue(queue))

    async def _ask(self, command: Callable[[int, int], Command], size: int) -> AdminDone:
        return await self._calls.ask(AdminDone, command, size=size)

    async def _stats(self, queue: str) -> bytes:
        if not queue:
            return await self._all_stats.get()
        stats = self._queue(queue)
        return wire.encode_stats(self._figures(), *await self._all.get(), [stats])

    def _sorted(self) -> tuple[list[QueueStats], list[ConsumerStats]]:
        shard = self._engine.shard_stats()
        return (
            sorted(shard.queues, key=lambda each: each.name),
            sorted(shard.consumers, key=lambda each: each.consumer_id),
        )

    def _encoded(self) -> bytes:
        queues, consumers = self._sorted()
        return wire.encode_stats(self._figures(), queues, consumers, queues)

    def _queue(self, name: str) -> QueueStats:
        queue = self._engine.queue_stats(name)
        if isinstance(queue, Refusal):
            raise RefusedError(queue)
        return queue
