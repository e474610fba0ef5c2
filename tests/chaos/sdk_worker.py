"""A recording worker with the SDK: handlers that do with each message what it asks for.

A handler does not see the answer to its settlement, so that all of them are unknown here; what it sees it writes down.
"""

import asyncio
import logging
import os
import sys
from typing import Any

from kyogo import DeadLetter, Message, Release, Retry, Worker
from kyogo.backoff import BackoffSettings
from kyogo.settings import WorkerSettings
from tests.chaos.process import Part, play
from tests.chaos.workload import EXIT_POISONED, HEARTBEAT_MS, MAILS, QUEUES, child_of
from tests.support.history import digest

SUSPECT_INTERVALS = 3


class Attachments(logging.Handler):
    """Notices new sessions by what the SDK logs of them."""

    def __init__(self, part: Part, queues: list[str]) -> None:
        super().__init__(logging.INFO)
        self._part = part
        self._queues = queues
        self._count = 0
        self.session = f"{part.name}/0"

    def emit(self, record: logging.LogRecord) -> None:
        if not str(record.msg).startswith("attached as") or not isinstance(record.args, tuple):
            return
        self._count += 1
        self.session = f"{self._part.name}/{self._count}"
        node = str(record.args[2]).partition(" ")[0]
        visibility = {queue: QUEUES[queue].visibility_timeout_ms for queue in self._queues}
        self._part.recorder.write(
            "attached", session=self.session, node=node, queues=self._queues, capabilities=["started"],
            suspect_ms=SUSPECT_INTERVALS * HEARTBEAT_MS, visibility_ms=visibility,
        )  # fmt: skip


async def run(part: Part) -> int:
    """Its part."""
    queues: list[str] = part.options.queues.split(",")
    attachments = Attachments(part, queues)
    logger = logging.getLogger("kyogo.consumer")
    logger.setLevel(logging.INFO)
    logger.addHandler(attachments)
    settings = WorkerSettings(
        url=part.address, concurrency=8, heartbeat=HEARTBEAT_MS / 1000, grace=3.0, name=part.name,
        reconnect=BackoffSettings(initial=0.1, maximum=1.0),
    )  # fmt: skip
    worker = Worker(settings=settings)
    for queue in queues:
        worker.handle(queue)(_handler(part, attachments, queue))
    serving = asyncio.create_task(worker.serve())
    leaving = asyncio.create_task(part.leaving.wait())
    await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
    part.recorder.write("detach", session=attachments.session)
    worker.drain()
    await serving
    leaving.cancel()
    return 0


def _handler(part: Part, attachments: Attachments, queue: str):  # noqa: ANN202 - what `handle` takes
    async def handle(body: bytes, message: Message) -> None:
        session = attachments.session
        uid = message.id
        said = digest(
            id=uid, body=body, content_type=message.content_type, headers=message.headers, type=message.type,
            key=message.key,
        )  # fmt: skip
        reason = message.redelivery_reason
        part.recorder.write(
            "deliver", session=session, queue=queue, fence=message.fence, offset=message.offset,
            attempt=message.attempt, losses=message.losses, uids=[uid], digests=[said],
            reason="UNSPECIFIED" if reason is None else reason.value,
        )  # fmt: skip
        part.recorder.write("started", session=session, ranges=[[message.fence, message.fence]])
        outcome = "ACK"
        fields: dict[str, Any] = {"session": session}
        try:
            await _do(part, message, message.headers.get("do", "ok"), fields)
        except (Retry, DeadLetter, Release, asyncio.CancelledError) as error:
            outcome = {Retry: "RETRY", DeadLetter: "DEAD_LETTER"}.get(type(error), "RELEASE")
            raise
        finally:
            ranges = [[message.fence, message.fence]]
            part.recorder.write("settle", outcome=outcome, ranges=ranges, **fields)
            if "publish" in fields:  # refused with what it publishes, an ACK is followed by this
                part.recorder.write("settle", session=session, outcome="RETRY", ranges=ranges)

    return handle


async def _do(part: Part, message: Message, do: str, fields: dict[str, Any]) -> None:
    """Raises what is to become of it; into `fields` goes what the history wants to know beside it."""
    if do == "poison":
        os._exit(EXIT_POISONED)
    await asyncio.sleep(part.chance.uniform(0.2, 0.6) if do == "slow" else part.chance.uniform(0.0, 0.02))
    first = message.attempt == 1
    if do == "exhaust" or (do in {"retry", "later"} and first):
        if do == "later":
            fields["delay_ms"] = 300
        raise Retry("told to fail", after=0.3 if do == "later" else None)
    if do == "dead":
        raise DeadLetter("told to give up")
    if do == "release" and message.redelivery_reason is None:
        raise Release
    if do == "expire" and first:
        await asyncio.sleep((QUEUES[message.queue].visibility_timeout_ms or 0) / 1000 * 1.5)
    if do == "extend":
        message.extend(1.5)
        part.recorder.write("extend", session=fields["session"], ranges=[[message.fence, message.fence]], ms=1_500)
    if do == "publish":
        child = child_of(message.id, message.fence, part.chance)
        message.publish(MAILS, child.body, id=child.id, headers=dict(child.headers), content_type="")
        said = digest(id=child.id, body=child.body, content_type="", headers=child.headers, type="", key="")
        fields["publish"] = [{"queue": MAILS, "uids": [child.id], "digests": [said]}]


if __name__ == "__main__":
    sys.exit(play(run, lambda parser: parser.add_argument("--queues", required=True)))
