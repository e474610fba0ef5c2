"""The nouns of `tests.support.model`: what a broker with STANDARD queues keeps track of, as plain as can be."""

from dataclasses import dataclass, field

from kyogo_broker.model.commands import Attach, Outcome
from kyogo_broker.model.message import DeadLetterInfo
from kyogo_broker.model.settings import QueueSettings
from kyogo_broker.model.states import RedeliveryReason
from tests.support.shards import FRAME_HEAD_BYTES


@dataclass
class Message:
    """One message of one queue."""

    offset: int
    body: bytes
    published_unix_ms: int
    letter: DeadLetterInfo | None = None
    place: str = "ready"
    """Or `delayed`, `in_flight`, `ending` (its letter is not written yet), and how it finished."""
    fresh: bool = True
    """Never delivered."""
    reason: RedeliveryReason = RedeliveryReason.UNSPECIFIED
    due_ms: int = 0
    failures: int = 0
    losses: int = 0
    first_error: str = ""
    last_error: str = ""
    error_type: str = ""
    first_delivered_unix_ms: int = 0


@dataclass
class Window:
    """The last 64 stored requests of one producer to one queue."""

    requests: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(request id, digest, first offset, count), as they were stored."""
    dropped: int = 0


@dataclass
class Queue:
    """One queue."""

    name: str
    settings: QueueSettings
    paused: bool = False
    messages: list[Message] = field(default_factory=list)
    windows: dict[str, Window] = field(default_factory=dict)

    def at(self, *places: str) -> list[Message]:
        """Its messages in some places."""
        return [message for message in self.messages if message.place in places]

    def in_turn(self) -> list[Message]:
        """What is ready, in the order of service: what returned, lowest offset first, then what is fresh."""
        return sorted(self.at("ready"), key=lambda message: (message.fresh, message.offset))

    @property
    def keeps_failing(self) -> bool:
        """Whether what fails here returns for ever."""
        return self.name.endswith(".dlq")


@dataclass
class Consumer:
    """One session."""

    attach: Attach
    queues: list["Queue | None"]
    """By subscription; None: the queue was deleted."""
    messages: int
    octets: int
    heard_ms: int
    health: str = "well"
    """Or `suspect`, `failed`."""
    taken: set[int] = field(default_factory=set)
    """Fences that it lost while it was silent."""

    @property
    def counts_start(self) -> bool:
        """Whether it says when a handler begins."""
        return "started" in self.attach.capabilities

    def fits(self, body: bytes) -> bool:
        """Whether its frames can hold a message."""
        return len(body) <= self.attach.max_frame_bytes - FRAME_HEAD_BYTES


@dataclass
class Lease:
    """One delivery of one message."""

    fence: int
    queue: Queue
    message: Message
    consumer: Consumer
    leased_unix_ms: int
    begun: bool
    deadline_ms: int | None
    live: bool = True
    said: Outcome | None = None
    """How its consumer settled it."""
    end: "End | None" = None


@dataclass
class End:
    """A delivery that ends in a letter."""

    reason: str
    info: DeadLetterInfo
    asked: list[tuple[int, int]] = field(default_factory=list)
    """(port, fence) of who waits for the answer."""
