"""Histories made up by hand, for tests of the checker: a small broker's day, told line by line on a made-up clock."""

from typing import Any

from tests.support.history.lines import Line

STEP_SECONDS = 0.01
PREFETCH = (10, 1 << 20)
SETTINGS = {"max_attempts": 3, "max_losses": 2, "visibility_timeout_ms": 1_000}


class Story:
    """Lines in the order in which they are told; every line takes a hundredth of a second."""

    def __init__(self, queue: str = "q") -> None:
        self.lines: list[Line] = []
        self.now = 100.0
        self.queue = queue
        self.offset = 0
        self.fence = 0
        self.requests = 0

    def tell(self, op: str, process: str = "harness", **fields: Any) -> Line:
        """One line."""
        self.now += STEP_SECONDS
        line = {"t": round(self.now, 6), "p": process, "op": op, **fields}
        self.lines.append(line)
        return line

    def wait(self, seconds: float) -> None:
        """Nothing happens."""
        self.now += seconds

    # --- the broker ---

    def ready(self, node: str = "b1", data: str = "data") -> None:
        """A broker is up."""
        self.tell("broker", what="ready", node=node, data=data)

    def killed(self, node: str = "b1") -> None:
        """It is gone, without a word."""
        self.tell("broker", what="killed", node=node)

    def created(self, **settings: Any) -> None:
        """The queue is there."""
        self.tell("queue", queue=self.queue, what="created", settings={**SETTINGS, **settings}, status="ok")

    # --- publishing ---

    def publish(self, *uids: str, status: str | None = "ok", producer: str = "p", **fields: Any) -> int:
        """One request with its answer (None: none at all); returns its number."""
        self.requests += 1
        self.publish_again(self.requests, *uids, producer=producer, **fields)
        if status is not None:
            first = self.offset + 1
            self.offset += len(uids) if status == "ok" else 0
            offsets = [[first, len(uids), False]] if status == "ok" else []
            self.published(self.requests, status, offsets, producer=producer)
        return self.requests

    def publish_again(self, request: int, *uids: str, producer: str = "p", **fields: Any) -> None:
        """A try."""
        digests = [f"d-{uid}" for uid in uids]
        said = {"queue": self.queue, "producer": producer, "request": request}
        self.tell("publish", producer, **said, uids=list(uids), digests=digests, **fields)

    def published(self, request: int, status: str, offsets: list[list[Any]], producer: str = "p") -> None:
        """Its answer."""
        said = {"queue": self.queue, "producer": producer, "request": request}
        self.tell("published", producer, **said, status=status, offsets=offsets)

    # --- consuming ---

    def attach(self, session: str = "s1", node: str = "b1", process: str | None = None, **fields: Any) -> None:
        """A consumer is there."""
        said = {
            "session": session, "node": node, "queues": [self.queue], "prefetch": list(PREFETCH), "raw": True,
            "capabilities": ["started"], "suspect_ms": 1_000, "visibility_ms": {self.queue: 1_000},
            "max_frame": 1 << 20,
        }  # fmt: skip
        self.tell("attached", process or session, **{**said, **fields})

    def deliver(self, uid: str, offset: int, *, session: str = "s1", process: str | None = None, **fields: Any) -> int:
        """One message comes; returns its fence."""
        self.fence += 1
        said = {
            "session": session, "queue": self.queue, "fence": self.fence, "offset": offset, "attempt": 1, "losses": 0,
            "reason": "UNSPECIFIED", "uids": [uid], "digests": [f"d-{uid}"], "sizes": [100], "frame": 150,
        }  # fmt: skip
        line = self.tell("deliver", process or session, **{**said, **fields})
        return int(line["fence"])

    def started(self, fence: int, session: str = "s1") -> None:
        """Its handler begins."""
        self.tell("started", session, session=session, ranges=[[fence, fence]])

    def settle(
        self, fence: int, outcome: str = "ACK", status: str | None = "OK", *, session: str = "s1", **fields: Any
    ) -> None:
        """A settlement and its answer (None: none at all)."""
        self.tell("settle", session, session=session, outcome=outcome, ranges=[[fence, fence]], **fields)
        if status is not None:
            self.tell("settled", session, session=session, ranges=[[fence, fence]], status=status)

    def extend(self, fence: int, status: str = "OK", *, session: str = "s1", ms: int = 5_000) -> None:
        """An extension and its answer."""
        self.tell("extend", session, session=session, ranges=[[fence, fence]], ms=ms)
        self.tell("extended", session, session=session, ranges=[[fence, fence]], status=status)

    def lose(self, session: str = "s1") -> None:
        """A stream is gone."""
        self.tell("ended", session, session=session, how="lost")

    # --- figures ---

    def stats(self, *, queue: str | None = None, op: str = "stats", **fields: Any) -> Line:
        """Figures of a queue."""
        said = {
            "queue": queue or self.queue, "node": "b1", "quiet": True, "ready": 0, "delayed": 0, "parked": 0,
            "in_flight": 0, "accepted": 0, "delivered": 0, "finished": {},
        }  # fmt: skip
        return self.tell(op, **{**said, **fields})

    def fault(self, kind: str, target: str, *, effect: str | None = "seen", **fields: Any) -> None:
        """Something is done to somebody, and is over at once."""
        name = f"f{len(self.lines)}"
        self.tell("fault", id=name, kind=kind, target=target, **fields)
        if effect is not None:
            self.tell("effect", id=name, what=effect)
        self.tell("over", id=name)


