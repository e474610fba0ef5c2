"""The reader for people: it tells what is there, changes nothing, and is not stopped by damage."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from kyogo_broker.journal.base import Section
from kyogo_broker.journal.codec import encode
from kyogo_broker.journal.inspect import Finding, describe
from kyogo_broker.journal.lane import InlineLane
from kyogo_broker.journal.scan import PatientFiles
from kyogo_broker.journal.segments import SegmentJournal, SegmentSettings
from kyogo_broker.model.commands import Outcome
from kyogo_broker.model.errors import BrokerStopError
from kyogo_broker.model.facts import Fact, Published, QueueCreated, QueueDeleted, Settled, Span
from kyogo_broker.model.message import Batch
from kyogo_broker.model.settings import QueueSettings
from tests.support.facts import EXAMPLES
from tests.support.faulty_disk import FaultyDisk

DIR = Path("/data")
SETTINGS = SegmentSettings(segment_bytes=5800, max_record_bytes=1500, min_free_bytes=0)


def published(first: int, count: int, size: int = 100) -> Published:
    return Published(7, first, Batch(b"\x1b" * count * size, range(size, size * count + 1, size)), 5)


def written(*records: Sequence[Fact]) -> tuple[FaultyDisk, SegmentJournal]:
    disk = FaultyDisk()
    journal = SegmentJournal(DIR, SETTINGS, files=disk, lane=InlineLane)
    journal.open()
    for facts in records:
        journal.append(journal.sequence, encode(facts)).result()
    return disk, journal


def findings(disk: FaultyDisk, what: str, *, facts: bool = False) -> list[Finding]:
    return [one for one in describe(DIR, files=disk, facts=facts) if one.what == what]


def test_tells_what_stands_where() -> None:
    disk, journal = written(
        [QueueCreated(7, "orders", QueueSettings(), 5)],
        [published(1, 10), published(11, 3)],
        [Settled(7, Outcome.ACK, (Span(1, 2, 3), Span(9, 11, 1))), Settled(7, Outcome.RELEASE, (Span(4, 5, 1),))],
    )
    writer = journal.begin_checkpoint()
    writer.add(Section(0, 2, b"xyz"))
    writer.add(Section(7, 3, b""))
    writer.commit().result()
    found = list(describe(DIR, files=disk))
    assert not any(one.damaged for one in found)
    assert [one.what for one in found] == ["directory", "segment", "segment", "segment", "checkpoint", "queue", "total"]
    assert found[1].fields["records"] == 3
    assert found[1].fields["sequences"] == [1, 3]
    assert found[1].fields["facts"] == {"QueueCreated": 1, "Published": 2, "Settled": 2}
    assert found[2].fields["records"] == 0
    assert found[4].fields["sequences"] == [2, 3]
    assert found[5].fields == {
        "queue_id": 7, "name": "orders", "unfinished": 9, "unfinished_offsets": ["1-1", "5-10", "12-13"]
    }  # fmt: skip
    assert found[6].fields["last_sequence"] == 3


def test_shows_every_fact_but_no_body() -> None:
    disk, _ = written(*([fact] for fact in EXAMPLES.values()))
    found = findings(disk, "fact", facts=True)
    assert [one.fields["kind"] for one in found] == [type(fact).__name__ for fact in EXAMPLES.values()]
    shown = found[list(EXAMPLES).index("Moved, consecutive")]
    assert shown.fields["batch"] == {"messages": 2, "bytes": 10}
    assert shown.fields["offsets"] == ["4-5"]
    for one in describe(DIR, files=disk, facts=True):
        assert json.loads(one.json())["what"] == one.what
        assert one.text().isprintable()


def test_names_from_users_cannot_break_a_line() -> None:
    disk, _ = written([QueueCreated(7, "a\x1b[2J\nb\u202e", QueueSettings(), 5)])
    (queue,) = findings(disk, "queue")
    assert queue.text().isascii()
    assert queue.text().isprintable()


def test_a_deleted_queue_has_no_messages() -> None:
    disk, _ = written([QueueCreated(7, "orders", QueueSettings(), 5), published(1, 3)], [QueueDeleted(7)])
    assert findings(disk, "queue") == []


def test_changes_nothing_and_asks_for_no_lock() -> None:
    disk, _ = written([published(1, 3)])

    def before(call: str) -> None:
        pytest.fail(f"{call} was called")

    disk.before = before
    assert not any(one.damaged for one in describe(DIR, files=disk, facts=True))


def test_reads_a_directory_in_use(tmp_path: Path) -> None:
    journal = SegmentJournal(tmp_path, SETTINGS)
    journal.open()
    journal.append(1, encode([published(1, 3)])).result(10)
    assert not any(one.damaged for one in describe(tmp_path))
    journal.close()


def test_a_torn_end_is_no_damage() -> None:
    disk, journal = written([published(1, 3)])
    disk.torn_write = 0.5
    with pytest.raises(BrokerStopError):
        journal.append(2, encode([published(4, 9)])).result()
    (torn,) = findings(disk, "torn")
    assert torn.fields["sequence"] == 2
    assert not torn.damaged


@pytest.mark.parametrize("record", [1, 2, 4, 5, 7])
def test_damage_is_named_and_the_rest_is_read(record: int) -> None:
    disk, journal = written(*([published(n * 10, 10, 140)] for n in range(1, 9)))
    places = [(found.fields["file"], found.fields["byte"]) for found in findings(disk, "record", facts=True)]
    file, byte = places[record - 1]
    assert {place[0] for place in places} == {f"000000000{n}.segment" for n in (1, 2, 3)}
    for flipped in (byte + 5, byte + 20, byte + 500):
        copy = disk.crash("kept", Random(1))
        copy.flip(DIR / file, flipped)
        (damage,) = findings(copy, "damage")
        assert (damage.fields["file"], damage.fields["byte"], damage.fields["sequence"]) == (file, byte, record)
        assert damage.damaged
        (queue,) = findings(copy, "queue")
        assert queue.fields["unfinished"] == 70
    assert journal.sequence == 9


def test_a_rotten_bit_anywhere_in_synced_records_is_damage() -> None:
    """In every byte of every record but the last one, and of every header."""
    disk, _ = written(*([published(n * 10, 10, 140)] for n in range(1, 9)))
    places = [(one.fields["file"], one.fields["byte"]) for one in findings(disk, "record", facts=True)]
    segments = [path.name for path, _ in disk.files() if path.suffix == ".segment"]
    spans = [(file, byte, byte + 1492) for file, byte in places[:-1]] + [(name, 0, 64) for name in segments]
    for file, begin, end in spans:
        for byte in [*range(begin, begin + 40), *range(begin + 40, end, 53)]:
            disk.flip(DIR / file, byte, bit=byte % 8)
            assert any(one.fields["file"] == file for one in findings(disk, "damage")), (file, byte)
            disk.flip(DIR / file, byte, bit=byte % 8)
    assert findings(disk, "damage") == []


@pytest.mark.parametrize("rotten", [b"K", b"", bytes(64), b"\xff" * 64])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_records_behind_a_rotten_header_are_read(number: int, rotten: bytes) -> None:
    disk, _ = written(*([published(n * 10, 10, 140)] for n in range(1, 9)))
    data = disk.names_now[DIR / f"000000000{number}.segment"].data
    data[60] ^= not rotten  # the header's own crc
    data[: len(rotten)] = rotten.replace(b"K", b"k")
    (damage,) = findings(disk, "damage")
    assert damage.fields["error"] == "the segment's header is not whole; its records can be read"
    (queue,) = findings(disk, "queue")
    assert queue.fields["unfinished"] == 80


def test_a_header_that_no_record_agrees_with_tells_of_nothing() -> None:
    """Not even if somebody published what looks like records: they do not know the journal's key."""
    forged, _ = written([published(5, 5, 100)])
    part = bytes(forged.names_now[DIR / "0000000001.segment"].data[64:600])
    disk = FaultyDisk()
    journal = SegmentJournal(DIR, SETTINGS, key=77, files=disk, lane=InlineLane)
    journal.open()
    journal.append(1, encode([Published(7, 1, Batch(part, range(len(part), len(part) + 1)), 5)])).result()
    data = disk.names_now[DIR / "0000000001.segment"].data
    data[:96] = bytes(96)
    (damage,) = findings(disk, "damage")
    assert "no record agrees with it" in damage.fields["error"]
    assert findings(disk, "queue") == []


