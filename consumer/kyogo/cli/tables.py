"""Tables for people, made to fit 80 columns. Names that users gave are text, never markup."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kyogo.admin import BrokerStats, Consumer, Queue, QueueSettings, QueueStats, RetryPolicy, Stats
from kyogo.cli.values import age, size


def queues(rows: Iterable[Queue]) -> Table:
    """Queues with what waits in them."""
    table = _table("QUEUE", "READY", "DELAYED", "IN FLIGHT", "CONSUMERS")
    for queue in rows:
        name = Text(queue.name) + Text(" (paused)", style="yellow") if queue.paused else Text(queue.name)
        table.add_row(name, *_waiting(queue.stats))
    return table


def queue(shown: Queue) -> RenderableType:
    """One queue: figures and settings."""
    stats = shown.stats
    title = Text(shown.name, style="bold") + Text("  paused" if shown.paused else "", style="yellow")
    return Group(
        title, _pairs(_figures(stats)), Text("settings", style="bold"), _pairs(_settings(shown.settings, shown.name))
    )


def consumers(rows: Iterable[Consumer]) -> Table:
    """Consumers and what they hold."""
    table = _table("CONSUMER", "STATE", "QUEUES", "HOLDS", "PREFETCH", "DELIVERED", "SILENT", left=3)
    for consumer in rows:
        table.add_row(
            Text(consumer.consumer_id),
            _state(consumer.state),
            Text(", ".join(consumer.queues)),
            f"{consumer.in_flight:,}",
            f"{consumer.prefetch_messages:,}",
            f"{consumer.delivered:,}",
            age(consumer.silent_ms),
        )
    return table


def stats(shown: Stats) -> RenderableType:
    """The broker's figures, then each queue's."""
    table = _table("QUEUE", "READY", "DELAYED", "IN FLIGHT", "CONSUMERS")
    for figures in shown.queues:
        table.add_row(Text(figures.queue), *_waiting(figures))
    return Group(_pairs(_broker(shown.broker)), table if shown.queues else Text("no queues", style="dim"))


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    return table


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _waiting(figures: QueueStats) -> tuple[str, ...]:
    counts = (figures.ready, figures.delayed + figures.parked, figures.in_flight, figures.consumers)
    return tuple(f"{count:,}" for count in counts)


def _figures(figures: QueueStats) -> Iterable[tuple[str, str]]:
    yield "ready", f"{figures.ready:,}"
    yield "delayed", f"{figures.delayed:,}"
    yield "parked", f"{figures.parked:,}"
    yield "in flight", f"{figures.in_flight:,} with {figures.consumers:,} consumers"
    yield "accepted", f"{figures.accepted:,}"
    yield "finished", _counts(figures.finished)
    yield "delivered", f"{figures.delivered:,}"
    yield "delivered again", _counts(figures.redelivered)


def _settings(settings: QueueSettings, queue: str) -> Iterable[tuple[str, str]]:
    for field in fields(settings):
        if field.name not in {"retry", "labels", "dead_letter_queue"}:
            yield field.name, _value(getattr(settings, field.name))
    letters = f"{queue}.dlq" if settings.dead_letter_queue is None else settings.dead_letter_queue
    yield "dead_letter_queue", _value(letters)
    for field in fields(RetryPolicy):
        if value := getattr(settings.retry, field.name):
            yield f"retry.{field.name}", _value(value)
    if settings.labels:
        yield "labels", ", ".join(f"{name}={value}" for name, value in settings.labels.items())


def _broker(broker: BrokerStats) -> Iterable[tuple[str, str]]:
    up = age(broker.now_unix_ms - broker.started_unix_ms)
    started = datetime.fromtimestamp(broker.started_unix_ms / 1000, UTC)
    yield "broker", f"{broker.node}, version {broker.version}, up {up} since {started:%Y-%m-%d %H:%M:%S} UTC"
    if broker.draining:
        yield "state", "stopping"
    yield "consumers", _counts(broker.consumers)
    yield (
        "since start",
        f"{broker.accepted:,} accepted, {broker.delivered:,} delivered, {broker.settled:,} settled",
    )
    journal = f"{broker.journal_records:,} records, {size(broker.journal_bytes)} on disk"
    yield f"journal ({broker.durability})", journal
    yield "commit", f"p50 {broker.commit_p50_ms:.2f} ms, p99 {broker.commit_p99_ms:.2f} ms in the last minute"
    memory = f"{size(broker.rss_bytes)} of {size(broker.memory_limit_bytes)}" if broker.memory_limit_bytes else ""
    yield "memory", memory if memory else size(broker.rss_bytes)
    free = f"{size(broker.disk_free_bytes)} free, publishes refused below {size(broker.disk_free_min_bytes)}"
    yield "disk", free if broker.disk_free_bytes else "-"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()) or "-"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None or not value else str(value)


def _state(state: str) -> Text:
    colours = {
        "idle": "green",
        "processing": "green",
        "suspect": "yellow",
        "draining": "yellow",
        "failed": "red",
    }
    return Text(state, style=colours.get(state, ""))
