"""From a journal to a shard: the newest checkpoint, then every record behind it."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from kyogo_broker.clock import Clock
from kyogo_broker.core.limits import ShardConfig
from kyogo_broker.core.shard import Shard
from kyogo_broker.journal.base import Journal, Section
from kyogo_broker.journal.codec import decode, encode
from kyogo_broker.journal.columns import decode_section, encode_in_slices, encode_section
from kyogo_broker.model.errors import NewerDataError
from kyogo_broker.model.settings import QueueSettings

SHARD_SECTION = 0
"""The queue id of the section that belongs to no queue."""

_settings = TypeAdapter(QueueSettings)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a start found."""

    new: bool
    """There was nothing."""
    messages: int
    """That are not finished."""
    records: int
    """Replayed behind the checkpoint."""
    seconds: float
    notes: tuple[str, ...] = ()
    """What was found and mended on the way, for operators."""


def recover(journal: Journal, config: ShardConfig, *, seed: int, clock: Clock) -> tuple[Shard, Recovery]:
    """Open a journal and rebuild its shard; the record that begins the new epoch is durable on return.

    Raises:
        BrokerStopError: the journal is in use, damaged, or of a newer version.
    """
    began = clock.seconds()
    recovered = journal.open()
    shard = Shard(config, seed=seed, stretch=journal.stretch)
    after = restore(shard, recovered.sections)
    records = 0
    try:
        for record in journal.replay(after):
            shard.replay(record.sequence, record.position, decode(record.payload))
            records += 1
    except NewerDataError as error:
        raise error.by(recovered.written_by) from None
    now = clock.now()
    shard.begin(position=journal.position, now=now)
    step = shard.open(recovered.epoch, now)
    journal.append(journal.sequence, encode(step.facts)).result()
    return shard, Recovery(recovered.new, shard.messages(), records, clock.seconds() - began, recovered.notes)


def restore(shard: Shard, sections: tuple[Section, ...]) -> int:
    """Take in a checkpoint; returns the sequence behind which the journal is to be replayed."""
    for section in sorted(sections, key=lambda section: section.queue_id):
        state, settings = section_state(section)
        if settings is None:
            shard.restore_shard(section.sequence, state)
        else:
            shard.restore_queue(section.queue_id, section.sequence, state, settings)
    return min((section.sequence for section in sections), default=0)


def section_state(section: Section) -> tuple[dict[str, Any], QueueSettings | None]:
    """What a section holds, and the settings if it is a queue's."""
    state = decode_section(section.state)
    if section.queue_id == SHARD_SECTION:
        return state, None
    return state, _settings.validate_python(state.pop("settings"))


def shard_section(shard: Shard, sequence: int) -> Section:
    """The shard's own section, as of the record `sequence`."""
    return Section(SHARD_SECTION, sequence, encode_section(shard.snapshot_shard()))


def queue_section(shard: Shard, queue_id: int, sequence: int) -> Section | None:
    """A queue's section, as of the record `sequence`; None if it was deleted."""
    making = queue_section_in_slices(shard, queue_id, sequence)
    while True:
        try:
            next(making)
        except StopIteration as done:
            section: Section | None = done.value
            return section


def queue_section_in_slices(shard: Shard, queue_id: int, sequence: int) -> Generator[None, None, Section | None]:
    """The same, as of its first step; yields after about a millisecond's work, returns the section."""
    found = shard.freeze_queue(queue_id)
    if found is None:
        return None
    state, settings = found
    state["settings"] = _settings.dump_python(settings, mode="json")
    return Section(queue_id, sequence, (yield from encode_in_slices(state)))
