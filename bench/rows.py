"""What is measured, and the goals beside it. Each row runs probe and broker in turn: A B A B.

Throughputs are medians over the rounds, and their ratio is the median of the rounds' ratios, so that a slow minute of
the machine hits both sides. Latencies are percentiles over all samples of all rounds: a bad round is not averaged
away.
"""

import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from rich.progress import Progress

from bench.figures import Figure, Goal, median, percentile
from bench.load import Consume, Produce, Report
from bench.machine import disk
from bench.processes import Job, Load, Server
from bench.victim import Failover

RATE: Final = 500
"""Messages a second of the paced rows."""
SETTLE_S: Final = 2.0
"""After a load, before memory is read."""
MB: Final = 1e6
SAY_S: Final = 60.0
"""Between two words about a step that takes long, where there is no terminal."""

Values = dict[str, list[float]]
"""By the figure's name."""
Samples = dict[str, dict[str, list[float]]]
"""By the figure's name and the side; one for each round, or all that were taken."""
Run = Callable[[Server, str], Values]
"""Measures one side once, on a queue of that name."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What goes through in a throughput row."""

    name: str
    size: int
    batch: int
    window: int
    messages: int
    started: bool = False

    def producer(self, target: str, queue: str) -> Produce:
        """Publishes it all."""
        return Produce(target, queue, self.messages, self.size, self.batch, self.window)

    def consumer(self, target: str, queue: str) -> Consume:
        """Takes it all, and the message that opened the queue."""
        return Consume(target, queue, self.messages + 1, started=self.started)


TRAFFIC: Final = (
    Traffic("1 KiB, 64 a request", 1024, 64, 16, 300_000),
    Traffic("1 KiB, 256 a request", 1024, 256, 8, 300_000),
    Traffic("100 B, 256 a request", 100, 256, 16, 1_000_000),
)
CPU: Final = "server CPU"
QUICK_SHARE: Final = 8
"""Of the messages, in a quick run."""


