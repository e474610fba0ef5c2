"""Minutes of churn: afterwards memory, tasks, threads, file descriptors and streams are where they were before."""

import time
from typing import Final

from bench.deep.control import purge_queue
from bench.deep.jobs import Churn
from bench.deep.watching import MB
from bench.figures import Figure, Goal, median
from bench.processes import Server
from bench.rows import Bench

CYCLE_S: Final = 60.0
REST_S: Final = 3.0
"""After a cycle, before anything is counted."""
REST_S_MAX: Final = 30.0
"""How long the counts may take to return."""
WARM_SHARE: Final = 0.1
"""Of the cycles: until then what has a limit fills, like the settled fences of each queue that are remembered."""
GROWTH_MB: Final = 10.0
"""From the end of the last warm cycle to the end; an allocator is not exact."""
THREADS: Final = 4
"""More: pools grow to their size when there is a rush, and shrink when they like."""
RSS: Final = "process_resident_memory_bytes"
COUNTS: Final = {
    "kyogo_loop_tasks": "tasks",
    "kyogo_process_threads": "threads",
    "process_open_fds": "file descriptors",
    "kyogo_streams": "streams",
    "kyogo_queue_consumers": "consumers",
    "kyogo_queue_messages": "messages",
}


def leaks(bench: Bench, minutes: float) -> list[Figure]:
    """Cycle after cycle; the end of the warm ones is what the others are held against."""
    cycles = max(2, round(60 * minutes / CYCLE_S))
    rests: list[dict[str, float]] = []
    settled = streams = 0
    with Server("broker") as server:
        for number in range(cycles):
            job = Churn(server.target, 60 * minutes / cycles, seed=number)
            (report,) = bench.work(f"churn, {number + 1} of {cycles}", 0, job)
            settled += report.messages
            streams += report.frames
            empty(server)
            rests.append(rested(server, rests[0] if rests else {}))
            bench.say(describe(rests[-1]))
    warm = max(1, round(cycles * WARM_SHARE))
    first, last = rests[warm - 1], rests[-1]
    rss = [rest[RSS] / MB for rest in rests]
    half = rss[len(rss) // 2 :]
    third = -(-len(half) // 3)
    return [
        Figure("leaks", f"{minutes:g} minutes: streams opened", "", broker=streams),
        Figure("leaks", "settled", "messages", broker=settled),
        Figure("leaks", "RSS after the first tenth", "MB", broker=rss[warm - 1]),
        Figure("leaks", "RSS grown since then", "MB", broker=rss[-1] - rss[warm - 1], goal=Goal(GROWTH_MB)),
        Figure("leaks", "RSS grown in the second half", "MB", broker=median(half[-third:]) - median(half[:third])),
        *(
            Figure("leaks", f"{what} more than at first", "", broker=last[name] - first[name], goal=goal(what))
            for name, what in COUNTS.items()
        ),
    ]


def goal(what: str) -> Goal:
    """Of what there may be more than at first."""
    return Goal(THREADS if what == "threads" else 0)


def empty(server: Server) -> None:
    """Purge every queue: what failed waits for its time, and letters for somebody to look at them."""
    for name in server.metrics():
        if name.startswith("kyogo_messages_accepted_total{"):
            purge_queue(server.target, name.partition("{")[2].rstrip("}"))


def rested(server: Server, first: dict[str, float], *, look_s: float = REST_S) -> dict[str, float]:
    """The figures once nothing is above what it was at first, or the time is over."""
    until = time.monotonic() + REST_S_MAX
    while True:
        time.sleep(look_s)
        found = server.metrics()
        if time.monotonic() > until or all(found[name] <= first.get(name, found[name]) for name in COUNTS):
            return found


def describe(rest: dict[str, float]) -> str:
    """For people who wait."""
    counts = ", ".join(f"{rest[name]:,.0f} {what}" for name, what in COUNTS.items())
    return f"at rest: {rest[RSS] / MB:.1f} MB, {counts}"
