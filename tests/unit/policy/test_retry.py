"""When a failed message is tried again."""

import pytest

from kyogo_broker.model.errors import RefusedError
from kyogo_broker.model.settings import DURATION_MS_MAX, MULTIPLIER_MAX, Backoff, RetrySettings
from kyogo_broker.policy.retry import delay_ms

EXPONENTIAL = RetrySettings(initial_ms=1_000, multiplier=2.0, max_ms=300_000, jitter=False)
LINEAR = RetrySettings(Backoff.LINEAR, initial_ms=1_000, max_ms=5_000, jitter=False)
LIST = RetrySettings(Backoff.LIST, delays_ms=(0, 50, 7_000), jitter=False)


@pytest.mark.parametrize(
    ("settings", "delays"),
    [
        (EXPONENTIAL, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 300_000, 300_000]),
        (RetrySettings(initial_ms=10, multiplier=1.5, max_ms=100, jitter=False), [10, 15, 22, 33, 50, 75, 100, 100]),
        (RetrySettings(initial_ms=10, multiplier=1.0, max_ms=100, jitter=False), [10, 10, 10]),
        (RetrySettings(initial_ms=7, max_ms=7, jitter=False), [7, 7, 7]),
        (LINEAR, [1_000, 2_000, 3_000, 4_000, 5_000, 5_000, 5_000]),
        (LIST, [0, 50, 7_000, 7_000, 7_000]),
    ],
)
def test_delays_grow_as_said(settings: RetrySettings, delays: list[int]) -> None:
    assert [delay_ms(settings, failures, jitter=0.0) for failures in range(1, len(delays) + 1)] == delays


@pytest.mark.parametrize("settings", [EXPONENTIAL, LINEAR, LIST])
@pytest.mark.parametrize("failures", [1, 2, 3, 10, 64, 65, 10_000])
def test_full_jitter_lies_between_nothing_and_the_delay(settings: RetrySettings, failures: int) -> None:
    whole = delay_ms(settings, failures, jitter=0.0)
    jittered = RetrySettings(
        settings.backoff, settings.initial_ms, settings.multiplier, settings.max_ms, settings.delays_ms, jitter=True
    )
    assert delay_ms(jittered, failures, jitter=0.0) == 0
    assert delay_ms(jittered, failures, jitter=1.0) == whole
    assert delay_ms(jittered, failures, jitter=0.5) == whole // 2
    values = [delay_ms(jittered, failures, jitter=step / 100) for step in range(101)]
    assert values == sorted(values)


def test_the_cap_holds_for_any_number_of_failures() -> None:
    settings = RetrySettings(initial_ms=1, multiplier=MULTIPLIER_MAX, max_ms=DURATION_MS_MAX, jitter=False)
    assert {delay_ms(settings, failures, jitter=0.0) for failures in (20, 1_000, 10**9)} == {DURATION_MS_MAX}


@pytest.mark.parametrize(
    "fields",
    [
        {"initial_ms": 0}, {"initial_ms": 10, "max_ms": 9}, {"max_ms": DURATION_MS_MAX + 1}, {"multiplier": 0.9},
        {"multiplier": MULTIPLIER_MAX + 0.1}, {"multiplier": float("nan")}, {"backoff": Backoff.LIST},
        {"backoff": Backoff.LIST, "delays_ms": (-1,)}, {"backoff": Backoff.LIST, "delays_ms": (DURATION_MS_MAX + 1,)},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_work_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(RefusedError):
        RetrySettings(**fields)  # type: ignore[arg-type]
