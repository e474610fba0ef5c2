"""Who may have been silent when: what was done to a consumer, and when it noticed that it stood still."""

from tests.support.history.index import Index, Session

MEMORY_SECONDS = 20.0
"""A message that was given back may wait so long for its next delivery."""
SHARE = 0.5
"""Of the time after which a consumer is suspect: a shorter disturbance cannot be the cause."""
NOT_ITS_OWN = frozenset({"broker", "disk"})
HARNESS = "harness"
"""The process whose proxies stand between everybody and the broker: what it holds up, it holds up for all."""


class Silence:
    """The disturbances of every process."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._everybody = index.lagged.get(HARNESS, [])
        self._by_process: dict[str, list[tuple[float, float]]] = {
            process: list(intervals) for process, intervals in index.lagged.items()
        }
        for fault in index.faults.values():
            if fault.target not in NOT_ITS_OWN:
                ended = index.ended if fault.ended is None else fault.ended
                self._by_process.setdefault(fault.target, []).append((fault.began, ended))

    def possible(self, session: Session, by: float) -> bool:
        """Whether the session's process may have been silent for long enough at some time before `by`."""
        suspect_ms = session.fields.get("suspect_ms")
        if suspect_ms is None:
            return True
        least = SHARE * suspect_ms / 1000
        return any(
            began <= by - least and ended - began >= least and ended >= by - MEMORY_SECONDS
            for began, ended in (*self._by_process.get(session.process, ()), *self._everybody)
        )
