"""A delivered message, as a handler sees it.

One object for each delivery, made for speed: the wire's own object behind it, fields read when asked for, and what
a whole run of deliveries has in common in one shared `Run`. Where it stands in its life is its subclass's business,
`Delivery`, which handlers are given under this name.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol, Unpack

from kyogo import outgoing, wire
from kyogo.codec import Codecs
from kyogo.errors import MessageTooLargeError
from kyogo.outgoing import PublishOptions, Seconds

LOST_LOCK = threading.Lock()
"""Held while an event is made or set: the handler's thread and the loop may do so at the same moment."""


EXTENSION_SECONDS_MAX: Final = 12 * 3_600
"""The broker's bound; extending again is always possible."""


class RedeliveryReason(StrEnum):
    """Why a message is delivered again."""

    RETRY = "RETRY"
    RELEASE = "RELEASE"
    RETURNED = "RETURNED"
    VISIBILITY_TIMEOUT = "VISIBILITY_TIMEOUT"
    STREAM_LOSS = "STREAM_LOSS"
    SUSPECT = "SUSPECT"
    FAILED = "FAILED"
    DETACH = "DETACH"
    DRAIN = "DRAIN"
    BROKER_RESTART = "BROKER_RESTART"
    UNKNOWN = "UNKNOWN"
    """A reason that a newer broker knows."""


_REASONS: Final = {number: RedeliveryReason(word) for number, word in wire.redelivery_reasons().items() if number != 0}


@dataclass(frozen=True, slots=True)
class DeadLetterInfo:
    """A dead letter's history."""

    queue: str
    """Where it came from."""
    offset: int
    reason: str
    """"max_attempts", "lost_too_often", "expired", "dropped", or what a consumer said."""
    attempts: int
    """Failures there."""
    losses: int
    first_error: str
    last_error: str
    error_type: str
    last_consumer_id: str
    first_delivered_at: datetime | None
    """None: never."""
    dead_lettered_at: datetime


class LostEvent(threading.Event):
    """Set when going on is pointless; also true or false in an `if`."""

    def __bool__(self) -> bool:
        return self.is_set()


class Owner(Protocol):
    """What a message needs of the worker that holds it."""

    codecs: Codecs
    message_bytes_max: int
    publish_bytes_max: int
    """All that one handler publishes has to fit into one frame."""

    def extend(self, message: "Message", extension_ms: int) -> None:
        """Ask the broker for more time; from any thread."""


class Run:
    """What consecutive deliveries have in common."""

    __slots__ = ("attempt", "dead_letter", "losses", "owner", "published_unix_ms", "queue", "reason")

    def __init__(self, queue: str, run: wire.DeliveryRun, owner: Owner) -> None:
        self.queue = queue
        self.attempt = run.attempt
        self.losses = run.losses
        self.reason: int = run.redelivery_reason
        self.published_unix_ms = run.published_unix_ms
        self.dead_letter = run.dead_letter if run.HasField("dead_letter") else None
        self.owner = owner


