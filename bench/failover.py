"""Failover: a consumer with messages in flight is killed with -9; how long until another one has them all?

    victim    attaches, is given all messages of the trial, says so, and does nothing more
    standby   attached all along, paused; then lets the broker know that it has room
    trial     kill -9 the victim -> the standby has received every message -> it acks them and pauses again

Victims are forked ahead, from a server process that has imported gRPC and never used it, so that a trial costs
milliseconds. `python -m bench.failover '{"target": ...}'` prints how far it is, and at the end one line of JSON.
"""

import asyncio
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

import grpc.aio

from bench.load import SERVICE, Report, channel_to, say
from bench.victim import Failover, Session, victim
from kyogo.v1 import broker_pb2 as pb

AHEAD: Final = 6
"""Victims made together, between trials: none starts while a trial is timed."""
TRIAL_S: Final = 30.0
"""A trial that takes longer has failed."""


@contextmanager
def victims(job: Failover) -> Iterator[Iterator[tuple[BaseProcess, Connection]]]:
    """As many as there are trials; those that were not used are killed at the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.victim"])
    made: list[tuple[BaseProcess, Connection]] = []

    def make() -> Iterator[tuple[BaseProcess, Connection]]:
        for _ in range(job.trials):
            if not made:
                for _ in range(AHEAD):
                    ours, theirs = context.Pipe()
                    process = context.Process(target=victim, args=(job, theirs), daemon=True)
                    process.start()
                    theirs.close()
                    made.append((process, ours))
                for _, pipe in made:
                    pipe.recv()
            yield made.pop()

    try:
        yield make()
    finally:
        for process, _ in made:
            process.kill()
            process.join()


async def run(job: Failover, report: Report) -> None:
    """All trials."""
    async with channel_to(job.target) as channel:
        publisher = Publisher(job, channel)
        await publisher.publish(1)
        standby = Session(job.target)
        async with standby.beating():
            await standby.attach(job.queue, 1)
            await standby.settle(await standby.take(1))
            await standby.set_prefetch(0)
            with victims(job) as each:
                for process, pipe in each:
                    async with asyncio.timeout(TRIAL_S):
                        report.latencies.append(await trial(job, publisher, standby, process, pipe))
                    say(str(len(report.latencies)))


class Publisher:
    """Single calls."""

    def __init__(self, job: Failover, channel: grpc.aio.Channel) -> None:
        self._method: Any = channel.unary_unary(SERVICE + "Publish")
        self._job = job
        self._last = 0

    async def publish(self, count: int) -> None:
        """One request; returns when it was answered."""
        self._last += 1
        messages = [pb.Message(body=bytes(self._job.size))] * count
        request = pb.PublishRequest(destination=self._job.queue, request_id=self._last, messages=messages)
        await self._method(request.SerializeToString())


async def trial(job: Failover, publisher: Publisher, standby: Session, process: BaseProcess, pipe: Connection) -> float:
    """Seconds from the kill until the standby has everything."""
    pipe.send("go")
    await asyncio.to_thread(pipe.recv)
    await publisher.publish(job.messages)
    await asyncio.to_thread(pipe.recv)
    await standby.set_prefetch(job.messages)
    began = time.monotonic()
    process.kill()
    ranges = await standby.take(job.messages)
    took = time.monotonic() - began
    await standby.settle(ranges)
    await standby.set_prefetch(0)
    process.join()
    pipe.close()
    return took


def main() -> None:
    """Entry of the process."""
    report = Report()
    say("ready")
    sys.stdin.readline()
    asyncio.run(run(Failover(**json.loads(sys.argv[1])), report))
    say(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
