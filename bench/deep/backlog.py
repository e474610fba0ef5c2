"""A deep backlog of small messages: memory, restarts, the rate at which it is emptied, and the disk afterwards."""

import signal
import time
from typing import Final

from bench.deep.watching import MB, held
from bench.figures import Figure, Goal
from bench.load import Consume, Produce
from bench.processes import Server
from bench.rows import Bench

BODY_BYTES: Final = 100
SETTLE_S: Final = 2.0
"""After a load, before memory is read."""
SHALLOW: Final = 40_000
"""Messages that a broker keeps in memory: what is drained without reading the journal back."""
SHALLOW_ROUNDS: Final = 8
GIVEN_BACK_S: Final = 90.0
"""How long a broker without anything to do may take to give the disk back."""
DISK_LEFT_MB: Final = 256.0
QUEUE: Final = "deep"


def backlog(bench: Bench, messages: int, *, batch: int, window: int) -> list[Figure]:
    """Publish, look at memory, kill, start, stop, start, drain: nothing may be missing; look at the disk."""
    row = "backlog" if batch > 1 else "singles"
    label = f"{messages:,} x {BODY_BYTES} B {'in batches' if batch > 1 else 'one by one'}"
    memory = Goal(40) if messages <= 1_000_000 else Goal(300)
    restart = Goal(2)

    def figure(name: str, unit: str, value: float, goal: Goal | None = None) -> Figure:
        return Figure(row, f"{label}: {name}", unit, broker=value, goal=goal)

    with Server("broker", watched=True) as server:
        empty = server.start_s
        time.sleep(SETTLE_S)
        idle = server.rss_bytes()
        job = Produce(server.target, QUEUE, messages, BODY_BYTES, batch, window, timed=False)
        (published,) = bench.work(f"publish {label}", messages, job)
        time.sleep(SETTLE_S)
        full = server.rss_bytes()
        disk_full = server.disk_bytes()
        holds = server.holds()
        with bench.step(f"restarts with {label}"):
            server.stop(signal.SIGKILL)
            after_kill = server.start()
            time.sleep(SETTLE_S)
            restarted = server.rss_bytes()
            stop = server.stop(signal.SIGTERM)
            after_stop = server.start()
        shallow = shallow_rate(bench, server)
        (drained,) = bench.work(f"drain {label}", messages, Consume(server.target, QUEUE, messages + 1))
        rate = messages / (drained.ended - drained.began)
        at_most = server.rss_bytes()
        shallow = (shallow + shallow_rate(bench, server)) / 2
        with bench.step("the disk is given back"):
            waited = given_back(server)
        left = server.disk_bytes()
        holds += server.holds()
    return [
        figure("published", "messages/s", messages / (published.ended - published.began)),
        figure("RSS", "MB", full / MB, None if messages <= 1_000_000 else memory),
        figure("RSS over idle", "MB", (full - idle) / MB, memory if messages <= 1_000_000 else None),
        figure("journal", "MB", disk_full / MB),
        figure("start to ready while it was empty", "s", empty),
        figure("kill -9, start to ready", "s", after_kill, restart),
        figure("RSS after it", "MB", restarted / MB),
        figure("SIGTERM to exit", "s", stop),
        figure("SIGTERM, start to ready", "s", after_stop, restart),
        figure("drained", "messages/s", rate),
        figure("RSS after it was drained", "MB", at_most / MB),
        figure("drained, of a shallow queue's rate", "%", 100 * rate / shallow, Goal(80, at_least=True)),
        figure("journal after it was drained", "MB", left / MB, Goal(DISK_LEFT_MB)),
        figure("until then", "s", waited),
        *held(bench, row, holds),
    ]


def shallow_rate(bench: Bench, server: Server) -> float:
    """Messages a second of a queue that is drained from memory."""
    seconds = 0.0
    for number in range(SHALLOW_ROUNDS):
        queue = f"shallow-{time.monotonic_ns()}"
        label = f"a shallow queue, {number + 1} of {SHALLOW_ROUNDS}"
        bench.work(label, SHALLOW, Produce(server.target, queue, SHALLOW, BODY_BYTES, 256, 16, timed=False))
        (drained,) = bench.work(label, SHALLOW, Consume(server.target, queue, SHALLOW + 1))
        seconds += drained.ended - drained.began
    return SHALLOW_ROUNDS * SHALLOW / seconds


def given_back(server: Server) -> float:
    """Seconds until the disk is given back, or the time is over."""
    began = time.monotonic()
    while server.disk_bytes() > DISK_LEFT_MB * MB and time.monotonic() - began < GIVEN_BACK_S:
        time.sleep(0.2)
    return time.monotonic() - began
