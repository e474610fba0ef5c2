"""A queue's settings: what is said holds, what is not said is the default, what is not built is refused by name."""

from dataclasses import replace
from typing import Any

import pytest

from kyogo.v1 import admin_pb2 as admin
from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.model.errors import ErrorCode, Refusal, RefusedError
from kyogo_broker.model.settings import Backoff, BalancePolicy, QueueSettings, RetrySettings
from kyogo_broker.server.wire.settings import decode_settings, encode_settings

DEFAULTS = QueueSettings()
OTHER = QueueSettings(
    balance_policy=BalancePolicy.ROUND_ROBIN,
    visibility_timeout_ms=500,
    max_attempts=0,
    max_losses=2,
    retry=RetrySettings(Backoff.LIST, 7, 3.0, 70, (1, 2), jitter=False, non_retryable=("ValueError",)),
    dead_letter_queue="",
    max_consumers=9,
    labels=(("team", "a"),),
)


def refusal(mask: tuple[str, ...] = (), **fields: Any) -> Refusal:
    with pytest.raises(RefusedError) as caught:
        decode_settings(admin.QueueSettings(**fields), DEFAULTS, mask)
    return caught.value.refusal


@pytest.mark.parametrize("settings", [DEFAULTS, OTHER, replace(DEFAULTS, dead_letter_queue="letters")])
def test_what_is_shown_can_be_sent_back(settings: QueueSettings) -> None:
    shown = admin.QueueSettings.FromString(encode_settings(settings).SerializeToString())
    assert decode_settings(shown, DEFAULTS) == settings


def test_nothing_said_is_the_default() -> None:
    assert decode_settings(admin.QueueSettings(), DEFAULTS) == DEFAULTS


def test_without_a_mask_only_what_is_set_changes() -> None:
    said = admin.QueueSettings(max_losses=4, retry=admin.RetryPolicy(max_ms=90))
    assert decode_settings(said, OTHER) == replace(OTHER, max_losses=4, retry=replace(OTHER.retry, max_ms=90))


def test_a_masked_field_that_is_unset_goes_back_to_its_default() -> None:
    mask = ("visibility_timeout_ms", "dead_letter_queue", "labels")
    assert decode_settings(admin.QueueSettings(max_losses=99), OTHER, mask) == replace(
        OTHER,
        visibility_timeout_ms=DEFAULTS.visibility_timeout_ms,
        dead_letter_queue=None,
        labels=(),
    )


def test_the_mask_reaches_into_retry() -> None:
    said = admin.QueueSettings(retry=admin.RetryPolicy(max_ms=80, initial_ms=8))
    assert decode_settings(said, OTHER, ("retry.max_ms",)) == replace(OTHER, retry=replace(OTHER.retry, max_ms=80))
    whole = RetrySettings(initial_ms=8, max_ms=80)
    assert decode_settings(said, OTHER, ("retry",)) == replace(OTHER, retry=whole)


@pytest.mark.parametrize(
    "fields",
    [
        {"key_concurrency": 2},
        {"default_priority": 5},
        {"priority_aging_ms": 1},
        {"ttl_ms": 1},
        {"on_expiry": admin.ON_EXPIRY_DROP},
        {"dedup_window_ms": 1},
        {"dedup_mode": admin.DEDUP_MODE_REJECT},
        {"max_messages": 1},
        {"max_bytes": 1},
        {"overflow": admin.OVERFLOW_BACKPRESSURE},
        {"rate_limit": admin.RateLimit(messages_per_second=1)},
        {"consumer_rate_limit": admin.RateLimit()},
        {"key_rate_limit": admin.RateLimit(messages_per_second=1)},
        {"breaker": admin.Breaker()},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_is_not_built_is_refused_by_name(fields: dict[str, Any]) -> None:
    [name] = fields
    for said in (refusal(**fields), refusal((name,), **fields)):
        assert said.code is ErrorCode.UNSUPPORTED
        assert said.metadata["field"] == name
    assert decode_settings(admin.QueueSettings(), OTHER, (name,)) == OTHER, "naming it without a value does nothing"


def test_every_setting_of_the_wire_is_known() -> None:
    for field in admin.QueueSettings.DESCRIPTOR.fields:
        decode_settings(admin.QueueSettings(), DEFAULTS, (field.name,))
    for field in admin.RetryPolicy.DESCRIPTOR.fields:
        decode_settings(admin.QueueSettings(), DEFAULTS, (f"retry.{field.name}",))


@pytest.mark.parametrize(
    ("mask", "fields", "words"),
    [
        (("colour",), {}, "colour"),
        (("retry.colour",), {}, "retry.colour"),
        (("labels.a",), {}, "labels.a"),
        ((), {"balance_policy": 77}, "BalancePolicy 77"),
        ((), {"mode": 9}, "QueueMode 9"),
        ((), {"visibility_timeout_ms": 1}, "visibility_timeout_ms"),
        ((), {"retry": admin.RetryPolicy(backoff=admin.RETRY_BACKOFF_LIST)}, "delays_ms"),
        ((), {"retry": admin.RetryPolicy(delays_ms=[1] * 101)}, "delays_ms"),
        ((), {"dead_letter_queue": "a/b"}, "dead_letter_queue"),
    ],
)
def test_what_cannot_work_is_refused(mask: tuple[str, ...], fields: dict[str, Any], words: str) -> None:
    said = refusal(mask, **fields)
    assert said.code is ErrorCode.SETTINGS_INVALID
    assert words in said.message


def test_every_policy_has_a_number_on_the_wire() -> None:
    for policy in BalancePolicy:
        assert pb.BalancePolicy.Value(f"BALANCE_POLICY_{policy}")
