"""The run's own eyes: publishes on its own account, and reads the broker's figures."""

import asyncio
import random
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count

import grpc
import grpc.aio
from prometheus_client.parser import text_string_to_metric_families

from kyogo.admin import Client, Consumer
from kyogo.errors import BrokerError, KyogoError, from_rpc
from kyogo.v1 import broker_pb2
from kyogo.v1.broker_pb2_grpc import BrokerServiceStub
from tests.chaos.workload import MAILS, digest_of
from tests.support.history import Recorder

CALL_SECONDS = 3.0
WAIT_SECONDS = 180.0
"""For the broker to say something, on a machine that does other things as well."""
PAUSE_SECONDS = 0.1
FILL_MAX = 1_000
_numbers = count(1)


class Probe:
    """One connection to the broker, past all proxies."""

    def __init__(self, address: str, recorder: Recorder, chance: random.Random) -> None:
        self._admin = Client(address)
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)])
        self._recorder = recorder
        self._producer = f"probe-{chance.getrandbits(64):x}"

    async def close(self) -> None:
        """Disconnect."""
        await self._admin.close()
        await self._channel.close()

    async def publish(self, queue: str, body: bytes = b"probe", *, do: str = "ok", count: int = 1) -> str | None:
        """One request; "" when it is stored, the code when it is refused, None when nobody knows."""
        number = next(_numbers)
        uids = [f"{self._producer}.{number}.{index}" for index in range(count)]
        messages = [broker_pb2.Message(id=uid, body=uid.encode() + b" " + body, headers={"do": do}) for uid in uids]
        name: dict[str, object] = {"queue": queue, "producer": self._producer, "request": number}
        self._recorder.write("publish", **name, uids=uids, digests=[digest_of(m) for m in messages])
        request = broker_pb2.PublishRequest(
            destination=queue, request_id=number, producer_id=self._producer, messages=messages
        )
        try:
            answer = await BrokerServiceStub(self._channel).Publish(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            known = from_rpc(error)
            refused = isinstance(known, BrokerError) and known.code in broker_codes()
            self._recorder.write("published", **name, status="refused" if refused else "unknown", code=known.code)
            return known.code if refused else None
        offsets = [[run.first_offset, run.count, run.duplicate] for run in answer.offsets]
        self._recorder.write("published", **name, status="ok", offsets=offsets)
        return ""

    async def refused(self, code: str) -> None:
        """Wait until publishing is refused like this."""
        await self._publish_until(code, WAIT_SECONDS)

    async def accepted(self, seconds: float) -> None:
        """Wait until publishing is possible."""
        await self._publish_until("", seconds)

    async def _publish_until(self, wanted: str, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while (said := await self.publish(MAILS)) != wanted:
            late = asyncio.get_running_loop().time() > end
            assert not late, f"publishing is answered {said!r} after {seconds} s, not {wanted!r}"
            await asyncio.sleep(PAUSE_SECONDS)

    async def fill(self, queue: str, body: bytes) -> int:
        """Publish until the disk is low; how many messages that took."""
        for number in range(FILL_MAX):
            said = await self.publish(queue, body)
            if said == "DISK_LOW":
                return number
        raise AssertionError(f"{FILL_MAX} messages of {len(body)} bytes did not fill the disk")

    @asynccontextmanager
    async def paused(self, queue: str) -> AsyncIterator[None]:
        """Nothing is delivered meanwhile."""
        await self._until_done(lambda: self._admin.pause_queue(queue))
        try:
            yield
        finally:
            await self._until_done(lambda: self._admin.unpause_queue(queue))

    @staticmethod
    async def _until_done(ask: Callable[[], Awaitable[object]]) -> None:
        """A broker that is too busy to answer is asked again."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                try:
                    await ask()
                except KyogoError:
                    await asyncio.sleep(PAUSE_SECONDS)
                else:
                    return

    async def consumers(self) -> list[Consumer]:
        """All that are attached."""
        return [consumer async for consumer in self._admin.consumers()]

    async def state(self, client: str) -> str:
        """Of the consumer with this client's name; "gone": there is none."""
        return next((consumer.state for consumer in await self.consumers() if consumer.client_name == client), "gone")

    async def acked(self) -> int:
        """Messages acked since the beginning, over all queues."""
        return sum(queue.finished.get("acked", 0) for queue in (await self._admin.stats()).queues)

    async def redelivered(self, reason: str) -> int:
        """Messages redelivered for this reason since the broker started, over all queues."""
        return sum(queue.redelivered.get(reason, 0) for queue in (await self._admin.stats()).queues)

    async def waiting(self) -> int:
        """Messages that are not finished, over all queues but those of letters."""
        queues = (await self._admin.stats()).queues
        return sum(q.ready + q.delayed + q.in_flight for q in queues if not q.queue.endswith(".dlq"))

    async def stats(self, node: str, *, quiet: bool = False) -> dict[str, dict[str, object]]:
        """Write down and return the figures of all queues."""
        figures: dict[str, dict[str, object]] = {}
        for queue in (await self._admin.stats()).queues:
            figures[queue.queue] = {
                "ready": queue.ready, "delayed": queue.delayed, "parked": queue.parked, "in_flight": queue.in_flight,
                "accepted": queue.accepted, "finished": dict(queue.finished), "next_offset": queue.next_offset,
            }  # fmt: skip
            self._recorder.write(
                "stats", queue=queue.queue, node=node, quiet=quiet, delivered=queue.delivered, **figures[queue.queue]
            )
        return figures

    async def try_stats(self, node: str) -> None:
        """Write down the figures, if the broker is there to say them."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self.stats(node)
        except (KyogoError, TimeoutError):
            return


def broker_codes() -> frozenset[str]:
    """What only a broker says."""
    names = broker_pb2.ErrorCode.keys()
    return frozenset(name.removeprefix("ERROR_CODE_") for name in names) - {"UNSPECIFIED", "INTERNAL"}


def metrics(http: str) -> dict[str, dict[str, object]]:
    """Figures of all queues as the HTTP port shows them; blocking."""
    with urllib.request.urlopen(f"http://{http}/metrics", timeout=CALL_SECONDS) as answer:
        text = answer.read().decode()
    figures: dict[str, dict[str, object]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            queue = sample.labels.get("queue")
            if queue is None:
                continue
            of = figures.setdefault(queue, {"finished": {}, "delivered": 0})
            if sample.name == "kyogo_queue_messages":
                of[sample.labels["state"]] = int(sample.value)
            elif sample.name == "kyogo_messages_accepted_total":
                of["accepted"] = int(sample.value)
            elif sample.name == "kyogo_messages_finished_total" and sample.value:
                finished = of["finished"]
                assert isinstance(finished, dict)
                finished[sample.labels["reason"]] = int(sample.value)
    return figures
