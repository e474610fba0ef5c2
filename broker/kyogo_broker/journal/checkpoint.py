"""Checkpoints of a segment log: a file each, whole or worth nothing.

    byte 0                                                     40
    | "KYOGOCKP" | format u32 | shard u32 | key u64 | number u64 | crc u32 | zeros | entries ...

    entry, 32 bytes and the state
    | "SECT" or "DONE" | crc u32 | queue u64 (DONE: number of sections) | sequence u64 | length u64 | state |

All numbers are little-endian. Each crc (CRC-32C) begins at the one before, the first entry's at the header's, and
covers queue to the end of the state. A file is whole if the chain reaches its DONE; what stands behind is of an older
one: the file for the next checkpoint lies ready, so that one can be taken on a full disk, and is the oldest one reused.
"""

import struct
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

import google_crc32c

from kyogo_broker.journal.base import Section
from kyogo_broker.journal.directory import Directory, Meta
from kyogo_broker.journal.files import Files
from kyogo_broker.journal.lane import Lane
from kyogo_broker.model.errors import NewerDataError

FORMAT = 1
KEPT = 2
"""Checkpoints on disk: the newest, and the one before for the day on which the newest cannot be read."""
SPARE = "checkpoint.spare"
SPARE_BYTES_MIN = 1 << 20
SYNC_BYTES = 4 << 20
"""Written between syncs, so that the log's own never wait long behind a large checkpoint."""

_header = struct.Struct("<8sIIQQI4x")
_entry = struct.Struct("<4sIQQQ")


def checkpoint_name(number: int) -> str:
    """The file's name."""
    return f"checkpoint-{number:010d}"


def checkpoint_number(name: str) -> int | None:
    """The number in a file's name; None if it is no checkpoint's."""
    stem, _, digits = name.partition("-")
    return int(digits) if stem == "checkpoint" and len(digits) == 10 and digits.isdecimal() else None  # noqa: PLR2004


def parse_checkpoint(data: bytes, *, key: int, number: int) -> tuple[Section, ...]:
    """The sections in a checkpoint's file.

    Raises:
        ValueError: it is not whole; says where.
    """
    if len(data) < _header.size:
        raise ValueError("it ends within its header")
    magic, file_format, _shard, said_key, said_number, crc = _header.unpack_from(data)
    if magic != b"KYOGOCKP" or google_crc32c.value(data[: _header.size - 8]) != crc:
        raise ValueError("its header is not whole")
    if file_format != FORMAT:
        raise NewerDataError(f"a checkpoint has format {file_format}, this Kyogo knows {FORMAT}")
    if (said_key, said_number) != (key, number):
        raise ValueError("it belongs to another journal")
    at = _header.size
    sections: list[Section] = []
    while at + _entry.size <= len(data):
        kind, said, queue_id, sequence, length = _entry.unpack_from(data, at)
        state = data[at + _entry.size : at + _entry.size + length]
        crc = google_crc32c.extend(google_crc32c.extend(crc, data[at + 8 : at + _entry.size]), state)
        if crc != said or len(state) != length or kind not in {b"SECT", b"DONE"}:
            raise ValueError(f"the section at byte {at} is not whole")
        if kind == b"DONE" and queue_id == len(sections):
            return tuple(sections)
        sections.append(Section(queue_id, sequence, state))
        at += _entry.size + length
    raise ValueError(f"it breaks off at byte {at}")


def read_sections(data: bytes, *, shard: int, key: int, number: int) -> tuple[tuple[Section, ...], str | None]:
    """What is whole of a checkpoint, damaged or not, and what is wrong with the rest.

    A section is whole if it agrees with the crc that stands before it. Those behind a damaged one can be read as long
    as its length is right: their crcs begin with the one that it says, or with the one that it has.

    Raises:
        NewerDataError: a newer Kyogo wrote it.
    """
    try:
        return parse_checkpoint(data, key=key, number=number), None
    except ValueError as error:
        what = str(error)
    fields = (b"KYOGOCKP", FORMAT, shard, key, number)
    starts = {google_crc32c.value(_header.pack(*fields, 0)[:-8])}
    at = _header.size
    sections: list[Section] = []
    while at + _entry.size <= len(data):
        kind, said, queue_id, sequence, length = _entry.unpack_from(data, at)
        end = at + _entry.size + length
        if end > len(data):
            break
        covered = data[at + 8 : end]
        found = {google_crc32c.extend(start, covered) for start in starts}
        if said in found and kind == b"SECT":
            sections.append(Section(queue_id, sequence, data[at + _entry.size : end]))
        elif kind != b"SECT":
            break
        starts = {said} if said in found else {said, *found}
        at = end
    return tuple(sections), what


