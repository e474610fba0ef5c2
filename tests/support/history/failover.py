"""I18: what a lost consumer held is with others in time, and a stall of the broker itself fails nobody."""

from bisect import bisect_right
from statistics import median

from tests.support.history.index import Delivery, Fault, Index
from tests.support.history.report import Findings
from tests.support.history.silence import Silence

TAKEN = frozenset({"STREAM_LOSS", "SUSPECT", "FAILED"})
TAKEN_SECONDS = 15.0
"""Nothing that was held stays so for longer."""


class Failover:
    """Consumers that were lost, or taken for lost."""

    def __init__(self, index: Index, findings: Findings) -> None:
        self._index = index
        self._findings = findings
        self.seconds: list[float] = []
        """From each kill of a consumer to the last of its messages' next delivery."""

    def check(self) -> None:
        """Both."""
        held: dict[str, list[tuple[Delivery, Delivery | None]]] = {}
        for _, _, deliveries in self._index.messages():
            for number, delivery in enumerate(deliveries):
                following = deliveries[number + 1] if number + 1 < len(deliveries) else None
                held.setdefault(delivery.session.process, []).append((delivery, following))
        for fault in self._index.faults.values():
            if fault.kind == "kill" and fault.target in held:
                self._check_kill(fault, held[fault.target])
        self._check_stalls()

    @property
    def worst(self) -> float:
        """Seconds; 0: nobody was lost."""
        return max(self.seconds, default=0.0)

    @property
    def middle(self) -> float:
        """Seconds; 0: nobody was lost."""
        return median(self.seconds) if self.seconds else 0.0

    def _check_kill(self, fault: Fault, held: list[tuple[Delivery, Delivery | None]]) -> None:
        taken = [
            following
            for delivery, following in held
            if following is not None and following.reason in TAKEN and following.t >= fault.began
            and self._index.same_life(delivery.session, following.session)
        ]  # fmt: skip
        if not taken:
            return
        seconds = max(following.t for following in taken) - fault.began
        self.seconds.append(seconds)
        silent = [following for following in taken if following.reason != "STREAM_LOSS"]
        if silent and not self._targeted(fault):
            case = f"{fault.target}: {silent[0].place} {silent[0].t - fault.began:.3f} s later as {silent[0].reason}"
            self._findings.add("I18", "the end of a stream went unnoticed", case)
        bound_ms = fault.fields.get("bound_ms")
        if bound_ms is not None and seconds > bound_ms / 1000 and not self._disturbed(fault, seconds):
            case = f"{fault.target}: {seconds:.3f} s, bound {bound_ms / 1000} s"
            self._findings.add("I18", "failover took too long", case)

    def _targeted(self, fault: Fault) -> bool:
        """The same process, its network or the broker had other troubles around then."""
        return any(
            other is not fault and other.target in {fault.target, "broker"} and other.began <= fault.began + TAKEN_SECONDS
            and (other.ended is None or other.ended >= fault.began - TAKEN_SECONDS)
            for other in self._index.faults.values()
        )  # fmt: skip

    def _disturbed(self, fault: Fault, seconds: float) -> bool:
        """Something else went on meanwhile."""
        until = fault.began + seconds
        return any(
            other is not fault and other.began < until and (other.ended is None or other.ended > fault.began)
            for other in self._index.faults.values()
        ) or any(began < until and ended > fault.began for lags in self._index.lagged.values() for began, ended in lags)

    def _check_stalls(self) -> None:
        silence = Silence(self._index)
        for delivery in self._index.deliveries:
            if delivery.reason not in {"SUSPECT", "FAILED"}:
                continue
            earlier = self._index.queues[delivery.queue].deliveries[delivery.offset]
            at = bisect_right(earlier, delivery.fence - 1, key=lambda each: each.fence)
            if not at or not self._next(earlier[at - 1], delivery):
                continue
            if not silence.possible(earlier[at - 1].session, delivery.t):
                stalls = [f for f in self._index.faults.values() if f.target == "broker" and f.kind == "pause"]
                why = " while the broker stood still" if any(_near(f, delivery.t) for f in stalls) else ""
                case = f"{earlier[at - 1].place} of {earlier[at - 1].session.process}: {delivery.reason}"
                self._findings.add("I18", f"a live consumer was taken for {delivery.reason.lower()}{why}", case)

    def _next(self, before: Delivery, after: Delivery) -> bool:
        """Nothing that nobody wrote down stands between."""
        between = self._index.fences_between(before.fence, after.fence)
        return self._index.same_life(before.session, after.session) and between == after.fence - before.fence - 1


def _near(fault: Fault, t: float) -> bool:
    return fault.began <= t and (fault.ended is None or fault.ended >= t - 5.0)
