"""What the load processes of the deep benchmarks are told."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks the broker who it is, again and again, until it is told to stop; its latencies are those of the answers."""

    target: str
    interval_s: float = 0.005


@dataclass(frozen=True, slots=True)
class Churn:
    """Consumers and publishers that come, go and are killed."""

    target: str
    seconds: float
    seed: int = 1
    consumers: int = 24
    """At a time, each for a second at most."""
    victims: int = 2
    """Processes at a time, killed with -9 after a second at most."""
    publishers: int = 4
    queues: int = 3
    drained_after_s: float = 2.0
    """Without a message: the queue is empty."""


@dataclass(frozen=True, slots=True)
class Fill:
    """Publishes one by one through an engine in its own process, and then waits to be killed."""

    data: str
    queue: str
    messages: int
    size: int
    window: int = 3_840
    """Requests that wait for their confirm."""


@dataclass(frozen=True, slots=True)
class Storm:
    """Consumers that all attach at once, take what they get, and all go at once."""

    target: str
    queue: str
    consumers: int
    rounds: int
    prefetch: int = 100
    fails: int = 0
    """Messages that are settled as failed, to come again after an hour, by the first consumer before it all begins."""
