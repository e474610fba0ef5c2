"""Metrics for Prometheus, made from one snapshot a scrape: nothing is counted twice, nothing is counted here.

Labels are bounded: queues beyond `QUEUES_MAX` share one label, everything else comes from enums. Consumers,
messages and keys are never labels.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from kyogo_broker.journal.base import JournalStats
from kyogo_broker.model.stats import EngineStats, Histogram, QueueStats, ShardStats

QUEUES_MAX = 1_000
"""Queues with a label of their own, the oldest ones: each is some 20 series."""
OTHER_QUEUES = "(other)"
"""Label of all the rest; no queue can have this name."""
STATES = ("ready", "delayed", "parked", "in_flight")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a scrape shows, all of one moment."""

    version: str
    node: str
    shard: ShardStats
    engine: EngineStats
    journal: JournalStats
    streams: int
    calls: int
    refused: int
    """Streams and calls."""
    tasks: int
    """Of the loop."""
    threads: int


def render(snapshot: Snapshot, accept: str = "") -> tuple[bytes, str]:
    """The exposition and its content type; may run in a thread."""
    encode, content_type = choose_encoder(accept)
    return encode(BrokerCollector(snapshot)), content_type


class BrokerCollector(Collector):
    """The families of one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        yield from _queues(self._snapshot.shard.queues)
        yield from _consumers(self._snapshot.shard)
        yield from _engine(self._snapshot)
        yield from _edge(self._snapshot)
        yield from ProcessCollector(registry=None).collect()


@dataclass(slots=True)
class _Sums:
    """Figures of one queue, or of many."""

    messages: Counter[str]
    accepted: int
    delivered: int
    consumers: int
    settled: Counter[str]
    redelivered: Counter[str]
    finished: Counter[str]


def _sums(queues: Iterable[QueueStats]) -> Mapping[str, _Sums]:
    sums: dict[str, _Sums] = {}
    for number, queue in enumerate(sorted(queues, key=lambda each: each.queue_id)):
        name = queue.name if number < QUEUES_MAX else OTHER_QUEUES
        of = sums.get(name)
        if of is None:
            of = sums[name] = _Sums(Counter(), 0, 0, 0, Counter(), Counter(), Counter())
        of.messages.update({state: getattr(queue, state) for state in STATES})
        of.accepted += queue.accepted
        of.delivered += queue.delivered
        of.consumers += queue.consumers
        of.settled.update(queue.settled)
        of.redelivered.update(queue.redelivered)
        of.finished.update(queue.finished)
    return sums


def _queues(queues: Iterable[QueueStats]) -> Iterator[Metric]:
    sums = _sums(queues)
    messages = GaugeMetricFamily("kyogo_queue_messages", "Unfinished messages.", labels=("queue", "state"))
    consumers = GaugeMetricFamily("kyogo_queue_consumers", "Consumers subscribed.", labels=("queue",))
    accepted = _counter("kyogo_messages_accepted", "Messages stored since the queue was made.", "queue")
    delivered = _counter("kyogo_messages_delivered", "Deliveries, repeated ones included.", "queue")
    settled = _counter("kyogo_messages_settled", "Settlements that took effect.", "queue", "outcome")
    redelivered = _counter("kyogo_messages_redelivered", "Repeated deliveries.", "queue", "reason")
    finished = _counter("kyogo_messages_finished", "Messages that ended.", "queue", "reason")
    for name, of in sums.items():
        for state, count in of.messages.items():
            messages.add_metric((name, state), count)
        consumers.add_metric((name,), of.consumers)
        accepted.add_metric((name,), of.accepted)
        delivered.add_metric((name,), of.delivered)
        for family, counts in ((settled, of.settled), (redelivered, of.redelivered), (finished, of.finished)):
            for label, count in counts.items():
                family.add_metric((name, label.lower()), count)
    yield from (messages, consumers, accepted, delivered, settled, redelivered, finished)


def _consumers(shard: ShardStats) -> Iterator[Metric]:
    consumers = GaugeMetricFamily("kyogo_consumers", "Attached consumers.", labels=("state",))
    for state, count in sorted(Counter(str(each.state) for each in shard.consumers).items()):
        consumers.add_metric((state.lower(),), count)
    failovers = _counter("kyogo_consumer_failovers", "Consumers lost, or taken for lost.", "reason")
    for reason, count in sorted(shard.failovers.items()):
        failovers.add_metric((reason,), count)
    yield from (consumers, failovers)
    yield GaugeMetricFamily("kyogo_producers", "Producers whose last requests are remembered.", shard.producers)
    yield GaugeMetricFamily("kyogo_window_bytes", "Messages held in memory, encoded.", shard.window_bytes)


def _engine(snapshot: Snapshot) -> Iterator[Metric]:
    engine, journal = snapshot.engine, snapshot.journal
    yield _histogram(
        "kyogo_commit_seconds", "From handing a record to the journal until durable.", engine.commit_seconds
    )
    yield CounterMetricFamily("kyogo_commit_bytes", "Bytes appended to the journal.", engine.commit_bytes)
    yield CounterMetricFamily(
        "kyogo_journal_copied_bytes", "Of these, messages copied forward to free old files.", engine.copied_bytes
    )
    yield CounterMetricFamily("kyogo_engine_turns", "Turns of the engine's loop.", engine.turns)
    yield CounterMetricFamily("kyogo_loop_stalled_seconds", "Time the loop stood still.", engine.stalled_seconds)
    yield GaugeMetricFamily("kyogo_loop_lag_seconds", "How late the loop's last turn was.", engine.lag_seconds)
    yield GaugeMetricFamily("kyogo_inbox_commands", "Commands that wait for the loop.", engine.inbox)
    yield GaugeMetricFamily("kyogo_journal_bytes", "Bytes of the journal on disk.", journal.bytes_on_disk)
    yield GaugeMetricFamily("kyogo_journal_segments", "Files of the journal.", journal.segments)
    yield GaugeMetricFamily("kyogo_disk_free_bytes", "Free bytes on the journal's disk.", journal.free_bytes)


def _edge(snapshot: Snapshot) -> Iterator[Metric]:
    info = GaugeMetricFamily("kyogo_broker_info", "Always 1.", labels=("version", "node"))
    info.add_metric((snapshot.version, snapshot.node), 1)
    yield info
    yield GaugeMetricFamily("kyogo_streams", "Open streams.", snapshot.streams)
    yield GaugeMetricFamily("kyogo_calls", "Unary calls under way.", snapshot.calls)
    yield GaugeMetricFamily("kyogo_loop_tasks", "Tasks of the loop.", snapshot.tasks)
    yield GaugeMetricFamily("kyogo_process_threads", "Threads of the process.", snapshot.threads)
    yield CounterMetricFamily("kyogo_admission_refused", "Streams and calls refused at a limit.", snapshot.refused)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, labels=labels)


def _histogram(name: str, text: str, values: Histogram) -> HistogramMetricFamily:
    """Prometheus sums buckets up; ours stand for themselves."""
    family = HistogramMetricFamily(name, text)
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*(str(each) for each in values.bounds), "+Inf"), values.counts, strict=True):
        total += count
        buckets.append((bound, total))
    family.add_metric((), buckets, values.sum)
    return family
