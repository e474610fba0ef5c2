"""The segment log beyond what every journal does: its files, its threads, what it refuses, what it finds damaged."""

import errno
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest

from kyogo_broker.journal.base import Section
from kyogo_broker.journal.lane import InlineLane, Lane
from kyogo_broker.journal.segments import SegmentJournal, SegmentSettings
from kyogo_broker.model.errors import BrokerStopError
from tests.support.faulty_disk import FaultyDisk

DIR = Path("/data")
SETTINGS = SegmentSettings(segment_bytes=5800, max_record_bytes=1500, min_free_bytes=0)

T = TypeVar("T")


class HeldLane:
    """A lane that does nothing until it is told to."""

    def __init__(self) -> None:
        self.calls: deque[Callable[[], None]] = deque()

    def do(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        future: Future[T] = Future()
        self.calls.append(lambda: future.set_result(call(*arguments)))
        return future

    def go_on(self) -> None:
        while self.calls:
            self.calls.popleft()()

    close = go_on


def opened(disk: FaultyDisk, lane: Callable[[str], Lane] = InlineLane, **settings: Any) -> SegmentJournal:
    journal = SegmentJournal(DIR, SegmentSettings(**{**_SIZES, **settings}), key=9, files=disk, lane=lane)
    journal.open()
    return journal


_SIZES = {"segment_bytes": 5800, "max_record_bytes": 1500, "min_free_bytes": 0}


def append(journal: SegmentJournal, *sizes: int) -> None:
    for size in sizes:
        journal.append(journal.sequence, [bytes([journal.sequence % 256]) * size]).result()


def take_checkpoint(journal: SegmentJournal, sequence: int) -> None:
    writer = journal.begin_checkpoint()
    writer.add(Section(0, sequence, f"after {sequence}".encode()))
    writer.commit().result()


def names(disk: FaultyDisk) -> list[str]:
    return disk.names(DIR)


# --- the files ---


def test_the_next_segments_lie_ready() -> None:
    disk = FaultyDisk()
    journal = opened(disk)
    assert names(disk) == [
        "0000000001.segment", "0000000002.segment", "0000000003.segment", "checkpoint.spare", "lock", "meta"
    ]  # fmt: skip
    append(journal, *[1400] * 4)
    assert journal.position == 2 << 32 | 64 + 32 + 1400
    assert names(disk)[:4] == [f"000000000{number}.segment" for number in (1, 2, 3, 4)]


def test_going_on_to_the_next_segment_is_one_write_and_one_sync() -> None:
    disk = FaultyDisk()
    held = HeldLane()
    journal = opened(disk, lambda name: held if name.endswith("keep") else InlineLane(name))
    held.go_on()
    append(journal, *[1400] * 3)
    calls: list[str] = []
    disk.before = calls.append
    append(journal, 1400)
    assert calls == ["write", "sync_data"]


def test_a_segment_that_is_left_gives_back_what_it_did_not_use() -> None:
    disk = FaultyDisk()
    journal = opened(disk)
    append(journal, *[1400] * 4)
    assert {path.name: len(data) for path, data in disk.files()}["0000000001.segment"] == 64 + 3 * 1432


def test_two_checkpoints_are_kept() -> None:
    disk = FaultyDisk()
    journal = opened(disk)
    append(journal, 10, 10, 10)
    for sequence in (1, 2, 3, 3):
        take_checkpoint(journal, sequence)
    assert [name for name in names(disk) if name.startswith("checkpoint")] == [
        "checkpoint-0000000003", "checkpoint-0000000004", "checkpoint.spare"
    ]  # fmt: skip


def test_sizes_may_change_from_one_opening_to_the_next() -> None:
    disk = FaultyDisk()
    journal = opened(disk)
    append(journal, *[1400] * 5)
    journal.close()
    journal = opened(disk, segment_bytes=30_000, max_record_bytes=9_000)
    append(journal, *[9_000] * 5)
    journal.close()
    journal = opened(disk)
    append(journal, *[1400] * 5)
    assert [len(record.payload) for record in journal.replay(0)] == [1400] * 5 + [9000] * 5
    journal.close()
    journal = opened(disk)
    assert len(list(journal.replay(0))) == 15


@pytest.mark.parametrize(
    "wrong",
    [{"segment_bytes": 3000}, {"segment_bytes": 1 << 33}, {"max_record_bytes": 0}, {"reserve_segments": 0}],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        SegmentSettings(**{**_SIZES, **wrong})


def test_figures() -> None:
    disk = FaultyDisk(capacity=10_000_000)
    journal = opened(disk)
    append(journal, *[1400] * 4)
    stats = journal.stats()
    assert stats.segments == 2
    assert stats.bytes_on_disk == 64 + 3 * 1432 + 3 * 5800
    assert 0 < stats.free_bytes < 10_000_000


# --- threads ---


def test_real_threads_keep_the_order_and_complete_every_future(tmp_path: Path) -> None:
    journal = SegmentJournal(tmp_path, SETTINGS)
    journal.open()
    random = Random(5)
    payloads = [random.randbytes(random.randint(0, 1500)) for _ in range(300)]
    futures = [journal.append(journal.sequence, [payload]) for payload in payloads]
    assert [future.result(20) for future in futures] == [None] * 300
    journal.close()
    again = SegmentJournal(tmp_path, SETTINGS)
    again.open()
    assert [bytes(record.payload) for record in again.replay(0)] == payloads
    again.close()


def test_a_checkpoint_never_gets_ahead_of_the_log() -> None:
    """It may contain the record under way: were it durable first, a crash between would lose what it contains."""
    writing, keeping = HeldLane(), HeldLane()
    journal = opened(FaultyDisk(), lambda name: keeping if name.endswith("keep") else writing)
    keeping.go_on()
    future = journal.append(1, [b"x"])
    writer = journal.begin_checkpoint()
    writer.add(Section(0, 1, b"contains record 1"))
    commit = writer.commit()
    waited: list[bool] = []
    future.add_done_callback(lambda done: waited.append(commit.done()))
    original = future.result

    def result(timeout: float | None = None) -> None:
        writing.go_on()  # what a real thread would do meanwhile
        original(timeout)

    future.result = result  # type: ignore[method-assign]
    keeping.go_on()
    assert waited == [False]
    assert commit.done()


def test_the_segment_of_the_last_durable_record_is_never_freed() -> None:
    writing = HeldLane()
    disk = FaultyDisk()
    journal = opened(disk, lambda name: writing if name.endswith("append") else InlineLane(name))
    for _ in range(3):
        journal.append(journal.sequence, [bytes(1400)])
    writing.go_on()
    future = journal.append(4, [bytes(1400)])
    assert journal.free(below=3, live={}) == []
    assert "0000000001.segment" in names(disk)
    writing.go_on()
    assert future.done()
    journal.free(below=3, live={})
    assert "0000000001.segment" not in names(disk)


def test_reading_never_touches_a_record_under_way() -> None:
    disk = FaultyDisk()
    journal = opened(disk)
    first = journal.position
    append(journal, 100)
    disk.torn_write = 0.5
    with pytest.raises(BrokerStopError):
        append(journal, 1000)
    assert [record.sequence for record in journal.read_many([(first, 65_536)])] == [1]


# --- failures ---


def test_a_failed_append_says_what_to_do_and_fails_all_later_ones() -> None:
    disk = FaultyDisk()
    journal = opened(disk)
    append(journal, 10)

    def before(call: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.before = before
    with pytest.raises(BrokerStopError, match="record 2 could not be written to /data.*Input/output error.*start"):
        append(journal, 10)
    disk.before = lambda call: None
    with pytest.raises(BrokerStopError, match="record 2"):
        append(journal, 10)


def test_what_cannot_be_freed_stops_the_journal() -> None:
    disk = FaultyDisk()
    journal = opened(disk)
    append(journal, *[1400] * 8)

    def before(call: str) -> None:
        if call == "unlink":
            raise OSError(errno.EIO, "broken")

    disk.before = before
    journal.free(below=8, live={})
    disk.before = lambda call: None
    with pytest.raises(BrokerStopError, match="could not be kept in order: .*broken"):
        append(journal, 1)


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before() -> None:
    disk = FaultyDisk()
    journal = opened(disk)
    append(journal, 10, 10)
    take_checkpoint(journal, 1)
    disk.capacity = 0
    writer = journal.begin_checkpoint()
    writer.add(Section(0, 2, bytes(3 << 20)))
    with pytest.raises(OSError, match="no space"):
        writer.commit().result()
    append(journal, 10)
    disk.capacity = 1 << 30
    take_checkpoint(journal, 3)
    journal.close()
    again = SegmentJournal(DIR, SETTINGS, files=disk, lane=InlineLane)
    assert again.open().sections == (Section(0, 3, b"after 3"),)


# --- a full disk, in memory; on a real one: test_full_disk.py ---


def test_is_low_below_its_share_of_the_disk() -> None:
    disk = FaultyDisk(capacity=100 << 30)
    journal = opened(disk, min_free_bytes=None)
    assert not journal.disk_low()
    disk.capacity = 1 << 30
    assert journal.disk_low()
    journal = SegmentJournal(Path("/other"), SegmentSettings(min_free_bytes=1 << 40), files=disk, lane=InlineLane)
    journal.open()
    assert journal.disk_low()


def test_is_low_while_the_reserve_cannot_be_made_and_recovers_by_itself() -> None:
    disk = FaultyDisk()
    journal = opened(disk)
    disk.capacity = 0
    assert not journal.disk_low()
    append(journal, *[1400] * 4)
    assert journal.disk_low()
    append(journal, *[1400] * 5)
    disk.capacity = 1 << 30
    assert journal.disk_low()  # asked, it tries again
    assert not journal.disk_low()
    append(journal, *[1400] * 20)


def test_a_full_disk_without_reserve_stops_the_journal() -> None:
    disk = FaultyDisk()
    journal = opened(disk)
    disk.capacity = 0
    append(journal, *[1400] * 9)
    with pytest.raises(BrokerStopError, match="record 10 could not be written.*no space"):
        append(journal, 1)


# --- what is refused ---


def test_names_who_uses_the_directory(tmp_path: Path) -> None:
    journal = SegmentJournal(tmp_path, SETTINGS)
    journal.open()
    with pytest.raises(BrokerStopError, match=rf"in use by pid {os.getpid()} on {os.uname().nodename}; stop that"):
        SegmentJournal(tmp_path, SETTINGS).open()
    journal.close()


def test_refuses_a_directory_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(BrokerStopError, match="holds 'photos' but no `meta`.*name an empty directory"):
        SegmentJournal(tmp_path, SETTINGS).open()


def test_refuses_another_shards_directory(tmp_path: Path) -> None:
    journal = SegmentJournal(tmp_path, SETTINGS, shard=1)
    journal.open()
    journal.close()
    with pytest.raises(BrokerStopError, match="belongs to shard 1, not 2"):
        SegmentJournal(tmp_path, SETTINGS, shard=2).open()


def test_refuses_a_newer_format() -> None:
    disk = FaultyDisk()
    opened(disk).close()
    meta = disk.names_now[DIR / "meta"].data
    newer = bytes(meta[4096:8183]).replace(b'"kyogo_journal_format": 1', b'"kyogo_journal_format": 2')
    import google_crc32c

    meta[4096:] = newer + b"%08x\n" % google_crc32c.value(newer)
    with pytest.raises(BrokerStopError, match="has format 2, this Kyogo writes 1: start the version that wrote it"):
        opened(disk)


def test_one_rotten_slot_of_meta_is_made_up_for() -> None:
    disk = FaultyDisk()
    journal = opened(disk)
    append(journal, 5)
    journal.close()
    for slot in (0, 1):
        copy = disk.crash("kept", Random(1))
        copy.flip(DIR / "meta", slot * 4096 + 30)
        again = SegmentJournal(DIR, SETTINGS, files=copy, lane=InlineLane)
        assert again.open().epoch == 2
    disk.flip(DIR / "meta", 30)
    disk.flip(DIR / "meta", 4096 + 30)
    with pytest.raises(BrokerStopError, match="/data/meta is damaged; restore"):
        opened(disk)


def test_a_directory_that_could_not_be_opened_is_let_go() -> None:
    disk = FaultyDisk()
    journal = opened(disk)
    append(journal, 5, 5)
    journal.close()
    disk.flip(DIR / "0000000001.segment", 70)
    for _ in range(2):
        with pytest.raises(BrokerStopError, match="damaged"):
            opened(disk)
    assert disk.open_files() == 0


# --- damage ---


def with_records(*sizes: int) -> FaultyDisk:
    disk = FaultyDisk()
    journal = opened(disk)
    append(journal, *sizes)
    journal.close()
    return disk


def test_says_where_it_is_damaged_and_what_to_do() -> None:
    disk = with_records(100, 100, 100)
    disk.flip(DIR / "0000000001.segment", 64 + 132 + 50)
    with pytest.raises(
        BrokerStopError,
        match=r"/data/0000000001.segment, byte 196: record 2 is not whole, and a later one stands at byte 328 of "
        r"segment 1. Run `broker inspect /data`",
    ):
        opened(disk)


def test_a_rotten_last_record_is_not_to_be_told_from_a_torn_one() -> None:
    disk = with_records(100, 100, 100)
    disk.flip(DIR / "0000000001.segment", 64 + 2 * 132 + 50)
    journal = SegmentJournal(DIR, SETTINGS, files=disk, lane=InlineLane)
    (note,) = journal.open().notes
    assert "cut off record 3" in note
    assert journal.sequence == 3


def test_damage_before_a_torn_end_is_still_damage() -> None:
    disk = FaultyDisk()
    journal = opened(disk)
    append(journal, 100, 100)
    disk.torn_write = 0.6
    with pytest.raises(BrokerStopError):
        append(journal, 1000)
    disk = disk.crash("killed", Random(1))
    disk.flip(DIR / "0000000001.segment", 64 + 132 + 50)
    with pytest.raises(BrokerStopError, match="record 2 is not whole, and a later one"):
        opened(disk)


def test_damage_at_the_end_of_a_segment_is_found_by_the_next_one() -> None:
    disk = with_records(*[1400] * 4)
    for byte in (64 + 2 * 1432 + 4, 64 + 2 * 1432 + 500):
        copy = disk.crash("kept", Random(1))
        copy.flip(DIR / "0000000001.segment", byte)
        with pytest.raises(BrokerStopError, match="0000000001.segment, byte 2928"):
            list(opened(copy).replay(0))


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_missing_segment_is_missed(number: int) -> None:
    disk = with_records(*[1400] * 10)
    disk.unlink(DIR / f"000000000{number}.segment")
    with pytest.raises(BrokerStopError, match="missing"):
        list(opened(disk).replay(0))


def test_all_segments_missing_is_not_a_new_journal() -> None:
    disk = with_records(100)
    for name in names(disk):
        if name.endswith("segment"):
            disk.unlink(DIR / name)
    with pytest.raises(BrokerStopError, match="there is no segment at all"):
        opened(disk)


def test_records_erased_in_the_middle_are_missed() -> None:
    disk = with_records(*[1400] * 4)
    data = disk.names_now[DIR / "0000000001.segment"].data
    data[64 + 1432 :] = bytes(len(data) - 64 - 1432)
    with pytest.raises(BrokerStopError, match="0000000002.segment, byte 64: record 2 is missing before it"):
        list(opened(disk).replay(0))


def test_a_record_of_another_history_is_found_by_the_chain() -> None:
    """It is whole and has the right sequence: only the record behind it knows another."""
    disk = FaultyDisk()
    journal = opened(disk)
    append(journal, 100)
    other = disk.crash("kept", Random(1))
    append(journal, 100, 100)
    journal.close()
    other_journal = SegmentJournal(DIR, SETTINGS, files=other, lane=InlineLane)
    other_journal.open()
    other_journal.append(2, [b"z" * 100]).result()
    replaced = slice(64 + 132, 64 + 2 * 132)
    segment = DIR / "0000000001.segment"
    disk.names_now[segment].data[replaced] = other.names_now[segment].data[replaced]
    with pytest.raises(BrokerStopError, match="byte 328"):
        opened(disk)


def test_no_payload_can_pass_for_a_record() -> None:
    """A torn record whose body is a piece of another broker's log, with later sequences, is torn and not damage."""
    other = FaultyDisk()
    journal = SegmentJournal(DIR, SETTINGS, key=1234, files=other, lane=InlineLane)
    journal.open()
    append(journal, *[50] * 30)
    forged = bytes(other.names_now[DIR / "0000000001.segment"].data[64:1500])
    disk = FaultyDisk()
    journal = opened(disk)
    append(journal, 10)
    disk.torn_write = 0.9
    with pytest.raises(BrokerStopError):
        journal.append(2, [forged]).result()
    again = opened(disk.crash("killed", Random(1)))
    assert again.sequence == 2


# --- checkpoints ---


def test_a_damaged_checkpoint_is_made_up_for_by_the_one_before() -> None:
    disk = with_records(*[100] * 5)
    journal = opened(disk)
    take_checkpoint(journal, 2)
    take_checkpoint(journal, 4)
    journal.close()
    disk.flip(DIR / "checkpoint-0000000002", 60)
    journal = SegmentJournal(DIR, SETTINGS, files=disk, lane=InlineLane)
    recovered = journal.open()
    assert recovered.sections == (Section(0, 2, b"after 2"),)
    assert recovered.notes == ("checkpoint-0000000002 is damaged: the section at byte 40 is not whole",)
    assert [record.sequence for record in journal.replay(2)] == [3, 4, 5]
    take_checkpoint(journal, 5)
    take_checkpoint(journal, 5)
    assert [name for name in names(disk) if name.startswith("checkpoint-")] == [
        "checkpoint-0000000003",
        "checkpoint-0000000004",
    ]


def test_without_any_checkpoint_the_whole_log_will_do() -> None:
    disk = with_records(*[100] * 5)
    journal = opened(disk)
    take_checkpoint(journal, 2)
    journal.close()
    disk.flip(DIR / "checkpoint-0000000001", 45)
    journal = SegmentJournal(DIR, SETTINGS, files=disk, lane=InlineLane)
    assert journal.open().sections == ()
    assert len(list(journal.replay(0))) == 5


def test_an_older_checkpoint_will_not_do_when_records_after_it_were_freed() -> None:
    disk = with_records(*[1400] * 10)
    journal = opened(disk)
    take_checkpoint(journal, 2)
    take_checkpoint(journal, 10)
    journal.free(below=10, live={1 << 32 | 64: 1})
    assert "0000000001.segment" in names(disk)
    journal.close()
    disk.flip(DIR / "checkpoint-0000000002", 60)
    with pytest.raises(BrokerStopError, match="no checkpoint makes up for them; checkpoint-0000000002 is damaged"):
        opened(disk)


def test_a_log_that_ends_before_its_checkpoint_is_damaged() -> None:
    disk = with_records(*[100] * 3)
    journal = opened(disk)
    take_checkpoint(journal, 3)
    journal.close()
    disk.flip(DIR / "0000000001.segment", 64 + 2 * 132 + 50)
    with pytest.raises(BrokerStopError, match="checkpoint-0000000001 contains record 3, but the log ends with 2"):
        opened(disk)


def test_every_rotten_bit_of_a_checkpoint_is_found() -> None:
    disk = with_records(*[100] * 3)
    journal = opened(disk)
    take_checkpoint(journal, 3)
    journal.close()
    for byte in range(40 + 32 + len(b"after 3") + 32):
        if 36 <= byte < 40:
            continue  # unused
        disk.flip(DIR / "checkpoint-0000000001", byte, bit=byte % 8)
        copy = disk.crash("kept", Random(1))
        journal = SegmentJournal(DIR, SETTINGS, files=copy, lane=InlineLane)
        assert journal.open().sections == ()
        disk.flip(DIR / "checkpoint-0000000001", byte, bit=byte % 8)