def clean() -> Story:
    """A day on which everything happens once and nothing goes wrong."""
    story = Story()
    story.ready()
    story.created()
    story.tell("resources", who="broker", when="before", rss=50 << 20, fds=20, threads=10)
    story.publish("refused", status="refused")
    again = story.publish("a", "b", "c")
    story.publish_again(again, "a", "b", "c")
    story.published(again, "ok", [[1, 3, True]])
    story.publish("gone", status="unknown")
    story.attach()
    fence = story.deliver("a", 1)
    story.started(fence)
    story.extend(fence)
    said = {"queue": "q", "uids": ["child"], "digests": ["d-child"]}
    story.settle(fence, publish=[said])
    story.settle(fence, "ACK", "OK")
    _retries_and_losses(story)
    _dead_letter(story)
    story.settle(story.deliver("child", 4, session="s4", reason="RELEASE"), session="s4")
    _ends(story)
    return story


def _retries_and_losses(story: Story) -> None:
    """`b`: retried with a delay, given back, timed out on one consumer, which comes too late, and acked by another."""
    fence = story.deliver("b", 2)
    story.settle(fence, "RETRY", delay_ms=200, reason="not now")
    story.wait(0.25)
    fence = story.deliver("b", 2, attempt=2, reason="RETRY")
    story.settle(fence, "RELEASE")
    fence = story.deliver("b", 2, attempt=2, reason="RELEASE")
    story.started(fence)
    story.tell("prefetch", "s1", session="s1", messages=5, bytes=0)
    story.wait(1.2)
    story.attach("s2")
    again = story.deliver("b", 2, attempt=3, reason="VISIBILITY_TIMEOUT", session="s2")
    story.tell("revoked", "s1", session="s1", ranges=[[fence, fence]], mode="LOST", reason="VISIBILITY_TIMEOUT")
    story.settle(fence, "ACK", "STALE")
    story.settle(again, session="s2")
    story.tell("detach", "s2", session="s2")
    story.tell("ended", "s2", session="s2", how="detached")


def _dead_letter(story: Story) -> None:
    """`c`: lost with its consumer, then by a crash of the broker, then given up."""
    fence = story.deliver("c", 3)
    story.started(fence)
    story.settle(story.deliver("child", 4), "RELEASE")
    story.fault("kill", "s1", bound_ms=1_000, of="worker")
    story.lose()
    story.attach("s3")
    story.deliver("c", 3, session="s3", losses=1, reason="STREAM_LOSS")
    story.fault("kill", "broker")
    story.killed()
    story.ready("b2")
    story.attach("s4", node="b2")
    story.fence += 1_000
    fence = story.deliver("c", 3, session="s4", losses=1, reason="BROKER_RESTART")
    story.settle(fence, "DEAD_LETTER", session="s4", reason="hopeless")
    letter = {"queue": "q", "offset": 3, "reason": "hopeless", "attempts": 1, "losses": 1, "last_error": "hopeless"}
    story.settle(story.deliver("c", 1, session="s4", queue="q.dlq", letter=letter), session="s4")


def _ends(story: Story) -> None:
    story.tell("drained", queues=["q", "q.dlq"])
    figures: dict[str, Any] = {"accepted": 4, "finished": {"acked": 3, "dead_lettered": 1}}
    story.stats(node="b2", delivered=2, **figures)
    story.stats(op="metrics", node="b2", delivered=2, **figures)
    story.stats(queue="q.dlq", node="b2", delivered=1, accepted=1, finished={"acked": 1})
    for kind in ("live", "restored"):
        story.tell("state", of=kind, round=1, queues={"q": figures})
    story.tell("resources", who="broker", when="after", rss=60 << 20, fds=21, threads=10)
