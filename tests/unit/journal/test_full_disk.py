"""A real file system that is really full: settling, checkpoints, freeing and starting go on out of the reserve."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kyogo_broker.journal.base import Section
from kyogo_broker.journal.segments import SegmentJournal, SegmentSettings
from kyogo_broker.model.errors import BrokerStopError

DISK_BYTES = 8 << 20
SETTINGS = SegmentSettings(segment_bytes=256 << 10, max_record_bytes=32 << 10, min_free_bytes=2 << 20)


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("needs root, to mount a small file system")
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(where)]
    if request.param == "ext4":
        if not shutil.which("mkfs.ext4"):
            pytest.skip("needs mkfs.ext4")
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
        command = ["mount", "-o", "loop", str(image), str(where)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def opened(disk: Path) -> SegmentJournal:
    journal = SegmentJournal(disk / "data", SETTINGS)
    journal.open()
    return journal


def append(journal: SegmentJournal, size: int) -> None:
    journal.append(journal.sequence, [os.urandom(size)]).result(10)


def take_checkpoint(journal: SegmentJournal) -> None:
    writer = journal.begin_checkpoint()
    writer.add(Section(0, journal.sequence - 1, os.urandom(10_000)))
    writer.commit().result(10)


def fill(disk: Path) -> None:
    """Somebody else takes all the room that is left."""
    file = os.open(disk / "somebody-elses", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for size in (65_536, 512, 1):
        try:
            while True:
                os.write(file, os.urandom(size))
                os.fsync(file)
        except OSError:
            pass
    os.close(file)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.001)


def test_a_full_disk_can_be_drained(disk: Path) -> None:
    journal = opened(disk)
    while not journal.disk_low():
        append(journal, 30_000)
    take_checkpoint(journal)
    published = journal.sequence - 1
    fill(disk)
    assert journal.disk_low()

    for _ in range(2):  # settlements, more than the active segment can hold, and restarts between them
        for _ in range(100):
            append(journal, 1000)
        take_checkpoint(journal)
        journal.close()
        journal = opened(disk)
        assert len(list(journal.replay(0))) == journal.sequence - 1
        assert journal.disk_low()

    take_checkpoint(journal)
    journal.free(below=published, live={})
    until(lambda: not journal.disk_low())
    for _ in range(20):
        append(journal, 30_000)
    journal.close()
    opened(disk).close()


def test_when_the_reserve_is_used_up_it_stops_and_says_why(disk: Path) -> None:
    journal = opened(disk)
    append(journal, 100)
    until(lambda: not journal.disk_low() and journal.stats().bytes_on_disk == 3 * SETTINGS.segment_bytes)
    fill(disk)
    answered = 0

    def settle_for_ever() -> None:
        nonlocal answered
        while True:
            append(journal, 30_000)
            answered = journal.sequence - 1

    with pytest.raises(BrokerStopError, match=r"could not be written.*No space left on device"):
        settle_for_ever()
    assert answered * 30_000 > 2 * 200_000
    journal.close()
    (disk / "somebody-elses").unlink()
    journal = opened(disk)
    assert journal.sequence == answered + 1
    append(journal, 30_000)
    journal.close()
