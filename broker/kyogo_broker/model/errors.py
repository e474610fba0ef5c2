"""One tree of errors, by code. A message always says the remedy; `server/status` maps codes to gRPC."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum


class ErrorCode(IntEnum):
    """The codes of the wire contract, with the wire's numbers (`ErrorCode` in `broker.proto`)."""

    UNSPECIFIED = 0
    QUEUE_NOT_FOUND = 1
    QUEUE_EXISTS = 2
    QUEUE_FULL = 3
    QUEUE_PAUSED = 4
    MESSAGE_NOT_FOUND = 5
    MESSAGE_TOO_LARGE = 6
    MESSAGE_INVALID = 7
    MESSAGE_DUPLICATE = 8
    FRAME_INVALID = 9
    REQUEST_CONFLICT = 10
    REQUEST_TOO_OLD = 11
    RATE_LIMITED = 12
    DISK_LOW = 13
    MEMORY_HIGH = 14
    BROKER_DRAINING = 15
    WRONG_NODE = 16
    CONSUMER_ID_IN_USE = 17
    SETTINGS_INVALID = 18
    LIMIT_EXCEEDED = 19
    UNSUPPORTED = 20
    PERMISSION_DENIED = 21
    UNAUTHENTICATED = 22
    INTERNAL = 23


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request was not done: an expected outcome, so a value and not an exception."""

    code: ErrorCode
    message: str
    """What is wrong and what to do next."""
    retry_after_ms: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """A refusal on its way out of nested calls; carried as a value everywhere else."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refuse(code: ErrorCode, message: str, *, retry_after_ms: int | None = None, **metadata: str) -> RefusedError:
    """The error to raise for `code`; the message names the remedy."""
    return RefusedError(Refusal(code, message, retry_after_ms, metadata))


class BrokerStopError(Exception):
    """The broker cannot go on safely (a failed append, damage): it says why and exits non-zero."""


class NewerDataError(BrokerStopError):
    """What stands on the disk was written by a newer Kyogo; nothing of it is damaged.

    Args:
        what: was met with, and what this Kyogo knows instead.
        version: the newest Kyogo that used the data; empty: not known here, see `by`.
    """

    def __init__(self, what: str, version: str = "") -> None:
        who = f"Kyogo {version}" if version else "a newer Kyogo"
        super().__init__(
            f"{what}: it was written by {who}; start that version, or restore a backup taken before the upgrade"
        )
        self._what = what
        self._version = version

    def by(self, version: str) -> "NewerDataError":
        """The same error for whoever knows the version."""
        return self if self._version else NewerDataError(self._what, version)
