"""A checkpoint's section to bytes and back: JSON for what is small, raw columns for what is many.

    | length of the head, u32 | head: JSON | columns, back to back, little-endian |

In the head each column is replaced by a mapping of NUL to its type and its bytes; columns follow in that order.
Columns may stand anywhere inside the state, in mappings and lists too.

A state is encoded a piece at a time if need be: what its `Pieces` make becomes a column each (lists as JSON in bytes),
and a mapping of two NULs to those columns stands in the head. Read back they are one column or one list again.
"""

import json
import struct
from array import array
from collections.abc import Generator, Mapping
from typing import Any

from kyogo_broker.model.column import Pieces
from kyogo_broker.model.errors import BrokerStopError

COLUMN_TYPES = "bBhHiIqQfd"
"""Typecodes of `array` that have one size everywhere (`l` and `L` have not)."""
COLUMN = "\0"
"""The key of a column's place in the head; no name that people give contains it."""
PIECES = "\0\0"
"""The key of the places of columns that belong together."""

_length = struct.Struct("<I")


def encode_section(state: Mapping[str, Any]) -> bytes:
    """A state as bytes.

    Args:
        state: JSON values (their keys strings), and as values anywhere inside: `array.array`, `bytes`; at the top
            `Pieces` too.

    Raises:
        TypeError: something else stands in it.
    """
    encoding = encode_in_slices(state)
    while True:
        try:
            next(encoding)
        except StopIteration as done:
            return bytes(done.value)


def encode_in_slices(state: Mapping[str, Any]) -> Generator[None, None, bytes]:
    """The same a piece at a time: yields after each, returns the bytes."""
    made: dict[str, Any] = {}
    for name, value in state.items():
        made[name] = value
        if isinstance(value, Pieces):
            parts: list[array[Any] | bytes] = []
            for piece in value:
                parts.append(piece if isinstance(piece, array) else _json(piece))
                yield
            made[name] = {PIECES: parts}
    columns: list[bytes | bytearray | array[Any]] = []

    def place(value: object) -> dict[str, list[str | int]]:
        if isinstance(value, array) and value.typecode in COLUMN_TYPES:
            columns.append(value)
            return {COLUMN: [value.typecode, len(value) * value.itemsize]}
        if isinstance(value, bytes | bytearray):
            columns.append(value)
            return {COLUMN: ["", len(value)]}
        raise TypeError(f"a section holds JSON values, bytes and arrays of {COLUMN_TYPES}, not {value!r:.100}")

    head = json.dumps(made, default=place, separators=(",", ":")).encode()
    return b"".join((_length.pack(len(head)), head, *columns))


def decode_section(data: bytes) -> dict[str, Any]:
    """The state of which `encode_section` made `data`; tuples have become lists.

    Raises:
        BrokerStopError: it is none.
    """
    view = memoryview(data)
    at = 0

    def column(value: dict[str, Any]) -> object:
        nonlocal at
        match value.get(COLUMN):
            case [str(typecode), int(size)]:
                part = view[at : at + size]
                at += size
                if not typecode:
                    return bytes(part)
                filled = array(typecode)
                filled.frombytes(part)
                return filled
        return _together(value[PIECES]) if PIECES in value else value

    try:
        at = _length.size + _length.unpack_from(view)[0]
        state = json.loads(bytes(view[_length.size : at]), object_hook=column)
    except (struct.error, ValueError) as error:
        raise BrokerStopError(f"a section of the checkpoint does not decode: {error}") from error
    if not isinstance(state, dict) or at != len(data):
        raise BrokerStopError(f"a section of the checkpoint has {len(data)} bytes instead of {at}")
    return state


def _json(rows: list[Any]) -> bytes:
    return json.dumps(rows, separators=(",", ":")).encode()


def _together(parts: list[Any]) -> object:
    """Pieces as one column or one list."""
    whole = json.loads(parts[0]) if isinstance(parts[0], bytes) else parts[0]
    for part in parts[1:]:
        whole.extend(json.loads(part) if isinstance(part, bytes) else part)
    return whole
