"""Between the admin client's dataclasses and the wire: the only file here that knows its messages."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from enum import StrEnum
from typing import TypeVar

from google.protobuf.descriptor import EnumDescriptor

from kyogo.admin.figures import BrokerStats, Consumer, Queue, QueueStats, ServerInfo, Stats
from kyogo.admin.settings import (
    BalancePolicy,
    QueueMode,
    QueueSettings,
    RetryBackoff,
    RetryJitter,
    RetryPolicy,
)
from kyogo.v1 import admin_pb2, broker_pb2

_Word = TypeVar("_Word", bound=StrEnum)


# --- settings, there ---


def settings_to_wire(settings: QueueSettings) -> admin_pb2.QueueSettings:
    """The message with exactly the fields set that are not None."""
    wire = admin_pb2.QueueSettings()
    if settings.mode is not None:
        wire.mode = admin_pb2.QueueMode.Value(f"QUEUE_MODE_{settings.mode}")
    if settings.balance_policy is not None:
        wire.balance_policy = broker_pb2.BalancePolicy.Value(f"BALANCE_POLICY_{settings.balance_policy}")
    for name in ("visibility_timeout_ms", "max_attempts", "max_losses", "dead_letter_queue", "max_consumers"):
        if (value := getattr(settings, name)) is not None:
            setattr(wire, name, value)
    if _given(settings.retry):
        wire.retry.CopyFrom(_retry_to_wire(settings.retry))
    if settings.labels is not None:
        wire.labels.update(settings.labels)
    return wire


def changed_paths(settings: QueueSettings, reset: Iterable[str]) -> list[str]:
    """The paths of an update's mask: everything that is not None, and what goes back to its default."""
    changed = [name for name in _given(settings) if name != "retry"]
    changed += [f"retry.{name}" for name in _given(settings.retry)]
    return changed + [path for path in reset if path not in changed]


def _given(settings: QueueSettings | RetryPolicy) -> list[str]:
    return [f.name for f in fields(settings) if getattr(settings, f.name) is not None]


def _retry_to_wire(retry: RetryPolicy) -> admin_pb2.RetryPolicy:
    wire = admin_pb2.RetryPolicy(delays_ms=retry.delays_ms, non_retryable=retry.non_retryable)
    if retry.backoff is not None:
        wire.backoff = admin_pb2.RetryBackoff.Value(f"RETRY_BACKOFF_{retry.backoff}")
    if retry.jitter is not None:
        wire.jitter = admin_pb2.RetryJitter.Value(f"RETRY_JITTER_{retry.jitter}")
    for name in ("initial_ms", "multiplier", "max_ms"):
        if (value := getattr(retry, name)) is not None:
            setattr(wire, name, value)
    return wire


# --- settings and figures, back ---


def queue_from_wire(wire: admin_pb2.Queue) -> Queue:
    """One queue."""
    return Queue(
        name=wire.name,
        settings=_settings_from_wire(wire.settings),
        paused=wire.paused,
        created_unix_ms=wire.created_unix_ms,
        stats=queue_stats_from_wire(wire.stats),
    )


def _settings_from_wire(wire: admin_pb2.QueueSettings) -> QueueSettings:
    return QueueSettings(
        mode=_word(QueueMode, admin_pb2.QueueMode.DESCRIPTOR, wire.mode),
        balance_policy=_word(BalancePolicy, broker_pb2.BalancePolicy.DESCRIPTOR, wire.balance_policy),
        visibility_timeout_ms=wire.visibility_timeout_ms if wire.HasField("visibility_timeout_ms") else None,
        max_attempts=wire.max_attempts if wire.HasField("max_attempts") else None,
        max_losses=wire.max_losses if wire.HasField("max_losses") else None,
        retry=RetryPolicy(
            backoff=_word(RetryBackoff, admin_pb2.RetryBackoff.DESCRIPTOR, wire.retry.backoff),
            initial_ms=wire.retry.initial_ms if wire.retry.HasField("initial_ms") else None,
            multiplier=wire.retry.multiplier if wire.retry.HasField("multiplier") else None,
            max_ms=wire.retry.max_ms if wire.retry.HasField("max_ms") else None,
            delays_ms=tuple(wire.retry.delays_ms),
            jitter=_word(RetryJitter, admin_pb2.RetryJitter.DESCRIPTOR, wire.retry.jitter),
            non_retryable=tuple(wire.retry.non_retryable),
        ),
        dead_letter_queue=wire.dead_letter_queue if wire.HasField("dead_letter_queue") else None,
        max_consumers=wire.max_consumers if wire.HasField("max_consumers") else None,
        labels=dict(wire.labels),
    )


