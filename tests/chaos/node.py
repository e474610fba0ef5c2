"""What the Node example did, from what it printed.

It prints a message before it acks it, and says nothing of answers, reasons and streams: every ACK of it is unknown, and
the times are those at which we read them, a moment too late.
"""

import json
from pathlib import Path
from typing import Any

from tests.support.history import Recorder, digest
from tests.support.history.index import UNTOLD

QUEUE = "orders"


class NodeReader:
    """Reads on in one process's output."""

    def __init__(self, directory: Path, process: str) -> None:
        self._path = directory / f"{process}.log"
        self._recorder = Recorder(directory, process)
        self._session = f"{process}/1"
        self._at = 0

    def read(self) -> None:
        """Take in whole lines that came since the last time."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self._at += whole
        for line in text[:whole].splitlines():
            if line.startswith(b"{"):
                self._delivered(json.loads(line))
            elif line.startswith(b"attached to"):
                self._recorder.write("attached", session=self._session, queues=[QUEUE], capabilities=[])
            elif line.startswith(b"the stream to"):
                self._recorder.write("ended", session=self._session, how="lost")

    def _delivered(self, said: dict[str, Any]) -> None:
        checked = digest(
            id=said["id"], body=said["body"].encode(), content_type=said["content_type"], headers=said["headers"],
            type=said["type"], key=said["key"],
        )  # fmt: skip
        self._recorder.write(
            "deliver", session=self._session, queue=QUEUE, fence=said["fence"], offset=said["offset"],
            attempt=said["attempt"], losses=said["losses"], reason=UNTOLD, uids=[said["id"]], digests=[checked],
        )  # fmt: skip
        ranges = [[said["fence"], said["fence"]]]
        self._recorder.write("settle", session=self._session, outcome="ACK", ranges=ranges)
