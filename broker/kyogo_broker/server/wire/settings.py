"""A queue's settings, both ways.

The wire knows every setting of the contract, the model those that are built. One that is not may be named
with its default, so that what `GetQueue` answered can be sent back; any other value is refused by name.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from google.protobuf.descriptor import EnumDescriptor

from kyogo.v1 import admin_pb2 as admin
from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.model.errors import ErrorCode, RefusedError, refuse
from kyogo_broker.model.settings import Backoff, BalancePolicy, QueueMode, QueueSettings, RetrySettings
from kyogo_broker.server.limits import MAX_ERROR_TYPE_BYTES
from kyogo_broker.server.wire.consume import checked_labels
from kyogo_broker.server.wire.text import checked_id, shown

MAX_RETRY_ENTRIES = 100
"""Of `delays_ms` and of `non_retryable`."""
_DEFAULTS = QueueSettings()
_Wire = admin.QueueSettings
_E = TypeVar("_E")

_BUILT: dict[str, Callable[[_Wire], Any]] = {
    "mode": lambda s: QueueMode(_name(admin.QueueMode.DESCRIPTOR, s.mode, "STANDARD")),
    "balance_policy": lambda s: BalancePolicy(_name(pb.BalancePolicy.DESCRIPTOR, s.balance_policy, "LEAST_IN_FLIGHT")),
    "visibility_timeout_ms": lambda s: s.visibility_timeout_ms,
    "max_attempts": lambda s: s.max_attempts,
    "max_losses": lambda s: s.max_losses,
    "dead_letter_queue": lambda s: s.dead_letter_queue,
    "max_consumers": lambda s: s.max_consumers,
    "labels": lambda s: tuple(sorted(checked_labels(s.labels).items())),
}
_BUILT_RETRY: dict[str, Callable[[admin.RetryPolicy], Any]] = {
    "backoff": lambda r: Backoff(_name(admin.RetryBackoff.DESCRIPTOR, r.backoff, "EXPONENTIAL")),
    "initial_ms": lambda r: r.initial_ms,
    "multiplier": lambda r: r.multiplier,
    "max_ms": lambda r: r.max_ms,
    "delays_ms": lambda r: _few("retry.delays_ms", r.delays_ms),
    "jitter": lambda r: _name(admin.RetryJitter.DESCRIPTOR, r.jitter, "FULL") == "FULL",
    "non_retryable": lambda r: _error_types(r.non_retryable),
}
_NOT_BUILT: dict[str, tuple[int, ...]] = {
    "key_concurrency": (1,),
    "default_priority": (4,),
    "priority_aging_ms": (60_000,),
    "ttl_ms": (0,),
    "on_expiry": (0, 1),
    "dedup_window_ms": (0,),
    "dedup_mode": (0, 1),
    "max_messages": (0,),
    "max_bytes": (0,),
    "overflow": (0, 1),
    "rate_limit": (),
    "consumer_rate_limit": (),
    "key_rate_limit": (),
    "breaker": (),
}
"""The values that mean the default; the first one is what `GetQueue` says."""


def decode_settings(wire: _Wire, base: QueueSettings, mask: Iterable[str] = ()) -> QueueSettings:
    """`base` with the fields of `mask` as in `wire`, or with those that are set there if there is no mask.

    Raises:
        RefusedError: `SETTINGS_INVALID` or `UNSUPPORTED`, naming the field.
    """
    changes: dict[str, Any] = {}
    retry: dict[str, Any] = {}
    for path in _paths(wire, mask):
        field, _, inner = path.partition(".")
        if field == "retry":
            retry |= _retry_changes(wire.retry, inner)
        elif field in _BUILT and not inner:
            is_set = _is_set(wire, field)
            changes[field] = _BUILT[field](wire) if is_set else getattr(_DEFAULTS, field)
        else:
            _refuse_not_built(wire, field, path)
    if retry:
        changes["retry"] = replace(base.retry, **retry)
    return replace(base, **changes)


def encode_settings(settings: QueueSettings) -> _Wire:
    """All settings in force, defaults filled in."""
    retry = settings.retry
    return _Wire(
        mode=admin.QueueMode.Value(f"QUEUE_MODE_{settings.mode}"),
        balance_policy=pb.BalancePolicy.Value(f"BALANCE_POLICY_{settings.balance_policy}"),
        visibility_timeout_ms=settings.visibility_timeout_ms,
        max_attempts=settings.max_attempts,
        max_losses=settings.max_losses,
        retry=admin.RetryPolicy(
            backoff=admin.RetryBackoff.Value(f"RETRY_BACKOFF_{retry.backoff}"),
            initial_ms=retry.initial_ms,
            multiplier=retry.multiplier,
            max_ms=retry.max_ms,
            delays_ms=retry.delays_ms,
            jitter=admin.RETRY_JITTER_FULL if retry.jitter else admin.RETRY_JITTER_NONE,
            non_retryable=retry.non_retryable,
        ),
        dead_letter_queue=settings.dead_letter_queue,
        max_consumers=settings.max_consumers,
        labels=dict(settings.labels),
        key_concurrency=1,
        default_priority=4,
        priority_aging_ms=60_000,
        ttl_ms=0,
        on_expiry=admin.ON_EXPIRY_DEAD_LETTER,
        dedup_window_ms=0,
        dedup_mode=admin.DEDUP_MODE_DROP,
        max_messages=0,
        max_bytes=0,
        overflow=admin.OVERFLOW_REJECT,
    )


def _paths(wire: _Wire, mask: Iterable[str]) -> list[str]:
    named = list(mask)
    if named:
        return named
    paths = [descriptor.name for descriptor, _ in wire.ListFields() if descriptor.name != "retry"]
    return paths + [f"retry.{descriptor.name}" for descriptor, _ in wire.retry.ListFields()]


def _is_set(wire: _Wire, field: str) -> bool:
    return any(descriptor.name == field for descriptor, _ in wire.ListFields())


def _retry_changes(wire: admin.RetryPolicy, inner: str) -> dict[str, Any]:
    """The one field `inner`, or all of them."""
    if inner and inner not in _BUILT_RETRY:
        raise _unknown(f"retry.{inner}")
    set_here = {descriptor.name for descriptor, _ in wire.ListFields()}
    defaults = RetrySettings()
    return {
        field: _BUILT_RETRY[field](wire) if field in set_here else getattr(defaults, field)
        for field in ([inner] if inner else _BUILT_RETRY)
    }


def _refuse_not_built(wire: _Wire, field: str, path: str) -> None:
    if field not in _NOT_BUILT:
        raise _unknown(path)
    if not _is_set(wire, field):
        return
    value, defaults = getattr(wire, field), _NOT_BUILT[field]
    if value not in defaults:
        raise _unsupported(field, value if defaults else "set", defaults[0] if defaults else "unset")


def _unsupported(field: str, value: object, default: object) -> RefusedError:
    return refuse(
        ErrorCode.UNSUPPORTED,
        f"{field} is {value}; this broker knows only the default there yet, {default}: leave it out",
        field=field,
    )


def _unknown(path: str) -> RefusedError:
    known = [*_BUILT, "retry", *(f"retry.{name}" for name in _BUILT_RETRY)]
    return refuse(ErrorCode.SETTINGS_INVALID, f"{shown(path)} is no setting of a queue; there are {', '.join(known)}")


def _name(enum: EnumDescriptor, number: int, default: str) -> str:
    """The model's name of an enum's value; an enum left at 0 means the default."""
    if not number:
        return default
    names = {value.number: value.name for value in enum.values}
    prefix = names[0].removesuffix("UNSPECIFIED")
    if number not in names:
        known = ", ".join(f"{name.removeprefix(prefix)} ({n})" for n, name in names.items() if n)
        raise refuse(ErrorCode.SETTINGS_INVALID, f"{enum.name} {number} is unknown; there are {known}")
    return str(names[number]).removeprefix(prefix)


def _error_types(names: Sequence[str]) -> tuple[str, ...]:
    few = _few("retry.non_retryable", names)
    return tuple(checked_id(name, "an entry of retry.non_retryable", MAX_ERROR_TYPE_BYTES) for name in few)


def _few(field: str, entries: Sequence[_E]) -> tuple[_E, ...]:
    if len(entries) > MAX_RETRY_ENTRIES:
        raise refuse(
            ErrorCode.SETTINGS_INVALID,
            f"{field} has {len(entries)} entries, at most {MAX_RETRY_ENTRIES} go",
        )
    return tuple(entries)
