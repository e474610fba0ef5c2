"""The segment log beyond what every journal does: its files, its threads, a full disk, what it refuses."""

import errno
import os
import threading
from pathlib import Path
from random import Random

import google_crc32c
import pytest

from kyogo_broker.checkpointing import CHECKPOINT_BYTES
from kyogo_broker.journal.base import Section
from kyogo_broker.journal.lane import InlineLane
from kyogo_broker.journal.segment_file import Header, Segment
from kyogo_broker.journal.segments import IN_PLACE_BYTES, SegmentJournal, SegmentSettings
from kyogo_broker.model.errors import BrokerStopError, NewerDataError
from tests.support.faulty_disk import FaultyDisk
from tests.support.segment_log import DIR, SETTINGS, SIZES, HeldLane, append, names, opened, take_checkpoint

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
        SegmentSettings(**{**SIZES, **wrong})


def test_a_journal_without_live_messages_stays_small_although_checkpoints_are_late() -> None:
    settings = SegmentSettings()
    standing = (1 + settings.reserve_segments) * settings.segment_bytes
    begun = settings.segment_bytes - settings.max_record_bytes
    assert standing + begun + 3 * CHECKPOINT_BYTES <= 256_000_000


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
    futures = [journal.append(journal.sequence, [payload], in_place=random.random() < 0.5) for payload in payloads]
    assert [future.result(20) for future in futures] == [None] * 300
    journal.close()
    again = SegmentJournal(tmp_path, SETTINGS)
    again.open()
    assert [bytes(record.payload) for record in again.replay(0)] == payloads
    again.close()


def test_a_small_record_is_written_in_the_callers_thread_if_he_says_so() -> None:
    writing = HeldLane()
    disk = FaultyDisk()
    large = SegmentSettings(segment_bytes=400_000, max_record_bytes=190_000)
    lane = lambda name: writing if name.endswith("append") else InlineLane(name)  # noqa: E731
    journal = SegmentJournal(DIR, large, files=disk, lane=lane)
    journal.open()
    assert journal.append(1, [b"x"], in_place=True).done()
    assert not (held := journal.append(2, [b"x"])).done()
    assert not (behind := journal.append(3, [b"never before the one under way"], in_place=True)).done()
    writing.go_on()
    assert held.done()
    assert behind.done()
    assert not journal.append(4, [bytes(150_000)], in_place=True).done()
    writing.go_on()
    assert journal.append(5, [bytes(IN_PLACE_BYTES)], in_place=True).done()
    assert not journal.append(6, [b"in the next segment, which is another file"], in_place=True).done()


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
    with pytest.raises(BrokerStopError, match=r"record 2 could not be written to /data.*Input/output error.*start"):
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
    with pytest.raises(BrokerStopError, match=r"could not be kept in order: .*broken"):
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
    with pytest.raises(BrokerStopError, match=r"record 10 could not be written.*no space"):
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
    with pytest.raises(BrokerStopError, match=r"holds 'photos' but no `meta`.*name an empty directory"):
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
    meta[4096:] = newer + b"%08x\n" % google_crc32c.value(newer)
    with pytest.raises(
        NewerDataError, match="format 2, this Kyogo knows 1: it was written by a newer Kyogo; start that"
    ):
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
    with pytest.raises(BrokerStopError, match=r"damaged: /data/meta is not whole. Run `broker inspect /data`"):
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


def test_closing_breaks_off_the_writing_of_zeros() -> None:
    disk, held = FaultyDisk(), HeldLane()
    journal = opened(disk, lambda name: held if name.endswith("keep") else InlineLane(name))
    append(journal, 5)
    zeros: list[str] = []
    disk.before = lambda call: zeros.append(call) if call == "sync_data" else None
    journal.close()
    assert zeros == []
    assert len([name for name in names(disk) if name.endswith(".segment")]) == 3
    assert disk.open_files() == 0
    append(opened(disk), *[1400] * 20)


def test_zeros_are_never_written_over_records() -> None:
    disk, held = FaultyDisk(), HeldLane()
    journal = opened(disk, lambda name: held if name.endswith("keep") else InlineLane(name))
    held.calls.popleft()()  # the next segment is made, but not yet written with zeros
    append(journal, *[1400] * 4)
    position = journal.position - 1432
    held.go_on()
    assert journal.read_many([(position, 0)])[0].sequence == 4
    assert position >> 32 == 2


def test_the_next_segment_waits_for_a_write_of_zeros_under_way() -> None:
    segment = Segment(3, Header(0, 0, 1, 0, 5800))
    claiming = threading.Thread(target=segment.claim)
    with segment.claiming:
        claiming.start()
        assert not segment.claimed
    claiming.join(10)
    assert segment.claimed
