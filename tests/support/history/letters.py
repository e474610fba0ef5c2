"""I8: a message is dead-lettered exactly when its queue says so, and its letter tells the truth."""

from collections.abc import Iterable

from tests.support.history.index import Delivery, Index, Queue
from tests.support.history.report import Findings

EXPIRED = "not settled within its visibility timeout"


class Letters:
    """Dead letters against what is known of their messages."""

    def __init__(self, index: Index, findings: Findings) -> None:
        self._index = index
        self._findings = findings

    def check(self) -> None:
        """Every message that went on too long, every letter, every message that went on after its letter."""
        for queue, _, deliveries in self._index.messages():
            self._check_limits(queue, deliveries)
            self._check_end(deliveries)
        seen: set[tuple[str, int]] = set()
        for letter in self._index.letters():
            info = letter.letter
            assert info is not None
            if (info["queue"], info["offset"]) not in seen:
                seen.add((info["queue"], info["offset"]))
                origin = self._index.queue(info["queue"])
                self._check_letter(letter, info, origin, origin.deliveries.get(info["offset"], []))

    def _check_limits(self, queue: Queue, deliveries: Iterable[Delivery]) -> None:
        attempts, losses = _only(queue, "max_attempts"), _only(queue, "max_losses")
        for delivery in deliveries:
            if delivery.letter:
                continue
            if attempts and delivery.attempt > attempts:
                case = f"{delivery.place}: attempt {delivery.attempt} of {attempts}"
                self._findings.add("I8", "delivered after its last attempt", case)
            if losses and delivery.losses >= losses:
                case = f"{delivery.place}: losses {delivery.losses} of {losses}"
                self._findings.add("I8", "delivered after its last loss", case)

    def _check_end(self, deliveries: list[Delivery]) -> None:
        """DEAD_LETTER that was answered OK ends a message, in a queue of letters aside."""
        for delivery in deliveries:
            if delivery.letter is None and delivery.settled("DEAD_LETTER") and deliveries[-1].fence > delivery.fence:
                case = f"{delivery.place}, then fence {deliveries[-1].fence} ({deliveries[-1].reason})"
                self._findings.add("I8", "delivered again after it was dead-lettered", case)

    def _check_letter(
        self, letter: Delivery, info: dict[str, object], origin: Queue, deliveries: list[Delivery]
    ) -> None:
        case = (
            f"{letter.place} of {origin.name}/{info['offset']}: {info['reason']}, attempts {info['attempts']}, "
            f"losses {info['losses']}"
        )
        self._check_reason(info, origin, deliveries, case)
        for delivery in deliveries:
            if delivery.settled("ACK"):
                self._findings.add("I8", "dead-lettered after its ACK was answered OK", case)
            if delivery.uid != letter.uid:
                self._findings.add("I8", "the letter of another message", f"{case}; there was {delivery.uid}")
        if deliveries and not _counts(info, deliveries):
            newest = deliveries[-1]
            said = f"; newest delivery: attempt {newest.attempt}, losses {newest.losses}"
            self._findings.add("I8", "a letter forgets failures", case + said)
        reasons = {attempt.reason for delivery in deliveries for attempt in delivery.settles} | {EXPIRED, ""}
        if info.get("last_error", "") not in reasons and all(d.session.fields.get("raw") for d in deliveries):
            self._findings.add("I8", "a letter tells of an error that nobody had", f"{case}: {info['last_error']!r}")

    def _check_reason(self, info: dict[str, object], origin: Queue, deliveries: list[Delivery], case: str) -> None:
        reason = info["reason"]
        attempts, losses = origin.settings.get("max_attempts"), origin.settings.get("max_losses")
        if reason == "max_attempts":
            if attempts and info["attempts"] not in attempts:
                self._findings.add("I8", "dead-lettered at another attempt than max_attempts", case)
        elif reason == "lost_too_often":
            if losses and info["losses"] not in losses:
                self._findings.add("I8", "dead-lettered at another loss than max_losses", case)
        elif reason not in {"expired", "dropped", "non_retryable"}:
            asked = [d for d in deliveries if d.maybe("DEAD_LETTER") or not d.session.fields.get("raw")]
            unseen = not deliveries
            if not asked and not unseen:
                self._findings.add("I8", "dead-lettered, and nobody asked for it", case)


def _counts(info: dict[str, object], deliveries: list[Delivery]) -> bool:
    """A letter knows of all failures before its last delivery; losses may go with a crash."""
    attempts = info["attempts"]
    assert isinstance(attempts, int)
    return attempts >= max(delivery.attempt for delivery in deliveries) - 1


def _only(queue: Queue, setting: str) -> int:
    """Its value, if it never changed; 0: unknown or no limit."""
    values = queue.settings.get(setting, set())
    return int(next(iter(values))) if len(values) == 1 else 0