def test_a_cut_segment_and_a_missing_one_at_the_end_are_damage() -> None:
    disk, _ = written(*([published(n * 10, 10, 140)] for n in range(1, 9)))
    copy = disk.crash("kept", Random(1))
    del copy.names_now[DIR / "0000000003.segment"].data[64 + 1492 :]
    (damage,) = findings(copy, "damage")
    assert (damage.fields["file"], damage.fields["error"]) == ("0000000003.segment", "the segment was cut off here")
    copy = disk.crash("kept", Random(1))
    copy.unlink(DIR / "0000000003.segment")
    (damage,) = findings(copy, "damage")
    assert (damage.fields["file"], damage.fields["error"]) == ("0000000003.segment", "the segment is missing")


class BadDisk(PatientFiles):
    """Some blocks of one file cannot be read."""

    def __init__(self, path: Path, bad: range) -> None:
        self._path = path
        self._bad = bad
        self._file = -1

    def open(self, path: Path, *, create: bool = False, write: bool = True) -> int:
        file = super().open(path, create=create, write=write)
        if path == self._path:
            self._file = file
        return file

    def _read(self, file: int, size: int, offset: int) -> bytes:
        if file == self._file and offset < self._bad.stop and offset + size > self._bad.start:
            raise OSError(5, "unreadable")
        return super()._read(file, size, offset)


