"""What goes wrong, and when: chosen by the seed, until the history becomes calm."""

from collections.abc import Callable

from tests.simulation.broker import Broker
from tests.simulation.clients import Client, Shared
from tests.simulation.machine import CAPACITY
from tests.simulation.network import Link
from tests.simulation.world import Actor
from tests.support.faulty_disk import CRASHES

HOUR_US = 3_600_000_000


class Faults:
    """Breaks the broker, its machine, the network and the peers."""

    def __init__(self, shared: Shared, broker: Broker, clients: list[Client]) -> None:
        self.world = shared.world
        self.cover = shared.cover
        self.shared = shared
        self.broker = broker
        self.clients = clients
        self._actor = Actor()
        self._pace_us = self.world.random.choice((250_000, 500_000, 1_000_000))
        self._kinds: list[tuple[int, Callable[[], None]]] = [
            (3, self._crash), (3, self._fuse), (1, self._error), (1, self._stop), (4, self._freeze), (4, self._slow_disk),
            (4, self._full_disk), (3, self._clock), (12, self._cut), (6, self._delay), (8, self._stall), (3, self._flood),
        ]  # fmt: skip
        self._weights = [weight for weight, _ in self._kinds]
        self.world.after(self.world.between(0, 2 * self._pace_us), self._actor, self._turn)

    def end(self) -> None:
        """Nothing goes wrong any more, and what did is over."""
        self._actor.dead = True
        broker, now = self.broker, self.world.now
        broker.disk.fuse = broker.disk.errors = None
        broker.disk.capacity = CAPACITY
        broker.thaw()
        if broker.threads is not None:
            broker.threads.slow_until = 0
        for client in self.clients:
            client.actor.frozen_until = min(client.actor.frozen_until, now)

    def _turn(self) -> None:
        _, fault = self.world.random.choices(self._kinds, self._weights)[0]
        fault()
        self.world.after(self.world.between(1, 2 * self._pace_us), self._actor, self._turn)

    # The broker and its machine.

    def _crash(self) -> None:
        if self.broker.engine is not None:
            self.broker.crash(self.world.random.choice(CRASHES))

    def _fuse(self) -> None:
        if self.broker.engine is not None and self.broker.disk.fuse is None:
            self.broker.disk.fuse = self.world.between(0, 40)

    def _error(self) -> None:
        if self.broker.engine is not None and self.broker.disk.errors is None:
            self.broker.disk.errors = self.world.between(0, 40)

    def _stop(self) -> None:
        self.broker.stop()

    def _freeze(self) -> None:
        if self.broker.engine is not None:
            self.cover["broker frozen"] += 1
            self.broker.freeze(self.world.between(50_000, 4_000_000))

    def _slow_disk(self) -> None:
        threads = self.broker.threads
        if threads is not None:
            self.cover["slow disk"] += 1
            threads.slow_until = self.world.now + self.world.between(100_000, 1_500_000)
            threads.slow_us = self.world.random.choice((5_000, 60_000, 400_000))

    def _full_disk(self) -> None:
        disk = self.broker.disk
        if disk.capacity == CAPACITY:
            self.cover["full disk"] += 1
            disk.capacity = disk._used() + self.world.random.choice((0, 3_000, 20_000, 70_000, 110_000))
            self.world.after(self.world.between(200_000, 3_000_000), self._actor, self._room_again)

    def _room_again(self) -> None:
        self.broker.disk.capacity = CAPACITY

    def _clock(self) -> None:
        """The wall clock is set; a large jump is put right a little later."""
        self.cover["clock jump"] += 1
        wall, world = self.broker.wall, self.world
        if world.chance(0.5):
            wall.offset += world.between(-3_000_000, 3_000_000)
        else:
            wall.offset += world.random.choice((-2, 2)) * HOUR_US
            world.after(world.between(300_000, 2_000_000), self._actor, self._clock_right)

    def _clock_right(self) -> None:
        self.broker.wall.offset = self.world.between(-2_000_000, 2_000_000)

    # The network and the peers.

    def _link(self) -> Link | None:
        links = [client.link for client in self.clients if client.link is not None]
        return self.world.random.choice(links) if links else None

    def _cut(self) -> None:
        link = self._link()
        if link is None:
            return
        kind = self.world.random.choice(("both", "client", "broker", "nobody", "up", "down"))
        self.cover[f"stream cut: {kind} told" if kind not in {"up", "down"} else f"one way only: {kind} is lost"] += 1
        if kind == "up":
            link.up_cut = True
        elif kind == "down":
            link.down_cut = True
        else:
            link.cut(client=kind in {"both", "client"}, broker=kind in {"both", "broker"})

    def _delay(self) -> None:
        link = self._link()
        if link is not None:
            self.cover["frames delayed"] += 1
            link.slow_until = self.world.now + self.world.between(20_000, 1_800_000)

    def _stall(self) -> None:
        client = self.world.random.choice(self.clients)
        self.cover["client stalled"] += 1
        client.actor.frozen_until = self.world.now + self.world.between(100_000, 5_000_000)

    def _flood(self) -> None:
        """Everything that is under way comes at once, after a wait."""
        self.cover["network stalled"] += 1
        until = self.world.now + self.world.between(20_000, 600_000)
        for client in self.clients:
            if client.link is not None:
                client.link.slow_until = until
