"""A worker process for tests: an ordinary SDK worker that records what it handles, and does as it is told.

    python -m tests.support.recording_worker QUEUE --name NAME --record FILE [--concurrency N]

A body is a JSON object. `{"do": "fail"}` raises, `{"do": "dead-letter"}` gives up at once, `{"seconds":
0.1}` takes so long, and `{"until": PATH}` keeps the handler running until that file exists. Two lines of
JSON go to FILE for each message, as it begins and as it is done: one `write` each, so that several
processes can share the file and a killed one leaves no half line.
"""

import argparse
import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

from kyogo import DeadLetter, Message, Worker

POLL_SECONDS = 0.01


class Record:
    """The file, open for appending."""

    def __init__(self, path: str, name: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._name = name

    def write(self, op: str, message: Message, body: Any) -> None:
        """One line."""
        line = {
            "op": op,
            "worker": self._name,
            "at": time.monotonic(),
            "offset": message.offset,
            "fence": message.fence,
            "attempt": message.attempt,
            "losses": message.losses,
            "body": body,
        }
        os.write(self._file, json.dumps(line).encode() + b"\n")


def make_worker(queue: str, record: Record, concurrency: int) -> Worker:
    app = Worker(concurrency=concurrency)

    @app.handle(queue)
    async def handle(body: dict[str, Any], message: Message) -> None:
        record.write("begin", message, body)
        await asyncio.sleep(body.get("seconds", 0))
        if "until" in body:
            while not Path(body["until"]).exists():  # noqa: ASYNC110, ASYNC240  another process makes it
                await asyncio.sleep(POLL_SECONDS)
        if body.get("do") == "fail":
            raise ValueError("told to fail")
        if body.get("do") == "dead-letter":
            raise DeadLetter("told to give up")
        record.write("done", message, body)

    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("queue")
    parser.add_argument("--name", required=True)
    parser.add_argument("--record", required=True)
    parser.add_argument("--concurrency", type=int, default=4)
    options = parser.parse_args()
    make_worker(options.queue, Record(options.record, options.name), options.concurrency).run()


if __name__ == "__main__":
    main()
