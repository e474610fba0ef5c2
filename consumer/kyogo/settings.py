"""What a worker can be told, beside its handlers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kyogo.backoff import BackoffSettings
from kyogo.errors import ConfigurationError

_HEARTBEAT_MIN = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """All of a worker's settings; `Worker` takes the usual ones directly."""

    url: str | None = None
    """Where the broker is. None: KYOGO_URL, else this machine."""
    token: str | None = field(default=None, repr=False)
    """None: KYOGO_TOKEN."""
    concurrency: int = 16
    """Handlers at once, over all queues."""
    prefetch: int | None = None
    """Messages held at most, over all queues. None: follows concurrency and the measured handling time."""
    prefetch_bytes: int = 0
    """Bytes held at most. 0: the broker's default, 4 MiB."""
    consumer_id: str = ""
    """A stable name; two workers cannot have the same. Empty: the broker assigns one."""
    name: str = ""
    """The program's name, for people."""
    version: str = ""
    """The program's build; rollouts go by it."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """For drain and rollout, such as zone=a."""
    weight: int | None = None
    """Share under the policy WEIGHTED. None: the prefetch."""
    heartbeat: float = 1.0
    """Seconds between heartbeats; the broker may grant a longer interval."""
    grace: float = 25.0
    """Seconds that running handlers have to finish after SIGTERM. Below Kubernetes' 30, so that there is time to
    settle and leave."""
    reconnect: BackoffSettings = field(default_factory=BackoffSettings)
    """How long to wait before attaching again after a lost stream."""
    give_up_after: float | None = None
    """Seconds without a broker after which `run` raises. None: never."""

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ConfigurationError(f"concurrency={self.concurrency}: a worker runs at least one handler at a time")
        if self.prefetch is not None and self.prefetch < 1:
            raise ConfigurationError(f"prefetch={self.prefetch}: nothing would come; leave it out to have it follow")
        if self.prefetch_bytes < 0:
            raise ConfigurationError(f"prefetch_bytes={self.prefetch_bytes} is negative: 0 means the broker's default")
        if self.heartbeat < _HEARTBEAT_MIN:
            raise ConfigurationError(f"heartbeat={self.heartbeat}: an interval below {_HEARTBEAT_MIN} s is a load")
        if self.grace < 0:
            raise ConfigurationError(f"grace={self.grace} is negative: 0 stops handlers at once")
