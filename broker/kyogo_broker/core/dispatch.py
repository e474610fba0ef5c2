"""Who gets what is ready: the policy says how many to whom, runs are cut from the head of the queue.

A run ends where its batch in memory ends, where the history of its messages changes, where the consumer's bytes end,
and at the largest lease. So a plain batch costs one lease, one fact and one part of a frame a consumer.

Two things can stand in the way of the head. It does not fit into what the consumer may hold: that consumer is *held
up*, until it has more room or the head is another. It does not fit into the consumer's frames at all: the message is
set *aside* for one who can take it, and the queue goes on.
"""

from bisect import bisect_right
from collections.abc import Iterable

from kyogo_broker.core.consumers import Member
from kyogo_broker.core.fences import BLOCK
from kyogo_broker.core.leases import LEASE_MESSAGES_MAX
from kyogo_broker.core.limits import ASIDE_MAX, DISPATCH_MESSAGES_MAX, DISPATCH_RUNS_MAX
from kyogo_broker.core.queue import Queue
from kyogo_broker.core.reading import Reading
from kyogo_broker.core.standard import Ready
from kyogo_broker.core.state import State
from kyogo_broker.core.window import Held
from kyogo_broker.model.effects import Deliver, Delivery
from kyogo_broker.model.facts import FencesReserved, Leased, Span
from kyogo_broker.model.now import Now
from kyogo_broker.model.states import RedeliveryReason


