"""The words for states and reasons, with the wire's numbers where the wire has them."""

from enum import IntEnum, StrEnum


class RedeliveryReason(IntEnum):
    """Why a message is delivered again."""

    UNSPECIFIED = 0
    RETRY = 1
    RELEASE = 2
    RETURNED = 3
    VISIBILITY_TIMEOUT = 4
    STREAM_LOSS = 5
    SUSPECT = 6
    FAILED = 7
    DETACH = 8
    DRAIN = 9
    BROKER_RESTART = 10


class SettleStatus(IntEnum):
    """What became of a settlement or an extension."""

    OK = 1
    STALE = 2
    UNKNOWN = 3
    REJECTED = 4


class RevokeMode(IntEnum):
    """What a consumer must do with a delivery."""

    RETURN = 1
    LOST = 2
    CANCEL = 3


class RevokeReason(IntEnum):
    """Why a delivery is taken back."""

    REBALANCE = 1
    VISIBILITY_TIMEOUT = 2
    SUSPECT = 3
    FAILED = 4
    DRAIN = 5
    CANCELLED = 6
    PURGED = 7


class ConsumerState(StrEnum):
    """Where a consumer stands; the transitions are in `core/consumers`."""

    IDLE = "IDLE"
    PROCESSING = "PROCESSING"
    SUSPECT = "SUSPECT"
    FAILED = "FAILED"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"


class FinishReason(StrEnum):
    """How a message ended in its queue."""

    ACKED = "acked"
    EXPIRED = "expired"
    DROPPED = "dropped"
    DEAD_LETTERED = "dead_lettered"
    PURGED = "purged"
    CANCELLED = "cancelled"
    LOST = "lost"
    """It was not to be found when the journal was salvaged."""
