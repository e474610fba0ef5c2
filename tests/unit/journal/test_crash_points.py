"""The segment log dies at every file call of a scripted life, in every way, and must come back.

After each crash: it opens; every record whose future was done is there; nothing is there that was not appended; the
checkpoint is one that was committed or just being so; and it can be appended to. Opening again is itself interrupted.
"""

import errno
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from kyogo_broker.journal.base import Section
from kyogo_broker.journal.lane import InlineLane
from kyogo_broker.journal.segments import SegmentJournal, SegmentSettings
from kyogo_broker.model.errors import BrokerStopError
from tests.support.faulty_disk import CRASHES, Crash, FaultyDisk

DIR = Path("/data")
SETTINGS = SegmentSettings(segment_bytes=6144, max_record_bytes=1500, min_free_bytes=0)
KEY = 77


def journal_on(disk: FaultyDisk) -> SegmentJournal:
    return SegmentJournal(DIR, SETTINGS, key=KEY, files=disk, lane=InlineLane)


class Life:
    """A scripted life of a journal, and what was promised in it."""

    def __init__(self) -> None:
        self.disk = FaultyDisk()
        self.random = Random(4)
        self.attempted: dict[int, bytes] = {}
        self.answered = 0
        self.checkpoints: dict[tuple[Section, ...], bool] = {(): True}
        """Whether each was committed."""
        self.freed_below = 0
        self.epoch = 0

    def run(self) -> None:
        self.start()
        self.append(10, 700, 1500, 3)
        self.append(1400, 1400, 1, 0)  # goes on to the next segment
        self.checkpoint(at=5)
        self.append(1300, 1300, 1300, 5)
        self.free(below=5)
        self.append(40)
        self.restart()
        self.append(900, 1, 1500)
        self.checkpoint(at=self.answered - 1)
        self.checkpoint(at=self.answered)
        self.free(below=self.answered)
        self.append(1500, 1500, 1500, 20)
        self.journal.close()

    def start(self) -> None:
        self.journal = journal_on(self.disk)
        epoch = self.journal.open().epoch
        assert epoch > self.epoch
        self.epoch = epoch

    def restart(self) -> None:
        self.journal.close()
        self.start()

    def append(self, *sizes: int) -> None:
        for size in sizes:
            sequence = self.journal.sequence
            self.attempted[sequence] = self.random.randbytes(size)
            half = size // 2
            self.journal.append(
                sequence, [self.attempted[sequence][:half], memoryview(self.attempted[sequence])[half:]]
            ).result()
            self.answered = sequence

    def checkpoint(self, at: int) -> None:
        sections = (Section(0, at, self.random.randbytes(600)), Section(7, self.answered, self.random.randbytes(900)))
        writer = self.journal.begin_checkpoint()
        self.checkpoints[sections] = False
        for section in sections:
            writer.add(section)
        writer.commit().result()
        self.checkpoints[sections] = True

    def free(self, below: int) -> None:
        self.freed_below = below
        self.journal.free(below=below, live={})

    def check(self, disk: FaultyDisk) -> int:
        """Open what a crash left behind; returns the last sequence."""
        journal = journal_on(disk)
        recovered = journal.open()
        assert recovered.epoch > 0
        self.nothing_is_left_behind(journal, disk)
        assert recovered.sections in self.checkpoints
        committed = [sections for sections, is_committed in self.checkpoints.items() if is_committed]
        if recovered.sections != list(self.checkpoints)[-1]:
            assert recovered.sections == committed[-1]
        after = min((section.sequence for section in recovered.sections), default=0)
        assert after >= self.freed_below
        records = list(journal.replay(after))
        assert [record.sequence for record in records] == list(range(after + 1, journal.sequence))
        assert journal.sequence > self.answered
        for record in records:
            assert record.payload == self.attempted[record.sequence]
        self.append_more(journal, disk)
        return journal.sequence - 2

    def nothing_is_left_behind(self, journal: SegmentJournal, disk: FaultyDisk) -> None:
        """What a torn record left is zeros, durably."""
        number, end = journal.position >> 32, journal.position & 0xFFFFFFFF
        for path, inode in disk.names_durable.items():
            if path.suffix == ".segment" and int(path.stem) >= number:
                rest = inode.durable[end if int(path.stem) == number else 64 :]
                assert rest == bytes(len(rest)), path

    def append_more(self, journal: SegmentJournal, disk: FaultyDisk) -> None:
        sequence, position = journal.sequence, journal.position
        journal.append(sequence, [b"more"]).result()
        assert [bytes(record.payload) for record in journal.read_many([(position, 0)])] == [b"more"]
        journal.close()
        assert disk.open_files() == 0
        again = journal_on(disk)
        sections = again.open().sections
        after = min((section.sequence for section in sections), default=0)
        last = list(again.replay(after))[-1]
        assert (last.sequence, last.position, bytes(last.payload)) == (sequence, position, b"more")
        again.close()


