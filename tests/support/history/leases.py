"""I3 to I7: at any time one delivery counts, each ends for a reason, and is charged as the contract says.

Two deliveries in a row of one message are *exact* when nothing can have happened between them that nobody wrote
down: the same start of the broker, and every fence between theirs was written down by somebody. Then the second one
must follow from the first. Else a killed consumer, or a lease that a crash took with it, may stand between.
"""

from bisect import bisect_left
from itertools import pairwise

from tests.support.history.index import OK, UNTOLD, Delivery, Index, Session, Try
from tests.support.history.report import Findings

SLACK_SECONDS = 0.05
"""Between a clock read before a call and the call."""
REMEMBERED = 65_536
CHARGED = {"RETRY": (1, 0), "VISIBILITY_TIMEOUT": (1, 0), "STREAM_LOSS": (0, 1), "FAILED": (0, 1)}
"""(attempt, losses)."""


class Leases:
    """Deliveries of one message after the other."""

    def __init__(self, index: Index, findings: Findings) -> None:
        self._index = index
        self._findings = findings
        self._crashed = any(life.killed or life.code not in {0, None} for life in index.lives)

    def check(self) -> None:
        """All five."""
        for before, after in self._index.reissued:
            self._findings.add("I3", "a fence was issued twice", f"{before.place} and {after.place}")
        for _, _, deliveries in self._index.messages():
            self._check_finished(deliveries)
            for delivery in deliveries:
                self._check_repeats(delivery)
            self._check_first(deliveries[0])
            for before, after in pairwise(deliveries):
                if after.reason == UNTOLD:
                    continue
                self._check_over(before, after)
                self._check_reason(before, after)
                self._check_charge(before, after)
            for delivery in deliveries:
                self._check_late(delivery)

    # --- I3, I4 ---

    def _check_finished(self, deliveries: list[Delivery]) -> None:
        acked = [delivery for delivery in deliveries if delivery.settled("ACK")]
        if len(acked) > 1:
            places = " and ".join(str(delivery.fence) for delivery in acked)
            self._findings.add("I4", "two ACKs of one message took effect", f"{acked[0].place}: {places}")
        if acked and deliveries[-1].fence > acked[0].fence:
            again = deliveries[-1]
            case = f"{acked[0].place}, then fence {again.fence} ({again.reason}) by {again.session.process}"
            self._findings.add("I3", "delivered again after its ACK was answered OK", case)

    def _check_repeats(self, delivery: Delivery) -> None:
        """What was OK is OK again, with the same word; what was not is not."""
        first: Try | None = None
        for attempt in delivery.settles:
            if first is None:
                first = attempt if attempt.status == OK else None
                continue
            if attempt.status == OK and attempt.outcome != first.outcome:
                case = f"{delivery.place}: {first.outcome}, then {attempt.outcome}"
                self._findings.add("I4", "two outcomes of one delivery took effect", case)
            repeated = attempt.outcome == first.outcome and attempt.t > first.answered
            if repeated and attempt.status == "STALE" and len(self._index.by_fence) < REMEMBERED:
                case = f"{delivery.place}: {attempt.outcome} repeated after {attempt.t - first.answered:.3f} s"
                self._findings.add("I4", "what was OK was STALE when repeated", case)

    # --- I6 ---

    def _check_late(self, delivery: Delivery) -> None:
        """Nothing is OK that was first said after the lease was seen to be over."""
        over = self._seen_over(delivery)
        if over is None:
            return
        said: set[str] = set()
        for attempt in delivery.settles:
            if attempt.status == OK and attempt.outcome not in said and attempt.t > over:
                self._findings.add("I6", f"{attempt.outcome} of a lost lease was OK", _late(delivery, attempt, over))
            said.add(attempt.outcome)
        for attempt in delivery.extends:
            if attempt.status == OK and attempt.t > over:
                self._findings.add("I6", "an extension of a lost lease was OK", _late(delivery, attempt, over))

    def _seen_over(self, delivery: Delivery) -> float | None:
        """When it was seen to be over: taken back, handed to another, or settled."""
        seen = [] if delivery.revoked is None else [delivery.revoked]
        newer = self._index.queues[delivery.queue].deliveries[delivery.offset]
        at = bisect_left(newer, delivery.fence + 1, key=lambda each: each.fence)
        if at < len(newer):
            seen.append(newer[at].t)
        seen += [attempt.answered for attempt in delivery.settles if attempt.status == OK][:1]
        return min(seen, default=None)

    # --- I5 ---

    def _check_first(self, first: Delivery) -> None:
        if first.reason == "UNSPECIFIED" and (first.attempt, first.losses) != (1, 0):
            case = f"{first.place}: attempt {first.attempt}, losses {first.losses}"
            self._findings.add("I7", "a first delivery is charged already", case)

    def _check_over(self, before: Delivery, after: Delivery) -> None:
        """A delivery that was settled for sure is followed by what it was settled with."""
        if not self._exact(before, after):
            return
        wanted = {"RETRY": "RETRY", "RELEASE": "RELEASE", "DEAD_LETTER": "RETRY"}
        for outcome, reason in wanted.items():
            if before.settled(outcome) and after.reason != reason:
                case = f"{before.place} was settled {outcome}, then {after.reason} as fence {after.fence}"
                self._findings.add("I5", "a settlement was OK, and another reason is given", case)

    def _check_reason(self, before: Delivery, after: Delivery) -> None:
        reason = after.reason
        case = f"{before.place}, then fence {after.fence} as {reason}, {after.t - before.t:.3f} s later"
        same_life = self._index.same_life(before.session, after.session)
        if reason == "UNSPECIFIED":
            if same_life or not self._crashed:
                self._findings.add("I5", "delivered twice without a reason", case)
            return
        if reason == "BROKER_RESTART":
            if same_life:
                self._findings.add("I5", "a restart is the reason, and there was none", case)
            return
        if self._exact(before, after) and not self._supported(before, after):
            self._findings.add("I5", f"{reason} is the reason, and there was none", case)

    def _exact(self, before: Delivery, after: Delivery) -> bool:
        between = self._index.fences_between(before.fence, after.fence)
        return self._index.same_life(before.session, after.session) and between == after.fence - before.fence - 1

    def _supported(self, before: Delivery, after: Delivery) -> bool:
        session = before.session
        match after.reason:
            case "RETRY":
                return before.maybe("RETRY", "DEAD_LETTER")
            case "RELEASE":
                return before.maybe("RELEASE")
            case "VISIBILITY_TIMEOUT":
                return self._timed_out(before, after)
            case "STREAM_LOSS":
                return session is not after.session and session.alive <= after.t
            case "DETACH":
                return session.detached is not None and session.detached <= after.t
            case _:
                return True  # of silence see I18

    def _timed_out(self, before: Delivery, after: Delivery) -> bool:
        session = before.session
        if not session.counts_start:
            return True  # from delivery, and nobody knows how long that was on its way
        began = [extend.t for extend in before.extends] + ([] if before.started is None else [before.started])
        if not began:
            return not session.fields.get("raw")
        settings = self._index.queues[before.queue].settings.get("visibility_timeout_ms", ())
        least: float = min([session.visibility(before.queue), *(ms / 1000 for ms in settings),
                            *(extend.extension_ms / 1000 for extend in before.extends)])  # fmt: skip
        return after.t - min(began) >= least - SLACK_SECONDS

    # --- I7 ---

    def _check_charge(self, before: Delivery, after: Delivery) -> None:
        attempts, losses = after.attempt - before.attempt, after.losses - before.losses
        case = (
            f"{before.place} attempt {before.attempt} losses {before.losses}, then {after.reason}: "
            f"attempt {after.attempt} losses {after.losses} as fence {after.fence}"
        )
        if not self._exact(before, after):
            # A loss need not be durable before the next delivery, so a crash may take it with it; a failure is.
            if attempts < 0 or (losses < 0 and self._index.same_life(before.session, after.session)):
                self._findings.add("I7", "a charge was taken back", case)
            return
        wanted = CHARGED.get(after.reason, (0, 0))
        if after.reason == "STREAM_LOSS" and not self._began(before):
            allowed = {(0, 0)} if self._never_began(before) else {(0, 0), (0, 1)}
            if (attempts, losses) not in allowed:
                self._findings.add("I7", "charged for what had not begun", case)
        elif (attempts, losses) != wanted:
            self._findings.add("I7", f"{after.reason} is not charged as the contract says", case)

    @staticmethod
    def _began(delivery: Delivery) -> bool:
        """The broker knows for certain that it had begun: it has answered what was sent after it was told."""
        session = delivery.session
        if not session.counts_start:
            return bool(session.fields)
        told = [delivery.started] if delivery.started is not None else []
        told += [extend.t for extend in delivery.extends if extend.status == OK]
        return any(session.alive > t + SLACK_SECONDS for t in told)

    @staticmethod
    def _never_began(delivery: Delivery) -> bool:
        session = delivery.session
        return bool(session.fields) and delivery.started is None and not delivery.extends


def _late(delivery: Delivery, attempt: Try, over: float) -> str:
    return f"{delivery.place}: {attempt.t - over:.3f} s after it was over, by {_who(delivery.session)}"


def _who(session: Session) -> str:
    return f"{session.process} ({session.name})"
