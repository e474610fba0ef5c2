"""Kyogo's SDK: workers that handle messages, publishers that send them.

    from kyogo import Worker, Message, Retry, DeadLetter

Blocking programs publish with `kyogo.sync.Publisher`, tests run against `kyogo.testing`, operators have `kyogo.admin`.
"""

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
