"""Answers and parts of frames, from the model's values to the wire's."""

from collections.abc import Iterable, Sequence

from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.model import message as nouns
from kyogo_broker.model.effects import AttachDone, PublishDone, Revoke, SettleResult
from kyogo_broker.model.errors import Refusal
from kyogo_broker.server.identity import Identity
from kyogo_broker.server.limits import Limits
from kyogo_broker.server.wire.text import cut

MAX_ERROR_BYTES = 1_024
"""Of an error's message. As a status it travels twice in headers, and clients accept 8 KiB of them in all."""
_MAX_DETAILS = 8
_MAX_DETAIL_NAME_BYTES = 64
_MAX_DETAIL_BYTES = 128


def server_info(identity: Identity, limits: Limits) -> bytes:
    """The answer to `GetServerInfo`."""
    return pb.GetServerInfoResponse(
        version=identity.version,
        node=identity.node,
        capabilities=identity.capabilities,
        limits=_limits(limits),
        durability=durability(identity.durability),
    ).SerializeToString()


def durability(name: str) -> pb.Durability.ValueType:
    """The wire's number of a journal's durability."""
    return pb.Durability.Value(f"DURABILITY_{name}")


def publish_response(done: PublishDone, request_id: int) -> bytes:
    """The answer to one publish, stored or refused."""
    if done.refusal is not None:
        return refused_publish(done.refusal, request_id)
    return pb.PublishResponse(request_id=request_id, offsets=_offsets(done.offsets)).SerializeToString()


def refused_publish(refusal: Refusal, request_id: int) -> bytes:
    """The answer to a publish that was refused, in a stream."""
    return pb.PublishResponse(request_id=request_id, error=error(refusal, request_id)).SerializeToString()


def attached(done: AttachDone, identity: Identity, limits: Limits) -> bytes:
    """The first frame to a consumer."""
    return pb.ConsumeResponse(
        attached=pb.Attached(
            session_id=f"{done.session_id:016x}",
            session_token=done.session_token,
            consumer_id=done.consumer_id,
            prefetch=pb.Prefetch(messages=done.prefetch_messages, bytes=done.prefetch_bytes),
            heartbeat_interval_ms=done.heartbeat_interval_ms,
            suspect_after_ms=done.suspect_after_ms,
            failed_after_ms=done.failed_after_ms,
            limits=_limits(limits),
            capabilities=done.capabilities,
            subscriptions=[
                pb.SubscriptionInfo(
                    queue=info.queue,
                    visibility_timeout_ms=info.visibility_timeout_ms,
                    max_attempts=info.max_attempts,
                    balance_policy=pb.BalancePolicy.Value(f"BALANCE_POLICY_{info.balance_policy}"),
                )
                for info in done.subscriptions
            ],
            kept_ranges=_ranges(done.kept),
            lost_ranges=_ranges(done.lost),
            node=identity.node,
            broker_version=identity.version,
        )
    ).SerializeToString()


def heartbeat(sequence: int, echo: int, unix_ms: int) -> bytes:
    """A frame, or the begin of one, with the broker's sign of life."""
    return pb.ConsumeResponse(
        heartbeat=pb.BrokerHeartbeat(sequence=sequence, echo=echo, broker_time_unix_ms=unix_ms)
    ).SerializeToString()


def error(refusal: Refusal, request_id: int = 0) -> pb.Error:
    """A refusal as a part of a frame."""
    return pb.Error(
        code=pb.ErrorCode.ValueType(refusal.code),
        message=cut(refusal.message, MAX_ERROR_BYTES),
        retry_after_ms=refusal.retry_after_ms,
        metadata=details(refusal),
        request_id=request_id,
    )


def details(refusal: Refusal) -> dict[str, str]:
    """A refusal's metadata, few and short."""
    few = list(refusal.metadata.items())[:_MAX_DETAILS]
    return {cut(name, _MAX_DETAIL_NAME_BYTES): cut(value, _MAX_DETAIL_BYTES) for name, value in few}


def settle_result(result: SettleResult) -> pb.SettleResult:
    """What became of a range of a settlement."""
    return pb.SettleResult(
        range=pb.FenceRange(first=result.range.first, last=result.range.last),
        status=pb.SettleStatus.ValueType(result.status),
        error=None if result.refusal is None else error(result.refusal),
        published=[pb.PublishResponse(offsets=_offsets(runs)) for runs in result.published],
    )


def extend_result(result: SettleResult) -> pb.ExtendResult:
    """What became of a range of an extension."""
    return pb.ExtendResult(
        range=pb.FenceRange(first=result.range.first, last=result.range.last),
        status=pb.SettleStatus.ValueType(result.status),
        error=None if result.refusal is None else error(result.refusal),
    )


def revoke(effect: Revoke) -> pb.Revoke:
    """Deliveries called back or taken away."""
    return pb.Revoke(
        ranges=_ranges(effect.ranges),
        mode=pb.RevokeMode.ValueType(effect.mode),
        reason=pb.RevokeReason.ValueType(effect.reason),
    )


def dead_letter(info: nouns.DeadLetterInfo) -> pb.DeadLetterInfo:
    """A dead letter's history."""
    return pb.DeadLetterInfo(
        queue=info.queue,
        offset=info.offset,
        reason=info.reason,
        attempts=info.attempts,
        losses=info.losses,
        first_error=info.first_error,
        last_error=info.last_error,
        error_type=info.error_type,
        last_consumer_id=info.last_consumer_id,
        first_delivered_unix_ms=info.first_delivered_unix_ms,
        dead_lettered_unix_ms=info.dead_lettered_unix_ms,
    )


def _limits(limits: Limits) -> pb.Limits:
    return pb.Limits(
        max_message_bytes=limits.max_message_bytes,
        max_request_bytes=limits.max_request_bytes,
        max_prefetch_messages=limits.max_prefetch_messages,
        max_prefetch_bytes=limits.max_prefetch_bytes,
    )


def _offsets(runs: Iterable[nouns.OffsetRun]) -> list[pb.OffsetRun]:
    return [pb.OffsetRun(first_offset=r.first_offset, count=r.count, duplicate=r.duplicate) for r in runs]


def _ranges(ranges: Sequence[nouns.FenceRange]) -> list[pb.FenceRange]:
    return [pb.FenceRange(first=fences.first, last=fences.last) for fences in ranges]
