"""What a queue's window gets when it asks for messages."""

from array import array
from itertools import accumulate
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kyogo_broker.journal.codec import MERGED_BYTES_MAX, encode
from kyogo_broker.journal.loading import load
from kyogo_broker.journal.memory import MemoryJournal
from kyogo_broker.model.commands import LoadedBatch
from kyogo_broker.model.effects import Load
from kyogo_broker.model.errors import BrokerStopError
from kyogo_broker.model.facts import Fact, Moved, Opened, Published
from kyogo_broker.model.message import Batch
from tests.support.facts import LETTER

QUEUE = 3
NOW = 1_000_000


def message(offset: int, size: int = 10) -> bytes:
    return Random(offset).randbytes(size)


def batch(*messages: bytes) -> Batch:
    return Batch(b"".join(messages), array("I", accumulate(map(len, messages))))


def published(first: int, count: int = 1, *, ms: int = NOW, size: int = 10, queue_id: int = QUEUE) -> Published:
    return Published(queue_id, first, batch(*(message(first + n, size) for n in range(count))), ms)


def moved(*offsets: int, ms: int = NOW) -> Moved:
    return Moved(QUEUE, offsets, batch(*map(message, offsets)), ms)


class Log:
    """A journal with one record for each list of facts."""

    def __init__(self, *records: list[Fact]) -> None:
        self.journal = MemoryJournal()
        self.journal.open()
        self.positions = []
        for facts in records:
            self.positions.append(self.journal.position)
            self.journal.append(self.journal.sequence, encode(facts)).result()

    def load(self, *ranges: tuple[int, int]) -> tuple[LoadedBatch, ...]:
        stretches = ((self.positions[0], self.positions[-1] - self.positions[0]),)
        loaded = load(self.journal, Load(QUEUE, 17, stretches, ranges))
        assert (loaded.queue_id, loaded.load_id) == (QUEUE, 17)
        return loaded.batches


def messages(*batches: LoadedBatch) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for loaded in batches:
        assert len(loaded.offsets) == loaded.batch.count
        for index, offset in enumerate(loaded.offsets):
            assert offset not in found
            found[offset] = bytes(loaded.batch.part(index, index))
    return found


def test_a_whole_batch_comes_as_it_was_published() -> None:
    log = Log([published(1, 4)], [Opened(1, 1), published(1, 4, queue_id=9), published(5, 2, ms=NOW + 11)])
    assert log.load((1, 6)) == (
        LoadedBatch(range(1, 5), batch_of(1, 4), NOW),
        LoadedBatch(range(5, 7), batch_of(5, 2), NOW + 11),
    )


def batch_of(first: int, count: int) -> Batch:
    return Batch(published(first, count).batch.wire, range(10, 10 * count + 1, 10))


def test_only_what_is_wanted_is_cut_out() -> None:
    log = Log([published(1, 10)], [published(11, 10, ms=NOW + 99)])
    found = log.load((3, 4), (7, 7), (10, 12))
    assert messages(*found) == {offset: message(offset) for offset in (3, 4, 7, 10, 11, 12)}
    assert [tuple(one.offsets) for one in found] == [(3, 4), (7,), (10,), (11, 12)]


def test_many_single_messages_become_one_batch() -> None:
    log = Log([published(n, ms=NOW + n % 10) for n in range(1, 101)])
    (one,) = log.load((1, 100))
    assert one.offsets == range(1, 101)
    assert one.batch.ends == range(10, 1001, 10)
    assert one.published_unix_ms == NOW + 1
    assert messages(one) == {offset: message(offset) for offset in range(1, 101)}


def test_messages_published_at_other_times_stay_apart() -> None:
    log = Log([published(n, ms=NOW + 4 * n) for n in range(1, 8)])
    found = log.load((1, 7))
    assert [(tuple(one.offsets), one.published_unix_ms - NOW) for one in found] == [
        ((1, 2, 3), 4), ((4, 5, 6), 16), ((7,), 28)
    ]  # fmt: skip


def test_merged_batches_stay_small() -> None:
    size = MERGED_BYTES_MAX // 3
    log = Log([published(n, size=size) for n in range(1, 8)])
    assert [tuple(one.offsets) for one in log.load((1, 7))] == [(1, 2, 3), (4, 5, 6), (7,)]


def test_one_message_may_be_larger_than_a_merged_batch() -> None:
    log = Log([published(1, size=MERGED_BYTES_MAX + 1)], [published(2)])
    assert [tuple(one.offsets) for one in log.load((1, 2))] == [(1,), (2,)]


def test_messages_of_other_sizes_keep_their_ends() -> None:
    log = Log([published(1, size=5), published(2, size=7), published(3, 2, size=5)])
    (one,) = log.load((1, 4))
    assert list(one.batch.ends) == [5, 12, 17, 22]
    assert messages(one) == {1: message(1, 5), 2: message(2, 7), 3: message(3, 5), 4: message(4, 5)}


def test_dead_letters_stay_single() -> None:
    letters = [Published(QUEUE, n, batch(message(n)), NOW, dead_letter=LETTER) for n in (2, 3)]
    log = Log([published(1), *letters, published(4)])
    found = log.load((1, 4))
    assert [(tuple(one.offsets), one.dead_letter) for one in found] == [
        ((1,), None), ((2,), LETTER), ((3,), LETTER), ((4,), None)
    ]  # fmt: skip


def test_what_was_moved_comes_once_and_in_its_place() -> None:
    log = Log([published(1, 9)], [moved(2, 3, 7)], [published(10)])
    assert messages(*log.load((1, 10))) == {offset: message(offset) for offset in range(1, 11)}
    log = Log([moved(2, 3, 7)], [published(4, 3)])
    found = log.load((2, 7))
    assert [offset for one in found for offset in one.offsets] == [2, 3, 4, 5, 6, 7]
    assert messages(*found) == {offset: message(offset) for offset in range(2, 8)}


def test_what_is_not_there_is_damage() -> None:
    log = Log([published(1, 3), moved(5, 9), published(7, queue_id=8)])
    with pytest.raises(BrokerStopError, match="message 7 of queue 3 is not in the journal"):
        log.load((1, 2), (5, 5), (7, 9))


@given(data=st.data())
def test_any_wanted_offsets_come_once_each_in_order(data: st.DataObject) -> None:
    last = 60
    facts: list[Fact] = []
    first = 1
    while first <= last:
        count = data.draw(st.integers(1, 12))
        facts.append(published(first, count, ms=NOW + data.draw(st.integers(0, 30))))
        first += count
    copied = data.draw(st.lists(st.sets(st.integers(1, last), min_size=1, max_size=10), max_size=4))
    facts += [moved(*sorted(offsets)) for offsets in copied]
    facts = data.draw(st.permutations(facts))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(facts)), max_size=4)))
    records = [facts[a:b] for a, b in zip([0, *cuts], [*cuts, len(facts)], strict=True)]
    bounds = sorted(data.draw(st.sets(st.integers(1, last), min_size=2, max_size=12)))
    ranges = list(zip(bounds[::2], bounds[1::2], strict=False))
    found = Log(*records).load(*ranges)
    wanted = [offset for low, high in ranges for offset in range(low, high + 1)]
    assert [offset for one in found for offset in one.offsets] == wanted
    assert messages(*found) == {offset: message(offset) for offset in wanted}
