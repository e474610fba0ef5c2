"""How large the attacks are.

    KYOGO_SECURITY=full    the sizes that are spoken of: thousands of connections, floods of three seconds
    otherwise              the same attacks, small enough for every run of the tests

The figures of a full run stand in the report that pytest prints at its end. Small ones say that a limit holds, not how
the broker feels at it.
"""

import os
from dataclasses import dataclass

FULL = os.environ.get("KYOGO_SECURITY") == "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of one run."""

    attack_seconds: float
    """Each attack goes on so long at least, and until the bystander was served."""
    connections: int
    silent: int
    """Connections that say nothing, and as many that say half a greeting."""
    calls_begun: int
    half_sent: int
    """Messages of 4 MiB of which three quarters come."""
    frame_bytes: int
    """Frames of tiny fields."""
    decode_seconds: float
    """Of the processor, for the worst of these frames: seven times what it takes on the machine this was written on."""
    bomb_bytes: int
    """Zeros, packed a thousandfold."""
    unread_bytes: int
    """Published for consumers that do not read."""
    unread_consumers: int
    fuzz_calls: int
    """For each rpc."""
    queues: int
    consumers: int


SIZES = (
    Sizes(
        attack_seconds=3,
        connections=2_000,
        silent=300,
        calls_begun=20_000,
        half_sent=48,
        frame_bytes=4 << 20,
        decode_seconds=1.5,
        bomb_bytes=256 << 20,
        unread_bytes=640 << 20,
        unread_consumers=12,
        fuzz_calls=400,
        queues=10_000,
        consumers=1_000,
    )
    if FULL
    else Sizes(
        attack_seconds=0.2,
        connections=300,
        silent=60,
        calls_begun=2_000,
        half_sent=8,
        frame_bytes=1 << 20,
        decode_seconds=0.5,
        bomb_bytes=32 << 20,
        unread_bytes=48 << 20,
        unread_consumers=3,
        fuzz_calls=12,
        queues=200,
        consumers=50,
    )
)
