"""What every journal must do, whatever it stands on."""

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from kyogo_broker.journal.base import Journal, Part, Recovered, Section
from kyogo_broker.journal.memory import MemoryJournal, MemoryStore
from kyogo_broker.journal.segments import SegmentJournal, SegmentSettings
from kyogo_broker.model.errors import BrokerStopError

SEGMENT_BYTES = 8192
MAX_RECORD_BYTES = 2000

Make = Callable[[], Journal]


@pytest.fixture(params=["memory", "segments"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes journals on the same storage, one after the other."""
    store = MemoryStore()
    settings = SegmentSettings(segment_bytes=SEGMENT_BYTES, max_record_bytes=MAX_RECORD_BYTES, min_free_bytes=0)

    def make_one() -> Journal:
        if request.param == "memory":
            return MemoryJournal(store, segment_bytes=SEGMENT_BYTES, max_record_bytes=MAX_RECORD_BYTES)
        return SegmentJournal(tmp_path / "data", settings, key=5)

    return make_one


@pytest.fixture
def journal(make: Make) -> Iterator[Journal]:
    journal = make()
    journal.open()
    yield journal
    journal.close()


class Written:
    """Records as they were appended."""

    def __init__(self) -> None:
        self.payloads: dict[int, bytes] = {}
        self.positions: dict[int, int] = {}
        self.random = Random(8)

    def append(self, journal: Journal, *sizes: int) -> None:
        for size in sizes:
            sequence, payload = journal.sequence, self.random.randbytes(size)
            self.positions[sequence] = journal.position
            parts: list[Part] = [payload[:3], memoryview(payload)[3:]]
            journal.append(sequence, parts, in_place=sequence % 3 > 0).result()
            self.payloads[sequence] = payload

    def check(self, journal: Journal, after: int = 0) -> None:
        found = [(record.sequence, record.position, bytes(record.payload)) for record in journal.replay(after)]
        wanted = [(s, self.positions[s], payload) for s, payload in self.payloads.items() if s > after]
        assert found == wanted


@pytest.fixture
def written() -> Written:
    return Written()


SIZES = (1, 2000, 1999, 40, 2000, 2000, 2000, 0, 2000, 7, 2000, 100)


def reopened(journal: Journal, make: Make) -> tuple[Journal, Recovered]:
    journal.close()
    again = make()
    return again, again.open()


def take_checkpoint(journal: Journal, *sections: Section) -> None:
    writer = journal.begin_checkpoint()
    for section in sections:
        writer.add(section)
    writer.commit().result()


def test_says_what_it_is(journal: Journal) -> None:
    assert journal.max_in_flight == 1
    assert journal.max_record_bytes == MAX_RECORD_BYTES
    assert journal.stretch > 0
    assert journal.durability in {"MEMORY", "FSYNC", "REPLICATED"}


def test_a_new_one_is_empty(make: Make) -> None:
    journal = make()
    recovered = journal.open()
    assert (recovered.epoch, recovered.sections, recovered.new) == (1, (), True)
    assert journal.sequence == 1
    assert list(journal.replay(0)) == []
    journal.close()


def test_replays_what_was_appended(journal: Journal, make: Make, written: Written) -> None:
    written.append(journal, *SIZES)
    again, recovered = reopened(journal, make)
    assert not recovered.new
    assert recovered.notes == ()
    assert again.sequence == len(SIZES) + 1
    for after in range(len(SIZES) + 1):
        written.check(again, after)
    again.close()


def test_positions_are_known_before_and_grow(journal: Journal, written: Written) -> None:
    written.append(journal, *SIZES)
    positions = list(written.positions.values())
    assert positions == sorted(set(positions))


def test_goes_on_after_each_opening(journal: Journal, make: Make, written: Written) -> None:
    epoch = 1
    for size in SIZES:
        written.append(journal, size)
        journal, recovered = reopened(journal, make)
        assert recovered.epoch > epoch
        epoch = recovered.epoch
        written.check(journal)
    journal.close()


def test_refuses_a_record_out_of_turn_or_too_large(journal: Journal, written: Written) -> None:
    for sequence in (0, 2):
        with pytest.raises(ValueError, match="1 is next"):
            journal.append(sequence, [b"x"])
    with pytest.raises(ValueError, match="2000 at most"):
        journal.append(1, [b"x" * 2000, b"x"])
    written.append(journal, 2000)


def test_reads_records_by_position(journal: Journal, written: Written) -> None:
    written.append(journal, *SIZES)
    for sequence, position in written.positions.items():
        found = journal.read_many([(position, 0)])
        assert [(r.sequence, r.position, bytes(r.payload)) for r in found] == [
            (sequence, position, written.payloads[sequence])
        ]


def test_reads_all_records_that_begin_in_a_stretch_its_ends_included(journal: Journal, written: Written) -> None:
    written.append(journal, *[30] * 50)
    positions = written.positions
    found = journal.read_many([(positions[3], positions[9] - positions[3]), (positions[1], 1)])
    assert [record.sequence for record in found] == [3, 4, 5, 6, 7, 8, 9, 1]
    assert all(record.payload == written.payloads[record.sequence] for record in found)


def test_a_stretch_may_reach_beyond_the_last_record(journal: Journal, written: Written) -> None:
    written.append(journal, *SIZES)
    last = len(SIZES)
    found = journal.read_many([(written.positions[last], journal.stretch)])
    assert [record.sequence for record in found] == [last]


def test_reading_where_no_record_is_stops(journal: Journal, written: Written) -> None:
    written.append(journal, *SIZES)
    for position in (written.positions[1] + 1, 99 << 32, journal.position):
        with pytest.raises(BrokerStopError):
            journal.read_many([(position, 0)])


def test_reads_what_was_written_before_this_opening(journal: Journal, make: Make, written: Written) -> None:
    written.append(journal, *SIZES)
    again, _ = reopened(journal, make)
    written.append(again, *SIZES)
    for sequence, position in written.positions.items():
        assert [record.sequence for record in again.read_many([(position, 0)])] == [sequence]
    again.close()


def test_gives_back_the_newest_checkpoint(journal: Journal, make: Make, written: Written) -> None:
    written.append(journal, *SIZES)
    take_checkpoint(journal, Section(0, 3, b"old"))
    newest = (Section(0, 5, b"shard"), Section(7, 9, b"s" * 100_000), Section(8, 6, b""))
    take_checkpoint(journal, *newest)
    again, recovered = reopened(journal, make)
    assert recovered.sections == newest
    assert not recovered.new
    written.check(again, after=5)
    again.close()


def live_at(journal: Journal, *positions: int) -> dict[int, int]:
    """A message of 1000 bytes at each position, as `free` wants to know it."""
    live: dict[int, int] = {}
    for position in positions:
        part = journal.part_of(position)
        live[part] = live.get(part, 0) + 1000
    return live


@pytest.mark.parametrize("how", ["abandoned", "not committed"])
def test_a_checkpoint_counts_only_when_committed(journal: Journal, make: Make, written: Written, how: str) -> None:
    written.append(journal, 10, 10)
    take_checkpoint(journal, Section(0, 1, b"first"))
    writer = journal.begin_checkpoint()
    writer.add(Section(0, 2, b"second, and longer"))
    if how == "abandoned":
        writer.abandon()
    again, recovered = reopened(journal, make)
    assert recovered.sections == (Section(0, 1, b"first"),)
    take_checkpoint(again, Section(0, 2, b"third"))
    again, recovered = reopened(again, make)
    assert recovered.sections == (Section(0, 2, b"third"),)
    again.close()


def test_frees_what_nobody_needs(journal: Journal, make: Make, written: Written) -> None:
    written.append(journal, *[1000] * 100)
    before = journal.stats()
    take_checkpoint(journal, Section(0, 90, b"state"))
    kept = written.positions[50]
    assert journal.free(below=90, live=live_at(journal, kept, written.positions[95])) == []
    assert journal.stats().segments < before.segments / 3
    assert journal.read_many([(kept, 0)])[0].payload == written.payloads[50]
    journal, recovered = reopened(journal, make)
    assert recovered.sections == (Section(0, 90, b"state"),)
    written.check(journal, after=90)
    assert journal.read_many([(kept, 0)])[0].payload == written.payloads[50]
    with pytest.raises(BrokerStopError):
        journal.read_many([(written.positions[1], 0)])
    journal.close()


def test_frees_nothing_that_a_checkpoint_does_not_contain(journal: Journal, written: Written) -> None:
    written.append(journal, *[1000] * 60)
    segments = journal.stats().segments
    assert journal.free(below=0, live={}) == []
    assert journal.stats().segments == segments
    journal.free(below=30, live={})
    written.payloads = {s: p for s, p in written.payloads.items() if s > 30}
    for sequence in written.payloads:
        assert journal.read_many([(written.positions[sequence], 0)])[0].sequence == sequence


def test_names_what_holds_the_least_once_the_journal_is_three_times_what_is_live(
    journal: Journal, written: Written
) -> None:
    written.append(journal, *[1000] * 60)
    parts = sorted({journal.part_of(position) for position in written.positions.values()})
    sparse, dense = parts[:3], parts[3:]
    full = dict.fromkeys(dense, 4000)
    assert journal.free(below=60, live=full | dict.fromkeys(sparse, 400)) == []
    assert journal.free(below=10, live=dict.fromkeys(parts, 400)) == []
    named = journal.free(below=60, live={part: 400 + part for part in parts})
    assert 0 < len(named) < len(parts) - 1
    assert [low for low, _ in named] == [part << 32 for part in parts[: len(named)]]
    assert all(high - low == 1 << 32 for low, high in named)


def test_the_records_being_written_to_are_never_freed(journal: Journal, make: Make, written: Written) -> None:
    written.append(journal, 10, 10)
    take_checkpoint(journal, Section(0, 2, b"all"))
    assert journal.free(below=2, live={}) == []
    written.append(journal, 10)
    again, _ = reopened(journal, make)
    assert again.sequence == 4
    written.check(again, after=2)
    again.close()


def test_one_at_a_time(journal: Journal, make: Make) -> None:
    with pytest.raises(BrokerStopError, match="in use"):
        make().open()
    again, _ = reopened(journal, make)
    again.close()


def test_closing_twice_is_closing(journal: Journal, make: Make, written: Written) -> None:
    written.append(journal, 10)
    journal.close()
    journal.close()
    again = make()
    again.open()
    written.check(again)
    again.close()


def test_is_not_low_on_a_disk_with_room(journal: Journal) -> None:
    assert journal.disk_low() is False
