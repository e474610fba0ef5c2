"""What is done to them. Each fault is written down with its effect: one that did nothing does not count."""

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import count

from kyogo.errors import KyogoError
from tests.chaos.cast import Cast, Child, Place, stand_still
from tests.chaos.disk import MEGABYTE, MIN_FREE_BYTES, Disk
from tests.chaos.probe import Probe
from tests.chaos.workload import HEARTBEAT_MS, MAILS
from tests.support.history import Recorder
from tests.support.processes import START_SECONDS, Process, until

SUSPECT_SECONDS = 3 * HEARTBEAT_MS / 1000
FAILOVER_BOUND_MS = 3_000
"""For what a killed consumer held, on a machine that does other things as well, with nothing else going wrong."""
RECOVER_SECONDS = 180.0
"""For whatever a fault waits for, on a machine that does other things as well."""
SILENCES_MAX = 5
TAKEN_SECONDS = 3.0
"""For what a silent consumer held to be with others: they have room at once, or are busy for a moment."""
LOOK_SECONDS = 0.1
FILL_SECONDS = 0.05
BACKLOG_ROOM_BYTES = 96 * MEGABYTE
BACKLOG_BODY = b"b" * (900 << 10)


class Fault:
    """One under way."""

    def __init__(self, recorder: Recorder, id: str) -> None:
        self._recorder = recorder
        self._id = id

    def effect(self, what: str) -> None:
        """It did something."""
        self._recorder.write("effect", id=self._id, what=what)


