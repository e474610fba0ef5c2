"""The kinds of faults that histories must have met: a run in which one of them never took effect proves little."""

from collections import Counter
from collections.abc import Mapping

KINDS: Mapping[str, tuple[str, ...]] = {
    "process killed": ("crash: killed",),
    "crash inside a file call": ("crash inside a file call",),
    "crash with a file call under way": ("crash with a file call under way",),
    "crash while recovering": ("crash while recovering",),
    "crash while frozen": ("crash while frozen",),
    "unsynced data dropped": ("unsynced data: dropped",),
    "unsynced data torn": ("unsynced data: torn", "unsynced data: headless"),
    "unsynced data reordered": ("unsynced data: reordered",),
    "EIO": ("EIO in ",),
    "ENOSPC": ("ENOSPC",),
    "disk low": ("publish: DISK_LOW",),
    "slow disk": ("slow disk",),
    "frames to the broker lost with their stream": ("frame to the broker lost",),
    "frames to clients lost with their stream": ("frame to a client lost",),
    "stream cut, not everybody told": ("stream cut: client told", "stream cut: broker told", "stream cut: nobody told"),
    "one way cut": ("one way only: ",),
    "frames delayed": ("frames delayed",),
    "network stalled": ("network stalled",),
    "client stalled": ("client stalled",),
    "broker stalled": ("broker frozen",),
    "wall clock jumps": ("clock jump",),
    "attach of a consumer that is attached": ("attach: CONSUMER_ID_IN_USE",),
    "attach that takes over": ("taken over",),
    "publish repeated": ("resend recognised",),
    "settlement repeated": ("settled again: OK",),
    "settlement of a lost lease": ("settle ACK: STALE",),
    "graceful stop": ("graceful stop",),
}
"""Each with the beginnings of the names under which its effects are counted."""


def seen(cover: Counter[str]) -> dict[str, int]:
    """How often each kind took effect."""
    return {
        kind: sum(count for name, count in cover.items() if name.startswith(beginnings))
        for kind, beginnings in KINDS.items()
    }


def unseen(cover: Counter[str]) -> list[str]:
    """The kinds that never did."""
    return [kind for kind, count in seen(cover).items() if not count]
