"""One file of the segment log: its header, its records, and how they are read back and judged.

A segment is a file of a fixed size whose room is reserved before it is used. All numbers are little-endian.

    byte 0                                                        64
    | "KYOGOSEG" | format u32 | shard u32 | key u64 | number u32 | epoch u32 | size u64 | zeros | crc u32 | records ...

    record, 32 bytes and its payload
    | "KyR1" | crc u32 | start u32 | length u32 | sequence u64 | epoch u32 | head crc u32 | payload, `length` bytes |

All checksums are CRC-32C. The header's is its *anchor*: it contains the journal's random key, so no payload that
somebody publishes can pass for a record, and neither can what another journal or segment holds. `start` is the crc of
the record before, in the first record the anchor: records form a chain. `head crc` covers start to epoch, and `crc`,
begun at `start`, covers length to the end of the payload; both are xored with the anchor. So a record can be judged on
its own (whoever holds its position), a head without its payload, and a record's place by the one before.

Zeros where a head should stand are the end of a segment's records.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

import google_crc32c

from kyogo_broker.journal.base import Part
from kyogo_broker.journal.files import BUFFERS_MAX, Files
from kyogo_broker.model.errors import NewerDataError

FORMAT = 1
HEADER_BYTES = 64
HEAD_BYTES = 32
NUMBER_SHIFT = 32
"""position = segment number << 32 | byte in the file."""
CHUNK_BYTES = 4 << 20
"""Read at once when a segment is read from end to end."""
ZEROS = bytes(1 << 20)
"""Written at once where zeros are written, and compared with at once."""
JOIN_BYTES = 64 << 10
"""Up to here a record's parts are copied into one: cheaper than many buffers."""
MAGIC = b"KyR1"

_header = struct.Struct("<8sIIQIIQ20xI")
_head = struct.Struct("<4sIIIQII")
_covered = struct.Struct("<IIQI")
_u32 = struct.Struct("<I")
_no_head = bytes(HEAD_BYTES)

if google_crc32c.implementation != "c":
    raise ImportError("google-crc32c runs in pure Python here, too slow for a journal: install one of its wheels")


class Header(NamedTuple):
    """What stands at the beginning of a segment."""

    shard: int
    key: int
    number: int
    epoch: int
    """Of the opening in which the file was prepared."""
    size: int
    """Bytes that the file was made with."""
    anchor: int = 0
    """The header's crc; computed when it is packed."""

    def pack(self) -> bytes:
        """The header's bytes, its crc among them."""
        fields = (b"KYOGOSEG", FORMAT, self.shard, self.key, self.number, self.epoch, self.size)
        return _header.pack(*fields, google_crc32c.value(_header.pack(*fields, 0)[:-4]))

    @classmethod
    def parse(cls, data: bytes) -> "Header | None":
        """The header in `data`; None if there is no whole one."""
        if len(data) < HEADER_BYTES:
            return None
        magic, file_format, shard, key, number, epoch, size, crc = _header.unpack_from(data)
        if magic != b"KYOGOSEG" or google_crc32c.value(data[: HEADER_BYTES - 4]) != crc:
            return None
        if file_format != FORMAT:
            raise NewerDataError(f"a segment has format {file_format}, this Kyogo knows {FORMAT}")
        return cls(shard, key, number, epoch, size, crc)


class Head(NamedTuple):
    """What stands before a record's payload."""

    crc: int
    start: int
    length: int
    sequence: int
    epoch: int


class Found(NamedTuple):
    """A whole record and the byte in the file at which it begins."""

    offset: int
    head: Head
    payload: memoryview


@dataclass(slots=True)
class Segment:
    """An open segment."""

    file: int
    header: Header
    claimed: bool = False
    """Whether records are being appended: zeros are no longer written to it."""
    claiming: Lock = field(default_factory=Lock)
    """Held while zeros are written."""

    def claim(self) -> None:
        """Wait for a write of zeros that is under way; after this there will be none."""
        with self.claiming:
            self.claimed = True


def segment_name(number: int) -> str:
    """The file's name."""
    return f"{number:010d}.segment"


def segment_number(name: str) -> int | None:
    """The number in a file's name; None if it is no segment's."""
    stem, _, suffix = name.partition(".")
    return int(stem) if suffix == "segment" and len(stem) == 10 and stem.isdecimal() else None  # noqa: PLR2004


