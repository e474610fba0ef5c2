"""Everyone in turn: equal counts, whatever the weight.

A large batch is shared out in equal runs, the remainder one by one from where the turn stands, so that counts differ
by one at most among those who always had room.
"""

from collections import OrderedDict

from kyogo_broker.policy.balance.base import Allocation, Candidate


class RoundRobin:
    """A ring of candidates; the next in turn stands first."""

    def __init__(self) -> None:
        self._ring: OrderedDict[int, Candidate] = OrderedDict()

    def add(self, candidate: Candidate) -> None:
        """It comes last in turn."""
        self._ring[id(candidate)] = candidate

    def remove(self, candidate: Candidate) -> None:
        """It leaves the ring."""
        self._ring.pop(id(candidate), None)

    def changed(self, candidate: Candidate) -> None:
        """What it holds does not matter here."""

    def allocate(self, count: int) -> Allocation:
        """Equal runs to all, then one each to the first in turn."""
        given: dict[int, int] = {}
        turns = len(self._ring)
        idle = 0
        while count and idle < turns:
            # A whole round shares out evenly; the last, incomplete one goes by single messages.
            share = max(1, count // turns)
            for _ in range(turns):
                key, candidate = next(iter(self._ring.items()))
                portion = min(share, count, candidate.room() - given.get(key, 0))
                if portion > 0:
                    given[key] = given.get(key, 0) + portion
                    count -= portion
                    idle = 0
                else:
                    idle += 1
                self._ring.move_to_end(key)
                if not count or idle >= turns:
                    break
        return [(self._ring[key], portion) for key, portion in given.items()]
