"""What a balance policy is: it answers "how many to whom", for runs of messages and not for each.

A policy is told who may be chosen (healthy, with room) and of every change of what a candidate holds. It keeps its own
order, so that its cost does not grow with the number of candidates, and it must not touch a candidate.
"""

from typing import Protocol


class Candidate(Protocol):
    """A consumer's subscription, as a policy sees it."""

    weight: int
    """At least 1."""
    version: int
    """For the policy's own use."""

    @property
    def load(self) -> int:
        """Messages that it holds unsettled."""

    def room(self) -> int:
        """Messages that it may be given now."""


Allocation = list[tuple[Candidate, int]]
"""Who gets how many; each candidate once, in the order of delivery."""


class Balance(Protocol):
    """One queue's policy."""

    def add(self, candidate: Candidate) -> None:
        """It may be chosen from now on."""

    def remove(self, candidate: Candidate) -> None:
        """It may not be chosen any more."""

    def changed(self, candidate: Candidate) -> None:
        """What it holds has changed, by a delivery or a settlement."""

    def allocate(self, count: int) -> Allocation:
        """Share out up to `count` messages; nobody gets more than its room. Empty when nobody has any."""
