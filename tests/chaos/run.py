"""One run: everybody at work, faults for a while, then none; everything drains; the history is checked.

set up -> [ broker's faults | clients' faults | operator ] -> heal -> producers finish -> queues drain
-> dead letters drain -> consumers leave -> figures -> restarts that must change nothing -> the verdict
"""

import asyncio
import random
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kyogo.admin import Client
from tests.chaos.cast import Cast, figures_of
from tests.chaos.disk import Disk
from tests.chaos.faults import Faults
from tests.chaos.operator import Operator
from tests.chaos.probe import Probe, metrics
from tests.chaos.process import watch_lag
from tests.chaos.workload import LETTERS, QUEUES, digest_of, record_created
from tests.support.history import Expectations, Recorder, Report, check, read
from tests.support.raw_consumer import ACK, attached

WARM_UP_SECONDS = 2.0
GAP_SECONDS = (0.3, 1.2)
"""Between two faults."""
PROGRESS_SECONDS = 5.0
STATS_SECONDS = 1.0
FINISH_SECONDS = 150.0
DRAIN_SECONDS = 300.0
LEAVE_SECONDS = 60.0
FAILURES_SHOWN = 10
OPERATIONS = (
    "publish again", "published ok", "published refused", "published unknown", "published again ok", "attached",
    "started", "prefetch", "revoked LOST", "extended OK", "extended STALE", "ended detached", "ended lost", "detach",
    "settle ACK OK", "settle RETRY OK", "settle RELEASE OK", "settle DEAD_LETTER OK", "settle ACK STALE",
    "settle with publish OK", "deliver UNSPECIFIED", "deliver RETRY", "deliver RELEASE", "deliver VISIBILITY_TIMEOUT",
    "deliver STREAM_LOSS", "deliver SUSPECT", "deliver FAILED", "deliver DETACH", "deliver BROKER_RESTART",
    "queue created", "queue updated", "queue paused", "queue purged", "queue deleted", "broker ready", "broker killed",
    "broker ended", "stats", "metrics", "drained",
)  # fmt: skip
"""What has to happen in every whole run, and to succeed."""
OPERATIONS_SHORT = ("published ok", "attached", "started", "settle ACK OK", "settle RETRY OK", "queue created",
                    "broker ready", "broker killed", "broker ended", "stats", "metrics", "drained")  # fmt: skip