class Dispatch:
    """Hands out what is ready, of all queues."""

    def __init__(self, state: State, reading: Reading) -> None:
        self._state = state
        self._reading = reading

    def run(self, now: Now) -> None:
        """Dispatch every queue in which something has changed."""
        state = self._state
        if state.draining:
            state.dirty.clear()
            return
        for queue in tuple(state.dirty.values()):
            # One queue takes less than what is left when it is time to reserve.
            if state.fences.needs_block():
                state.record(FencesReserved(state.fences.reserved + BLOCK))
            if self._dispatch(queue, now):
                state.dirty.pop(queue.id, None)

    def _dispatch(self, queue: Queue, now: Now) -> bool:
        """One queue; whether nothing is left to do for it now."""
        if queue.paused or not queue.members:
            return True
        budget, cuts, fruitless = DISPATCH_MESSAGES_MAX, DISPATCH_RUNS_MAX, 0
        while budget > 0 and cuts > 0:
            if queue.aside_due:
                self._serve_aside(queue, now)
            if queue.held_up:
                self._let_go(queue)
            count = min(self._available(queue), budget)
            allocation = queue.balance.allocate(count) if count else []
            if not allocation:
                return True
            given, each = 0, max(1, cuts // len(allocation))
            for candidate, portion in allocation:
                assert isinstance(candidate, Member)
                done, runs = self._deliver(candidate, portion, each, now)
                if done < portion:
                    queue.balance.changed(candidate)
                given += done
                cuts -= runs
            budget -= given
            # Those allocated to may be held up; then they are not offered any more and others have their turn. Nobody
            # left, or the head not in memory: the next look at what is available ends it.
            fruitless = 0 if given else fruitless + 1
            if fruitless > len(queue.members):
                return True
        return False

    def _available(self, queue: Queue) -> int:
        """Messages at the head that are in memory; asks for those that are not."""
        head = queue.ready.head()
        if head is None:
            return 0
        if head.first != queue.ready.fresh_from():
            if queue.window.find(head.first) is None:
                self._reading.want_returned(queue)
                return 0
            return queue.ready.count
        self._reading.want_fresh(queue)
        return max(0, min(head.last + 1, queue.loaded_to) - head.first)

    def _deliver(self, member: Member, count: int, runs_max: int, now: Now) -> tuple[int, int]:
        """Up to `count` messages from the head to one consumer, in so many runs; how many messages and runs it was."""
        queue = member.queue
        runs: list[Delivery] = []
        given = 0
        while given < count and len(runs) < runs_max:
            head = queue.ready.head()
            held = queue.window.find(head.first) if head is not None else None
            if head is None or held is None:
                break
            run = self._run(member, head, held, count - given, now)
            if run is None:
                if member.held_up:
                    break
                continue
            runs.append(run)
            given += run.count
        if runs:
            self._state.emit(Deliver(member.consumer.port, tuple(runs)))
        if given or member.held_up:
            self._state.touch(member.consumer)
        return given, len(runs)

    def _run(self, member: Member, head: Ready, held: Held, most: int, now: Now) -> Delivery | None:
        """Cut one run off the head; None: its first message does not fit this consumer."""
        queue = member.queue
        first = head.first
        last = min(head.last, held.last, first + most - 1, first + LEASE_MESSAGES_MAX - 1)
        failures = losses = 0
        if head.reason is not RedeliveryReason.UNSPECIFIED:
            failures, losses, last = queue.history(first, last)
        index = first - held.first
        count = self._fits(member, held, index, last - first + 1)
        if not count:
            self._pass_over(member, head, held.batch.size(index, index), held)
            return None
        return self._lease(member, held, Ready(first, first + count - 1, head.reason), failures, losses, now)

    def _pass_over(self, member: Member, head: Ready, size: int, held: Held) -> None:
        """The head does not fit this consumer: another one takes it, now or later."""
        queue = member.queue
        if size > member.consumer.message_bytes_max() and len(queue.aside) < ASIDE_MAX:
            queue.ready.take(head.first, 1)
            queue.aside[head.first] = (size, head.reason)
            queue.aside_due = True
            held.pinned = False
            # Those whose frames can hold it still wait for it; the others need not any more.
            waiting = queue.held_up.get(head.first, {}).values()
            self._go_on([other for other in waiting if size > other.consumer.message_bytes_max()])
        else:
            member.held_up = True
            queue.held_up.setdefault(head.first, {})[member.consumer.session_id] = member

    def _let_go(self, queue: Queue) -> None:
        """Those who were held up get on when what held them up is gone."""
        head = queue.ready.head()
        for offset in tuple(queue.held_up):
            if offset not in queue.aside and (head is None or head.first != offset):
                self._go_on(queue.held_up.pop(offset).values())

    def _go_on(self, members: Iterable[Member]) -> None:
        for member in members:
            member.held_up = False
            self._state.touch(member.consumer)

    def _fits(self, member: Member, held: Held, index: int, count: int) -> int:
        """How many of `count` messages from `index` on fit into the consumer's bytes and frames."""
        consumer, ends = member.consumer, held.batch.ends
        start = ends[index - 1] if index else 0
        room = consumer.prefetch_bytes - consumer.in_flight_bytes
        largest = consumer.message_bytes_max()
        if ends[index + count - 1] - start > room:
            fitting = bisect_right(ends, start + room, index, index + count) - index
            # One larger message goes alone.
            count = fitting if fitting or consumer.in_flight else 1
        if count and ends[index + count - 1] - start > largest:
            for number in range(count):
                if held.batch.size(index + number, index + number) > largest:
                    return number
        return count

    def _lease(self, member: Member, held: Held, ready: Ready, failures: int, losses: int, now: Now) -> Delivery:
        """Hand out `ready`, all of it in `held`, and start the clocks."""
        state, queue, consumer = self._state, member.queue, member.consumer
        count = ready.last - ready.first + 1
        index = ready.first - held.first
        span = Span(state.fences.take(count), ready.first, count)
        state.record(Leased(queue.id, consumer.session_id, consumer.consumer_id, span, now.unix_ms))
        lease = state.leases.find(span.first_fence)
        assert lease is not None
        lease.consumer, lease.member = consumer, member
        lease.ends, lease.base = held.batch.ends, index
        held.pinned = False
        consumer.took(member, lease, size=held.batch.size(index, index + count - 1))
        if not consumer.counts_start():
            lease.start(lease.live, now.steady_ms + queue.settings.visibility_timeout_ms)
            state.timers.remind(lease, now.steady_ms + queue.settings.visibility_timeout_ms)
        counters = queue.counters
        counters.delivered += count
        if ready.reason is not RedeliveryReason.UNSPECIFIED:
            counters.redelivered[ready.reason.name] = counters.redelivered.get(ready.reason.name, 0) + count
        return Delivery(
            subscription=member.index, first_fence=span.first_fence, first_offset=ready.first, count=count,
            attempt=1 + failures, losses=losses, reason=ready.reason, published_unix_ms=held.published_unix_ms,
            dead_letter=held.dead_letter, wire=held.batch.part(index, index + count - 1),
        )  # fmt: skip

    def _serve_aside(self, queue: Queue, now: Now) -> None:
        """Messages that were too large for whoever was in turn go to those whose frames can hold them."""
        queue.aside_due = False
        smallest = min((size for size, _ in queue.aside.values()), default=0)
        able = [m for m in queue.members.values() if m.offered and m.consumer.message_bytes_max() >= smallest]
        able.sort(key=lambda member: member.load)
        for offset, (size, reason) in sorted(queue.aside.items()) if able else ():
            member = next((m for m in able if m.offered and m.consumer.message_bytes_max() >= size), None)
            if member is None:
                continue
            able.remove(member)
            able.append(member)
            del queue.aside[offset]
            queue.ready.add_returned(offset, offset, reason)
            held = queue.window.find(offset)
            # What is not in memory is read back like any other, and comes here again if it is set aside again.
            run = None if held is None else self._run(member, Ready(offset, offset, reason), held, 1, now)
            if run is not None:
                self._state.emit(Deliver(member.consumer.port, (run,)))
            self._state.touch(member.consumer)
