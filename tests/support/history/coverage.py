"""Whether a run counts: every kind of operation succeeded at least once, and every planned fault took effect."""

from collections.abc import Collection
from dataclasses import dataclass

from tests.support.history.index import Index


@dataclass(frozen=True, slots=True)
class Expectations:
    """What a run has to have tried."""

    operations: Collection[str] = ()
    """By line and result, as figures show them: "published ok", "settle ACK OK", "deliver STREAM_LOSS"."""
    faults: Collection[str] = ()
    """Kinds of which at least one must have been planned."""
    drained: bool = True
    """Whether everything that was published to has to have drained."""


def gaps(index: Index, expectations: Expectations) -> tuple[str, ...]:
    """What is missing."""
    found = [
        f"it never happened: {operation}"
        for operation in expectations.operations
        if not index.operations.get(operation)
    ]
    planned = {fault.kind for fault in index.faults.values()}
    found += [f"no fault of this kind: {kind}" for kind in expectations.faults if kind not in planned]
    found += [
        f"fault {fault.id} ({fault.kind} of {fault.target}) took no effect"
        for fault in index.faults.values()
        if fault.effect is None
    ]
    if expectations.drained:
        homes = {queue for queue, _ in index.sources if any(s.stored is not False for s in index.sources[queue, _])}
        missing = sorted(queue for queue in homes - index.drained if index.queue(queue).deleted is None)
        found += [f"queue {queue} did not drain, so nobody knows what is lost" for queue in missing]
    return tuple(found)
