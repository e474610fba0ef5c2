"""A consumer's frame, from its bytes to commands in the order of the contract.

Here the form is checked: what decodes, what is too long, too many or no range at all. What a value means, and
what the broker grants of it, is the shard's.

A part with bad content becomes an answer and the rest of the frame stands; only a bad `attach` is raised,
because without it there is no stream to go on. A settlement that publishes something that cannot be stored is
answered `REJECTED`, so that its deliveries stay with the consumer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.model import commands
from kyogo_broker.model.commands import Command, Outcome
from kyogo_broker.model.effects import Effect, PartRefused
from kyogo_broker.model.errors import ErrorCode, Refusal, RefusedError, refuse
from kyogo_broker.model.message import FenceRange
from kyogo_broker.model.settings import DURATION_MS_MAX, NAME_RULE, valid_queue_name
from kyogo_broker.server import limits as bounds
from kyogo_broker.server.limits import Limits
from kyogo_broker.server.wire.portions import WEIGHT_MAX, settles
from kyogo_broker.server.wire.publish import decode_publish
from kyogo_broker.server.wire.text import UndecodableError, checked_id, cut, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What the broker decided on a stream before its first frame: what `attach` may leave open."""

    port: int
    session_id: int
    session_token: str
    consumer_id: str
    """For a consumer that names none."""


@dataclass(frozen=True, slots=True)
class ConsumerFrame:
    """One frame, decoded."""

    commands: tuple[Command, ...]
    """In the order in which they are to be handled."""
    answers: tuple[Effect, ...]
    """To what was refused already."""
    heartbeat: int
    """The sequence that wants an answer; 0: none does."""
    cost: int
    """What it weighs in the inbox, in bytes of plain messages: few bytes can ask for much work."""


def decode_consume(raw: bytes, session: Session, limits: Limits) -> ConsumerFrame:
    """The commands in a `ConsumeRequest`.

    Raises:
        UndecodableError: these bytes are no `ConsumeRequest`.
        RefusedError: `attach` has bad content, or the frame is too large.
    """
    if len(raw) > limits.max_request_bytes:
        raise refuse(
            ErrorCode.FRAME_INVALID,
            f"the frame has {len(raw)} bytes, at most {limits.max_request_bytes} are accepted: split it",
            limit=str(limits.max_request_bytes),
        )
    try:
        frame = pb.ConsumeRequest.FromString(raw)
    except DecodeError:
        raise UndecodableError("ConsumeRequest") from None
    decoder = _Decoder(session, limits)
    decoder.decode(frame)
    return ConsumerFrame(
        tuple(decoder.done), tuple(decoder.answers), frame.heartbeat.sequence, len(raw) + decoder.cost()
    )


