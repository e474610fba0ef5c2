"""One of each fact, and all there can be of them."""

from array import array
from itertools import accumulate
from typing import Any

from hypothesis import strategies as st

from kyogo_broker.model.commands import Outcome
from kyogo_broker.model.facts import (
    DeadLettered,
    Fact,
    FencesReserved,
    Finished,
    Leased,
    Lost,
    Moved,
    Opened,
    ProducersForgotten,
    Published,
    QueueCreated,
    QueueDeleted,
    QueuePaused,
    QueueUpdated,
    Retried,
    Returned,
    Settled,
    Span,
)
from kyogo_broker.model.message import Batch, DeadLetterInfo
from kyogo_broker.model.settings import Backoff, QueueSettings, RetrySettings
from kyogo_broker.model.states import FinishReason, RedeliveryReason

LETTER = DeadLetterInfo(
    "orders", 41, "max_attempts", 5, 1, "no", "nö", "ValueError", "c-1", 1_700_000_000_123, 1_700_000_009_000
)
SETTINGS = QueueSettings(
    visibility_timeout_ms=5_000,
    retry=RetrySettings(backoff=Backoff.LIST, delays_ms=(100, 200), non_retryable=("KeyError",)),
    dead_letter_queue="",
    labels=(("team", "größe"),),
)
WIRE = b"\x7a\x03\x12\x01a\x7a\x03\x12\x01b\x7a\x04\x12\x02cc"

EXAMPLES: dict[str, Fact] = {
    "Opened": Opened(3, 1_700_000_000_000),
    "FencesReserved": FencesReserved(1 << 20),
    "QueueCreated": QueueCreated(7, "orders", SETTINGS, 1_700_000_000_000),
    "QueueUpdated": QueueUpdated(7, QueueSettings()),
    "QueuePaused": QueuePaused(7, paused=True),
    "QueueDeleted": QueueDeleted(7),
    "ProducersForgotten": ProducersForgotten(7, ("p-1", "p-2")),
    "Finished": Finished(7, FinishReason.PURGED, ((1, 5), (9, 9))),
    "Published, sizes differ": Published(
        7, 1, Batch(WIRE, array("I", [5, 10, 16])), 1_700_000_000_000, "p-1", 9, 1 << 63
    ),
    "Published, one size": Published(7, 4, Batch(WIRE[:10], range(5, 11, 5)), 1_700_000_000_000),
    "Published, a dead letter": Published(8, 1, Batch(WIRE[:5], range(5, 6, 5)), 1_700_000_000_000, dead_letter=LETTER),
    "Moved, consecutive": Moved(7, range(4, 6), Batch(WIRE[:10], range(5, 11, 5)), 1_700_000_000_000),
    "Moved, here and there": Moved(7, (1, 3, 90), Batch(WIRE, array("I", [5, 10, 16])), 1_700_000_000_000),
    "Moved, a dead letter": Moved(8, range(1, 2), Batch(WIRE[:5], range(5, 6, 5)), 1_700_000_000_000, LETTER),
    "Leased": Leased(7, 1 << 62, "c-1", Span(1 << 52, 4, 2), 1_700_000_000_000),
    "Settled": Settled(7, Outcome.ACK, (Span(5, 4, 2),)),
    "Settled, several": Settled(7, Outcome.RELEASE, (Span(5, 4, 2), Span(9, 1, 1))),
    "Returned": Returned(7, RedeliveryReason.DETACH, (Span(5, 4, 2),)),
    "Lost": Lost(7, RedeliveryReason.STREAM_LOSS, (Span(5, 4, 2), Span(9, 1, 1)), "c-1", 1_700_000_000_500),
    "Retried": Retried(7, RedeliveryReason.RETRY, Span(5, 4, 1), "c-1", 1_700_000_000_500, "ValueError", "nö"),
    "DeadLettered": DeadLettered(7, Span(5, 4, 1), Outcome.DEAD_LETTER, "bad"),
    "DeadLettered, by the broker": DeadLettered(7, Span(5, 4, 1), None, "max_losses"),
}

