"""When a failed message is tried again."""

from kyogo_broker.model.settings import Backoff, RetrySettings


def delay_ms(settings: RetrySettings, failures: int, *, jitter: float) -> int:
    """How long a message waits after its `failures`-th failure.

    Full jitter spreads retries evenly over the whole delay: Brooker, "Exponential Backoff And Jitter", 2015.

    Args:
        settings: of the queue.
        failures: charged so far, this one included; from 1.
        jitter: a number from 0 to 1 from the shard's own chance.
    """
    if settings.backoff is Backoff.LIST:
        delay = settings.delays_ms[min(failures, len(settings.delays_ms)) - 1]
    elif settings.backoff is Backoff.LINEAR:
        delay = min(settings.initial_ms * failures, settings.max_ms)
    else:
        # Beyond 64 doublings the cap has long been reached; a power without bound would overflow.
        growth = settings.multiplier ** min(failures - 1, 64)
        delay = int(min(settings.initial_ms * growth, settings.max_ms))
    return int(delay * jitter) if settings.jitter else delay