"""In a short one, whose time may all go into starting processes on a busy machine."""
KINDS = ("kill", "pause", "stop", "storm", "second", "cut", "half close", "stall")


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one run."""

    directory: Path
    seconds: float
    """Of faults; setting up, draining and checking come on top."""
    seed: int
    rate: float = 240.0
    """Messages a second, over all producers."""
    only: tuple[str, ...] = ()
    """Faults by name; none: all."""
    short: bool = False
    """Leave out the faults that there was no time for; else every kind has its turn, however long that takes."""
    say: Callable[[str], None] = lambda text: print(text, flush=True)


class Run:
    """From nothing to a verdict."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._recorder = Recorder(settings.directory, "harness")
        self._cast = Cast(settings.directory, self._recorder, settings.seed, settings.rate)
        self._disk: Disk | None = None
        self._left_out: list[str] = []
        self._began = time.monotonic()
        self.notes: list[str] = list(self._cast.skipped)

    async def play(self) -> Report:
        """All of it; whatever happens, everything has ended afterwards."""
        trouble: list[str] = []
        lagging = asyncio.create_task(watch_lag(self._recorder))
        try:
            await self._set_up()
            supervisor = asyncio.create_task(self._cast.supervise())
            try:
                await self._work()
                await self._finish()
            finally:
                supervisor.cancel()
            await self._restart_twice()
        except Exception as error:  # noqa: BLE001 - whatever it was, the history says more
            trouble.append(f"the run broke off: {''.join(traceback.format_exception(error))}")
        finally:
            lagging.cancel()
            await self._cast.close()
        self._say("checking the history")
        report = check(read(self._settings.directory), self._expectations())
        if self._left_out:
            self.notes.append(f"no time for these faults: {', '.join(self._left_out)}")
        gaps = (*trouble, *self._cast.failures[:FAILURES_SHOWN], *(() if trouble else report.gaps))
        return Report(report.violations, gaps, report.figures, report.seconds, tuple(self.notes))

    def _expectations(self) -> Expectations:
        if self._settings.only or self._settings.short:
            return Expectations(operations=OPERATIONS_SHORT)
        return Expectations(operations=OPERATIONS, faults=[*KINDS, *(["disk"] if self._disk else [])])

    # --- the beginning ---

    async def _set_up(self) -> None:
        broker = self._cast.broker
        if Disk.can_mount():
            self._disk = Disk(broker.data)
            self._disk.mount()
        else:
            self.notes.append("no faults of the disk: mounting is not possible here (it takes root, and `unshare`)")
        await broker.start()
        async with Client(broker.address) as admin:
            for queue, settings in QUEUES.items():
                await admin.create_queue(queue, settings)
                record_created(self._recorder, queue, settings)
        for place in self._cast.places:
            await self._cast.open(place)
        self._say(f"seed {self._settings.seed}: a broker and {len(self._cast.places)} clients; {broker.data.parent}")

    # --- faults ---

    async def _work(self) -> None:
        chance = random.Random(f"{self._settings.seed}-faults")
        faults = Faults(self._cast, self._recorder, self._disk, chance)
        operator = Operator(self._cast.broker.address, self._recorder, random.Random(f"{self._settings.seed}-operator"))
        await asyncio.sleep(WARM_UP_SECONDS)
        end = time.monotonic() + self._settings.seconds
        watching = asyncio.create_task(self._watch(faults, end))
        operating = asyncio.create_task(operator.run())
        try:
            async with asyncio.TaskGroup() as group:
                for kinds in (faults.broker, faults.clients):
                    only = self._settings.only
                    chosen = {name: do for name, do in kinds.items() if not only or name in only}
                    group.create_task(self._do(chosen, end, random.Random(f"{self._settings.seed}-{len(kinds)}")))
        finally:
            watching.cancel()
            operator.stop()
            await asyncio.gather(watching, operating, return_exceptions=True)

    async def _do(self, kinds: Mapping[str, Callable[[], Awaitable[None]]], end: float, chance: random.Random) -> None:
        """Every kind once, in an order of the seed's; then any, until the time is over.

        A short run keeps the order in which they are listed, so that it has the kills for certain.
        """
        todo = list(reversed(list(kinds)))
        if not self._settings.short:
            chance.shuffle(todo)
        while kinds and ((todo and not self._settings.short) or time.monotonic() < end):
            name = todo.pop() if todo else chance.choice(list(kinds))
            await kinds[name]()
            await asyncio.sleep(chance.uniform(*GAP_SECONDS))
        self._left_out += todo

    async def _watch(self, faults: Faults, end: float) -> None:
        """Say how it goes, and write the broker's figures down."""
        probe = Probe(self._cast.broker.address, self._recorder, random.Random(0))
        said = time.monotonic()
        try:
            while True:
                await asyncio.sleep(STATS_SECONDS)
                await probe.try_stats(self._cast.broker.node)
                if time.monotonic() - said >= PROGRESS_SECONDS:
                    said = time.monotonic()
                    doing = ", ".join(faults.under_way.values()) or "no fault"
                    self._say(f"{max(0.0, end - said):.0f} s of faults to go; broker {self._cast.broker.node}; {doing}")
        finally:
            await probe.close()

    # --- no more faults ---

    async def _finish(self) -> None:
        for place in self._cast.places:
            place.proxy.go_on()
        broker = self._cast.broker
        self._recorder.write("fault", id="last", kind="stop", target="broker", name="last restart")
        await self._restart()
        self._recorder.write("effect", id="last", what=broker.node)
        self._recorder.write("over", id="last")
        self._recorder.write("resources", who=broker.node, when="before", **figures_of(broker))
        self._say("no more faults: the producers finish")
        await asyncio.sleep(WARM_UP_SECONDS)
        await self._cast.leave(self._cast.producers, FINISH_SECONDS)
        probe = Probe(broker.address, self._recorder, random.Random(1))
        try:
            await self._drain(probe)
            await self._cast.leave(self._cast.consumers, LEAVE_SECONDS)
            self._say("everybody has left")
            await self._figures(probe)
        finally:
            await probe.close()

    async def _restart(self) -> None:
        code = await self._cast.broker.stop()
        if code != 0:
            self._cast.failures.append(f"the broker stopped with {code}: {self._cast.broker.log()[-500:]}")
        await self._cast.broker.start()

    async def _drain(self, probe: Probe) -> None:
        self._say(f"{await probe.waiting()} messages wait: the queues drain")
        await self._until(probe, lambda name: not name.endswith(".dlq"))
        figures = await probe.stats(self._cast.broker.node)
        letters = [queue for queue in LETTERS if queue in figures]
        self._say(f"dead letters drain: {', '.join(letters)}")
        await self._cast.open(self._cast.letters(letters))
        await self._until(probe, lambda _: True)
        self._recorder.write("drained", queues=sorted(figures))

    async def _until(self, probe: Probe, of: Callable[[str], bool]) -> None:
        """Wait until these queues are empty."""
        end = time.monotonic() + DRAIN_SECONDS
        while True:
            figures = await probe.stats(self._cast.broker.node)
            left = {
                name: {place: of_queue[place] for place in ("ready", "delayed", "in_flight")}
                for name, of_queue in figures.items()
                if of(name) and (of_queue["ready"] or of_queue["delayed"] or of_queue["in_flight"])
            }
            if not left:
                return
            assert time.monotonic() < end, f"not drained within {DRAIN_SECONDS} s: {left}"
            await asyncio.sleep(STATS_SECONDS / 4)

    async def _figures(self, probe: Probe) -> None:
        """Of an idle broker, from all sides, at one moment."""
        broker = self._cast.broker
        await probe.stats(broker.node, quiet=True)
        for queue, figures in (await asyncio.to_thread(metrics, broker.http)).items():
            self._recorder.write("metrics", queue=queue, **figures)
        self._recorder.write("resources", who=broker.node, when="after", **figures_of(broker))

    # --- restarts at the end ---

    async def _restart_twice(self) -> None:
        """Killed and stopped, an idle broker is the same afterwards; nothing is delivered that was over."""
        broker = self._cast.broker
        for number, end in enumerate((self._killed, self._restart), start=1):
            await self._state("live", number)
            await end()
            await self._state("restored", number)
        for queue in QUEUES:
            await self._sentinel(queue)
        code = await broker.stop()
        if code != 0:
            self._cast.failures.append(f"the broker stopped with {code}: {broker.log()[-500:]}")

    async def _killed(self) -> None:
        self._cast.broker.kill()
        await self._cast.broker.start()

    async def _state(self, of: str, number: int) -> None:
        probe = Probe(self._cast.broker.address, self._recorder, random.Random(2))
        try:
            figures = await probe.stats(self._cast.broker.node)
        finally:
            await probe.close()
        self._recorder.write("state", of=of, round=number, queues=figures)

    async def _sentinel(self, queue: str) -> None:
        """Whatever else were deliverable would come first: its offset is lower."""
        broker = self._cast.broker
        probe = Probe(broker.address, self._recorder, random.Random(f"{queue}"))
        try:
            await probe.publish(queue)
        finally:
            await probe.close()
        async with attached(broker.address, queue) as consumer:
            session = f"sentinel/{queue}"
            self._recorder.write("attached", session=session, node=broker.node, queues=[queue])
            delivery = await consumer.delivery()
            self._recorder.write(
                "deliver", session=session, queue=queue, fence=delivery.fence, offset=delivery.offset,
                attempt=delivery.attempt, losses=delivery.losses, reason=delivery.reason, uids=[delivery.message.id],
                digests=[digest_of(delivery.message)],
            )  # fmt: skip
            ranges = [[delivery.fence, delivery.fence]]
            self._recorder.write("settle", session=session, outcome="ACK", ranges=ranges)
            [status] = await consumer.settle(ACK, delivery.fence)
            self._recorder.write("settled", session=session, ranges=ranges, status=status)

    def _say(self, text: str) -> None:
        self._settings.say(f"{time.monotonic() - self._began:6.1f} s  {text}")


def played(settings: Settings) -> Report:
    """Blocking."""
    if sys.platform != "linux":
        raise SystemExit("chaos needs Linux: /proc, signals, and mount namespaces")
    return asyncio.run(Run(settings).play())
