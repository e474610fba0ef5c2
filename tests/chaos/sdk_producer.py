"""A recording producer with the SDK: many tasks, each waiting for its own message, as a program would.

What `publish` raises is taken at its word: a `PublishTimeoutError` says that nobody knows, everything else that
nothing is stored.
"""

import asyncio
import sys

from kyogo import Publisher
from kyogo.errors import KyogoError, PublishTimeoutError
from tests.chaos.process import Part, play
from tests.chaos.workload import Workload, digest_of

TASKS = 8
TIMEOUT_SECONDS = 8.0


async def run(part: Part) -> int:
    """Its part."""
    workload = Workload(part.name, part.chance)
    async with Publisher(part.address, timeout=TIMEOUT_SECONDS) as publisher:
        await asyncio.gather(*(_publish(part, workload, publisher) for _ in range(TASKS)))
    return 0


async def _publish(part: Part, workload: Workload, publisher: Publisher) -> None:
    while not part.leaving.is_set():
        await asyncio.sleep(part.chance.uniform(0, 2 * TASKS / part.options.rate))
        queue = workload.queue()
        message = workload.message(queue)
        name: dict[str, object] = {"queue": queue, "producer": part.name, "request": message.id}
        part.recorder.write("publish", **name, uids=[message.id], digests=[digest_of(message)])
        try:
            offset = await publisher.publish(
                queue, message.body, id=message.id, headers=dict(message.headers), type=message.type, content_type=""
            )
        except PublishTimeoutError:
            part.recorder.write("published", **name, status="unknown")
        except KyogoError as error:
            part.recorder.write("published", **name, status="refused", code=error.code)
        else:
            part.recorder.write("published", **name, status="ok", offsets=[[offset, 1, False]])


if __name__ == "__main__":
    sys.exit(play(run, lambda parser: parser.add_argument("--rate", type=float, default=60.0)))