class CheckpointFile:
    """A checkpoint being written. Its file calls are done by the lane, in their order."""

    def __init__(
        self,
        files: Files,
        directory: Directory,
        lane: Lane,
        *,
        meta: Meta,
        number: int,
        kept: list[int],
        appended: Callable[[], Future[None] | None],
    ) -> None:
        self._files = files
        self._directory = directory
        self._lane = lane
        self._number = number
        self._kept = kept
        """Numbers of the checkpoints on disk; belongs to the lane."""
        self._appended = appended
        self._file: int | None = None
        self._count = 0
        self._end = 0
        self._synced = 0
        self._crc = 0
        self._failure: BaseException | None = None
        self._lane.do(self._write, self._begin, meta)

    def add(self, section: Section) -> None:
        """Append a section; an error shows in `commit`."""
        self._count += 1
        self._lane.do(self._write, self._append, b"SECT", section)

    def commit(self) -> Future[None]:
        """Make it the newest, once the last append, which it may contain, is durable."""
        return self._lane.do(self._finish, self._appended())

    def abandon(self) -> None:
        """Close the file; the next checkpoint begins it anew."""
        self._lane.do(self._close)

    def _write(self, call: Callable[..., None], *arguments: object) -> None:
        if self._failure is not None:
            return
        try:
            call(*arguments)
        except OSError as error:
            self._failure = error

    def _begin(self, meta: Meta) -> None:
        self._file = self._files.open(self._directory.of(SPARE), create=True)
        fields = (b"KYOGOCKP", FORMAT, meta.shard, meta.key, self._number)
        head = _header.pack(*fields, 0)[:-8]
        self._crc = google_crc32c.value(head)
        self._files.write(self._file, [_header.pack(*fields, self._crc)], 0)
        self._end = _header.size

    def _append(self, kind: bytes, section: Section) -> None:
        assert self._file is not None
        fields = struct.pack("<QQQ", section.queue_id, section.sequence, len(section.state))
        self._crc = google_crc32c.extend(google_crc32c.extend(self._crc, fields), section.state)
        self._files.write(self._file, [kind + struct.pack("<I", self._crc) + fields, section.state], self._end)
        self._end += _entry.size + len(section.state)
        if self._end - self._synced > SYNC_BYTES:
            self._files.sync_data(self._file)
            self._synced = self._end

    def _finish(self, after: Future[None] | None) -> None:
        self._write(self._append, b"DONE", Section(self._count, 0, b""))
        try:
            if self._failure is not None:
                raise self._failure
            assert self._file is not None
            self._files.sync(self._file)
        finally:
            self._close()
        if after is not None:
            after.result()
        self._files.rename(self._directory.of(SPARE), self._directory.of(checkpoint_name(self._number)))
        self._kept.append(self._number)
        keep_ready(self._files, self._directory, self._kept, self._end)

    def _close(self) -> None:
        if self._file is not None:
            self._files.close(self._file)
            self._file = None


def keep_ready(files: Files, directory: Directory, kept: list[int], size: int) -> None:
    """Leave the newest checkpoints, and a file with room for the next one."""
    while len(kept) > KEPT:
        files.rename(directory.of(checkpoint_name(kept.pop(0))), directory.of(SPARE))
    file = files.open(directory.of(SPARE), create=True)
    with suppress(OSError):  # the disk is full: what is there must do, and mostly does
        files.allocate(file, max(SPARE_BYTES_MIN, size + size // 4))
    files.close(file)
    directory.sync()
