"""Segments made ready: a failure leaves nothing open and nothing half made behind."""

import errno

import pytest

from kyogo_broker.journal.directory import Directory
from kyogo_broker.journal.reserve import UNFINISHED, make_segment
from kyogo_broker.journal.segment_file import Header
from tests.support.faulty_disk import FaultyDisk
from tests.support.segment_log import DIR

HEADER = Header(shard=0, key=9, number=1, epoch=1, size=5_800)


@pytest.mark.parametrize("call", ["truncate", "allocate", "write", "sync", "rename", "sync_directory"])
def test_a_segment_that_cannot_be_made_is_let_go(call: str) -> None:
    disk = FaultyDisk()

    def fail(name: str) -> None:
        if name == call:
            raise OSError(errno.EIO, "injected")

    disk.before = fail
    with pytest.raises(OSError, match="injected"):
        make_segment(disk, Directory(disk, DIR), HEADER)
    assert disk.open_files() == 0
    assert UNFINISHED not in disk.names(DIR)
    disk.before = lambda _: None
    segment = make_segment(disk, Directory(disk, DIR), HEADER)
    assert segment.header.number == 1
    assert disk.open_files() == 1
