"""What was published, read back from the journal's records: finished messages too, which the broker forgets."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime

from kyogo import wire
from kyogo.codec import Codecs
from kyogo.message import DeadLetterInfo
from kyogo_broker.journal.base import Part
from kyogo_broker.journal.codec import decode
from kyogo_broker.journal.memory import MemoryJournal
from kyogo_broker.model.facts import Published, QueueCreated


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedMessage:
    """A message as it was accepted."""

    queue: str
    offset: int
    id: str
    type: str
    key: str
    headers: dict[str, str]
    content_type: str
    body: bytes
    value: object
    """The body, decoded by its content type."""
    published_at: datetime
    dead_letter: DeadLetterInfo | None
    """In a dead-letter queue: where it came from and why."""


class RecordingJournal(MemoryJournal):
    """A journal that forgets nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.payloads: list[bytes] = []
        """Every record, in order. Appended by the broker's thread, read by any."""

    def append(self, sequence: int, parts: Sequence[Part], *, in_place: bool = False) -> Future[None]:
        """Keep one record, for good."""
        done = super().append(sequence, parts, in_place=in_place)
        self.payloads.append(b"".join(parts))
        return done


def messages(payloads: Iterable[bytes], queue: str, codecs: Codecs) -> list[PublishedMessage]:
    """All messages of one queue, in the order of their offsets."""
    names: dict[int, str] = {}
    found: list[PublishedMessage] = []
    for payload in payloads:
        for fact in decode(payload):
            if isinstance(fact, QueueCreated):
                names[fact.queue_id] = fact.name
            elif isinstance(fact, Published) and names.get(fact.queue_id) == queue:
                found.extend(_published(fact, queue, codecs))
    return found


def _published(fact: Published, queue: str, codecs: Codecs) -> Iterator[PublishedMessage]:
    request = wire.PublishRequest.FromString(bytes(fact.batch.part(0, fact.batch.count - 1)))
    for number, message in enumerate(request.messages):
        yield PublishedMessage(
            queue=queue,
            offset=fact.first_offset + number,
            id=message.id,
            type=message.type,
            key=message.key,
            headers=dict(message.headers),
            content_type=message.content_type,
            body=message.body,
            value=codecs.decode(message.body, message.content_type),
            published_at=datetime.fromtimestamp(fact.published_unix_ms / 1_000, UTC),
            dead_letter=_dead_letter(fact),
        )


def _dead_letter(fact: Published) -> DeadLetterInfo | None:
    info = fact.dead_letter
    if info is None:
        return None
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
        first_delivered_at=datetime.fromtimestamp(first / 1_000, UTC) if first else None,
        dead_lettered_at=datetime.fromtimestamp(info.dead_lettered_unix_ms / 1_000, UTC),
    )
