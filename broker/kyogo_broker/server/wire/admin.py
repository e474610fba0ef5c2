"""Requests and answers of the control plane, between bytes and the model's values."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from kyogo.v1 import admin_pb2 as admin
from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.model.errors import ErrorCode, refuse
from kyogo_broker.model.settings import DLQ_SUFFIX, NAME_RULE, QueueSettings, valid_queue_name
from kyogo_broker.model.stats import ConsumerStats, QueueStats
from kyogo_broker.server.limits import MAX_PAGE_BYTES
from kyogo_broker.server.wire.answers import durability
from kyogo_broker.server.wire.settings import decode_settings, encode_settings
from kyogo_broker.server.wire.text import UndecodableError, checked_id, shown

DEFAULT_PAGE = 100
MAX_PAGE = 1_000
MIN_WATCH_MS = 100
MAX_WATCH_MS = 3_600_000

_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is wanted."""

    size: int
    after: str
    """The last name of the page before; empty: from the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFigures:
    """What an answer says of the broker itself, beside its queues."""

    node: str
    version: str
    durability: str
    started_unix_ms: int
    now_unix_ms: int
    publish_streams: int
    journal_records: int
    journal_written_bytes: int
    journal_bytes: int
    disk_free_bytes: int
    disk_free_min_bytes: int
    rss_bytes: int
    memory_limit_bytes: int
    commit_p50_ms: float
    commit_p99_ms: float
    stall_max_ms: float
    draining: bool


def decode_create(raw: bytes) -> tuple[str, QueueSettings]:
    """Name and settings of the queue that is to be made."""
    request = _parse(admin.CreateQueueRequest, raw)
    name = checked_queue(request.queue)
    if name.endswith(DLQ_SUFFIX):
        raise refuse(
            ErrorCode.SETTINGS_INVALID,
            f"{shown(name)}: queues ending in {DLQ_SUFFIX} are made by the broker, at the first dead letter",
        )
    return name, decode_settings(request.settings, QueueSettings())


def decode_update(raw: bytes) -> tuple[str, Callable[[QueueSettings], QueueSettings]]:
    """A queue, and what is to become of its settings."""
    request = _parse(admin.UpdateQueueRequest, raw)
    paths = tuple(request.update_mask.paths)
    return checked_queue(request.queue), lambda now: decode_settings(request.settings, now, paths)


def decode_queue(rpc: str, raw: bytes) -> str:
    """The queue that a request is about, when it names nothing else."""
    return checked_queue(_parse(_QUEUE_REQUESTS[rpc], raw).queue)


def decode_confirmed(rpc: str, raw: bytes) -> str:
    """The queue that is to be destroyed.

    Raises:
        RefusedError: it is not named twice.
    """
    request = _parse(_CONFIRMED_REQUESTS[rpc], raw)
    name = checked_queue(request.queue)
    if request.confirm != name:
        raise refuse(
            ErrorCode.FRAME_INVALID,
            f"nothing was done: repeat the queue's name, {shown(name)}, in `confirm`",
            field="confirm",
        )
    return name


def decode_list_queues(raw: bytes) -> tuple[str, Mapping[str, str], Page]:
    """Prefix, labels and page."""
    request = _parse(admin.ListQueuesRequest, raw)
    return request.prefix, dict(request.labels), _page(request.page_size, request.page_token)


def decode_list_consumers(raw: bytes) -> tuple[str, Page]:
    """Queue (empty: all) and page."""
    request = _parse(admin.ListConsumersRequest, raw)
    return _optional_queue(request.queue), _page(request.page_size, request.page_token)


def decode_stats(raw: bytes) -> str:
    """Queue (empty: all)."""
    return _optional_queue(_parse(admin.GetStatsRequest, raw).queue)


def decode_watch_stats(raw: bytes) -> tuple[str, int]:
    """Queue (empty: all) and interval."""
    request = _parse(admin.WatchStatsRequest, raw)
    interval_ms = request.interval_ms if request.interval_ms else 1_000
    if not MIN_WATCH_MS <= interval_ms <= MAX_WATCH_MS:
        raise refuse(
            ErrorCode.FRAME_INVALID,
            f"interval_ms is {interval_ms}: it must lie between {MIN_WATCH_MS} and {MAX_WATCH_MS}",
        )
    return _optional_queue(request.queue), interval_ms


def decode_empty(raw: bytes) -> None:
    """Nothing; the bytes must still be a message."""
    _parse(pb.GetServerInfoRequest, raw)


def checked_queue(name: str) -> str:
    """`name`, if a queue can have it."""
    if not valid_queue_name(name):
        raise refuse(ErrorCode.FRAME_INVALID, f"{shown(name)} cannot be a queue's name: {NAME_RULE}", field="queue")
    return name


def encode_queue(rpc: str, stats: QueueStats) -> bytes:
    """The answer that shows one queue."""
    return _QUEUE_RESPONSES[rpc](queue=_queue(stats)).SerializeToString()


def encode_deleted(count: int) -> bytes:
    """The answer to `DeleteQueue`."""
    return admin.DeleteQueueResponse(deleted_messages=count).SerializeToString()


def encode_purged(count: int) -> bytes:
    """The answer to `PurgeQueue`."""
    return admin.PurgeQueueResponse(purged_messages=count).SerializeToString()


def encode_queues(queues: Iterable[QueueStats], size: int) -> bytes:
    """A page: the first of `queues`, at most `size` of them; its token is the last name on it."""
    page, is_last = _page_of(map(_queue, queues), size)
    token = "" if is_last else page[-1].name
    return admin.ListQueuesResponse(queues=page, next_page_token=token).SerializeToString()


def encode_consumers(consumers: Iterable[tuple[ConsumerStats, str]], size: int) -> bytes:
    """A page of consumers, each with its network address."""
    page, is_last = _page_of((_consumer(stats, peer) for stats, peer in consumers), size)
    token = "" if is_last else page[-1].consumer_id
    return admin.ListConsumersResponse(consumers=page, next_page_token=token).SerializeToString()


def encode_stats(
    figures: BrokerFigures,
    queues: Sequence[QueueStats],
    consumers: Sequence[ConsumerStats],
    shown: Iterable[QueueStats],
) -> bytes:
    """The answer to `GetStats`, and each one of `WatchStats`: they have the same fields.

    Args:
        figures: the broker's own.
        queues: all that there are.
        consumers: the same.
        shown: those of `queues` that were asked for.
    """
    return admin.GetStatsResponse(
        broker=_broker(figures, queues, consumers), queues=map(_queue_stats, shown)
    ).SerializeToString()


_AboutQueue = admin.GetQueueRequest | admin.PauseQueueRequest | admin.UnpauseQueueRequest
_QUEUE_REQUESTS: dict[str, type[_AboutQueue]] = {
    "GetQueue": admin.GetQueueRequest,
    "PauseQueue": admin.PauseQueueRequest,
    "UnpauseQueue": admin.UnpauseQueueRequest,
}
_CONFIRMED_REQUESTS: dict[str, type[admin.DeleteQueueRequest | admin.PurgeQueueRequest]] = {
    "DeleteQueue": admin.DeleteQueueRequest,
    "PurgeQueue": admin.PurgeQueueRequest,
}
_QUEUE_RESPONSES: dict[str, Callable[..., Message]] = {
    "CreateQueue": admin.CreateQueueResponse,
    "GetQueue": admin.GetQueueResponse,
    "UpdateQueue": admin.UpdateQueueResponse,
    "PauseQueue": admin.PauseQueueResponse,
    "UnpauseQueue": admin.UnpauseQueueResponse,
}


def _parse(kind: type[_M], raw: bytes) -> _M:
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise UndecodableError(kind.DESCRIPTOR.name) from None


def _optional_queue(name: str) -> str:
    return checked_queue(name) if name else ""


def _page(size: int, token: str) -> Page:
    return Page(min(size if size else DEFAULT_PAGE, MAX_PAGE), checked_id(token, "page_token"))


def _page_of(items: Iterable[_M], size: int) -> tuple[list[_M], bool]:
    """What fits on a page, and whether that was all."""
    page: list[_M] = []
    octets = 0
    for item in items:
        octets += item.ByteSize()
        if page and (len(page) == size or octets > MAX_PAGE_BYTES):
            return page, False
        page.append(item)
    return page, True


def _queue(stats: QueueStats) -> admin.Queue:
    return admin.Queue(
        name=stats.name,
        settings=encode_settings(stats.settings),
        paused=stats.paused,
        created_unix_ms=stats.created_unix_ms,
        stats=_queue_stats(stats),
    )


def _queue_stats(stats: QueueStats) -> admin.QueueStats:
    return admin.QueueStats(
        queue=stats.name,
        ready=stats.ready,
        delayed=stats.delayed,
        parked=stats.parked,
        in_flight=stats.in_flight,
        accepted=stats.accepted,
        finished=[
            admin.FinishedCount(reason=admin.FinishReason.Value(f"FINISH_REASON_{name.upper()}"), count=count)
            for name, count in stats.finished.items()
            if count
        ],
        delivered=stats.delivered,
        settled=[
            admin.OutcomeCount(outcome=pb.Outcome.Value(f"OUTCOME_{name.upper()}"), count=count)
            for name, count in stats.settled.items()
            if count
        ],
        redelivered=[
            admin.RedeliveryCount(reason=pb.RedeliveryReason.Value(f"REDELIVERY_REASON_{name.upper()}"), count=count)
            for name, count in stats.redelivered.items()
            if count
        ],
        next_offset=stats.next_offset,
        oldest_ready_age_ms=stats.oldest_ready_age_ms,
        consumers=stats.consumers,
    )


def _consumer(stats: ConsumerStats, peer: str) -> admin.ConsumerInfo:
    return admin.ConsumerInfo(
        consumer_id=stats.consumer_id,
        session_id=f"{stats.session_id:016x}",
        state=admin.ConsumerState.Value(f"CONSUMER_STATE_{stats.state}"),
        client=pb.ClientInfo(name=stats.client.name, version=stats.client.version, language=stats.client.language),
        subscriptions=[pb.Subscription(queue=queue) for queue in stats.queues],
        prefetch=pb.Prefetch(messages=stats.prefetch_messages, bytes=stats.prefetch_bytes),
        in_flight=stats.in_flight,
        started=stats.started,
        in_flight_bytes=stats.in_flight_bytes,
        weight=stats.weight,
        labels=stats.labels,
        connected_unix_ms=stats.attached_unix_ms,
        delivered=stats.delivered,
        peer=peer,
        silent_ms=max(0, stats.heard_ago_ms),
    )


def _broker(
    figures: BrokerFigures, queues: Sequence[QueueStats], consumers: Sequence[ConsumerStats]
) -> admin.BrokerStats:
    states = Counter(str(consumer.state) for consumer in consumers)
    return admin.BrokerStats(
        node=figures.node,
        version=figures.version,
        started_unix_ms=figures.started_unix_ms,
        now_unix_ms=figures.now_unix_ms,
        durability=durability(figures.durability),
        queues=len(queues),
        consumers=[
            admin.ConsumerStateCount(state=admin.ConsumerState.Value(f"CONSUMER_STATE_{state}"), count=count)
            for state, count in sorted(states.items())
        ],
        publish_streams=figures.publish_streams,
        accepted=sum(queue.accepted for queue in queues),
        delivered=sum(queue.delivered for queue in queues),
        settled=sum(sum(queue.settled.values()) for queue in queues),
        journal_records=figures.journal_records,
        journal_written_bytes=figures.journal_written_bytes,
        journal_bytes=figures.journal_bytes,
        disk_free_bytes=figures.disk_free_bytes,
        disk_free_min_bytes=figures.disk_free_min_bytes,
        rss_bytes=figures.rss_bytes,
        memory_limit_bytes=figures.memory_limit_bytes,
        commit_p50_ms=figures.commit_p50_ms,
        commit_p99_ms=figures.commit_p99_ms,
        stall_max_ms=figures.stall_max_ms,
        draining=figures.draining,
    )