def each_crash(disk: FaultyDisk, visit: Callable[[FaultyDisk, Crash], None], kinds: tuple[Crash, ...]) -> None:
    """Before every call that changes the disk, visit what each kind of crash would leave."""
    random = Random(1)

    def before(call: str) -> None:
        for kind in kinds:
            visit(disk.crash(kind, random), kind)

    disk.before = before


def test_survives_a_crash_at_every_call_and_in_every_way() -> None:
    life = Life()
    visited = dict.fromkeys(CRASHES, 0)

    def visit(disk: FaultyDisk, kind: Crash) -> None:
        visited[kind] += 1
        life.check(disk)

    each_crash(life.disk, visit, CRASHES)
    life.run()
    assert min(visited.values()) > 100


def test_survives_a_crash_at_every_call_of_the_recovery_from_a_crash() -> None:
    life = Life()
    visited = 0

    def visit(disk: FaultyDisk, kind: Crash) -> None:
        def visit_again(again: FaultyDisk, kind: Crash) -> None:
            nonlocal visited
            visited += 1
            life.check(again)

        each_crash(disk, visit_again, ("dropped", "reordered"))
        journal = journal_on(disk)
        journal.open()
        journal.close()

    def run() -> None:
        each_crash(life.disk, visit, ("torn", "killed"))
        life.append(300, 1200, 1, 1500)
        life.checkpoint(at=3)

    life.start()
    life.append(1500, 1400, 600)
    run()
    assert visited > 100


def test_what_recovery_gave_out_is_durable() -> None:
    """After kill -9 records may be in the machine's memory only; the next power cut must not take them back."""
    life = Life()

    def visit(disk: FaultyDisk, kind: Crash) -> None:
        journal = journal_on(disk)
        sections = journal.open().sections
        journal.close()
        sequence = journal.sequence
        again = journal_on(disk.crash("dropped", Random(2)))
        assert again.open().sections == sections
        assert again.sequence == sequence

    each_crash(life.disk, visit, ("killed",))
    life.run()


@pytest.mark.parametrize("failing", ["sync_data", "write"])
def test_what_recovery_gave_out_is_durable_after_a_failed_sync(failing: str) -> None:
    """A sync that failed leaves pages that read well and will never be written."""
    life = Life()
    life.start()
    life.append(100, 200)

    def before(call: str) -> None:
        if call == failing:
            raise OSError(errno.EIO, "injected")

    life.disk.before = before
    with pytest.raises(BrokerStopError, match="record 3 could not be written"):
        life.append(300)
    life.disk.before = lambda call: None
    killed = life.disk.crash("killed", Random(3))
    journal = journal_on(killed)
    journal.open()
    journal.close()
    again = journal_on(killed.crash("dropped", Random(3)))
    again.open()
    assert again.sequence == journal.sequence
    assert again.sequence >= 3


