import dataclasses

import pytest
from google.protobuf.descriptor import Descriptor

from kyogo.admin import BalancePolicy, QueueMode, QueueSettings, RetryBackoff, RetryJitter, RetryPolicy
from kyogo.admin.wire import (
    changed_paths,
    consumer_from_wire,
    queue_from_wire,
    queue_stats_from_wire,
    settings_to_wire,
    stats_from_wire,
)
from kyogo.v1 import admin_pb2, broker_pb2

EVERYTHING = QueueSettings(
    mode=QueueMode.STANDARD,
    balance_policy=BalancePolicy.WEIGHTED,
    visibility_timeout_ms=500,
    max_attempts=0,
    max_losses=3,
    retry=RetryPolicy(
        backoff=RetryBackoff.LIST,
        initial_ms=1,
        multiplier=1.5,
        max_ms=9,
        delays_ms=(1, 2),
        jitter=RetryJitter.NONE,
        non_retryable=("ValueError",),
    ),
    dead_letter_queue="",
    max_consumers=7,
    labels={"team": "a"},
)


def test_settings_survive_the_wire() -> None:
    wire = admin_pb2.Queue(name="orders", settings=settings_to_wire(EVERYTHING))
    assert queue_from_wire(wire).settings == EVERYTHING


def test_what_is_none_is_not_set() -> None:
    assert settings_to_wire(QueueSettings()) == admin_pb2.QueueSettings()
    assert not settings_to_wire(QueueSettings()).HasField("retry")


def test_zero_and_empty_are_set() -> None:
    wire = settings_to_wire(QueueSettings(max_attempts=0, dead_letter_queue=""))
    assert wire.HasField("max_attempts")
    assert wire.HasField("dead_letter_queue")


def test_the_mask_names_what_is_not_none_and_what_is_reset() -> None:
    settings = QueueSettings(max_attempts=0, labels={}, retry=RetryPolicy(max_ms=1))
    assert changed_paths(settings, ("max_losses", "max_attempts")) == [
        "max_attempts",
        "labels",
        "retry.max_ms",
        "max_losses",
    ]


@pytest.mark.parametrize("path", changed_paths(EVERYTHING, ()))
def test_every_path_of_the_mask_is_one_of_the_contract(path: str) -> None:
    message: Descriptor | None = admin_pb2.QueueSettings.DESCRIPTOR
    for name in path.split("."):
        assert message is not None
        message = message.fields_by_name[name].message_type


def test_every_setting_has_a_path() -> None:
    named = {path.split(".")[0] for path in changed_paths(EVERYTHING, ())}
    assert named == {field.name for field in dataclasses.fields(QueueSettings)}


def test_a_policy_of_a_newer_broker_is_none() -> None:
    wire = admin_pb2.Queue()
    wire.settings.MergeFromString(b"\x18\x63")  # balance_policy = 99
    assert queue_from_wire(wire).settings.balance_policy is None


def test_counts_have_the_words_of_the_contract() -> None:
    stats = queue_stats_from_wire(
        admin_pb2.QueueStats(
            queue="orders",
            finished=[admin_pb2.FinishedCount(reason=admin_pb2.FINISH_REASON_ACKED, count=3)],
            settled=[admin_pb2.OutcomeCount(outcome=broker_pb2.OUTCOME_DEAD_LETTER, count=2)],
            redelivered=[admin_pb2.RedeliveryCount(reason=broker_pb2.REDELIVERY_REASON_STREAM_LOSS, count=1)],
        )
    )
    assert (stats.finished, stats.settled, stats.redelivered) == (
        {"acked": 3},
        {"dead_letter": 2},
        {"stream_loss": 1},
    )
    assert stats.oldest_ready_age_ms is None
    assert queue_stats_from_wire(admin_pb2.QueueStats(oldest_ready_age_ms=0)).oldest_ready_age_ms == 0


def test_a_state_of_a_newer_broker_is_its_number() -> None:
    wire = admin_pb2.ConsumerInfo.FromString(b"\x18\x63")  # state = 99
    assert consumer_from_wire(wire).state == "99"


def test_stats_of_broker_and_queues() -> None:
    wire = admin_pb2.GetStatsResponse(
        broker=admin_pb2.BrokerStats(
            node="n",
            durability=broker_pb2.DURABILITY_FSYNC,
            consumers=[admin_pb2.ConsumerStateCount(state=admin_pb2.CONSUMER_STATE_IDLE, count=2)],
        ),
        queues=[admin_pb2.QueueStats(queue="a"), admin_pb2.QueueStats(queue="b")],
    )
    stats = stats_from_wire(wire)
    assert (stats.broker.node, stats.broker.durability, stats.broker.consumers) == (
        "n",
        "fsync",
        {"idle": 2},
    )
    assert [queue.queue for queue in stats.queues] == ["a", "b"]
