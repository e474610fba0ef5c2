"""What is published in a run, and what a message asks of whoever handles it.

A header `do` says what is to become of a message, so that any consumer can play its part. One that cannot (the Node
example) acks it.

    ok        ACK                       slow      ACK after a while
    retry     RETRY, then ACK           later     RETRY with a delay of its own, then ACK
    exhaust   RETRY until it is dead    dead      DEAD_LETTER
    release   RELEASE once              expire    held beyond its visibility timeout, then settled too late
    extend    ACK, after an extension   publish   ACK with a publish to another queue
    poison    ends its consumer's process, until it is dead
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from kyogo.admin import QueueSettings, RetryPolicy
from kyogo.v1 import broker_pb2
from tests.support.history import Recorder, digest

ORDERS, IMAGES, MAILS, SCRAP = "orders", "images", "mails", "scrap"
HEARTBEAT_MS = 400
"""Suspect after 1.2 s, failed after 4 s: so that a short run sees both."""
QUEUES: Mapping[str, QueueSettings] = {
    ORDERS: QueueSettings(visibility_timeout_ms=15_000, max_attempts=4, retry=RetryPolicy(initial_ms=20, max_ms=200)),
    IMAGES: QueueSettings(
        visibility_timeout_ms=1_500, max_attempts=3, max_losses=3, retry=RetryPolicy(initial_ms=10, max_ms=100)
    ),
    MAILS: QueueSettings(visibility_timeout_ms=20_000, max_attempts=5, retry=RetryPolicy(initial_ms=20, max_ms=100)),
    SCRAP: QueueSettings(visibility_timeout_ms=20_000, max_attempts=2, dead_letter_queue=""),
}
LETTERS = tuple(f"{queue}.dlq" for queue in (ORDERS, IMAGES, MAILS))
SHARES: Mapping[str, int] = {
    "ok": 700, "slow": 40, "retry": 60, "later": 20, "exhaust": 12, "dead": 15, "release": 40, "expire": 6,
    "extend": 20, "publish": 70,
}  # fmt: skip
EXPIRING = IMAGES
"""The only queue in which messages are held too long: in the others failing comes before the visibility timeout."""
POISON_EVERY = 3_000
"""Messages of one producer between two that kill; each takes three consumers with it."""
POISON_FIRST = 150
LARGE_SHARE = 0.01
SMALL_BYTES = (10, 1_500)
LARGE_BYTES = (20_000, 400_000)
EXIT_POISONED = 66


@dataclass(slots=True)
class Workload:
    """Makes one producer's messages."""

    process: str
    chance: random.Random
    poisons: bool = False
    """Whether it makes messages that kill."""
    poison: bool = False
    """The next one does."""
    made: int = 0
    _dos: list[str] = field(default_factory=lambda: list(SHARES))
    _shares: list[int] = field(default_factory=lambda: list(SHARES.values()))

    def queue(self) -> str:
        """Where the next request goes."""
        return self.chance.choices((ORDERS, IMAGES, MAILS, SCRAP), (50, 30, 15, 5))[0]

    def message(self, queue: str) -> broker_pb2.Message:
        """The next one."""
        self.made += 1
        do = self.chance.choices(self._dos, self._shares)[0]
        if do == "expire" and queue != EXPIRING:
            do = "slow"
        if self.poison and queue == IMAGES and self.made >= POISON_FIRST:
            do, self.poison = "poison", False
        if self.made % POISON_EVERY == 0:
            self.poison = self.poisons
        large = queue == IMAGES and self.chance.random() < LARGE_SHARE
        size = self.chance.randint(*(LARGE_BYTES if large else SMALL_BYTES))
        uid = f"{self.process}.{self.made}"
        body = (uid + " ").encode().ljust(size, b"x")
        headers = {"do": do, "traceparent": f"00-{self.made:032x}"} if self.made % 3 else {"do": do}
        return broker_pb2.Message(id=uid, body=body, headers=headers, type=f"type.{self.made % 5}")


def digest_of(message: broker_pb2.Message) -> str:
    """Of everything that must arrive unchanged."""
    return digest(
        id=message.id, body=message.body, content_type=message.content_type, headers=message.headers,
        type=message.type, key=message.key,
    )  # fmt: skip


def child_of(message_id: str, fence: int, chance: random.Random) -> broker_pb2.Message:
    """What a handler publishes with its ACK: another one for each delivery."""
    uid = f"{message_id}>{fence}"
    return broker_pb2.Message(id=uid, body=uid.encode() * chance.randint(1, 20), headers={"do": "ok"})


def record_created(recorder: Recorder, queue: str, settings: QueueSettings) -> None:
    """A queue is there, with what the checks want to know of it."""
    known = {"max_losses": 10, "max_attempts": 5, "visibility_timeout_ms": 30_000}
    said = {name: value for name in known if (value := getattr(settings, name)) is not None}
    if settings.dead_letter_queue is not None:
        said["dead_letter_queue"] = settings.dead_letter_queue
    recorder.write("queue", queue=queue, what="created", settings={**known, **said})