@dataclass(slots=True)
class _Decoder:
    """Decodes one frame."""

    session: Session
    limits: Limits
    done: list[Command] = field(default_factory=list)
    answers: list[Effect] = field(default_factory=list)
    ranges: int = 0
    fences: int = 0
    publishes: int = 0

    def cost(self) -> int:
        return (
            self.ranges * bounds.RANGE_COST_BYTES
            + self.fences * bounds.FENCE_COST_BYTES
            + self.publishes * bounds.PUBLISH_COST_BYTES
        )

    def decode(self, frame: pb.ConsumeRequest) -> None:
        port = self.session.port
        if frame.HasField("attach"):
            self.done.append(self._attach(frame.attach))
        if frame.HasField("prefetch"):
            size = _prefetch_bytes(frame.prefetch)
            self.done.append(commands.SetPrefetch(port, frame.prefetch.messages, size))
        if frame.HasField("heartbeat"):
            self.done.append(_heartbeat(port, frame.heartbeat))
        if frame.started:
            self._started(frame.started)
        if frame.settlements:
            self._settle(frame.settlements)
        if frame.HasField("extend"):
            self._extend(frame.extend)
        if frame.HasField("detach"):
            self.done.append(commands.Detach(port))

    def _refuse(self, refusal: Refusal, details: Mapping[str, str]) -> None:
        metadata = {**details, **refusal.metadata}
        whole = Refusal(refusal.code, refusal.message, refusal.retry_after_ms, metadata)
        self.answers.append(PartRefused(self.session.port, whole))

    def _attach(self, attach: pb.Attach) -> commands.Attach:
        prefetch = attach.prefetch if attach.HasField("prefetch") else _DEFAULT_PREFETCH
        return commands.Attach(
            port=self.session.port,
            session_id=self.session.session_id,
            session_token=self.session.session_token,
            consumer_id=checked_id(attach.consumer_id, "consumer_id") or self.session.consumer_id,
            subscriptions=_subscriptions(attach.subscriptions),
            client=_client(attach.client),
            capabilities=_capabilities(attach.capabilities),
            prefetch_messages=prefetch.messages,
            prefetch_bytes=_prefetch_bytes(prefetch),
            weight=attach.weight if attach.HasField("weight") else None,
            labels=checked_labels(attach.labels),
            heartbeat_interval_ms=_within("heartbeat_interval_ms", attach.heartbeat_interval_ms, 0, DURATION_MS_MAX),
            max_frame_bytes=_frame_bytes(attach.max_frame_bytes),
            resumed_token=checked_id(attach.session_token, "session_token"),
            resume_window_ms=_within("resume_window_ms", attach.resume_window_ms, 0, bounds.MAX_RESUME_WINDOW_MS),
            held=self._ranges(attach.held),
        )

    def _started(self, started: Sequence[pb.FenceRange]) -> None:
        try:
            self.done.append(commands.Started(self.session.port, self._ranges(started)))
        except RefusedError as error:
            self._refuse(error.refusal, {"part": "started"})

    def _settle(self, settlements: Sequence[pb.Settlement]) -> None:
        if len(settlements) > bounds.MAX_SETTLEMENTS_PER_FRAME:
            text = (
                f"a frame holds at most {bounds.MAX_SETTLEMENTS_PER_FRAME} settlements: "
                "put ranges with one outcome into one settlement"
            )
            self._refuse(Refusal(ErrorCode.LIMIT_EXCEEDED, text), {"part": "settlements"})
            return
        decoded = [self._settlement(index, settlement) for index, settlement in enumerate(settlements)]
        good = tuple(settlement for settlement in decoded if settlement is not None)
        if good:
            self.done.extend(settles(self.session.port, good))

    def _settlement(self, index: int, settlement: pb.Settlement) -> commands.Settlement | None:
        try:
            ranges = self._ranges(settlement.ranges)
            outcome, delay_ms = _outcome(settlement, ranges)
        except RefusedError as error:
            self._refuse(error.refusal, {"part": "settlements", "index": str(index)})
            return None
        publishes: tuple[commands.Publish, ...] = ()
        refusal: Refusal | None = None
        try:
            publishes = self._publishes(settlement.publish)
        except RefusedError as error:
            refusal = error.refusal
        return commands.Settlement(
            outcome=outcome,
            ranges=ranges,
            delay_ms=delay_ms,
            reason=cut(settlement.reason, bounds.MAX_REASON_BYTES),
            error_type=cut(settlement.error_type, bounds.MAX_ERROR_TYPE_BYTES),
            publishes=publishes,
            refusal=refusal,
        )

    def _publishes(self, requests: Sequence[pb.PublishRequest]) -> tuple[commands.Publish, ...]:
        if len(requests) > bounds.MAX_PUBLISHES_PER_SETTLEMENT:
            raise refuse(
                ErrorCode.LIMIT_EXCEEDED,
                f"a settlement holds at most {bounds.MAX_PUBLISHES_PER_SETTLEMENT} publishes: "
                "put messages for one destination into one of them",
            )
        if self.publishes + len(requests) > bounds.MAX_PUBLISHES_PER_FRAME:
            raise refuse(
                ErrorCode.LIMIT_EXCEEDED,
                f"a frame holds at most {bounds.MAX_PUBLISHES_PER_FRAME} publishes in all its settlements: split it",
            )
        self.publishes += len(requests)
        port = self.session.port
        return tuple(decode_publish(request.SerializeToString(), port=port, limits=self.limits) for request in requests)

    def _extend(self, extend: pb.Extend) -> None:
        """In portions, like settlements: the engine looks up between commands."""
        try:
            ranges = self._ranges(extend.ranges)
        except RefusedError as error:
            self._refuse(error.refusal, {"part": "extend"})
            return
        for at in range(0, max(len(ranges), 1), WEIGHT_MAX):
            self.done.append(commands.Extend(self.session.port, ranges[at : at + WEIGHT_MAX], extend.extension_ms))

    def _ranges(self, ranges: Sequence[pb.FenceRange]) -> tuple[FenceRange, ...]:
        self.ranges += len(ranges)
        if self.ranges > bounds.MAX_RANGES_PER_FRAME:
            self.ranges = bounds.MAX_RANGES_PER_FRAME
            raise refuse(
                ErrorCode.LIMIT_EXCEEDED,
                f"a frame names at most {bounds.MAX_RANGES_PER_FRAME} ranges: join neighbours, or split it",
            )
        decoded = tuple([FenceRange(fences.first, fences.last) for fences in ranges])
        named = 0
        for fences in decoded:
            if not 0 < fences.first <= fences.last < bounds.WIRE_INTEGER_LIMIT:
                raise refuse(
                    ErrorCode.FRAME_INVALID,
                    f"the range {fences.first} to {fences.last} is none: it needs 1 <= first <= last < 2^53",
                )
            named += fences.last - fences.first + 1
        limit = bounds.FENCES_PER_PREFETCH * max(self.limits.max_prefetch_messages, bounds.MIN_FENCES_HELD)
        if self.fences + named > limit:
            raise refuse(ErrorCode.LIMIT_EXCEEDED, f"a frame names at most {limit} fences: name those you were given")
        self.fences += named
        return decoded


