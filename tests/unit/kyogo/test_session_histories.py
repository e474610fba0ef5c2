"""Random histories of a session: counters add up, and nothing is settled twice or behind the broker's back."""

from collections.abc import Callable
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kyogo.actions import Load, Rejected
from kyogo.delivery import BUFFERED, GONE, RUNNING, SETTLING, Delivery
from kyogo.outcomes import ACK, Outcome, Settlement
from kyogo.v1 import broker_pb2 as pb
from tests.support.sdk_sessions import attached_session, response, revoke

RETRY = Settlement(Outcome.RETRY, reason="boom")
pick = st.randoms(use_true_random=False)


class Histories(RuleBasedStateMachine):
    """The session in the middle: its worker above, its broker below."""

    def __init__(self) -> None:
        super().__init__()
        self.session = attached_session()
        self.taken: list[Delivery] = []
        self.next_fence = 1
        self.leased: set[int] = set()
        """What the broker thinks this consumer holds."""
        self.asked: list[int] = []
        """Settled here, not answered by the broker yet."""
        self.leaving = False

    # --- the worker ---

    @rule()
    def take(self) -> None:
        delivery = self.session.take()
        if delivery is not None:
            assert delivery.state == BUFFERED
            self.taken.append(delivery)

    @rule(chance=pick)
    def begin(self, chance: Random) -> None:
        self._with(chance, BUFFERED, self.session.begin)

    @rule(chance=pick)
    def park(self, chance: Random) -> None:
        self._with(chance, BUFFERED, self.session.park)

    @rule(chance=pick, settlement=st.sampled_from([ACK, RETRY]), publishes=st.booleans())
    def finish(self, chance: Random, settlement: Settlement, *, publishes: bool) -> None:
        if not self.taken:
            return
        delivery = chance.choice(self.taken)
        if publishes:
            delivery.publish("mails", b"x")
        was_running = delivery.state == RUNNING
        assert self.session.finish(delivery, settlement) is was_running

    @rule(chance=pick)
    def release(self, chance: Random) -> None:
        if self.taken:
            self.session.release(chance.choice(self.taken))

    @rule()
    def beat(self) -> None:
        self.session.beat(Load(0.0, 0.0, 0))

    @rule()
    def stop_taking(self) -> None:
        self.session.stop_taking()

    # --- the broker ---

    @rule(count=st.integers(1, 5))
    def deliver(self, count: int) -> None:
        run = pb.DeliveryRun(first_fence=self.next_fence, first_offset=1, messages=[pb.Message()] * count)
        self.leased.update(range(self.next_fence, self.next_fence + count))
        self.next_fence += count
        self.session.receive(response(deliveries=[run]))

    @rule(chance=pick, mode=st.sampled_from(["RETURN", "LOST", "CANCEL"]))
    def revoke(self, chance: Random, mode: str) -> None:
        fences = [fence for fence in self.leased if chance.random() < 0.3]
        if mode == "LOST":
            self.leased.difference_update(fences)
        self.session.receive(response(revokes=[revoke(mode, *fences)]))

    @rule()
    def read(self) -> None:
        """The broker reads a frame, and holds what it says against what it knows."""
        frame = self.session.next_frame()
        if frame is None:
            return
        for started in frame.started:
            assert all(f not in self.asked for f in range(started.first, started.last + 1))
        for settlement in frame.settlements:
            assert not settlement.publish or settlement.outcome == pb.OUTCOME_ACK
            for fences in settlement.ranges:
                for fence in range(fences.first, fences.last + 1):
                    assert fence not in self.asked, "settled twice"
                    self.asked.append(fence)

    @rule(chance=pick, rejects=st.booleans())
    def answer(self, chance: Random, *, rejects: bool) -> None:
        chosen = [fence for fence in self.asked if chance.random() < 0.5]
        results = []
        for fence in chosen:
            self.asked.remove(fence)
            status = pb.SETTLE_STATUS_OK if fence in self.leased else pb.SETTLE_STATUS_STALE
            if rejects and fence in self.leased and self._delivery(fence) is not None:
                status = pb.SETTLE_STATUS_REJECTED
            else:
                self.leased.discard(fence)
            results.append(pb.SettleResult(range=pb.FenceRange(first=fence, last=fence), status=status))
        for action in self.session.receive(response(settled=results)):
            if isinstance(action, Rejected):
                assert action.delivery.state == RUNNING

    # --- always ---

    @invariant()
    def counters_add_up(self) -> None:
        self.session.check_invariants()

    @invariant()
    def nothing_that_is_held_is_forgotten(self) -> None:
        held = set(self.session._held)
        assert self.leased <= held
        assert {d.fence for d in self.taken if d.state != GONE} <= held

    def _with(self, chance: Random, state: int, act: Callable[[Delivery], None]) -> None:
        candidates = [delivery for delivery in self.taken if delivery.state == state]
        if candidates:
            act(chance.choice(candidates))

    def _delivery(self, fence: int) -> Delivery | None:
        found = [delivery for delivery in self.taken if delivery.fence == fence]
        return found[0] if found and found[0].state == SETTLING else None


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
