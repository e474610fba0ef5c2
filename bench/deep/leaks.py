"""Minutes of churn: afterwards memory, tasks, threads, file descriptors and streams are where they were before."""

import time
from typing import Final

from bench.deep.jobs import Churn
from bench.deep.watching import MB, held
from bench.figures import Figure, Goal
from bench.processes import Server
from bench.rows import Bench

CYCLE_S: Final = 30.0
REST_S: Final = 3.0
"""After a cycle, before anything is counted."""
GROWTH_MB: Final = 10.0
"""From the end of the first cycle to the end of the last one; an allocator is not exact."""
COUNTS: Final = {
    "kyogo_loop_tasks": "tasks",
    "kyogo_process_threads": "threads",
    "process_open_fds": "file descriptors",
    "kyogo_streams": "streams",
    "kyogo_queue_messages": "messages",
}


def leaks(bench: Bench, minutes: float) -> list[Figure]:
    """Cycle after cycle; the first one is what the others are held against."""
    cycles = max(2, round(60 * minutes / CYCLE_S))
    rests: list[dict[str, float]] = []
    settled = streams = 0
    with Server("broker", watched=True) as server:
        for number in range(cycles):
            job = Churn(server.target, min(CYCLE_S, 60 * minutes / cycles), seed=number)
            (report,) = bench.work(f"churn, {number + 1} of {cycles}", 1, job)
            settled += report.messages
            streams += report.frames
            time.sleep(REST_S)
            rests.append(server.metrics())
        holds = server.holds()
    first, last = rests[0], rests[-1]
    rss = [rest["process_resident_memory_bytes"] / MB for rest in rests]
    half = rss[len(rss) // 2 :]
    return [
        Figure("leaks", f"{minutes:g} minutes: streams opened", "", broker=streams),
        Figure("leaks", "settled", "messages", broker=settled),
        Figure("leaks", "RSS after the first cycle", "MB", broker=rss[0]),
        Figure("leaks", "RSS grown since then", "MB", broker=rss[-1] - rss[0], goal=Goal(GROWTH_MB)),
        Figure("leaks", "RSS grown in the second half", "MB", broker=half[-1] - half[0]),
        *(
            Figure("leaks", f"{what} more than at first", "", broker=last[name] - first[name], goal=Goal(0))
            for name, what in COUNTS.items()
        ),
        *held(bench, "leaks", holds),
    ]
