"""Segment logs on a faulty disk: small, and without threads unless asked for."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from kyogo_broker.journal.base import Section
from kyogo_broker.journal.lane import InlineLane, Lane
from kyogo_broker.journal.segments import SegmentJournal, SegmentSettings
from tests.support.faulty_disk import FaultyDisk

DIR = Path("/data")
SIZES = {"segment_bytes": 5800, "max_record_bytes": 1500, "min_free_bytes": 0}
SETTINGS = SegmentSettings(**SIZES)

T = TypeVar("T")


class HeldLane:
    """A lane that does nothing until it is told to."""

    def __init__(self) -> None:
        self.calls: deque[Callable[[], None]] = deque()

    def do(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        future: Future[T] = Future()

        def complete() -> None:
            try:
                future.set_result(call(*arguments))
            except Exception as error:  # noqa: BLE001 - as a lane does
                future.set_exception(error)

        self.calls.append(complete)
        return future

    def go_on(self) -> None:
        while self.calls:
            self.calls.popleft()()

    close = go_on


def opened(disk: FaultyDisk, lane: Callable[[str], Lane] = InlineLane, **settings: Any) -> SegmentJournal:
    journal = SegmentJournal(DIR, SegmentSettings(**{**SIZES, **settings}), key=9, files=disk, lane=lane)
    journal.open()
    return journal


def append(journal: SegmentJournal, *sizes: int) -> None:
    for size in sizes:
        journal.append(journal.sequence, [bytes([journal.sequence % 256]) * size]).result()


def take_checkpoint(journal: SegmentJournal, sequence: int) -> None:
    writer = journal.begin_checkpoint()
    writer.add(Section(0, sequence, f"after {sequence}".encode()))
    writer.commit().result()


def names(disk: FaultyDisk) -> list[str]:
    return disk.names(DIR)