def queue_stats_from_wire(wire: admin_pb2.QueueStats) -> QueueStats:
    """Figures of one queue."""
    return QueueStats(
        queue=wire.queue,
        ready=wire.ready,
        delayed=wire.delayed,
        parked=wire.parked,
        in_flight=wire.in_flight,
        accepted=wire.accepted,
        finished=_counts(admin_pb2.FinishReason.DESCRIPTOR, ((row.reason, row.count) for row in wire.finished)),
        delivered=wire.delivered,
        settled=_counts(broker_pb2.Outcome.DESCRIPTOR, ((row.outcome, row.count) for row in wire.settled)),
        redelivered=_counts(
            broker_pb2.RedeliveryReason.DESCRIPTOR, ((row.reason, row.count) for row in wire.redelivered)
        ),
        next_offset=wire.next_offset,
        oldest_ready_age_ms=wire.oldest_ready_age_ms if wire.HasField("oldest_ready_age_ms") else None,
        ready_bytes=wire.ready_bytes,
        unfinished_bytes=wire.unfinished_bytes,
        consumers=wire.consumers,
    )


def consumer_from_wire(wire: admin_pb2.ConsumerInfo) -> Consumer:
    """One attached consumer."""
    return Consumer(
        consumer_id=wire.consumer_id,
        session_id=wire.session_id,
        state=_lower(admin_pb2.ConsumerState.DESCRIPTOR, wire.state),
        client_name=wire.client.name,
        client_version=wire.client.version,
        client_language=wire.client.language,
        queues=tuple(subscription.queue for subscription in wire.subscriptions),
        prefetch_messages=wire.prefetch.messages,
        prefetch_bytes=wire.prefetch.bytes,
        in_flight=wire.in_flight,
        started=wire.started,
        in_flight_bytes=wire.in_flight_bytes,
        weight=wire.weight,
        labels=dict(wire.labels),
        connected_unix_ms=wire.connected_unix_ms,
        delivered=wire.delivered,
        settled=_counts(broker_pb2.Outcome.DESCRIPTOR, ((row.outcome, row.count) for row in wire.settled)),
        peer=wire.peer,
        silent_ms=wire.silent_ms,
    )


def stats_from_wire(wire: admin_pb2.GetStatsResponse) -> Stats:
    """The broker and its queues."""
    return Stats(
        broker=_broker_stats_from_wire(wire.broker),
        queues=tuple(queue_stats_from_wire(queue) for queue in wire.queues),
    )


def _broker_stats_from_wire(wire: admin_pb2.BrokerStats) -> BrokerStats:
    return BrokerStats(
        node=wire.node,
        version=wire.version,
        started_unix_ms=wire.started_unix_ms,
        now_unix_ms=wire.now_unix_ms,
        durability=_lower(broker_pb2.Durability.DESCRIPTOR, wire.durability),
        queues=wire.queues,
        consumers=_counts(admin_pb2.ConsumerState.DESCRIPTOR, ((row.state, row.count) for row in wire.consumers)),
        publish_streams=wire.publish_streams,
        accepted=wire.accepted,
        delivered=wire.delivered,
        settled=wire.settled,
        journal_records=wire.journal_records,
        journal_written_bytes=wire.journal_written_bytes,
        journal_bytes=wire.journal_bytes,
        disk_free_bytes=wire.disk_free_bytes,
        disk_free_min_bytes=wire.disk_free_min_bytes,
        rss_bytes=wire.rss_bytes,
        memory_limit_bytes=wire.memory_limit_bytes,
        commit_p50_ms=wire.commit_p50_ms,
        commit_p99_ms=wire.commit_p99_ms,
        stall_max_ms=wire.stall_max_ms,
        draining=wire.draining,
    )


def server_info_from_wire(wire: broker_pb2.GetServerInfoResponse) -> ServerInfo:
    """Who the broker is."""
    return ServerInfo(
        version=wire.version,
        node=wire.node,
        capabilities=tuple(wire.capabilities),
        durability=_lower(broker_pb2.Durability.DESCRIPTOR, wire.durability),
        max_message_bytes=wire.limits.max_message_bytes,
        max_request_bytes=wire.limits.max_request_bytes,
        max_prefetch_messages=wire.limits.max_prefetch_messages,
        max_prefetch_bytes=wire.limits.max_prefetch_bytes,
    )


# --- words ---


def _name(enum: EnumDescriptor, number: int) -> str | None:
    """A value's name without its enum's prefix; None for one of a newer broker."""
    value = enum.values_by_number.get(number)
    return None if value is None else str(value.name).removeprefix(_prefix(enum))


def _prefix(enum: EnumDescriptor) -> str:
    return str(enum.values_by_number[0].name).removesuffix("UNSPECIFIED")


def _word(words: type[_Word], enum: EnumDescriptor, number: int) -> _Word | None:
    """A setting's word; None for one of a newer broker, which must not be sent back by mistake."""
    name = _name(enum, number)
    return words(name) if name is not None and name in words.__members__ else None


def _lower(enum: EnumDescriptor, number: int) -> str:
    """A figure's word in lower case; its number when it is of a newer broker."""
    name = _name(enum, number)
    return str(number) if name is None else name.lower()


def _counts(enum: EnumDescriptor, rows: Iterable[tuple[int, int]]) -> Mapping[str, int]:
    return {_lower(enum, number): count for number, count in rows}
