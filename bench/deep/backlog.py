"""A deep backlog of small messages: memory, restarts, the rate at which it is emptied, and the disk afterwards.

Over the wire a message costs a frame when it goes alone, some 200 us: ten million of them would take an hour, and tell
of gRPC. So as many as that are published one by one into the engine itself, in a process of its own; what it leaves on
the disk a broker then takes over.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.deep.jobs import Fill
from bench.deep.watching import MB, held
from bench.figures import Figure, Goal
from bench.load import Consume, Produce
from bench.processes import Load, Server
from bench.rows import Bench

BODY_BYTES: Final = 100
SETTLE_S: Final = 2.0
"""After a load, before memory is read."""
SHALLOW: Final = {256: 72_000, 1: 11_000}
"""Messages that a broker keeps in memory (8 MiB of them), by how many are published at once: what is drained without
reading the journal back."""
SHALLOW_ROUNDS: Final = 6
GIVEN_BACK_S: Final = 90.0
"""How long a broker without anything to do may take to give the disk back."""
DISK_LEFT_MB: Final = 256.0
RSS_MB: Final = 300.0
RESTART_S: Final = 2.0
QUEUE: Final = "deep"


def backlog(bench: Bench, messages: int, *, batch: int, window: int) -> list[Figure]:
    """Publish, look at memory, kill, start, stop, start, drain: nothing may be missing; look at the disk."""
    row = "backlog" if batch > 1 else "singles"
    label = f"{messages:,} x {BODY_BYTES} B {'in batches' if batch > 1 else 'one by one'}"
    memory, restart = Goal(RSS_MB), Goal(RESTART_S)

    def figure(name: str, unit: str, value: float, goal: Goal | None = None) -> Figure:
        return Figure(row, f"{label}: {name}", unit, broker=value, goal=goal)

    with Server("broker", watched=True) as server:
        empty, empty_cpu = server.start_s, server.start_cpu_s
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
            after_kill, after_kill_cpu = server.start(), server.start_cpu_s
            time.sleep(SETTLE_S)
            restarted = server.rss_bytes()
            stop = server.stop(signal.SIGTERM)
            after_stop = server.start()
        emptied = drain_deep(bench, server, messages + 1, label, figure, batch=batch)
        holds += server.holds()
    return [
        figure("published", "messages/s", messages / (published.ended - published.began)),
        figure("RSS", "MB", full / MB, memory),
        figure("RSS over idle", "MB", (full - idle) / MB),
        figure("journal", "MB", disk_full / MB),
        figure("start to ready while it was empty", "s", empty),
        figure("start to ready while it was empty, processor time", "s", empty_cpu),
        figure("kill -9, start to ready", "s", after_kill, restart),
        figure("kill -9, start to ready, processor time", "s", after_kill_cpu),
        figure("RSS after it", "MB", restarted / MB, memory),
        figure("SIGTERM to exit", "s", stop),
        figure("SIGTERM, start to ready", "s", after_stop, restart),
        *emptied,
        *held(bench, row, holds),
    ]


def engine(bench: Bench, messages: int) -> list[Figure]:
    """One by one through the engine in a process of its own, killed; then a broker on what it left."""
    label = f"{messages:,} x {BODY_BYTES} B one by one into the engine"

    def figure(name: str, unit: str, value: float, goal: Goal | None = None) -> Figure:
        return Figure("engine", f"{label}: {name}", unit, broker=value, goal=goal)

    with Server("broker", watched=True) as server:
        server.stop(signal.SIGTERM)
        with Load(Fill(str(server.data), QUEUE, messages, BODY_BYTES)) as filler:
            filler.go()
            with bench.step(f"publish {label}", messages) as update:
                published = filler.result(update)
        disk_full = server.disk_bytes()
        with bench.step(f"restarts with {label}"):
            after_kill, after_kill_cpu = server.start(), server.start_cpu_s
            time.sleep(SETTLE_S)
            restarted = server.rss_bytes()
            server.stop(signal.SIGTERM)
            after_stop = server.start()
        emptied = drain_deep(bench, server, messages, label, figure, batch=1)
        holds = server.holds()
    return [
        figure("published", "messages/s", messages / (published.ended - published.began)),
        figure("RSS at most, of the engine's process", "MB", max(published.rss) / MB, Goal(RSS_MB)),
        figure("journal", "MB", disk_full / MB),
        figure("kill -9, a broker's start to ready", "s", after_kill, Goal(RESTART_S)),
        figure("kill -9, a broker's start to ready, processor time", "s", after_kill_cpu),
        figure("RSS after it", "MB", restarted / MB, Goal(RSS_MB)),
        figure("SIGTERM, start to ready", "s", after_stop, Goal(RESTART_S)),
        *emptied,
        *held(bench, "engine", holds),
    ]


def drain_deep(
    bench: Bench, server: Server, messages: int, label: str, figure: Callable[..., Figure], *, batch: int
) -> list[Figure]:
    """Drain the deep queue, and before and after it shallow ones published alike; wait for the disk."""
    before = drain_shallow(bench, server, batch)
    drained = drain(bench, server, QUEUE, messages, f"drain {label}")
    at_most = server.rss_bytes()
    shallow = before + drain_shallow(bench, server, batch)
    with bench.step("the disk is given back"):
        waited = given_back(server)
    return [
        figure("drained", "messages/s", drained.rate),
        figure("RSS after it was drained", "MB", at_most / MB, Goal(RSS_MB)),
        figure("a shallow queue, drained", "messages/s", shallow.rate),
        figure("drained, of a shallow queue's rate", "%", 100 * drained.rate / shallow.rate, Goal(80, at_least=True)),
        figure("drained, processor time of the broker", "us/message", drained.cpu_us),
        figure("a shallow queue, processor time of the broker", "us/message", shallow.cpu_us),
        figure("journal after it was drained", "MB", server.disk_bytes() / MB, Goal(DISK_LEFT_MB)),
        figure("until then", "s", waited),
    ]


@dataclass(frozen=True, slots=True)
class Drained:
    """Messages that were taken and acked."""

    messages: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    """Of the broker: other people on the machine change the rate, but hardly this."""

    def __add__(self, other: "Drained") -> "Drained":
        return Drained(self.messages + other.messages, self.seconds + other.seconds, self.cpu_s + other.cpu_s)

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds a message."""
        return self.cpu_s / self.messages * 1e6


def drain(bench: Bench, server: Server, queue: str, messages: int, label: str) -> Drained:
    """Take all."""
    cpu = server.cpu_s()
    (report,) = bench.work(label, messages, Consume(server.target, queue, messages))
    return Drained(messages, report.ended - report.began, server.cpu_s() - cpu)


def drain_shallow(bench: Bench, server: Server, batch: int) -> Drained:
    """Drain queues that are in memory."""
    total, messages, window = Drained(), SHALLOW[batch], 16 if batch > 1 else 512
    for number in range(SHALLOW_ROUNDS):
        queue = f"shallow-{time.monotonic_ns()}"
        label = f"a shallow queue, {number + 1} of {SHALLOW_ROUNDS}"
        bench.work(label, messages, Produce(server.target, queue, messages, BODY_BYTES, batch, window, timed=False))
        total += drain(bench, server, queue, messages + 1, label)
    return total


def given_back(server: Server) -> float:
    """Seconds until the disk is given back, or the time is over."""
    began = time.monotonic()
    while server.disk_bytes() > DISK_LEFT_MB * MB and time.monotonic() - began < GIVEN_BACK_S:
        time.sleep(0.2)
    return time.monotonic() - began