_DEFAULT_PREFETCH = pb.Prefetch(messages=bounds.DEFAULT_PREFETCH_MESSAGES, bytes=bounds.DEFAULT_PREFETCH_BYTES)


def _prefetch_bytes(prefetch: pb.Prefetch) -> int:
    return prefetch.bytes if prefetch.bytes else bounds.DEFAULT_PREFETCH_BYTES


def checked_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels as a plain dict.

    Raises:
        RefusedError: they are too many, or one is too long or cannot be printed.
    """
    if len(labels) > bounds.MAX_LABELS:
        raise refuse(ErrorCode.FRAME_INVALID, f"{len(labels)} labels; at most {bounds.MAX_LABELS} are accepted")
    limit = bounds.MAX_LABEL_BYTES
    return {
        checked_id(name, "the name of a label", limit): checked_id(value, "the value of a label", limit)
        for name, value in labels.items()
    }


def _subscriptions(subscriptions: Sequence[pb.Subscription]) -> tuple[commands.Subscription, ...]:
    if len(subscriptions) > bounds.MAX_SUBSCRIPTIONS:
        raise refuse(
            ErrorCode.FRAME_INVALID,
            f"attach names {len(subscriptions)} queues, at most {bounds.MAX_SUBSCRIPTIONS} go: attach another consumer",
        )
    for name in {subscription.queue for subscription in subscriptions}:
        if not valid_queue_name(name):
            raise refuse(ErrorCode.FRAME_INVALID, f"{shown(name)} cannot be a queue's name: {NAME_RULE}")
    return tuple(
        commands.Subscription(
            queue=subscription.queue,
            weight=subscription.weight if subscription.HasField("weight") else None,
            max_unsettled=subscription.max_unsettled if subscription.HasField("max_unsettled") else None,
        )
        for subscription in subscriptions
    )


def _client(client: pb.ClientInfo) -> commands.Client:
    return commands.Client(
        checked_id(client.name, "client.name"),
        checked_id(client.version, "client.version"),
        checked_id(client.language, "client.language"),
    )


def _capabilities(names: Sequence[str]) -> frozenset[str]:
    if len(names) > bounds.MAX_CAPABILITIES:
        raise refuse(ErrorCode.FRAME_INVALID, f"attach declares more than {bounds.MAX_CAPABILITIES} capabilities")
    return frozenset(name for name in names if len(name) <= bounds.MAX_ID_BYTES)


def _frame_bytes(asked: int) -> int:
    if not asked:
        return bounds.DEFAULT_FRAME_BYTES
    if asked < bounds.MIN_FRAME_BYTES:
        raise refuse(
            ErrorCode.FRAME_INVALID,
            f"max_frame_bytes is {asked}; it must be at least {bounds.MIN_FRAME_BYTES}, or 0 for the default",
        )
    return min(asked, bounds.MAX_FRAME_BYTES)


def _outcome(settlement: pb.Settlement, ranges: Sequence[FenceRange]) -> tuple[Outcome, int | None]:
    if not ranges:
        raise refuse(ErrorCode.FRAME_INVALID, "a settlement without ranges settles nothing: name the fences")
    try:
        outcome = Outcome(settlement.outcome)
    except ValueError:
        raise refuse(
            ErrorCode.FRAME_INVALID,
            f"outcome {settlement.outcome} is unknown: use ACK 1, RETRY 2, RELEASE 3, DEAD_LETTER 4",
        ) from None
    if not settlement.HasField("delay_ms"):
        return outcome, None
    if outcome is not Outcome.RETRY:
        raise refuse(ErrorCode.FRAME_INVALID, "delay_ms goes with RETRY only: leave it unset")
    return outcome, _within("delay_ms", settlement.delay_ms, 0, DURATION_MS_MAX)


def _heartbeat(port: int, heartbeat: pb.ConsumerHeartbeat) -> commands.Heartbeat:
    return commands.Heartbeat(
        port=port,
        sequence=heartbeat.sequence,
        echo=heartbeat.echo,
        running=heartbeat.running,
        buffered=heartbeat.buffered,
        utilization=_figure(heartbeat.utilization),
        cpu=_figure(heartbeat.cpu),
        rss_bytes=heartbeat.rss_bytes,
    )


def _figure(value: float) -> float:
    """A consumer's own figure, made harmless: what is no number is 0."""
    return min(value, 1e6) if value > 0 else 0.0


def _within(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise refuse(ErrorCode.FRAME_INVALID, f"{name} is {value}; it must lie between {low} and {high}")
    return value
