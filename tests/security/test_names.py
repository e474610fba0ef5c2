"""Names, ids, reasons and bodies made to be harmful wherever they are shown: to one rule, or harmless everywhere."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from typing import Any

import grpc
import pytest

from kyogo.v1 import admin_pb2 as admin
from kyogo.v1 import broker_pb2 as pb
from kyogo.v1.admin_pb2_grpc import AdminServiceStub
from kyogo.v1.broker_pb2_grpc import BrokerServiceStub
from tests.security.victim import Victim
from tests.support.edge import Consumer, failure_of

NAMES = {
    "empty": "",
    "a way up": "../../etc/passwd",
    "a path": "a/b",
    "a path of another system": "a\\b",
    "NUL": "a\0b",
    "a newline": "a\nb",
    "CR LF": "a\r\nX-Injected: 1",
    "an escape": "\x1b[31mred\x1b[0m",
    "markup": "<script>alert(1)</script>",
    "a quote": '"},{"a":"',
    "a label": 'a",state="ready"} 99\nkyogo_streams 99',
    "a format": "{0.__class__} %s %n",
    "a command": "$(reboot)`id`;|&",
    "right to left": "\u202egpj.exe",
    "a line separator": "a\u2028b",
    "no letters": "\U0001f600",
    "look-alikes": "\u043erders",
    "long": "a" * 117,
    "10 kB": "a" * 10_000,
    "a space": "a b",
    "two suffixes": "a" * 117 + ".dlq",
}
BY_NAME: dict[str, Any] = {
    "CreateQueue": admin.CreateQueueRequest,
    "GetQueue": admin.GetQueueRequest,
    "UpdateQueue": admin.UpdateQueueRequest,
    "DeleteQueue": admin.DeleteQueueRequest,
    "PurgeQueue": admin.PurgeQueueRequest,
    "PauseQueue": admin.PauseQueueRequest,
    "UnpauseQueue": admin.UnpauseQueueRequest,
}
"""Where a name is needed; the others take an empty one for all queues."""
HARM = "\x1b]0;x\x07\r\n\0<script>\u202e" + '"' * 3
RULE = "cannot be a queue's name"


@asynccontextmanager
async def stubs(victim: Victim) -> AsyncIterator[tuple[Any, Any]]:
    async with grpc.aio.insecure_channel(victim.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield BrokerServiceStub(channel), AdminServiceStub(channel)


def files(victim: Victim) -> set[str]:
    return {str(path.relative_to(victim.data)) for path in victim.data.rglob("*")}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
async def test_every_rpc_refuses_such_a_queue_by_one_rule(victim: Victim, name: str) -> None:
    victim.judge_log()
    async with stubs(victim) as (broker, control):
        calls = [getattr(control, rpc)(kind(queue=name)) for rpc, kind in BY_NAME.items()]
        if name:
            calls += [
                control.ListConsumers(admin.ListConsumersRequest(queue=name)),
                control.GetStats(admin.GetStatsRequest(queue=name)),
                control.WatchStats(admin.WatchStatsRequest(queue=name)),
            ]
        consume = broker.Consume()
        await consume.write(pb.ConsumeRequest(attach=pb.Attach(subscriptions=[pb.Subscription(queue=name)])))
        calls.append(consume)
        calls.append(broker.Publish(pb.PublishRequest(destination=name, messages=[pb.Message()])))
        for call in calls:
            failure = await failure_of(call)
            assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FRAME_INVALID")
            assert RULE in failure.text
            assert failure.text.isascii()
            assert failure.text.isprintable()
            assert len(failure.text) < 300
        published = broker.PublishStream()
        await published.write(pb.PublishRequest(destination=name, request_id=1, messages=[pb.Message()]))
        assert RULE in (await published.read()).error.message
        published.cancel()
        kept = [each.name for each in (await control.ListQueues(admin.ListQueuesRequest(page_size=1_000))).queues]
        assert name not in kept
    victim.judge_log()


@pytest.mark.parametrize("name", [".", "..", "...", "-rf", "CON", "__proto__", "a" * 116], ids=str)
async def test_odd_names_that_the_rule_allows_are_names_and_no_files(victim: Victim, name: str) -> None:
    async with stubs(victim) as (broker, control):
        before = files(victim)
        await broker.Publish(pb.PublishRequest(destination=name, messages=[pb.Message(body=b"kept")]))
        assert (await control.GetQueue(admin.GetQueueRequest(queue=name))).queue.name == name
        assert victim.metrics()[f'kyogo_queue_messages{{queue="{name}",state="ready"}}'] == 1
        assert all(path.endswith(".segment") or path.startswith("checkpoint-") for path in files(victim) - before)
        await control.DeleteQueue(admin.DeleteQueueRequest(queue=name, confirm=name))


@pytest.mark.parametrize(
    "field",
    [
        {"consumer_id": HARM},
        {"session_token": HARM},
        {"labels": {HARM: "x"}},
        {"labels": {"x": HARM}},
        {"client": pb.ClientInfo(name=HARM)},
        {"client": pb.ClientInfo(version=HARM)},
        {"client": pb.ClientInfo(language=HARM)},
        {"consumer_id": "c" * 257},
        {"labels": {"x": "y" * 257}},
        {"labels": {f"x{number}": "" for number in range(33)}},
    ],
    ids=lambda field: f"{next(iter(field))} {str(next(iter(field.values())))[:12]!a}",
)
async def test_ids_and_labels_that_do_not_stay_on_a_line_are_refused(victim: Victim, field: dict[str, Any]) -> None:
    async with stubs(victim) as (broker, _):
        stream = broker.Consume()
        await stream.write(
            pb.ConsumeRequest(attach=pb.Attach(subscriptions=[pb.Subscription(queue="bystander")], **field))
        )
        failure = await failure_of(stream)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FRAME_INVALID")
    assert failure.text.isascii()
    assert failure.text.isprintable()


@pytest.mark.parametrize("producer_id", [HARM, "p" * 257], ids=["harmful", "long"])
async def test_ids_of_producers_as_well(victim: Victim, producer_id: str) -> None:
    request = pb.PublishRequest(destination="q", request_id=1, producer_id=producer_id, messages=[pb.Message()])
    async with stubs(victim) as (broker, _):
        assert (await failure_of(broker.Publish(request))).reason == "FRAME_INVALID"


async def test_what_applications_say_comes_back_as_it_was_and_stays_out_of_the_log(victim: Victim) -> None:
    """Bodies, headers, ids, types and reasons are theirs; a dead letter's reason is a line of the log, escaped."""
    victim.judge_log()
    said = pb.Message(id=HARM, body=HARM.encode(), content_type=HARM, headers={HARM: HARM}, type=HARM)
    async with stubs(victim) as (broker, control):
        await broker.Publish(pb.PublishRequest(destination="said", messages=[said]))
        consumer = Consumer(broker.Consume())
        await consumer.attach("said")
        ((fence, came),) = await consumer.delivered(1)
        assert came == said
        reason = HARM * 400
        await consumer.settle(fence, outcome=pb.OUTCOME_DEAD_LETTER, reason=reason, error_type=HARM)
        consumer.call.cancel()
        letters = Consumer(broker.Consume())
        await letters.attach("said.dlq")
        await letters.delivered(0)
        run = (await letters.until(lambda frame: frame.deliveries)).deliveries[0]
        assert run.messages[0] == said
        assert reason.startswith(run.dead_letter.last_error)
        assert len(run.dead_letter.last_error.encode()) <= 4_096
        letters.call.cancel()
        for queue in ("said", "said.dlq"):
            await control.DeleteQueue(admin.DeleteQueueRequest(queue=queue, confirm=queue))
    victim.judge_log()
    assert "dead_letter" in victim.broker.log()
    assert "<script>" not in json.dumps(sorted(victim.metrics()))


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/metrics", {"Host": "evil.example"}, 421),
        ("GET", "/healthz", {"Host": "localhost.evil.example:80"}, 421),
        ("GET", "/readyz", {"Host": "127.0.0.1@evil.example"}, 421),
        ("POST", "/metrics", {}, 405),
        ("DELETE", "/", {}, 405),
        ("GET", "/../../etc/passwd", {}, 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", {}, 404),
        ("GET", "/metrics/../../x", {}, 404),
        ("GET", "/" + "a" * 4_000, {}, 404),
        ("GET", "/metrics", {"Accept": "*/*;q=" + "9" * 2_000}, 200),
    ],
    ids=str,
)
async def test_the_http_port_answers_plainly(
    victim: Victim, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    connection = HTTPConnection(victim.http, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    assert answer.status == status
    assert status == 200 or "passwd" not in body
    assert "Traceback" not in body
    victim.judge_log()