def test_what_a_disk_cannot_read_is_damage_and_the_rest_is_read(tmp_path: Path) -> None:
    journal = SegmentJournal(tmp_path, SegmentSettings(segment_bytes=64 << 10, max_record_bytes=1500, min_free_bytes=0))
    journal.open()
    for n in range(1, 21):
        journal.append(n, encode([published(n * 10, 10, 140)])).result()
    journal.close()
    disk = BadDisk(tmp_path / "0000000001.segment", range(8192, 12288))
    found = list(describe(tmp_path, files=disk))
    assert [one.fields["byte"] for one in found if one.damaged] == [64 + 5 * 1492]
    (queue,) = [one for one in found if one.what == "queue"]
    assert queue.fields["unfinished"] == 200 - 40


def test_missing_segments_headers_checkpoints_and_meta_are_damage() -> None:
    disk, journal = written(*([published(n * 10, 10, 140)] for n in range(1, 9)))
    writer = journal.begin_checkpoint()
    writer.add(Section(0, 2, b"xyz"))
    writer.commit().result()
    for name in ("0000000002.segment", "checkpoint-0000000001"):
        copy = disk.crash("kept", Random(1))
        copy.flip(DIR / name, 10)
        (damage,) = findings(copy, "damage")
        assert damage.fields["file"] == name
    copy = disk.crash("kept", Random(1))
    copy.unlink(DIR / "meta")
    (damage,) = findings(copy, "damage")
    assert damage.fields == {"file": "meta", "error": "it is missing"}
    (queue,) = findings(copy, "queue")
    assert queue.fields["unfinished"] == 80


def test_missing_records_are_damage_unless_a_checkpoint_contains_them() -> None:
    disk, journal = written(*([published(n * 10, 10, 140)] for n in range(1, 9)))
    journal.free(below=8, live={1: 1})
    (damage,) = findings(disk, "damage")
    assert damage.fields["records"] == [4, 6]
    writer = journal.begin_checkpoint()
    writer.add(Section(0, 6, b"xyz"))
    writer.commit().result()
    assert [one.fields["file"] for one in findings(disk, "segment")][:2] == ["0000000001.segment", "0000000003.segment"]
    assert findings(disk, "damage") == []


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    (damage,) = describe(tmp_path)
    assert damage.damaged
