"""The real file calls, where they have something of their own to do."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from kyogo_broker.journal.files import BUFFERS_MAX, Files


@pytest.fixture
def file(tmp_path: Path) -> int:
    return Files().open(tmp_path / "file", create=True)


def test_a_write_that_the_system_breaks_off_is_completed(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(number: int, parts: Sequence[bytes], offset: int) -> int:
        return os.pwrite(number, b"".join(parts)[:5], offset)

    monkeypatch.setattr(os, "pwritev", short)
    Files().write(file, [b"abc", b"defg", b"hij"], 2)
    assert Files().read(file, 100, 0) == b"\0\0abcdefghij"


def test_a_write_that_goes_nowhere_is_an_error(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 3)
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="no progress") as raised:
        Files().write(file, [b"abcdef"], 0)
    assert raised.value.errno == errno.EIO


def test_a_read_that_the_system_breaks_off_is_completed(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Files().write(file, [b"abcdefghij"], 0)
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda number, size, offset: whole(number, min(size, 3), offset))
    assert Files().read(file, 8, 1) == b"bcdefghi"
    assert Files().read(file, 80, 1) == b"bcdefghij"


def test_more_buffers_than_the_system_takes_are_joined(file: int) -> None:
    Files().write(file, [b"x"] * (BUFFERS_MAX * 2), 0)
    assert Files().size(file) == BUFFERS_MAX * 2


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    Files().make_directory(tmp_path / "a" / "b")
    Files().open(tmp_path / "a" / "b" / "c", create=True)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0
    assert (tmp_path / "a" / "b" / "c").stat().st_mode & 0o077 == 0
