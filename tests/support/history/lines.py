"""The lines of a history: one JSON object an operation, one file a process, times of CLOCK_MONOTONIC in seconds.

Whatever is *sent* is written down before it is sent, whatever *comes* as soon as it has come: the truth lies between.
A line is one `write`, so a killed process leaves no half one. `t`, `p` (process) and `op` stand in every line.

    publish    queue producer request uids digests [delays_ms ttls_ms keys priorities]     one for each try
    published  queue producer request status(ok refused unknown) [offsets code]            ends the oldest open try
    attached   session node queues [prefetch capabilities raw suspect_ms visibility_ms max_frame]
    deliver    session queue fence offset attempt losses reason uids digests [sizes letter frame]
    started    session ranges
    settle     session outcome ranges [delay_ms reason publish: [{queue uids digests}]]
    settled    session ranges status(OK STALE UNKNOWN REJECTED)
    extend     session ranges ms           extended   session ranges status
    prefetch   session messages bytes      revoked    session ranges mode reason
    detach     session                     ended      session how(detached lost)
    lagged     ms                          the process itself stood still
    queue      queue what(created updated purged deleted paused ...) [settings count status sent]
    broker     what(ready killed ended refused) node data [code]
    fault      id kind target [bound_ms]   effect     id [what]          over    id
    stats      queue node quiet ready delayed parked in_flight accepted finished delivered
    metrics    queue + the figures of `stats`, as the HTTP port shows them
    state      of(live restored) round queues: {name: figures}
    resources  who when(before after) rss fds threads
    drained    queues
    order      queue begin|end [aging_bound_ms]       one consumer with room for 1 has the queue for itself

A `reason` of "?" was not told.
`ranges` are pairs of fences, both ends included; `offsets` are [first, count, duplicate]. A process has at most one
settlement and one extension of a fence under way on one session.
"""

import json
import os
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Line = dict[str, Any]
SUFFIX = ".history.jsonl"


class Recorder:
    """One process's file."""

    def __init__(self, directory: Path, process: str) -> None:
        self.process = process
        self._file = os.open(directory / f"{process}{SUFFIX}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, op: str, **fields: object) -> float:
        """Write a line; returns its time."""
        now = time.monotonic()
        line = {"t": round(now, 6), "p": self.process, "op": op, **fields}
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")
        return now

    def close(self) -> None:
        """Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read(directory: Path) -> list[Line]:
    """All lines of all processes in the order of their times."""
    lines = [line for path in sorted(directory.glob(f"*{SUFFIX}")) for line in read_file(path)]
    lines.sort(key=lambda line: line["t"])
    return lines


def read_file(path: Path) -> list[Line]:
    """The lines of one process."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def digest(  # the fields of a message that must arrive as they were sent
    *, id: str, body: bytes, content_type: str, headers: Mapping[str, str], type: str, key: str
) -> str:
    """Of everything in a message that must arrive unchanged."""
    head = json.dumps([id, content_type, sorted(headers.items()), type, key]).encode()
    return f"{zlib.crc32(body, zlib.crc32(head)):08x}"


def ranges_of(fences: Iterable[int]) -> list[list[int]]:
    """Fences as few ranges as they make."""
    ranges: list[list[int]] = []
    for fence in sorted(fences):
        if ranges and ranges[-1][1] == fence - 1:
            ranges[-1][1] = fence
        else:
            ranges.append([fence, fence])
    return ranges


def fences_of(ranges: Iterable[Iterable[int]]) -> Iterable[int]:
    """The inverse of `ranges_of`."""
    for first, last in ranges:
        yield from range(first, last + 1)