def frame(anchor: int, start: int, sequence: int, epoch: int, parts: Sequence[Part]) -> tuple[list[bytes], int, int]:
    """A record as buffers to write, its crc and its size in all."""
    payload = [part if type(part) is bytes else bytes(part) for part in parts]
    length = sum(map(len, payload))
    if length <= JOIN_BYTES or len(payload) >= BUFFERS_MAX:
        payload = [b"".join(payload)]
    covered = _covered.pack(start, length, sequence, epoch)
    covered += _u32.pack(google_crc32c.value(covered) ^ anchor)
    crc = google_crc32c.extend(start, covered[4:])
    for part in payload:
        crc = google_crc32c.extend(crc, part)
    crc ^= anchor
    return [MAGIC + _u32.pack(crc) + covered, *payload], crc, HEAD_BYTES + length


def parse_head(data: bytes, anchor: int) -> Head | None:
    """The head in `data`, 32 bytes; None if it is none of this segment."""
    magic, crc, start, length, sequence, epoch, head_crc = _head.unpack(data)
    if magic != MAGIC or google_crc32c.value(data[8:28]) ^ anchor != head_crc:
        return None
    return Head(crc, start, length, sequence, epoch)


class Walk:
    """Iterates over whole records, one after the other, until something else stands there.

    Args:
        files: the file system.
        segment: the file.
        start: byte at which a record begins.
        chain: what that record's `start` must be; None: not to be judged.
        begin_below: records that begin here or later are left out.
        chunk: bytes to read at once.
    """

    def __init__(
        self,
        files: Files,
        segment: Segment,
        *,
        start: int = HEADER_BYTES,
        chain: int | None,
        begin_below: int | None = None,
        chunk: int = CHUNK_BYTES,
    ) -> None:
        self._files = files
        self._segment = segment
        self._size = files.size(segment.file)
        self._below = self._size if begin_below is None else begin_below
        self._chunk = chunk
        self.end = start
        """Byte after the last whole record."""
        self.chain = chain
        """What the next record's `start` must be."""
        self.sequence: int | None = None
        """Of the last whole record."""
        self.fault: str | None = None
        """What is wrong with that which stands at `end`; None: nothing does."""
        self.strayed = False
        """Whether that is the head of a record which followed another one than the last: no crash does that."""

    def __iter__(self) -> Iterator[Found]:
        """The records; afterwards the attributes say why it stopped."""
        anchor = self._segment.header.anchor
        data, base = b"", self.end
        while self.end < self._below and self.end + HEAD_BYTES <= self._size:
            at = self.end - base
            if at + HEAD_BYTES > len(data):
                data, base, at = self._read(self._chunk), self.end, 0
            raw = data[at : at + HEAD_BYTES]
            head = parse_head(raw, anchor)
            if head is None:
                self.fault = None if raw == _no_head else "the head of a record is not whole"
                return
            if not self._follows(head):
                self.fault, self.strayed = f"record {head.sequence} does not follow the one before", True
                return
            whole = HEAD_BYTES + head.length
            if at + whole > len(data):
                data, base, at = self._read(max(self._chunk, whole)), self.end, 0
            covered = data[at + 12 : at + whole]
            if len(covered) != whole - 12 or google_crc32c.extend(head.start, covered) ^ anchor != head.crc:
                self.fault = f"the payload of record {head.sequence} is not whole"
                return
            found = Found(self.end, head, memoryview(covered)[20:])
            self.end, self.chain, self.sequence = self.end + whole, head.crc, head.sequence
            yield found

    def _read(self, size: int) -> bytes:
        return self._files.read(self._segment.file, size, self.end)

    def _follows(self, head: Head) -> bool:
        if self.chain is not None and head.start != self.chain:
            return False
        return self.sequence is None or head.sequence == self.sequence + 1


class Tail(NamedTuple):
    """What stands after the last whole record."""

    later: int | None
    """Byte of the first head of a record that was appended later than the one that is missing."""
    dirty_until: int
    """Byte after the last one that is not zero; the beginning, if all are."""


def look_behind(files: Files, segment: Segment, start: int, sequence: int) -> Tail:
    """Search for heads of records above `sequence`, from byte `start` to the end of the file."""
    at, dirty_until = start, start
    while len(data := files.read(segment.file, len(ZEROS), at)) >= HEAD_BYTES:
        if data != ZEROS and (filled := len(data.rstrip(b"\0"))):
            dirty_until = at + filled
            found = data.find(MAGIC)
            while 0 <= found <= len(data) - HEAD_BYTES:
                head = parse_head(data[found : found + HEAD_BYTES], segment.header.anchor)
                if head is not None and head.sequence > sequence:
                    return Tail(at + found, dirty_until)
                found = data.find(MAGIC, found + 1)
        at += len(data) - HEAD_BYTES + 1
    if filled := len(data.rstrip(b"\0")):
        dirty_until = at + filled
    return Tail(None, dirty_until)