@pytest.mark.parametrize("lie", ["sync_data", "sync", "sync_directory"])
def test_the_check_catches_a_disk_that_lies(lie: str) -> None:
    """The check of the check: without this kind of sync something is lost."""
    life = Life()
    life.disk.lies = frozenset({lie})
    each_crash(life.disk, lambda disk, kind: _ignore(life.check(disk)), CRASHES)
    with pytest.raises((AssertionError, BrokerStopError, FileNotFoundError)):
        life.run()


def _ignore(value: object) -> None:
    pass


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_call_that_fails_loses_nothing_that_was_answered(error: int) -> None:
    """The nth call fails once: either it does not matter, or the journal stops; then it starts again."""
    outcomes = {"went on": 0, "stopped": 0}
    for nth in range(1, 1000):
        life = Life()
        calls = 0

        def before(call: str, life: Life = life, nth: int = nth) -> None:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise OSError(error, "injected")

        life.disk.before = before
        try:
            life.run()
            outcomes["went on"] += 1
        except (OSError, BrokerStopError):
            outcomes["stopped"] += 1
        life.disk.before = lambda call: None
        for kind in ("killed", CRASHES[nth % len(CRASHES)]):
            life.check(life.disk.crash(kind, Random(nth)))
        if calls < nth:
            break
    assert min(outcomes.values()) > 10


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_write_that_breaks_off_stops_the_journal_for_good(part: float) -> None:
    life = Life()
    life.start()
    life.append(100)
    life.disk.torn_write = part
    for _ in range(2):
        sequence = life.journal.sequence
        life.attempted[sequence] = b"x" * 1000
        with pytest.raises(BrokerStopError, match="record 2 could not be written"):
            life.journal.append(sequence, [life.attempted[sequence]]).result()
    life.check(life.disk.crash("killed", Random(1)))


def test_a_rotten_bit_anywhere_in_synced_records_is_found() -> None:
    """In every byte of every record but the last one, and in every header."""
    life = Life()
    life.start()
    positions = []
    for size in (60, 1500, 1400, 1300, 30, 1200, 20, 10, 90):
        positions.append(life.journal.position)
        life.append(size)
    life.journal.close()
    last = positions[-1]
    ends = [*positions[1:], None]
    for position, end in zip(positions[:-1], ends, strict=False):
        number, begin = position >> 32, position & 0xFFFFFFFF
        path = DIR / f"{number:010d}.segment"
        stop = end & 0xFFFFFFFF if end is not None and end >> 32 == number else begin + 40
        for byte in [*range(begin, begin + 32), *range(begin + 32, stop, 97)]:
            disk = life.disk.crash("kept", Random(1))
            disk.flip(path, byte, bit=byte % 8)
            with pytest.raises(BrokerStopError, match=rf"{number:010d}.segment, byte"):
                _read_all(disk, positions)
    for path, _ in life.disk.files():
        if path.suffix == ".segment":
            for byte in range(64):
                disk = life.disk.crash("kept", Random(1))
                disk.flip(path, byte)
                with pytest.raises(BrokerStopError, match=f"{path.name}, byte 0"):
                    _read_all(disk, positions)
    assert last >> 32 > 1


def _read_all(disk: FaultyDisk, positions: list[int]) -> None:
    journal = journal_on(disk)
    journal.open()
    assert len(list(journal.replay(0))) == len(positions)
    assert len(journal.read_many([(position, 0) for position in positions])) == len(positions)


def test_a_rotten_bit_is_found_when_a_record_is_read_alone() -> None:
    life = Life()
    life.start()
    position = life.journal.position
    life.append(500, 1500)
    for byte in range(64, 64 + 32 + 500):
        life.disk.flip(DIR / "0000000001.segment", byte)
        with pytest.raises(BrokerStopError, match="damaged"):
            life.journal.read_many([(position, 0)])
        life.disk.flip(DIR / "0000000001.segment", byte)
    assert life.journal.read_many([(position, 0)])[0].payload == life.attempted[1]
