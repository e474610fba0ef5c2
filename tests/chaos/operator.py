"""What an operator does meanwhile: changes settings under load, pauses, purges, makes and deletes queues."""

import asyncio
import random
import time

from kyogo.admin import BalancePolicy, Client, QueueSettings
from kyogo.errors import KyogoError, UnavailableError
from tests.chaos.probe import Probe
from tests.chaos.workload import IMAGES, ORDERS, SCRAP, record_created
from tests.support.history import Recorder

PAUSE_SECONDS = (0.5, 2.0)


class Operator:
    """One thing after another, until told to stop; what was begun is finished."""

    def __init__(self, address: str, recorder: Recorder, chance: random.Random) -> None:
        self._address = address
        self._recorder = recorder
        self._chance = chance
        self._made = 0
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stop.set()

    async def run(self) -> None:
        """A broker that is away is tried again later."""
        actions = [self._policy, self._pause, self._purge, self._temporary]
        number = 0
        while not self._stop.is_set():
            await asyncio.sleep(self._chance.uniform(*PAUSE_SECONDS))
            number += 1
            try:
                async with Client(self._address, timeout=3.0) as admin:
                    await actions[number % len(actions)](admin)
            except KyogoError:
                continue

    async def _policy(self, admin: Client) -> None:
        policy = self._chance.choice((BalancePolicy.ROUND_ROBIN, BalancePolicy.LEAST_IN_FLIGHT))
        await admin.update_queue(ORDERS, QueueSettings(balance_policy=policy))
        self._recorder.write("queue", queue=ORDERS, what="updated", settings={})

    async def _pause(self, admin: Client) -> None:
        try:
            await admin.pause_queue(IMAGES)
            self._recorder.write("queue", queue=IMAGES, what="paused")
            await asyncio.sleep(self._chance.uniform(0.1, 0.5))
        finally:
            await self._unpause()  # also when nobody knows whether it was paused

    async def _unpause(self) -> None:
        """Until it is so."""
        while True:
            try:
                async with Client(self._address, timeout=3.0) as admin:
                    await admin.unpause_queue(IMAGES)
            except KyogoError:
                await asyncio.sleep(0.2)
            else:
                self._recorder.write("queue", queue=IMAGES, what="unpaused")
                return

    async def _purge(self, admin: Client) -> None:
        sent = time.monotonic()
        try:
            count = await admin.purge_queue(SCRAP, confirm=SCRAP)
        except UnavailableError:
            self._recorder.write("queue", queue=SCRAP, what="purged", count=0, status="unknown", sent=sent)
        else:
            self._recorder.write("queue", queue=SCRAP, what="purged", count=count, status="ok", sent=sent)

    async def _temporary(self, admin: Client) -> None:
        """A queue that is gone again before anybody has consumed it."""
        self._made += 1
        queue = f"brief-{self._made}"
        settings = QueueSettings()
        await admin.create_queue(queue, settings)
        record_created(self._recorder, queue, settings)
        probe = Probe(self._address, self._recorder, self._chance)
        try:
            await probe.publish(queue)
        finally:
            await probe.close()
        while True:
            try:
                async with Client(self._address, timeout=3.0) as again:
                    await again.delete_queue(queue, confirm=queue)
            except UnavailableError:
                await asyncio.sleep(0.2)
            except KyogoError:
                break  # a try that was not answered did it
            else:
                break
        self._recorder.write("queue", queue=queue, what="deleted", status="ok")
