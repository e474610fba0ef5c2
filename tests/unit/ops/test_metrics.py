"""Metrics say what the snapshots say, with labels that are bounded."""

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kyogo_broker.journal.base import JournalStats
from kyogo_broker.model.commands import Client
from kyogo_broker.model.settings import QueueSettings
from kyogo_broker.model.states import ConsumerState
from kyogo_broker.model.stats import ConsumerStats, EngineStats, Histogram, QueueStats, ShardStats
from kyogo_broker.ops import metrics
from kyogo_broker.ops.metrics import OTHER_QUEUES, Snapshot, render

QUEUE = QueueStats(
    queue_id=1,
    name="orders",
    settings=QueueSettings(),
    paused=False,
    created_unix_ms=1,
    next_offset=10,
    ready=1,
    delayed=2,
    parked=3,
    in_flight=4,
    finished={"acked": 5},
    accepted=15,
    delivered=20,
    settled={"ACK": 5, "RETRY": 6},
    redelivered={"STREAM_LOSS": 7},
    consumers=2,
    oldest_ready_offset=1,
)
CONSUMER = ConsumerStats(
    consumer_id="secret-id",
    session_id=1,
    port=1,
    state=ConsumerState.PROCESSING,
    client=Client(),
    queues=("orders",),
    labels={},
    weight=1,
    prefetch_messages=1,
    prefetch_bytes=1,
    in_flight=1,
    in_flight_bytes=1,
    delivered=1,
    settled=1,
    attached_unix_ms=1,
    heard_ago_ms=1,
)
HISTOGRAM = Histogram(bounds=(0.001, 0.01), counts=(3, 2, 1), sum=0.5)
SNAPSHOT = Snapshot(
    version="1.2.3",
    node="n",
    shard=ShardStats((QUEUE,), (CONSUMER, CONSUMER), {"stream_loss": 8}, producers=9, window_bytes=10),
    engine=EngineStats(11, 6, 12, HISTOGRAM, 13, 0.25, 1.5, copied_bytes=20),
    journal=JournalStats(14, 15, 16),
    streams=17,
    calls=18,
    refused=19,
    tasks=21,
    threads=22,
)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(snapshot: Snapshot = SNAPSHOT) -> Samples:
    text, _ = render(snapshot)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(name: str, of: Samples | None = None, **labels: str) -> float:
    return (samples() if of is None else of)[name, tuple(sorted(labels.items()))]


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("kyogo_queue_messages", {"queue": "orders", "state": "ready"}, 1),
        ("kyogo_queue_messages", {"queue": "orders", "state": "delayed"}, 2),
        ("kyogo_queue_messages", {"queue": "orders", "state": "parked"}, 3),
        ("kyogo_queue_messages", {"queue": "orders", "state": "in_flight"}, 4),
        ("kyogo_queue_consumers", {"queue": "orders"}, 2),
        ("kyogo_messages_accepted_total", {"queue": "orders"}, 15),
        ("kyogo_messages_delivered_total", {"queue": "orders"}, 20),
        ("kyogo_messages_settled_total", {"queue": "orders", "outcome": "ack"}, 5),
        ("kyogo_messages_settled_total", {"queue": "orders", "outcome": "retry"}, 6),
        ("kyogo_messages_redelivered_total", {"queue": "orders", "reason": "stream_loss"}, 7),
        ("kyogo_messages_finished_total", {"queue": "orders", "reason": "acked"}, 5),
        ("kyogo_consumers", {"state": "processing"}, 2),
        ("kyogo_consumer_failovers_total", {"reason": "stream_loss"}, 8),
        ("kyogo_producers", {}, 9),
        ("kyogo_window_bytes", {}, 10),
        ("kyogo_engine_turns_total", {}, 11),
        ("kyogo_commit_bytes_total", {}, 12),
        ("kyogo_journal_copied_bytes_total", {}, 20),
        ("kyogo_inbox_commands", {}, 13),
        ("kyogo_loop_lag_seconds", {}, 0.25),
        ("kyogo_loop_stalled_seconds_total", {}, 1.5),
        ("kyogo_journal_bytes", {}, 14),
        ("kyogo_journal_segments", {}, 15),
        ("kyogo_disk_free_bytes", {}, 16),
        ("kyogo_streams", {}, 17),
        ("kyogo_calls", {}, 18),
        ("kyogo_admission_refused_total", {}, 19),
        ("kyogo_loop_tasks", {}, 21),
        ("kyogo_process_threads", {}, 22),
        ("kyogo_broker_info", {"version": "1.2.3", "node": "n"}, 1),
        ("kyogo_commit_seconds_bucket", {"le": "0.001"}, 3),
        ("kyogo_commit_seconds_bucket", {"le": "0.01"}, 5),
        ("kyogo_commit_seconds_bucket", {"le": "+Inf"}, 6),
        ("kyogo_commit_seconds_count", {}, 6),
        ("kyogo_commit_seconds_sum", {}, 0.5),
    ],
)
def test_a_figure_is_shown(name: str, labels: dict[str, str], expected: float) -> None:
    assert value(name, None, **labels) == expected


def test_the_process_is_shown() -> None:
    assert value("process_resident_memory_bytes") > 1 << 20
    assert value("process_open_fds") > 2


def test_every_family_has_the_projects_prefix() -> None:
    names = {name for name, _ in samples()}
    assert all(name.startswith(("kyogo_", "process_")) for name in names)


def test_queues_beyond_the_limit_share_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "QUEUES_MAX", 3)
    queues = tuple(replace(QUEUE, queue_id=n, name=f"q{n}") for n in range(10, 0, -1))
    found = samples(replace(SNAPSHOT, shard=replace(SNAPSHOT.shard, queues=queues)))
    labels = {dict(labels)["queue"] for _, labels in found if "queue" in dict(labels)}
    assert labels == {"q1", "q2", "q3", OTHER_QUEUES}
    assert value("kyogo_messages_accepted_total", found, queue=OTHER_QUEUES) == 7 * 15
    assert value("kyogo_messages_settled_total", found, queue=OTHER_QUEUES, outcome="ack") == 7 * 5


def test_no_consumer_is_a_label() -> None:
    assert b"secret-id" not in render(SNAPSHOT)[0]


def test_openmetrics_is_spoken_to_who_asks() -> None:
    text, content_type = render(SNAPSHOT, "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
