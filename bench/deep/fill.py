"""Publishes through the real engine into a real journal, in one process: what gRPC would cost is not paid.

`python -m bench.deep.fill '{"data": ...}'` opens the data directory as a broker does, prints how far it is, and when
everything was answered one line of JSON with its memory. Then it waits, the engine running, to be killed.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict
from typing import Final

import psutil

import kyogo_broker.engine
from bench.deep.jobs import Fill
from bench.load import LoadError, Report, say, tell, wait_for_go
from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.clock import Clock, fresh_seed
from kyogo_broker.core.limits import ShardConfig
from kyogo_broker.engine import Engine
from kyogo_broker.journal.segments import SegmentJournal
from kyogo_broker.model.commands import Publish
from kyogo_broker.model.effects import Effect, PublishDone
from kyogo_broker.model.message import Batch
from kyogo_broker.ops.process import tune_memory, tune_threads
from kyogo_broker.recovery import recover

PORTS: Final = 16
"""Each takes turns, as many publishers would."""
TURN_S: Final = 0.25
"""A broker's turn is shorter, because of what else waits for it. Nothing does here, and where other programs use the
machine each of the many commits would wait for them twice."""
LOOK_S: Final = 1.0
"""Between two looks at the memory."""


class Filler:
    """Some ports of the engine with so many requests under way in all."""

    def __init__(self, job: Fill, engine: Engine, report: Report) -> None:
        self._job = job
        self._engine = engine
        self._report = report
        self._room = asyncio.Semaphore(job.window)
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Publish all; every request must be confirmed."""
        wire = pb.PublishRequest(messages=[pb.Message(body=bytes(self._job.size))]).SerializeToString()
        batch = Batch(wire, range(len(wire), len(wire) + 1))
        ports = [self._engine.open_port(self) for _ in range(PORTS)]
        for number in range(1, self._job.messages + 1):
            await self._room.acquire()
            port = ports[number % PORTS]
            await self._engine.submit(Publish(port, number, self._job.queue, batch), port=port, size=len(wire))
        await self._done.wait()

    def take(self, effect: Effect) -> None:
        """The answer to a request."""
        if not isinstance(effect, PublishDone) or effect.refusal is not None:
            raise LoadError(f"a publish was answered {effect}")
        self._report.messages += 1
        self._room.release()
        if self._report.messages == self._job.messages:
            self._done.set()


async def watch_memory(report: Report) -> None:
    """Note how much there is, again and again."""
    process = psutil.Process()
    while True:
        report.rss.append(process.memory_info().rss)
        await asyncio.sleep(LOOK_S)


async def run(job: Fill, report: Report) -> None:
    """Open, publish, tell, and wait for the end."""
    clock = Clock()
    journal = SegmentJournal(job.data, key=fresh_seed() >> 1)
    shard, _ = recover(journal, ShardConfig(auto_create=True), seed=fresh_seed(), clock=clock)
    engine = Engine(shard, journal, clock)
    await wait_for_go()
    async with asyncio.TaskGroup() as group:
        group.create_task(engine.run())
        group.create_task(tell(report))
        group.create_task(watch_memory(report))
        report.began = time.monotonic()
        await Filler(job, engine, report).run()
        report.ended = time.monotonic()
        say(json.dumps(asdict(report)))


def main() -> None:
    """Entry of the process."""
    kyogo_broker.engine.TURN_SECONDS = TURN_S
    tune_memory()
    tune_threads()
    asyncio.run(run(Fill(**json.loads(sys.argv[1])), Report()))


if __name__ == "__main__":
    main()
