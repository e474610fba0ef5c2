"""Text that clients send: shortened and made harmless before it is stored, logged or sent back."""

from kyogo_broker.model.errors import ErrorCode, refuse
from kyogo_broker.server.limits import MAX_ID_BYTES

_SHOWN_CHARACTERS = 64
"""Of a client's own text within an error: enough to recognise it."""


class UndecodableError(Exception):
    """Bytes that are not the message they should be; ends a stream with INVALID_ARGUMENT."""

    def __init__(self, name: str) -> None:
        super().__init__(f"these bytes are no valid {name}: check the client's generated code against the protos")


def shown(text: str) -> str:
    """`text` quoted on one line, in ASCII, and not long, for an error."""
    cut = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
    return ascii(cut)


def cut(text: str, limit: int) -> str:
    """`text` with at most `limit` bytes of UTF-8, whole characters only."""
    if len(text) * 4 <= limit:
        return text
    encoded = text.encode()
    return text if len(encoded) <= limit else encoded[:limit].decode(errors="ignore")


def checked_id(text: str, field: str, limit: int = MAX_ID_BYTES) -> str:
    """`text` if it can stand as an id or a label.

    Raises:
        RefusedError: it is too long, or would not stay on one line of a log.
    """
    if len(text.encode()) > limit:
        raise refuse(ErrorCode.FRAME_INVALID, f"{field} is longer than {limit} bytes: shorten it", field=field)
    if not text.isprintable():
        raise refuse(
            ErrorCode.FRAME_INVALID,
            f"{field} {shown(text)} has characters that cannot be printed: leave them out",
            field=field,
        )
    return text
