"""Damage of a segment log is found, named with its place, and told from what a crash leaves."""

from random import Random

import pytest

from kyogo_broker.journal.base import Section
from kyogo_broker.journal.lane import InlineLane
from kyogo_broker.journal.segments import SegmentJournal
from kyogo_broker.model.errors import BrokerStopError
from tests.support.faulty_disk import FaultyDisk
from tests.support.segment_log import DIR, SETTINGS, append, names, opened, take_checkpoint


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
        r"segment 1. Run `broker inspect /data` to see what is whole; restore .* with `broker salvage /data NEW_DIRECTORY`",
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
        with pytest.raises(BrokerStopError, match=r"0000000001.segment, byte 2928"):
            list(opened(copy).replay(0))


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_missing_segment_is_missed(number: int) -> None:
    disk = with_records(*[1400] * 10)
    disk.unlink(DIR / f"000000000{number}.segment")
    with pytest.raises(BrokerStopError, match="missing"):
        list(opened(disk).replay(0))


def test_a_last_segment_that_was_cut_is_missed() -> None:
    """At the end of a record, so that nothing is left to show for those behind it."""
    disk = with_records(100, 100, 100)
    del disk.names_now[DIR / "0000000001.segment"].data[64 + 2 * 132 :]
    with pytest.raises(
        BrokerStopError, match=r"0000000001.segment, byte 328: 5472 bytes were cut off the last segment"
    ):
        opened(disk)


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
    with pytest.raises(BrokerStopError, match=r"0000000002.segment, byte 64: record 2 is missing before it"):
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
    journal.free(below=10, live={1: 1})
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