class Faults:
    """All that can be done."""

    def __init__(self, cast: Cast, recorder: Recorder, disk: Disk | None, chance: random.Random) -> None:
        self._cast = cast
        self._recorder = recorder
        self._disk = disk
        self._chance = chance
        self._numbers = count(1)
        self._alone = asyncio.Lock()
        """Held by what must not be mixed with other faults to show its effect."""
        self.under_way: dict[str, str] = {}
        self.broker: Mapping[str, Callable[[], Awaitable[None]]] = {
            "kill broker": self.kill_broker,
            "pause broker": self.pause_broker,
            "stop broker": self.stop_broker,
            "restart storm": self.storm,
            "second broker": self.second_broker,
        }
        """Those of the broker and its disk, by name."""
        if disk is not None:
            self.broker = {
                **self.broker, "disk low": self.disk_low, "disk full": self.disk_full, "backlog": self.backlog
            }  # fmt: skip
        self.clients: Mapping[str, Callable[[], Awaitable[None]]] = {
            **{f"kill {kind}": self._of(kind, self._kill) for kind in self._kinds()},
            "suspect": self.suspect,
            "failed": self.failed,
            "pause producer": self.pause_producer,
            "cut": lambda: self._cut(self._anybody()),
            "stall up": lambda: self._stall(self._anybody(), "up"),
            "stall down": lambda: self._stall(self._anybody(), "down"),
            "stall": lambda: self._stall(self._anybody(), "up", "down"),
            "half close up": lambda: self._half_close(self._anybody(), "up"),
            "half close down": lambda: self._half_close(self._anybody(), "down"),
        }
        """Those of clients and of their network, by name."""

    # --- the broker ---

    async def kill_broker(self) -> None:
        """Once, and back after a moment."""
        async with self._alone, self._fault("kill", "broker", "kill broker") as fault:
            self._cast.broker.kill()
            fault.effect(f"exit code {self._cast.broker.exit_code}")
            await asyncio.sleep(self._chance.uniform(0, 0.5))
            await self._cast.broker.start()

    async def pause_broker(self) -> None:
        """Longer than any consumer may be silent; nobody is to suffer for it."""
        async with self._alone, self._fault("pause", "broker", "pause broker") as fault:
            await self._pause(self._cast.broker, self._chance.uniform(1.5, 2.5) * SUSPECT_SECONDS, fault)

    async def stop_broker(self) -> None:
        """As an operator would."""
        async with self._alone, self._fault("stop", "broker", "stop broker") as fault:
            code = await self._cast.broker.stop()
            fault.effect(f"exit code {code}")
            if code != 0:
                self._cast.failures.append(f"the broker stopped with {code}: {self._cast.broker.log()[-500:]}")
            await self._cast.broker.start()

    async def storm(self) -> None:
        """Kill it again and again, also before it is ready."""
        async with self._alone, self._fault("storm", "broker", "restart storm") as fault:
            kills = self._chance.randint(3, 5)
            for _ in range(kills):
                self._cast.broker.kill()
                starting = asyncio.create_task(self._cast.broker.start())
                await asyncio.wait({starting}, timeout=self._chance.uniform(0.2, 1.5))
                self._cast.broker.kill()
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
            fault.effect(f"{kills} kills")
            await self._cast.broker.start()

    async def second_broker(self) -> None:
        """Another one on the same data must not come up."""
        async with self._alone, self._fault("second", "broker", "second broker") as fault:
            broker = self._cast.broker
            arguments = [sys.executable, "-m", "kyogo_broker", "serve", "--listen", "127.0.0.1:0", "--http", "off"]
            second = Child("second", [*arguments, "--data", str(broker.data)], broker.data.parent)
            second.launch()
            code = await second.exited(START_SECONDS)
            if code == 1 and "is in use by" in second.log():
                fault.effect("refused")

    # --- the disk ---

    async def disk_low(self) -> None:
        """Below what the broker wants: it refuses, goes on settling, and takes messages again by itself."""
        async with self._alone, self._fault("disk", "disk", "disk low") as fault, self._probe() as probe:
            async with self._filled(leave=MIN_FREE_BYTES - 8 * MEGABYTE):
                await probe.refused("DISK_LOW")
                await self._settles_on(probe)
            await probe.accepted(RECOVER_SECONDS)
            fault.effect("refused, settled on, and took messages again")

    async def disk_full(self) -> None:
        """Nothing is left at all, and the broker dies and has to come back like this."""
        async with self._alone, self._fault("disk", "disk", "disk full") as fault, self._probe() as probe:
            async with self._filled(leave=0):
                await probe.refused("DISK_LOW")
                self._cast.broker.kill()
                await self._cast.broker.start()
                await probe.refused("DISK_LOW")
                await self._settles_on(probe)
            await probe.accepted(RECOVER_SECONDS)
            fault.effect("restarted on a full disk, settled on, and took messages again")

    async def backlog(self) -> None:
        """Its own backlog fills the disk; when that is drained, it takes messages again, with no operator."""
        assert self._disk is not None
        async with self._alone, self._fault("disk", "disk", "backlog") as fault, self._probe() as probe:
            await asyncio.to_thread(self._disk.fill, leave=MIN_FREE_BYTES + BACKLOG_ROOM_BYTES)
            try:
                async with probe.paused(MAILS):  # else consumers keep up with what one connection can publish
                    stored = await probe.fill(MAILS, BACKLOG_BODY)
                await probe.accepted(RECOVER_SECONDS)
            finally:
                await asyncio.to_thread(self._disk.clear)
            fault.effect(f"{stored} messages filled the disk, were drained, and it took messages again")

    @asynccontextmanager
    async def _filled(self, *, leave: int) -> AsyncIterator[None]:
        """Whatever the broker gives back is taken away, too; in a thread, so that no proxy stands still meanwhile."""
        disk = self._disk
        assert disk is not None
        over = asyncio.Event()

        async def fill() -> None:
            while not over.is_set():
                await asyncio.to_thread(disk.fill, leave=leave)
                await asyncio.sleep(FILL_SECONDS)

        filling = asyncio.create_task(fill())
        try:
            yield
        finally:
            over.set()
            await asyncio.wait({filling})
            await asyncio.to_thread(disk.clear)

    @asynccontextmanager
    async def _probe(self) -> AsyncIterator[Probe]:
        probe = Probe(self._cast.broker.address, self._recorder, self._chance)
        try:
            yield probe
        finally:
            await probe.close()

    async def _settles_on(self, probe: Probe) -> None:
        """While it refuses to publish."""
        before = await probe.acked()

        async def settled() -> bool:
            return await probe.acked() > before or not await probe.waiting()

        assert await _in_time(settled, RECOVER_SECONDS), f"nothing is settled on a full disk; acked: {before}"

    # --- processes ---

    def _kinds(self) -> list[str]:
        return sorted({place.kind for place in self._cast.places})

    def _of(self, kind: str, do: Callable[[Place], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        return lambda: do(self._chance.choice([place for place in self._cast.places if place.kind == kind]))

    def _anybody(self) -> Place:
        return self._chance.choice(self._cast.places)

    async def _kill(self, place: Place) -> None:
        await until(lambda: place.running, f"{place.name} runs", RECOVER_SECONDS)
        fields = {"of": place.kind, "bound_ms": FAILOVER_BOUND_MS}
        async with self._fault("kill", place.process_name, f"kill {place.kind}", **fields) as fault:
            place.kill()
            assert place.process is not None
            fault.effect(f"exit code {place.process.exit_code}")

    async def pause_producer(self) -> None:
        """For a while."""
        place = self._chance.choice(self._cast.producers)
        await until(lambda: place.running, f"{place.name} runs", RECOVER_SECONDS)
        async with self._fault("pause", place.process_name, "pause producer") as fault:
            assert place.process is not None
            await self._pause(place.process, self._chance.uniform(0.5, 2.5), fault)

    async def suspect(self) -> None:
        """A consumer stands still until it is suspect; what it had not begun goes to others."""
        await self._silence("suspect", {"suspect", "failed", "gone"})

    async def failed(self) -> None:
        """Longer, until it has failed; what it had begun goes to others, too."""
        await self._silence("failed", {"failed", "gone"})

    async def _silence(self, state: str, states: Collection[str]) -> None:
        """With work begun in its hands, so that there is something to lose; more than once, if there was not."""
        async with self._alone, self._probe() as probe:
            for _ in range(SILENCES_MAX):
                before = await probe.redelivered(state)
                place = await self._stop_at_work(probe)
                assert place.process is not None
                process, name = place.process, place.process_name

                async def noticed(name: str = name) -> bool:
                    return await probe.state(name) in states

                async def taken(before: int = before) -> bool:
                    return await probe.redelivered(state) > before

                async with self._fault("pause", name, state) as fault:
                    try:
                        if await _in_time(noticed, RECOVER_SECONDS):
                            fault.effect(state)
                        done = await _in_time(taken, TAKEN_SECONDS)
                    finally:
                        process.send(signal.SIGCONT)
                if done:
                    return

    async def _stop_at_work(self, probe: Probe) -> Place:
        """A consumer that stands still from now on, with handlers running."""
        places = [place for place in self._cast.consumers if place.counts_start]
        end = asyncio.get_running_loop().time() + RECOVER_SECONDS
        while asyncio.get_running_loop().time() < end:
            await probe.publish(MAILS, do="slow", count=8)  # a queue whose consumers tell the reason
            place = self._chance.choice(places)
            if place.process is None or not await stand_still(place.process):
                continue
            if any(c.started and c.client_name == place.process_name for c in await probe.consumers()):
                return place
            place.process.send(signal.SIGCONT)
            await asyncio.sleep(0.05)
        raise AssertionError(f"nobody was at work within {RECOVER_SECONDS} s")

    @staticmethod
    async def _pause(process: Process, seconds: float, fault: Fault) -> None:
        try:
            if await stand_still(process):
                fault.effect(f"stood still for {seconds:.1f} s")
                await asyncio.sleep(seconds)
        finally:
            process.send(signal.SIGCONT)

    # --- the network ---

    async def _cut(self, place: Place) -> None:
        async with self._fault("cut", place.process_name, "cut") as fault:
            await until(lambda: place.proxy.connections, f"{place.name} is connected", RECOVER_SECONDS)
            fault.effect(f"{place.proxy.cut()} connections")

    async def _half_close(self, place: Place, direction: str) -> None:
        async with self._fault("half close", place.process_name, f"half close {direction}") as fault:
            await until(lambda: place.proxy.connections, f"{place.name} is connected", RECOVER_SECONDS)
            fault.effect(f"{place.proxy.half_close(direction)} connections")
            await asyncio.sleep(0.5)

    async def _stall(self, place: Place, *directions: str) -> None:
        name = "stall" if len(directions) > 1 else f"stall {directions[0]}"
        async with self._fault("stall", place.process_name, name) as fault:
            before = place.proxy.stalled_bytes
            place.proxy.stall(*directions)
            try:
                await asyncio.sleep(self._chance.uniform(0.5, 2.5) * SUSPECT_SECONDS)
                await until(lambda: place.proxy.stalled_bytes > before, f"{place.name} is held back", RECOVER_SECONDS)
            finally:
                place.proxy.go_on()
            fault.effect(f"{place.proxy.stalled_bytes - before:,} bytes held back")

    # --- writing down ---

    @asynccontextmanager
    async def _fault(self, kind: str, target: str, name: str, **fields: object) -> AsyncIterator[Fault]:
        number = f"f{next(self._numbers)}"
        self._recorder.write("fault", id=number, kind=kind, target=target, name=name, **fields)
        self.under_way[number] = f"{name} of {target}"
        try:
            yield Fault(self._recorder, number)
        finally:
            self._recorder.write("over", id=number)
            del self.under_way[number]


async def _in_time(condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Whether it came true; a broker that is too busy to say so is asked again."""
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        with suppress(KyogoError):
            if await condition():
                return True
        await asyncio.sleep(LOOK_SECONDS)
    return False
