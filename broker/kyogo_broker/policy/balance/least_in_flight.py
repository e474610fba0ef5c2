"""To whoever holds least for its weight: the default, and the one that follows real speed by itself.

Candidates stand in a heap by load / weight. Entries are replaced lazily: a change pushes a new one with a new version,
and an entry of an old version is dropped when it comes up. For many messages and few candidates the level is computed
to which all are filled ("water-filling"), so that each gets one run.
"""

from heapq import heapify, heappop, heappush, heapreplace

from kyogo_broker.policy.balance.base import Allocation, Candidate

COMPACT_AT = 64


class LeastInFlight:
    """A heap of candidates by what they hold for their weight."""

    def __init__(self) -> None:
        self._members: dict[int, Candidate] = {}
        self._heap: list[tuple[float, int, int, int]] = []
        """(load / weight, when it was pushed, key, version)."""
        self._pushed = 0

    def add(self, candidate: Candidate) -> None:
        """It may be chosen from now on."""
        self._members[id(candidate)] = candidate
        self._push(candidate)

    def remove(self, candidate: Candidate) -> None:
        """Its entries die with it."""
        self._members.pop(id(candidate), None)

    def changed(self, candidate: Candidate) -> None:
        """Give it a new entry."""
        if id(candidate) in self._members:
            self._push(candidate)

    def allocate(self, count: int) -> Allocation:
        """Fill those who hold least."""
        if count >= len(self._members):
            return self._fill(count)
        return self._pick(count)

    def _pick(self, count: int) -> Allocation:
        given: dict[int, int] = {}
        heap = self._heap
        while count and heap:
            _, _, key, version = heap[0]
            candidate = self._members.get(key)
            if candidate is None or candidate.version != version:
                heappop(heap)
                continue
            portion = given.get(key, 0)
            if portion >= candidate.room():
                # Without room it waits for its next change, which gives it a new entry.
                heappop(heap)
                continue
            given[key] = portion + 1
            count -= 1
            self._pushed += 1
            load = (candidate.load + portion + 1) / candidate.weight
            heapreplace(heap, (load, self._pushed, key, version))
        return [(self._members[key], portion) for key, portion in given.items()]

    def _fill(self, count: int) -> Allocation:
        open_to = [
            (candidate.load / candidate.weight, index, candidate)
            for index, candidate in enumerate(self._members.values())
            if candidate.room() > 0
        ]
        open_to.sort()
        load, weight, used = 0, 0, 0
        for index, (level, _, candidate) in enumerate(open_to):
            # The level to which `count` messages fill those before; the next one lies above it.
            if weight and (load + count) / weight <= level:
                break
            load += candidate.load
            weight += candidate.weight
            used = index + 1
        filled = open_to[:used]
        given: list[tuple[Candidate, int]] = []
        left = count
        for _, _, candidate in filled:
            share = int((load + count) * candidate.weight / weight) - candidate.load
            portion = max(0, min(share, candidate.room(), left))
            left -= portion
            given.append((candidate, portion))
        # What rounding left over goes one by one to the first that have room.
        for index, (candidate, portion) in enumerate(given):
            if not left:
                break
            if portion < candidate.room():
                given[index] = (candidate, portion + 1)
                left -= 1
        return [(candidate, portion) for candidate, portion in given if portion]

    def _push(self, candidate: Candidate) -> None:
        candidate.version += 1
        self._pushed += 1
        heappush(self._heap, (candidate.load / candidate.weight, self._pushed, id(candidate), candidate.version))
        if len(self._heap) > 2 * len(self._members) + COMPACT_AT:
            self._heap = [e for e in self._heap if (c := self._members.get(e[2])) is not None and c.version == e[3]]
            heapify(self._heap)
