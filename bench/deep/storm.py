"""A storm of restarts: many consumers attach at once, take messages, and are all gone at once, again and again.

`python -m bench.deep.storm '{"target": ...}'` prints how many attached, and at the end one line of JSON; its latencies
are those of the answers to `attach`.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict
from typing import Final

import grpc.aio

from bench.deep.jobs import Storm
from bench.load import HOUR_MS, SERVICE, BytesCall, LoadError, Report, channel_to, say, wait_for_go
from bench.victim import Session
from kyogo.v1 import broker_pb2 as pb

STREAMS_A_CHANNEL: Final = 50
TAKE_S: Final = 1.0
"""How long the consumers of a round live once all have attached."""
FAILS_PREFETCH: Final = 5_000


async def fail(job: Storm) -> None:
    """One consumer settles messages as failed, to come again in an hour."""
    session = Session(job.target)
    async with session.beating():
        await session.attach(job.queue, FAILS_PREFETCH)
        left = job.fails
        while left > 0:
            runs = (await session.read()).deliveries
            ranges = [
                pb.FenceRange(first=run.first_fence, last=run.first_fence + len(run.messages) - 1) for run in runs
            ]
            if ranges:
                left -= sum(len(run.messages) for run in runs)
                settlement = pb.Settlement(
                    outcome=pb.OUTCOME_RETRY, ranges=ranges, delay_ms=HOUR_MS, error_type="Storm", reason="all fail"
                )
                await session.write(pb.ConsumeRequest(settlements=[settlement]))


class Round:
    """Consumers that come and go together."""

    def __init__(self, job: Storm, report: Report) -> None:
        self._job = job
        self._report = report

    async def run(self) -> None:
        """Attach all, take for a while, and be gone."""
        channels = [channel_to(self._job.target) for _ in range(-(-self._job.consumers // STREAMS_A_CHANNEL))]
        try:
            makers = [channels[number // STREAMS_A_CHANNEL] for number in range(self._job.consumers)]
            calls = await asyncio.gather(*map(self._attach, makers))
            takers = [asyncio.create_task(self._take(call)) for call in calls]
            await asyncio.sleep(TAKE_S)
            for call in calls:
                call.cancel()
            await asyncio.gather(*takers)
        finally:
            for channel in channels:
                await channel.close()

    async def _attach(self, channel: grpc.aio.Channel) -> BytesCall:
        began = time.monotonic()
        call: BytesCall = channel.stream_stream(SERVICE + "Consume")()
        attach = pb.Attach(
            subscriptions=[pb.Subscription(queue=self._job.queue)],
            prefetch=pb.Prefetch(messages=self._job.prefetch),
            capabilities=["started"],
        )
        await call.write(pb.ConsumeRequest(attach=attach).SerializeToString())
        if not isinstance(await call.read(), bytes):
            raise LoadError(f"no `attached`: {await call.code()} {await call.details()}")
        self._report.latencies.append(time.monotonic() - began)
        return call

    async def _take(self, call: BytesCall) -> None:
        try:
            while isinstance(raw := await call.read(), bytes):
                frame = pb.ConsumeResponse.FromString(raw)
                self._report.messages += sum(len(run.messages) for run in frame.deliveries)
                started = [pb.FenceRange(first=run.first_fence, last=run.first_fence) for run in frame.deliveries]
                if started:
                    await call.write(pb.ConsumeRequest(started=started).SerializeToString())
        except (asyncio.CancelledError, grpc.aio.UsageError, asyncio.InvalidStateError):
            return


async def run(job: Storm, report: Report) -> None:
    """All rounds."""
    if job.fails:
        await fail(job)
    await wait_for_go()
    report.began = time.monotonic()
    for _ in range(job.rounds):
        await Round(job, report).run()
        say(str(len(report.latencies)))
    report.ended = time.monotonic()


def main() -> None:
    """Entry of the process."""
    report = Report()
    asyncio.run(run(Storm(**json.loads(sys.argv[1])), report))
    say(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