class Message:
    """One delivery of one message."""

    __slots__ = ("_lost", "_publishes", "_run", "_stopped", "_wire", "fence", "offset")

    def __init__(self, message: wire.Message, run: Run, fence: int, offset: int) -> None:
        self._wire = message
        self._run = run
        self.fence = fence
        """The receipt of this delivery: unique, and increasing for each message, so that a store that remembers the
        highest one can refuse a worker that was thought dead."""
        self.offset = offset
        """Its place in the queue; with the queue's name its identity."""
        self._stopped = False
        self._publishes: list[tuple[str, bytes]] | None = None
        self._lost: LostEvent | None = None

    # --- what it is ---

    @property
    def id(self) -> str:
        """The publisher's id; empty if it gave none, then (queue, offset) is the identity."""
        return self._wire.id

    @property
    def queue(self) -> str:
        """The queue it was delivered from."""
        return self._run.queue

    @property
    def type(self) -> str:
        """The kind of message, such as "order.paid"."""
        return self._wire.type

    @property
    def key(self) -> str:
        """What order and fairness go by."""
        return self._wire.key

    @property
    def headers(self) -> Mapping[str, str]:
        """The application's headers; a copy each time."""
        return dict(self._wire.headers)

    @property
    def content_type(self) -> str:
        """The media type of the body; may be empty."""
        return self._wire.content_type

    @property
    def body(self) -> bytes:
        """The body as it travelled."""
        return self._wire.body

    @property
    def priority(self) -> int | None:
        """0 to 9; None: the queue's default."""
        return self._wire.priority if self._wire.HasField("priority") else None

    @property
    def attempt(self) -> int:
        """1 + the failures so far."""
        return self._run.attempt

    @property
    def losses(self) -> int:
        """How often a consumer was lost after it had started on this."""
        return self._run.losses

    @property
    def redelivery_reason(self) -> RedeliveryReason | None:
        """Why it comes again; None: it does not."""
        number = self._run.reason
        return None if number == 0 else _REASONS.get(number, RedeliveryReason.UNKNOWN)

    @property
    def dead_letter(self) -> DeadLetterInfo | None:
        """In a dead-letter queue: where the letter came from and why."""
        info = self._run.dead_letter
        return None if info is None else _dead_letter(info)

    @property
    def published_at(self) -> datetime:
        """When the broker accepted it, in UTC, by its clock, within 10 ms."""
        return _instant(self._run.published_unix_ms)

    def decode(self) -> object:
        """The body by its content type: JSON, text, or bytes.

        Raises:
            DecodeError: it is not what its content type says.
        """
        return self._run.owner.codecs.decode(self._wire.body, self._wire.content_type)

    # --- what a handler can do ---

    def publish(self, queue: str, body: object, **options: Unpack[PublishOptions]) -> None:
        """Publish with the ACK of this message: stored in one record with it, or not at all.

        Buffered until the handler returns; dropped if it raises. If the broker cannot store it, this message is
        retried with the reason.

        Raises:
            EncodeError: the body cannot be written in its content type.
            MessageInvalidError: an option contradicts another or lies outside of its bounds.
            MessageTooLargeError: it is above the broker's limit.
        """
        owner = self._run.owner
        field = outgoing.encode(body, options, codecs=owner.codecs, message_bytes_max=owner.message_bytes_max)
        if self._publishes is None:
            self._publishes = []
        if sum(len(other) for _, other in self._publishes) + len(field) > owner.publish_bytes_max:
            raise MessageTooLargeError(
                f"what one handler publishes with its ACK is limited to {owner.publish_bytes_max:,} bytes together:"
                " publish the rest with a Publisher"
            )
        self._publishes.append((queue, field))

    def extend(self, duration: Seconds) -> None:
        """Ask for more time: the visibility timeout is then this long from now. Works from threads too.

        Nothing waits for the answer; if the delivery was lost meanwhile, `lost` is set.

        Raises:
            ValueError: not a positive time, or more than 12 hours.
        """
        seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
        if not 0 < seconds <= EXTENSION_SECONDS_MAX:
            raise ValueError(
                f"extend({duration}) is out of bounds: give the seconds from now, up to 12 hours at a time"
            )
        self._run.owner.extend(self, max(1, round(seconds * 1_000)))

    @property
    def lost(self) -> LostEvent:
        """Set when going on is pointless: the delivery is another's, was cancelled, or its time limit is over.

        For functions in threads, which cannot be interrupted: check it, or wait on it instead of sleeping.
        """
        if self._lost is None:
            with LOST_LOCK:
                if self._lost is None:
                    event = LostEvent()
                    if self._stopped:
                        event.set()
                    self._lost = event
        return self._lost

    def __repr__(self) -> str:
        return f"<Message {self.queue}/{self.offset} type={self.type!r} attempt={self.attempt} fence={self.fence}>"


def _instant(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(unix_ms / 1_000, UTC)


def _dead_letter(info: wire.DeadLetterInfo) -> DeadLetterInfo:
    first = info.first_delivered_unix_ms
    return DeadLetterInfo(
        queue=info.queue,
        offset=info.offset,
        reason=info.reason,
        attempts=info.attempts,
        losses=info.losses,
        first_error=info.first_error,
        last_error=info.last_error,
        error_type=info.error_type,
        last_consumer_id=info.last_consumer_id,
        first_delivered_at=_instant(first) if first else None,
        dead_lettered_at=_instant(info.dead_lettered_unix_ms),
    )
