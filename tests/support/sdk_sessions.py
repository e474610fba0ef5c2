"""What the tests of the session share: an owner, an attached session, frames."""

from typing import Any

from kyogo import wire
from kyogo.actions import Attachment
from kyogo.codec import Codecs
from kyogo.delivery import Delivery
from kyogo.message import Message
from kyogo.session import Session
from kyogo.v1 import broker_pb2 as pb


class Owner:
    codecs = Codecs()
    message_bytes_max = 1_000
    publish_bytes_max = 2_000

    def __init__(self) -> None:
        self.extended: list[tuple[int, int]] = []

    def extend(self, message: Message, extension_ms: int) -> None:
        self.extended.append((message.fence, extension_ms))


def new_session(**attachment: Any) -> Session:
    defaults: dict[str, Any] = {"queues": ("orders", "mails"), "prefetch": 32}
    return Session(Attachment(**defaults | attachment), Owner())


def attached_session() -> Session:
    session = new_session()
    assert session.next_frame() is not None
    session.receive(response(attached=pb.Attached(consumer_id="c1")))
    return session


def response(**parts: Any) -> wire.ConsumeResponse:
    return pb.ConsumeResponse(**parts)


def deliver(session: Session, count: int, first: int = 1, **run: Any) -> list[Delivery]:
    """Delivers so many, and returns what `take` then gives."""
    run = {"first_fence": first, "first_offset": first, "attempt": 1} | run
    messages = [pb.Message(body=b"%d" % n) for n in range(count)]
    session.receive(response(deliveries=[pb.DeliveryRun(messages=messages, **run)]))
    session.check_invariants()
    taken = []
    while (delivery := session.take()) is not None:
        taken.append(delivery)
    return taken


def begun(session: Session, count: int, first: int = 1) -> list[Delivery]:
    deliveries = deliver(session, count, first)
    for delivery in deliveries:
        session.begin(delivery)
    return deliveries


def spans(ranges: Any) -> list[tuple[int, int]]:
    return [(r.first, r.last) for r in ranges]


def revoke(mode: str, *fences: int, reason: str = "REBALANCE") -> pb.Revoke:
    return pb.Revoke(
        ranges=[pb.FenceRange(first=f, last=f) for f in fences],
        mode=pb.RevokeMode.Value(f"REVOKE_MODE_{mode}"),
        reason=pb.RevokeReason.Value(f"REVOKE_REASON_{reason}"),
    )


def settled(status: str, *fences: int, **result: Any) -> pb.ConsumeResponse:
    results = [
        pb.SettleResult(
            range=pb.FenceRange(first=f, last=f), status=pb.SettleStatus.Value(f"SETTLE_STATUS_{status}"), **result
        )
        for f in fences
    ]
    return response(settled=results)