class Bench:
    """How much is measured, on which sides, and where it shows how far it is."""

    def __init__(self, *, sides: tuple[str, ...], quick: bool, progress: Progress) -> None:
        self.sides = sides
        self.quick = quick
        self._progress = progress

    def scale(self, full: int, quick: int) -> int:
        """One of the two."""
        return quick if self.quick else full

    @property
    def rounds(self) -> int:
        """How often each side is measured."""
        return self.scale(5, 2)

    def traffic(self) -> list[Traffic]:
        """What the throughput rows put through."""
        share = self.scale(1, QUICK_SHARE)
        return [replace(traffic, messages=traffic.messages // share) for traffic in TRAFFIC]

    def work(self, label: str, total: int, *jobs: Job) -> list[Report]:
        """Run load processes together; the first shows its progress, the last tells when all is done."""
        with ExitStack() as stack:
            loads = [stack.enter_context(Load(job)) for job in jobs]
            with self.step(label, total) as update:
                for load in reversed(loads):
                    load.go()
                return [load.result(update) for load in loads]

    @contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A line of progress while it lasts; where there is no terminal, one a minute and one when it is over."""
        task = self._progress.add_task(label, total=total)
        began = said = time.monotonic()

        def update(done: int) -> None:
            nonlocal said
            self._progress.update(task, completed=done)
            if not self._progress.console.is_terminal and time.monotonic() - said > SAY_S:
                said = time.monotonic()
                self.say(f"{label}: {done:,} of {total or 0:,} after {said - began:.0f} s")

        try:
            yield update
            if not self._progress.console.is_terminal:
                self.say(f"{label}: {time.monotonic() - began:.1f} s")
        finally:
            self._progress.remove_task(task)

    def say(self, text: str) -> None:
        """Something for people, above the progress."""
        if text:
            self._progress.console.print(text, highlight=False, markup=False)

    def interleave(self, row: str, run: Run, rounds: int) -> Samples:
        """Run each side in turn, on servers that are fresh and the row's own."""
        samples: Samples = defaultdict(lambda: defaultdict(list))
        with ExitStack() as stack:
            servers = [stack.enter_context(Server(side)) for side in self.sides]
            for number in range(rounds):
                for server in servers:
                    for name, values in run(server, f"{row}-{number}").items():
                        samples[name][server.kind] += values
        return samples


def apart(bench: Bench) -> list[Figure]:
    """Publish only, then drain only what was published."""

    def run(traffic: Traffic, server: Server, queue: str) -> Values:
        began = server.cpu_s()
        label = f"{server.kind}: %s {traffic.name}"
        producer = traffic.producer(server.target, queue)
        (published,) = bench.work(label % "publish", traffic.messages, producer)
        middle = server.cpu_s()
        consumer = traffic.consumer(server.target, queue)
        (drained,) = bench.work(label % "drain", traffic.messages, consumer)
        return {
            "publish": [traffic.messages / (published.ended - published.began)],
            f"publish: {CPU}": [(middle - began) / traffic.messages * 1e6],
            "drain": [traffic.messages / (drained.ended - drained.began)],
            f"drain: {CPU}": [(server.cpu_s() - middle) / traffic.messages * 1e6],
        }

    figures = []
    for traffic in bench.traffic():
        samples = bench.interleave("apart", partial(run, traffic), bench.rounds)
        figures += [rate_figure("apart", f"{name}, {traffic.name}", values) for name, values in samples.items()]
    return figures


def both(bench: Bench) -> list[Figure]:
    """Publish and drain at once, four consumer streams; the time runs until the last ACK was answered."""

    def run(traffic: Traffic, server: Server, queue: str) -> Values:
        began = server.cpu_s()
        producer = traffic.producer(server.target, queue)
        consumer = traffic.consumer(server.target, queue)
        label = f"{server.kind}: both at once {traffic.name}"
        reports = bench.work(label, traffic.messages, producer, consumer)
        took = max(report.ended for report in reports) - min(report.began for report in reports)
        return {
            "both at once": [traffic.messages / took],
            f"both: {CPU}": [(server.cpu_s() - began) / traffic.messages * 1e6],
        }

    figures = []
    plain = bench.traffic()
    for traffic in (*plain, replace(plain[0], name=f"{plain[0].name}, `started` said", started=True)):
        samples = bench.interleave("both", partial(run, traffic), bench.rounds)
        goal = Goal(0.5, at_least=True, of_ratio=True) if traffic.size == 1024 else None
        figures += [
            rate_figure("both", f"{name}, {traffic.name}", values, goal if name == "both at once" else None)
            for name, values in samples.items()
        ]
    return figures


def latency(bench: Bench) -> list[Figure]:
    """500 messages a second, one a request, four consumer streams."""
    messages = bench.scale(2500, 750)

    def run(server: Server, queue: str) -> Values:
        producer = Produce(server.target, queue, messages, 1024, rate=RATE)
        consumer = Consume(server.target, queue, messages + 1, prefetch=64)
        began = server.cpu_s()
        confirms, deliveries = bench.work(f"{server.kind}: {RATE}/s", messages, producer, consumer)
        cpu = (server.cpu_s() - began) / messages * 1e6
        return {"delivery": deliveries.latencies, "confirm": confirms.latencies, CPU: [cpu]}

    samples = bench.interleave("latency", run, bench.scale(4, 2))
    cpu = rate_figure("latency", f"one a request, at {RATE}/s: {CPU}", samples.pop(CPU))
    goals = {("delivery", 0.5): Goal(1.5), ("delivery", 0.99): Goal(5)}
    return [
        *(
            latency_figure("latency", f"publish to {name} at {RATE}/s", share, values, goals.get((name, share)))
            for name, values in samples.items()
            for share in (0.5, 0.99, 0.999)
        ),
        cpu,
    ]


def single(bench: Bench) -> list[Figure]:
    """One synchronous publisher: the next request after the last one's confirm."""
    messages = bench.scale(2000, 300)

    def run(server: Server, queue: str) -> Values:
        values = {}
        for name, unary in (("on a stream", False), ("`Publish`", True)):
            job = Produce(server.target, f"{queue}{unary}", messages, 1024, unary=unary)
            (report,) = bench.work(f"{server.kind}: one at a time, {name}", messages, job)
            values[name] = report.latencies
        return values

    samples = bench.interleave("single", run, 2)
    return [
        latency_figure("single", f"publish and wait, {name}", share, values)
        for name, values in samples.items()
        for share in (0.5, 0.99)
    ]


def failover(bench: Bench) -> list[Figure]:
    """A consumer that holds 100 messages is killed with -9: how long until another one has them all."""
    trials = bench.scale(150, 15)

    def run(server: Server, queue: str) -> Values:
        job = Failover(server.target, queue, trials)
        (report,) = bench.work(f"{server.kind}: kill -9 of consumers", trials, job)
        return {"kill -9": report.latencies}

    values = bench.interleave("failover", run, 2)["kill -9"]
    name = f"kill -9, 100 in flight, {2 * trials} trials"
    goals = {0.5: Goal(10), 0.99: Goal(25), 1.0: None}
    return [latency_figure("failover", name, share, values, goal) for share, goal in goals.items()]


def backlog(bench: Bench) -> list[Figure]:
    """A million small messages wait: memory, and how long a restart takes. The probe keeps nothing."""
    if "broker" not in bench.sides:
        return []
    figures = []
    for name, batch, window, messages in (
        ("in batches", 256, 16, bench.scale(1_000_000, 100_000)),
        ("one by one", 1, 512, bench.scale(1_000_000, 10_000)),
    ):
        label = f"{messages:,} x 100 B {name}"
        with Server("broker") as server:
            figures += wait(bench, server, label, Produce(server.target, "deep", messages, 100, batch, window))
    return figures


def wait(bench: Bench, server: Server, label: str, job: Produce) -> list[Figure]:
    """Publish, look at memory, kill, start, stop, start, and drain: nothing may be missing."""
    messages = job.messages

    def figure(name: str, unit: str, value: float, goal: Goal | None = None) -> Figure:
        return Figure("backlog", f"{label}: {name}", unit, broker=value, goal=goal)

    empty = server.start_s
    time.sleep(SETTLE_S)
    idle = server.rss_bytes()
    (report,) = bench.work(f"broker: publish {label}", messages, job)
    with bench.step(f"broker: restarts with {label}"):
        time.sleep(SETTLE_S)
        grown = server.rss_bytes() - idle
        server.stop(signal.SIGKILL)
        after_kill = server.start()
        time.sleep(SETTLE_S)
        restarted = server.rss_bytes() - idle
        stop = server.stop(signal.SIGTERM)
        after_stop = server.start()
    (drained,) = bench.work(f"broker: drain {label}", messages, Consume(server.target, "deep", messages + 1))
    memory, restart = Goal(40, full_only=True), Goal(2, full_only=True)
    return [
        figure("published", "messages/s", messages / (report.ended - report.began)),
        figure("RSS over idle", "MB", grown / MB, memory),
        figure("start to ready while it was empty", "s", empty),
        figure("kill -9, start to ready", "s", after_kill, restart),
        figure("RSS over idle after it", "MB", restarted / MB, memory),
        figure("SIGTERM to exit", "s", stop),
        figure("SIGTERM, start to ready", "s", after_stop, restart),
        figure("drained", "messages/s", messages / (drained.ended - drained.began)),
    ]


def rate_figure(row: str, name: str, values: dict[str, list[float]], goal: Goal | None = None) -> Figure:
    """Medians, and the median of the rounds' ratios."""
    medians = {side: median(rounds) for side, rounds in values.items()}
    pairs = zip(values.get("broker", ()), values.get("probe", ()), strict=False)
    ratios = [broker / probe for broker, probe in pairs if probe]
    return Figure(
        row,
        name,
        "us/message" if CPU in name else "messages/s",
        probe=medians.get("probe"),
        broker=medians.get("broker"),
        ratio=median(ratios) if ratios else None,
        goal=goal,
    )


def latency_figure(
    row: str, name: str, share: float, values: dict[str, list[float]], goal: Goal | None = None
) -> Figure:
    """A percentile of each side, in milliseconds."""
    found = {side: percentile(samples, share) * 1e3 for side, samples in values.items()}
    worst = "worst" if share == 1 else f"p{share * 100:g}"
    return Figure(row, f"{name}, {worst}", "ms", probe=found.get("probe"), broker=found.get("broker"), goal=goal)


ROWS: Final[dict[str, Callable[[Bench], list[Figure]]]] = {
    "disk": lambda _: disk(),
    "apart": apart,
    "both": both,
    "latency": latency,
    "single": single,
    "failover": failover,
    "backlog": backlog,
}
