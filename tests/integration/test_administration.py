"""The control plane over real gRPC."""

from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from kyogo.v1 import admin_pb2 as admin
from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.server import wire
from tests.support.edge import Broker, failure_of, running_broker


async def create(edge: Broker, queue: str, **settings: Any) -> admin.Queue:
    request = admin.CreateQueueRequest(queue=queue, settings=admin.QueueSettings(**settings))
    return (await edge.admin.CreateQueue(request)).queue


async def test_a_queue_is_made_with_defaults_filled_in(edge: Broker) -> None:
    queue = await create(edge, "orders", max_attempts=3, labels={"team": "a"})
    assert queue.name == "orders"
    assert queue.settings.max_attempts == 3
    assert queue.settings.visibility_timeout_ms == 30_000
    assert queue.settings.balance_policy == pb.BALANCE_POLICY_LEAST_IN_FLIGHT
    assert queue.created_unix_ms > 0
    assert (await edge.admin.GetQueue(admin.GetQueueRequest(queue="orders"))).queue == queue


async def test_what_get_shows_can_be_used_to_create(edge: Broker) -> None:
    shown = (await create(edge, "first", max_losses=4, retry=admin.RetryPolicy(max_ms=99_000))).settings
    copy = await edge.admin.CreateQueue(admin.CreateQueueRequest(queue="second", settings=shown))
    assert copy.queue.settings == shown


async def test_an_update_changes_what_its_mask_names(edge: Broker) -> None:
    await create(edge, "orders", max_attempts=3, max_losses=4)
    changed = await edge.admin.UpdateQueue(
        admin.UpdateQueueRequest(
            queue="orders",
            settings=admin.QueueSettings(max_attempts=9, max_losses=9),
            update_mask=FieldMask(paths=["max_attempts"]),
        )
    )
    assert (changed.queue.settings.max_attempts, changed.queue.settings.max_losses) == (9, 4)


async def test_lists_page_by_name(edge: Broker) -> None:
    for name in ("b", "c", "a", "x1", "x2"):
        await create(edge, name, labels={"kind": name[0]})
    first = await edge.admin.ListQueues(admin.ListQueuesRequest(page_size=2))
    second = await edge.admin.ListQueues(admin.ListQueuesRequest(page_size=2, page_token=first.next_page_token))
    last = await edge.admin.ListQueues(admin.ListQueuesRequest(page_size=2, page_token=second.next_page_token))
    assert [[queue.name for queue in page.queues] for page in (first, second, last)] == [
        ["a", "b"],
        ["c", "x1"],
        ["x2"],
    ]
    assert last.next_page_token == ""
    by_prefix = await edge.admin.ListQueues(admin.ListQueuesRequest(prefix="x"))
    assert [queue.name for queue in by_prefix.queues] == ["x1", "x2"]
    by_label = await edge.admin.ListQueues(admin.ListQueuesRequest(labels={"kind": "b"}))
    assert [queue.name for queue in by_label.queues] == ["b"]


async def test_destroying_needs_the_name_twice(edge: Broker) -> None:
    await edge.publish("orders", b"a", b"b", b"c")
    for call in (
        edge.admin.PurgeQueue(admin.PurgeQueueRequest(queue="orders")),
        edge.admin.DeleteQueue(admin.DeleteQueueRequest(queue="orders", confirm="order")),
    ):
        failure = await failure_of(call)
        assert (failure.code, failure.metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "confirm")
    purged = await edge.admin.PurgeQueue(admin.PurgeQueueRequest(queue="orders", confirm="orders"))
    assert purged.purged_messages == 3
    await edge.publish("orders", b"d")
    deleted = await edge.admin.DeleteQueue(admin.DeleteQueueRequest(queue="orders", confirm="orders"))
    assert deleted.deleted_messages == 1
    failure = await failure_of(edge.admin.GetQueue(admin.GetQueueRequest(queue="orders")))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "QUEUE_NOT_FOUND")


async def test_a_paused_queue_takes_and_does_not_give(edge: Broker) -> None:
    await create(edge, "orders")
    paused = await edge.admin.PauseQueue(admin.PauseQueueRequest(queue="orders"))
    assert paused.queue.paused
    await edge.publish("orders", b"a")
    consumer = await edge.consumer("orders")
    assert (await edge.admin.GetQueue(admin.GetQueueRequest(queue="orders"))).queue.stats.ready == 1
    assert not (await edge.admin.UnpauseQueue(admin.UnpauseQueueRequest(queue="orders"))).queue.paused
    assert (await consumer.delivered(1))[0][1].body == b"a"


