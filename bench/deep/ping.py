"""Asks the broker who it is each few milliseconds: how long the answers take is what every client feels.

`python -m bench.deep.ping '{"target": ...}'` goes on until it reads a line, and prints one line of JSON.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict
from typing import Any

from bench.deep.jobs import Ping
from bench.load import SERVICE, Report, channel_to, say, wait_for_go


async def run(job: Ping, report: Report) -> None:
    """One question after the other, each at its time or as soon as the one before is answered."""
    async with channel_to(job.target) as channel:
        ask: Any = channel.unary_unary(SERVICE + "GetServerInfo")
        await ask(b"")
        await wait_for_go()
        over = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        while not over.done():
            began = time.monotonic()
            await ask(b"")
            report.latencies.append(time.monotonic() - began)
            await asyncio.sleep(max(0.0, began + job.interval_s - time.monotonic()))


def main() -> None:
    """Entry of the process."""
    report = Report()
    asyncio.run(run(Ping(**json.loads(sys.argv[1])), report))
    say(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
