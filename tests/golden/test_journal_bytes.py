"""The journal's bytes as they were when they were first released: what is on people's disks must stay readable.

`journal/facts.txt` holds every kind of fact, `journal/files.txt` a small data directory. A change to them is a change
of format. To rewrite them on purpose: REWRITE_GOLDEN=1, then read the difference.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kyogo_broker.journal.base import Section
from kyogo_broker.journal.codec import decode, encode
from kyogo_broker.journal.lane import InlineLane
from kyogo_broker.journal.segments import SegmentJournal, SegmentSettings
from tests.support.facts import EXAMPLES, comparable
from tests.support.faulty_disk import FaultyDisk

GOLDEN = Path(__file__).parent / "journal"
DIR = Path("/data")
SETTINGS = SegmentSettings(segment_bytes=6144, max_record_bytes=1500, min_free_bytes=0, reserve_segments=1)


def rows(data: bytes) -> Iterator[str]:
    for at in range(0, len(data), 32):
        row = data[at : at + 32]
        readable = "".join(chr(byte) if 32 < byte < 127 else "." for byte in row)
        yield f"    {at:04x} {row.hex(' ', -4):71} {readable}"


def bytes_of(text: str) -> bytes:
    return b"".join(bytes.fromhex(line[9:80]) for line in text.splitlines() if line.startswith("    "))


def check(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("REWRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def sections(name: str) -> dict[str, bytes]:
    """What stands under each heading of a golden file."""
    found = {}
    for block in (GOLDEN / name).read_text().split("\n\n"):
        heading, _, body = block.partition("\n")
        found[heading] = bytes_of(body)
    return found


def test_every_fact_has_the_same_bytes() -> None:
    blocks = [f"{name}\n{chr(10).join(rows(b''.join(encode([fact]))))}" for name, fact in EXAMPLES.items()]
    check("facts.txt", "\n\n".join(blocks) + "\n")


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_fact_can_be_read(name: str) -> None:
    (fact,) = decode(sections("facts.txt")[name])
    assert comparable(fact) == comparable(EXAMPLES[name])


def written() -> FaultyDisk:
    disk = FaultyDisk()
    journal = SegmentJournal(DIR, SETTINGS, shard=3, key=0x0123456789ABCDEF, files=disk, lane=InlineLane)
    journal.open()
    journal.append(1, [b"first"]).result()
    journal.append(2, [b"sec", memoryview(b"ond")]).result()
    writer = journal.begin_checkpoint()
    writer.add(Section(0, 2, b"the shard"))
    writer.add(Section(7, 1, b"a queue"))
    writer.commit().result()
    journal.close()
    return disk


def test_a_data_directory_has_the_same_bytes() -> None:
    blocks = []
    for path, data in sorted(written().files()):
        if path.name in {"lock", "checkpoint.spare"}:
            continue
        if path.name == "meta":
            body = "\n".join(" ".join(line.split()) for line in data.decode().splitlines())
        else:
            body = "\n".join(rows(data.rstrip(b"\0")))
        blocks.append(f"{path.name}, {len(data)} bytes, then zeros\n{body}")
    check("files.txt", "\n\n".join(blocks) + "\n")


def test_a_data_directory_can_be_read() -> None:
    disk = FaultyDisk()
    meta = dict(written().files())[DIR / "meta"]
    for heading, data in sections("files.txt").items():
        name, size = heading.split(", ")[:2]
        file = disk.open(DIR / name, create=True)
        disk.write(file, [meta if name == "meta" else data.ljust(int(size.split()[0]), b"\0")], 0)
        disk.close(file)
    journal = SegmentJournal(DIR, SETTINGS, shard=3, files=disk, lane=InlineLane)
    recovered = journal.open()
    assert recovered.sections == (Section(0, 2, b"the shard"), Section(7, 1, b"a queue"))
    assert recovered.epoch == 2
    assert [bytes(record.payload) for record in journal.replay(0)] == [b"first", b"second"]