async def test_consumers_are_listed_with_their_address(edge: Broker) -> None:
    await create(edge, "orders")
    await create(edge, "mails")
    await edge.publish("orders", b"a")
    consumer = await edge.consumer(
        "orders", consumer_id="b", client=pb.ClientInfo(name="n", version="2"), labels={"zone": "z"}
    )
    await consumer.delivered(1)
    await edge.consumer("mails", consumer_id="a")
    both = await edge.admin.ListConsumers(admin.ListConsumersRequest())
    assert [each.consumer_id for each in both.consumers] == ["a", "b"]
    [info] = (await edge.admin.ListConsumers(admin.ListConsumersRequest(queue="orders"))).consumers
    assert (info.client.version, dict(info.labels), info.in_flight) == ("2", {"zone": "z"}, 1)
    assert info.state == admin.CONSUMER_STATE_PROCESSING
    assert info.session_id == consumer.attached.session_id
    assert info.peer.startswith("ipv4:127.0.0.1:")
    page = await edge.admin.ListConsumers(admin.ListConsumersRequest(page_size=1))
    rest = await edge.admin.ListConsumers(admin.ListConsumersRequest(page_size=1, page_token=page.next_page_token))
    assert [each.consumer_id for each in (*page.consumers, *rest.consumers)] == ["a", "b"]
    failure = await failure_of(edge.admin.ListConsumers(admin.ListConsumersRequest(queue="none")))
    assert failure.reason == "QUEUE_NOT_FOUND"


async def test_stats_are_of_the_broker_and_its_queues(edge: Broker) -> None:
    await edge.publish("orders", *[b"x"] * 5)
    await edge.publish("mails", b"y")
    consumer = await edge.consumer("orders", prefetch=pb.Prefetch(messages=2))
    found = await consumer.delivered(2)
    await consumer.settle(found[0][0])
    await consumer.delivered(1)
    stats = await edge.admin.GetStats(admin.GetStatsRequest())
    mails, orders = stats.queues
    assert (mails.queue, mails.ready) == ("mails", 1)
    assert (orders.accepted, orders.in_flight, orders.ready, orders.consumers) == (5, 2, 2, 1)
    assert [(each.reason, each.count) for each in orders.finished] == [(admin.FINISH_REASON_ACKED, 1)]
    assert [(each.outcome, each.count) for each in orders.settled] == [(pb.OUTCOME_ACK, 1)]
    broker = stats.broker
    assert (broker.node, broker.queues, broker.accepted, broker.settled) == ("test-node", 2, 6, 1)
    assert [(each.state, each.count) for each in broker.consumers] == [(admin.CONSUMER_STATE_PROCESSING, 1)]
    assert broker.commit_p50_ms == 0.5
    one = await edge.admin.GetStats(admin.GetStatsRequest(queue="mails"))
    assert [queue.queue for queue in one.queues] == ["mails"]
    assert one.broker.queues == 2


async def test_stats_can_be_watched(edge: Broker) -> None:
    await edge.publish("orders", b"x")
    call: Any = edge.admin.WatchStats(admin.WatchStatsRequest(interval_ms=100))
    for accepted in range(1, 4):
        answer = await call.read()
        assert answer.queues[0].accepted == accepted
        await edge.publish("orders", b"x")
    call.cancel()
    failure = await failure_of(edge.admin.WatchStats(admin.WatchStatsRequest(interval_ms=1)))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (admin.CreateQueueRequest(queue="a/b"), grpc.StatusCode.INVALID_ARGUMENT, "FRAME_INVALID"),
        (admin.CreateQueueRequest(queue="a.dlq"), grpc.StatusCode.INVALID_ARGUMENT, "SETTINGS_INVALID"),
        (
            admin.CreateQueueRequest(queue="q", settings=admin.QueueSettings(mode=admin.QUEUE_MODE_KEYED)),
            grpc.StatusCode.UNIMPLEMENTED,
            "UNSUPPORTED",
        ),
        (
            admin.CreateQueueRequest(queue="q", settings=admin.QueueSettings(max_messages=5)),
            grpc.StatusCode.UNIMPLEMENTED,
            "UNSUPPORTED",
        ),
        (
            admin.CreateQueueRequest(queue="q", settings=admin.QueueSettings(visibility_timeout_ms=1)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "SETTINGS_INVALID",
        ),
    ],
)
async def test_a_queue_that_cannot_be_made_is_refused(
    edge: Broker, request_: admin.CreateQueueRequest, code: grpc.StatusCode, reason: str
) -> None:
    failure = await failure_of(edge.admin.CreateQueue(request_))
    assert (failure.code, failure.reason) == (code, reason)
    assert edge.engine.shard_stats().queues == ()


async def test_queues_are_limited() -> None:
    async with running_broker(queues_max=2) as edge:
        await create(edge, "a")
        await create(edge, "b")
        failure = await failure_of(edge.admin.CreateQueue(admin.CreateQueueRequest(queue="c")))
        assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")


BUILT = {
    wire.BROKER_SERVICE: {"GetServerInfo", "Publish", "PublishStream", "Consume"},
    wire.ADMIN_SERVICE: {
        "CreateQueue",
        "GetQueue",
        "ListQueues",
        "UpdateQueue",
        "DeleteQueue",
        "PurgeQueue",
        "PauseQueue",
        "UnpauseQueue",
        "ListConsumers",
        "GetStats",
        "WatchStats",
    },
}
MISSING = [(service, rpc) for service in BUILT for rpc in wire.rpcs(service) if rpc.name not in BUILT[service]]


@pytest.mark.parametrize(("service", "rpc"), MISSING, ids=lambda value: getattr(value, "name", ""))
async def test_an_rpc_that_is_not_built_says_so(edge: Broker, service: str, rpc: wire.Rpc) -> None:
    kind = "unary_stream" if rpc.server_streams else "unary_unary"
    call = getattr(edge.channel, kind)(f"/{service}/{rpc.name}")
    failure = await failure_of(call(b""))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED")
    assert rpc.name in failure.text