u32 = st.integers(0, 2**32 - 1)
u63 = st.integers(0, 2**63 - 1)
instants = st.integers(0, 2**62)
texts = st.text(max_size=40)
spans = st.builds(Span, u63, u63, st.integers(1, 2**32 - 1))
many_spans = st.lists(spans, max_size=6).map(tuple)
letters = st.builds(DeadLetterInfo, texts, u63, texts, u32, u32, texts, texts, texts, texts, instants, instants)
settings = st.builds(
    QueueSettings,
    visibility_timeout_ms=st.integers(100, 10_000),
    dead_letter_queue=st.sampled_from([None, "", "else"]),
    labels=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    retry=st.builds(RetrySettings, multiplier=st.floats(1, 100), non_retryable=st.lists(texts, max_size=3).map(tuple)),
)


@st.composite
def batches(draw: st.DrawFn, messages: int | None = None) -> Batch:
    """Batches of random bytes: sizes equal or not, their ends in each form they may have."""
    count = draw(st.integers(1, 30)) if messages is None else messages
    if draw(st.booleans()):
        size = draw(st.integers(1, 300))
        ends: Any = range(size, size * count + 1, size)
    else:
        ends = list(accumulate(draw(st.lists(st.integers(1, 300), min_size=count, max_size=count))))
    if draw(st.booleans()):
        ends = array("I", ends)
    return Batch(draw(st.randoms(use_true_random=False)).randbytes(ends[-1]), ends)


@st.composite
def moves(draw: st.DrawFn) -> Moved:
    """Moved facts: consecutive offsets or not."""
    offsets = tuple(sorted(draw(st.sets(st.integers(0, 2**53), min_size=1, max_size=20))))
    if draw(st.booleans()):
        offsets = range(offsets[0], offsets[0] + len(offsets))  # type: ignore[assignment]
    return Moved(draw(u63), offsets, draw(batches(len(offsets))), draw(instants), draw(st.none() | letters))


FACTS: dict[type[Fact], st.SearchStrategy[Fact]] = {
    Opened: st.builds(Opened, u32, instants),
    FencesReserved: st.builds(FencesReserved, u63),
    QueueCreated: st.builds(QueueCreated, u63, texts, settings, instants),
    QueueUpdated: st.builds(QueueUpdated, u63, settings),
    QueuePaused: st.builds(QueuePaused, u63, st.booleans()),
    QueueDeleted: st.builds(QueueDeleted, u63),
    ProducersForgotten: st.builds(ProducersForgotten, u63, st.lists(texts, max_size=4).map(tuple)),
    Finished: st.builds(
        Finished, u63, st.sampled_from(FinishReason), st.lists(st.tuples(u63, u63), max_size=4).map(tuple)
    ),
    Published: st.builds(
        Published, u63, u63, batches(), instants, texts, u63, st.integers(0, 2**64 - 1), st.none() | letters
    ),
    Moved: moves(),
    Leased: st.builds(Leased, u63, u63, texts, spans, instants),
    Settled: st.builds(Settled, u63, st.sampled_from(Outcome), many_spans),
    Returned: st.builds(Returned, u63, st.sampled_from(RedeliveryReason), many_spans),
    Lost: st.builds(Lost, u63, st.sampled_from(RedeliveryReason), many_spans, texts, instants),
    Retried: st.builds(Retried, u63, st.sampled_from(RedeliveryReason), spans, texts, instants, texts, texts),
    DeadLettered: st.builds(DeadLettered, u63, spans, st.none() | st.sampled_from(Outcome), texts),
}
"""A strategy for each kind."""


def comparable(fact: Fact) -> Fact:
    """The fact with its sequences in one form, for comparing what was encoded with what was decoded."""
    if isinstance(fact, Published):
        return Published(
            fact.queue_id, fact.first_offset, Batch(fact.batch.wire, tuple(fact.batch.ends)),
            fact.published_unix_ms, fact.producer_id, fact.request_id, fact.digest, fact.dead_letter,
        )  # fmt: skip
    if isinstance(fact, Moved):
        batch = Batch(fact.batch.wire, tuple(fact.batch.ends))
        return Moved(fact.queue_id, tuple(fact.offsets), batch, fact.published_unix_ms, fact.dead_letter)
    return fact
