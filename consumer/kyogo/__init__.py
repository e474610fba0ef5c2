"""Kyogo's SDK: workers that handle messages, publishers that send them.

    from kyogo import Worker, Message, Retry, DeadLetter

Blocking programs publish with `kyogo.sync.Publisher`, tests run against `kyogo.testing`, operators have `kyogo.admin`.

Names are imported when they are first used (PEP 562): who needs the wire contract only, as the broker does, does not
load workers and publishers with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kyogo.backoff import BackoffSettings
    from kyogo.codec import Codec, Codecs
    from kyogo.errors import (
        AccessError,
        BrokerError,
        ClosedError,
        CodecError,
        ConfigurationError,
        DecodeError,
        EncodeError,
        ForkedError,
        KyogoError,
        MessageInvalidError,
        MessageTooLargeError,
        ProtocolError,
        PublishTimeoutError,
        QueueFullError,
        QueueNotFoundError,
        TimeLimitExceeded,
        UnavailableError,
        UnsupportedError,
    )
    from kyogo.message import DeadLetterInfo, Message, RedeliveryReason
    from kyogo.middleware import IdempotencyStore, Middleware, idempotent
    from kyogo.outcomes import DeadLetter, Outcome, Release, Retry, Settlement
    from kyogo.outgoing import NewMessage, PublishOptions
    from kyogo.publisher import OffsetRun, Publisher
    from kyogo.settings import WorkerSettings
    from kyogo.worker import Worker, WorkerStats

__all__ = [
    "AccessError",
    "BackoffSettings",
    "BrokerError",
    "ClosedError",
    "Codec",
    "CodecError",
    "Codecs",
    "ConfigurationError",
    "DeadLetter",
    "DeadLetterInfo",
    "DecodeError",
    "EncodeError",
    "ForkedError",
    "IdempotencyStore",
    "KyogoError",
    "Message",
    "MessageInvalidError",
    "MessageTooLargeError",
    "Middleware",
    "NewMessage",
    "OffsetRun",
    "Outcome",
    "ProtocolError",
    "PublishOptions",
    "PublishTimeoutError",
    "Publisher",
    "QueueFullError",
    "QueueNotFoundError",
    "RedeliveryReason",
    "Release",
    "Retry",
    "Settlement",
    "TimeLimitExceeded",
    "UnavailableError",
    "UnsupportedError",
    "Worker",
    "WorkerSettings",
    "WorkerStats",
    "idempotent",
]

_HOMES = {
    "AccessError": "kyogo.errors",
    "BackoffSettings": "kyogo.backoff",
    "BrokerError": "kyogo.errors",
    "ClosedError": "kyogo.errors",
    "Codec": "kyogo.codec",
    "CodecError": "kyogo.errors",
    "Codecs": "kyogo.codec",
    "ConfigurationError": "kyogo.errors",
    "DeadLetter": "kyogo.outcomes",
    "DeadLetterInfo": "kyogo.message",
    "DecodeError": "kyogo.errors",
    "EncodeError": "kyogo.errors",
    "ForkedError": "kyogo.errors",
    "IdempotencyStore": "kyogo.middleware",
    "KyogoError": "kyogo.errors",
    "Message": "kyogo.message",
    "MessageInvalidError": "kyogo.errors",
    "MessageTooLargeError": "kyogo.errors",
    "Middleware": "kyogo.middleware",
    "NewMessage": "kyogo.outgoing",
    "OffsetRun": "kyogo.publisher",
    "Outcome": "kyogo.outcomes",
    "ProtocolError": "kyogo.errors",
    "PublishOptions": "kyogo.outgoing",
    "PublishTimeoutError": "kyogo.errors",
    "Publisher": "kyogo.publisher",
    "QueueFullError": "kyogo.errors",
    "QueueNotFoundError": "kyogo.errors",
    "RedeliveryReason": "kyogo.message",
    "Release": "kyogo.outcomes",
    "Retry": "kyogo.outcomes",
    "Settlement": "kyogo.outcomes",
    "TimeLimitExceeded": "kyogo.errors",
    "UnavailableError": "kyogo.errors",
    "UnsupportedError": "kyogo.errors",
    "Worker": "kyogo.worker",
    "WorkerSettings": "kyogo.settings",
    "WorkerStats": "kyogo.worker",
    "idempotent": "kyogo.middleware",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'kyogo' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
