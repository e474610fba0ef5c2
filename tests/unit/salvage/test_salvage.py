"""What a salvage refuses, what it says, and the turns that chance takes too seldom."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kyogo_broker.core.fences import SHARD_BITS
from kyogo_broker.journal.codec import encode
from kyogo_broker.journal.inspect import Finding
from kyogo_broker.journal.lane import InlineLane
from kyogo_broker.journal.segments import SegmentJournal, SegmentSettings
from kyogo_broker.model.commands import Attach, CreateQueue, Outcome, Publish, Settle, Settlement, Subscription
from kyogo_broker.model.effects import Deliver, Effect
from kyogo_broker.model.errors import BrokerStopError, NewerDataError
from kyogo_broker.model.facts import FencesReserved, Opened, Published, QueueCreated, QueueDeleted
from kyogo_broker.model.message import Batch, FenceRange
from kyogo_broker.model.settings import QueueSettings
from kyogo_broker.salvage import Salvage, shown
from tests.support.facts import LETTER
from tests.support.faulty_disk import FaultyDisk
from tests.support.logged_shard import LoggedShard, batch_of

DIR, SAVED = Path("/data"), Path("/saved")
SETTINGS = SegmentSettings(segment_bytes=16 << 10, max_record_bytes=7 << 10, min_free_bytes=0)


def written(*records: Sequence[Any]) -> FaultyDisk:
    disk = FaultyDisk()
    journal = SegmentJournal(DIR, SETTINGS, key=9, version="0.1.0", files=disk, lane=InlineLane)
    journal.open()
    for facts in records:
        journal.append(journal.sequence, encode(facts)).result()
    journal.close()
    return disk


def published(queue_id: int, first: int, count: int = 1, *, letter: bool = False) -> Published:
    batch = Batch(b"x" * 10 * count, range(10, 10 * count + 1, 10))
    return Published(queue_id, first, batch, 5, dead_letter=LETTER if letter else None)


def created(queue_id: int, name: str) -> QueueCreated:
    return QueueCreated(queue_id, name, QueueSettings(), 5)


def run(disk: FaultyDisk, target: Path = SAVED) -> list[Finding]:
    return list(Salvage(DIR, target, version="0.1.0", settings=SETTINGS, files=disk, lane=InlineLane).run())


def queues(findings: list[Finding]) -> dict[str, tuple[int, int, int]]:
    """Copied, lost and in doubt, by name."""
    told = [one.fields for one in findings if one.what == "queue"]
    return {fields["name"]: (fields["copied"], fields["lost"], fields["in_doubt"]) for fields in told}


def text(findings: list[Finding]) -> str:
    return "\n".join(line for finding in findings for line in shown(finding))


# --- what it refuses ---


@pytest.mark.parametrize("target", ["/data", "/data/saved", "/data/a/b"])
def test_writes_nothing_into_the_source(target: str) -> None:
    with pytest.raises(BrokerStopError, match="to which nothing is written"):
        run(written([created(1, "a")]), Path(target))


def test_refuses_a_target_that_holds_anything() -> None:
    disk = written([created(1, "a")])
    disk.close(disk.open(SAVED / "x", create=True))
    with pytest.raises(BrokerStopError, match="/saved is not empty; name a new directory"):
        run(disk)


def test_refuses_a_target_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(BrokerStopError, match="is no directory"):
        list(Salvage(DIR, tmp_path / "x").run())


def test_refuses_a_directory_in_use_and_lets_go_of_one_that_is_not() -> None:
    disk = written([created(1, "a")])
    journal = SegmentJournal(DIR, SETTINGS, files=disk, lane=InlineLane)
    journal.open()
    with pytest.raises(BrokerStopError, match=r"/data is in use by pid \d+.*; stop that broker first"):
        run(disk)
    journal.close()
    run(disk)
    SegmentJournal(DIR, SETTINGS, files=disk, lane=InlineLane).open()


def test_holds_the_source_as_long_as_it_reads() -> None:
    disk = written([created(1, "a")])
    salvage = Salvage(DIR, SAVED, settings=SETTINGS, files=disk, lane=InlineLane).run()
    next(salvage)
    with pytest.raises(BrokerStopError, match="in use"):
        SegmentJournal(DIR, SETTINGS, files=disk, lane=InlineLane).open()


@pytest.mark.parametrize("there", [(), ("notes.txt",), ("0000000001.segment", "checkpoint-0000000001")])
def test_refuses_what_is_no_data_directory(tmp_path: Path, there: tuple[str, ...]) -> None:
    (tmp_path / "d").mkdir()
    for name in there:
        (tmp_path / "d" / name).write_bytes(b"nothing that Kyogo wrote")
    with pytest.raises(BrokerStopError, match="holds neither a whole `meta` nor a whole segment"):
        list(Salvage(tmp_path / "d", tmp_path / "to").run())
    assert not (tmp_path / "to").exists()


def test_newer_data_is_not_damage() -> None:
    disk = FaultyDisk()
    journal = SegmentJournal(DIR, SETTINGS, version="9.9.0", files=disk, lane=InlineLane)
    journal.open()
    journal.append(1, [bytes((77, 1, 0, 0, 0, 0))]).result()
    journal.close()
    with pytest.raises(NewerDataError, match=r"kind 77, version 1.*written by Kyogo 9.9.0; start that version"):
        run(disk)
    assert disk.names(SAVED) == []


def test_fences_may_run_out() -> None:
    last = (1 << SHARD_BITS) - 5
    with pytest.raises(BrokerStopError, match="no fences left for another salvage"):
        run(written([Opened(1, 5), FencesReserved(last), created(1, "a")]))


# --- what it finds ---


def test_a_queue_without_a_name_gets_one() -> None:
    disk = written([created(1, "salvaged-7"), created(8, "b")], [published(7, 3), published(9, 1, letter=True)])
    found = queues(run(disk))
    assert found == {"salvaged-7": (0, 0, 0), "b": (0, 0, 0), "salvaged-7-": (1, 2, 0), "salvaged-9.dlq": (1, 0, 0)}


def test_a_queue_made_again_is_not_the_one_that_was_deleted() -> None:
    """The record with the deletion is missing."""
    found = queues(run(written([created(1, "a"), published(1, 1, 3)], [created(2, "a"), published(2, 1, 2)])))
    assert found == {"a": (2, 0, 0)}


def test_a_deleted_queue_stays_deleted_whatever_still_stands_of_it() -> None:
    disk = written([created(1, "a"), published(1, 1, 3)], [QueueDeleted(1)])
    assert queues(run(disk)) == {}


def broker(disk: FaultyDisk) -> LoggedShard:
    logged = LoggedShard(DIR, SETTINGS, disk)
    logged.start()
    return logged


def test_whole_sections_of_a_damaged_checkpoint_are_used() -> None:
    """Records that a checkpoint contains may be freed, and then nothing else knows what is finished."""
    disk = FaultyDisk()
    logged = broker(disk)
    effects: list[Effect] = []
    logged.on_effect = effects.append
    for name in ("a", "b", "c"):
        logged.do(CreateQueue(0, 0, name, QueueSettings()))
        logged.do(Publish(0, 0, name, batch_of(*[b"%d" % n * 600 for n in range(8)])))
    names = tuple(map(Subscription, ("a", "b", "c")))
    logged.do(Attach(1, 1, "t", "c", names, prefetch_messages=24))
    runs = [run for effect in effects if isinstance(effect, Deliver) for run in effect.runs]
    assert [run.count for run in runs] == [8, 8, 8]
    for run in runs:
        for kept in (3, 6):
            ranges = (FenceRange(run.first_fence + kept - 3, run.first_fence + kept - 2),)
            logged.do(Settle(1, (Settlement(Outcome.ACK, ranges),)))
    logged.do(Publish(0, 0, "d", batch_of(b"d")))
    for _ in range(2):
        logged.checkpoint(free=False)
    logged.stop()
    data = disk.names_now[DIR / "checkpoint-0000000002"].data
    for name in list(disk.names(DIR)):
        if name == "checkpoint-0000000001":
            disk.unlink(DIR / name)
    # The settlements are gone: every record with one in it is noise.
    for record in logged.records:
        if any(type(fact).__name__ == "Settled" for fact in record.facts):
            segment = disk.names_now[DIR / f"{record.segment:010d}.segment"].data
            segment[record.byte + 40 : record.byte + record.size] = bytes(record.size - 40)
    data[data.index(b'"name":"b"')] ^= 1
    found = queues(run_(disk))
    assert found == {"a": (4, 0, 0), "b": (8, 0, 8), "c": (4, 0, 0), "d": (1, 0, 0)}


def run_(disk: FaultyDisk) -> list[Finding]:
    findings = run(disk)
    [checkpoint] = [one for one in findings if one.damaged and "checkpoint" in str(one.fields.get("file"))]
    assert checkpoint.fields["sections_whole"] == 4
    return findings


# --- what it says ---


def test_the_report_says_where_and_what() -> None:
    disk = written(
        [created(1, "orders"), created(2, "mäils\x1b[2J"), published(1, 1, 5)],
        [published(1, 6, 2), published(2, 1)],
        [published(1, 8, 3)],
    )
    segment = disk.names_now[DIR / "0000000001.segment"].data
    second = segment.index(b"KyR1", 70)
    third = segment.index(b"KyR1", second + 4)
    segment[second + 100] ^= 1
    findings = run(disk)
    assert text(findings).splitlines() == [
        "from     /data, written by Kyogo 0.1.0",
        (
            f"damage   0000000001.segment, byte {second} to {third}: the payload of record 2 is not whole; the next "
            f"record begins at byte {third}"
        ),
        "         lost with it: 1 record, 2",
        "queue    orders: 8 messages copied",
        "  lost      2 messages, unless finished before: no checkpoint of this queue is whole: offsets 6 to 7",
        "  in doubt  5 messages: offsets 1 to 5",
        'queue    "m\\u00e4ils\\u001b[2J": 0 messages copied',
        f"  left out  offsets 1 to {(third - second) // 2}: lost messages may have had them",
        "copied   8 messages of 2 queues, 2 lost",
        "in doubt means: it is copied, and what may have finished it stood in damage. It may come again.",
        "Start it with: broker serve --data /saved",
    ]
    for finding in findings:
        assert json.loads(finding.json())["what"] == finding.what


def test_progress_is_told_and_ends_at_the_end(tmp_path: Path) -> None:
    disk = written(*([created(n, f"q{n}"), published(n, 1, 400)] for n in range(1, 30)))
    told: list[tuple[int, int]] = []
    progress = lambda done, total: told.append((done, total))  # noqa: E731  # it is one
    list(Salvage(DIR, SAVED, settings=SETTINGS, files=disk, lane=InlineLane, progress=progress).run())
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 0


def test_one_after_the_other() -> None:
    """What was salvaged can be salvaged again; fences only grow."""
    disk = written([Opened(1, 5), FencesReserved(1 << 20), created(1, "a"), published(1, 1, 3)])
    first = run(disk)
    again = list(Salvage(SAVED, Path("/again"), settings=SETTINGS, files=disk, lane=InlineLane).run())
    assert queues(again) == queues(first) == {"a": (3, 0, 0)}
    assert again[-1].fields["fences_from"] > first[-1].fields["fences_from"] > 1 << 42
    assert not any(finding.damaged for finding in again)
