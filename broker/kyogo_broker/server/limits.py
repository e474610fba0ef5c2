"""What the edge accepts: sizes and counts, each with the reason for its value.

Operators change the fields of `Limits`; the constants are the contract's, or guard one frame against eating
the loop.
"""

from dataclasses import dataclass

from kyogo_broker.model.errors import ErrorCode, refuse

MAX_RECEIVE_BYTES = 8 << 20
"""What gRPC hands to us at all. Twice a request, so that one a little too large gets an answer that names the
limit; above it gRPC ends the stream by itself."""
MAX_MESSAGES_PER_REQUEST = 16_384
"""Sixty-four times a good batch; a request of 4 MiB could otherwise hold two million empty messages, each an
object while it is checked."""
MAX_RANGES_PER_FRAME = 16_384
"""Every second fence of three full prefetches; a frame of 4 MiB could hold two million."""
FENCES_PER_PREFETCH = 4
"""All ranges of a frame together name at most so many times the largest prefetch: each fence is looked up and
answered, and nobody has more to say than begun, settled and extended of what he holds."""
MIN_FENCES_HELD = 1_024
"""Counts as the prefetch where that is smaller: a consumer may still hold what it was given before a restart."""
MAX_SETTLEMENTS_PER_FRAME = 4_096
MAX_PUBLISHES_PER_SETTLEMENT = 256
"""Its answer stands in one frame."""
MAX_PUBLISHES_PER_FRAME = 4_096
"""Four for each settlement of the SDK's fullest frame; decoding one takes 25 us whatever its size."""
RANGE_COST_BYTES = 4_096
FENCE_COST_BYTES = 256
PUBLISH_COST_BYTES = 4_096
"""What one of them weighs in the engine's inbox, which is bounded in bytes: a frame of 100 KiB can name 16,384
ranges, and forty of them in the inbox held up everybody else for four seconds."""
HEAVY_COST_BYTES = 1 << 20
"""Frames that weigh so much are handled one after the other, whoever sends them."""
MAX_SUBSCRIPTIONS = 64
MAX_CAPABILITIES = 64
MAX_LABELS = 32
MAX_LABEL_BYTES = 256
"""Each side of a pair."""
MAX_ID_BYTES = 256
"""Consumer ids, producer ids, tokens, client names."""
MAX_REASON_BYTES = 4_096
"""Kept with a message for as long as it lives; longer ones are cut."""
MAX_ERROR_TYPE_BYTES = 256
MAX_RESUME_WINDOW_MS = 3600 * 1000
MIN_FRAME_BYTES = 64 << 10
"""Of `max_frame_bytes`: the largest single answer (a settlement with all its publishes) fits into it."""
DEFAULT_FRAME_BYTES = (4 << 20) - (64 << 10)
"""Under the 4 MiB at which a gRPC client with default options ends the stream."""
MAX_FRAME_BYTES = 64 << 20
FILL_FRAME_BYTES = 1 << 20
"""Frames are filled up to here: large enough that a frame's cost vanishes, small enough to share a stream."""
DEFAULT_PREFETCH_MESSAGES = 16
DEFAULT_PREFETCH_BYTES = 4 << 20
LARGE_FRAME_BYTES = 64 << 10
"""From here on frames are decoded one after the other, see `turnstile`; below, the worst takes 3 ms."""
MAX_CONTROL_BYTES = 256 << 10
"""Of a request of the control plane, to health checks and to reflection: a hundred times the largest settings."""
MAX_PAGE_BYTES = 3 << 20
"""Of a page of a list: under the 4 MiB that clients accept by default, whatever labels stand in it."""
MAX_WATCHES = 100
"""Calls of WatchStats: a screen for everybody who may look."""
MAX_WAITING_ITEMS = 1 << 16
"""Results and ranges that wait to be written to one consumer, 200 B each; above it nothing more is read of him."""
MAX_UNREAD_BYTES = 512 << 20
"""Of messages that wait to be written to all consumers together: eight with the largest prefetch who do not read, or a
thousand who are one frame behind. Beyond it the slowest is lost, see `unread`."""
MAX_CONNECTIONS = 10_000
"""In all; each takes a file, and 15 KB."""
SPARE_FILES = 256
"""Of those the process may open, kept for the journal, the HTTP port and itself."""
STREAM_SLOTS_SPARE = 64
"""On one connection beyond `max_streams_per_client`: for calls, and for the streams that are being refused."""
REQUEST_SECONDS = 60.0
"""For the request of a call to arrive: one that is half sent holds a place that others want."""
UNREAD_SECONDS = 60.0
"""For one frame to leave: a consumer that reads nothing for so long is lost, heartbeats or not."""
LAST_WORD_SECONDS = 30.0
"""For answers and the status of a call that is over; a peer that does not read would keep it open for ever."""
WIRE_INTEGER_LIMIT = 1 << 53
"""Offsets, fences and request ids stay below it, so that they survive a double."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What this broker accepts and grants."""

    max_message_bytes: int = 3 << 20
    """One encoded message. A frame of it fits under every client's default limit."""
    max_request_bytes: int = 4 << 20
    """One encoded request or consumer's frame."""
    max_prefetch_messages: int = 10_000
    max_prefetch_bytes: int = 64 << 20
    max_streams: int = 10_000
    """Consume and PublishStream together: 26 KB of memory each, and a heartbeat a second."""
    max_streams_per_client: int = 200
    """On one connection, so that no client takes all of them; a flood of streams that are opened and reset costs the
    others the more, the more are let in."""
    max_calls: int = 4_096
    """Unary calls under way."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the field and its bounds."""
        _within("max_message_bytes", self.max_message_bytes, 1024, 3 << 20)
        _within("max_request_bytes", self.max_request_bytes, self.max_message_bytes + 1024, 6 << 20)
        _within("max_prefetch_messages", self.max_prefetch_messages, 1, 65_536)
        _within("max_prefetch_bytes", self.max_prefetch_bytes, 4 << 20, 1 << 30)
        _within("max_streams", self.max_streams, 1, 100_000)
        _within("max_streams_per_client", self.max_streams_per_client, 1, 100_000)
        _within("max_calls", self.max_calls, 1, 100_000)


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise refuse(ErrorCode.SETTINGS_INVALID, f"{name} is {value}; it must lie between {low} and {high}")
