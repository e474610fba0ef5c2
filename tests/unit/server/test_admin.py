"""The control plane with an engine that does what the test says."""

import asyncio
from dataclasses import replace

from google.protobuf.field_mask_pb2 import FieldMask

from kyogo.v1 import admin_pb2 as admin
from kyogo_broker.model.commands import UpdateQueue
from kyogo_broker.model.effects import AdminDone
from kyogo_broker.model.errors import Refusal
from kyogo_broker.model.settings import QueueSettings
from kyogo_broker.model.stats import QueueStats, ShardStats
from kyogo_broker.server.admin import Admin
from kyogo_broker.server.calls import Calls
from tests.support.edge import FIGURES, FakeContext, FakeEngine, settle_down

QUEUE = QueueStats(1, "orders", QueueSettings(), False, 1, 1, 0, 0, 0, 0, {}, 0, 0, {}, {}, 0, 0)


class OneQueue(FakeEngine):
    """Has one queue, whose settings change when an update is answered."""

    queue = QUEUE

    def shard_stats(self) -> ShardStats:
        return ShardStats((self.queue,), (), {}, 0, 0)

    def queue_stats(self, name: str) -> QueueStats | Refusal:
        assert name == self.queue.name
        return self.queue


async def test_two_updates_at_once_do_not_undo_each_other() -> None:
    engine = OneQueue()
    served = Admin(engine, Calls(engine), lambda: FIGURES, dict, asyncio.Event())

    def update(**settings: int) -> bytes:
        mask = FieldMask(paths=list(settings))
        change = admin.QueueSettings(**settings)  # type: ignore[arg-type]  # only numbers are asked for
        return admin.UpdateQueueRequest(queue="orders", settings=change, update_mask=mask).SerializeToString()

    calls = [asyncio.create_task(served.update_queue(raw)) for raw in (update(max_attempts=7), update(max_losses=8))]
    for answered in range(2):
        await settle_down()
        assert len(engine.submitted) == answered + 1, "one at a time"
        command = engine.submitted[-1]
        assert isinstance(command, UpdateQueue)
        engine.queue = replace(engine.queue, settings=command.settings)
        engine.release(command.port, AdminDone(command.port, command.tag))
    shown = admin.UpdateQueueResponse.FromString(await calls[1]).queue.settings
    assert (shown.max_attempts, shown.max_losses) == (7, 8)
    await calls[0]


async def test_watching_ends_with_the_broker() -> None:
    engine, closing = OneQueue(), asyncio.Event()
    served = Admin(engine, Calls(engine), lambda: FIGURES, dict, closing)
    context = FakeContext()
    watching = asyncio.create_task(served.watch_stats(b"", context))  # type: ignore[arg-type]
    await settle_down()
    assert len(context.written) == 1
    closing.set()
    await watching
