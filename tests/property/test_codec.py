"""Whatever a fact or a section holds comes back as it was."""

from array import array
from contextlib import suppress
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kyogo_broker.journal.codec import KINDS, decode, encode, published
from kyogo_broker.journal.columns import COLUMN_TYPES, decode_section, encode_section
from kyogo_broker.model.errors import BrokerStopError
from kyogo_broker.model.facts import Fact, Moved, Published
from kyogo_broker.model.message import Batch
from tests.support.facts import FACTS, comparable

any_fact = st.one_of(*FACTS.values())


def test_there_is_a_strategy_and_a_kind_for_every_fact() -> None:
    assert set(FACTS) == set(KINDS.values()) == set(get_args(Fact))


@pytest.mark.parametrize("kind", FACTS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_kind_comes_back(kind: type[Fact], data: st.DataObject) -> None:
    fact = data.draw(FACTS[kind])
    (decoded,) = decode(b"".join(encode([fact])))
    assert type(decoded) is kind
    assert comparable(decoded) == comparable(fact)


@given(facts=st.lists(any_fact, max_size=20), queue_id=st.integers(0, 3))
def test_records_of_many_facts_come_back(facts: list[Fact], queue_id: int) -> None:
    payload = b"".join(encode(facts))
    assert list(map(comparable, decode(memoryview(payload)))) == list(map(comparable, facts))


@given(facts=st.lists(any_fact, min_size=1, max_size=20), data=st.data())
def test_the_messages_of_a_queue_are_picked_out(facts: list[Fact], data: st.DataObject) -> None:
    ids = [fact.queue_id for fact in facts if isinstance(fact, Published | Moved)]
    queue_id = data.draw(st.sampled_from([*ids, 5]))
    wanted = [fact for fact in facts if isinstance(fact, Published | Moved) and fact.queue_id == queue_id]
    found = published([b"".join(encode(facts))], queue_id)
    assert [row for fact in found for row in rows(fact)] == [row for fact in wanted for row in rows(fact)]


def rows(fact: Published | Moved) -> list[tuple[int, bytes, object]]:
    """Offset, bytes and history of each message: what must not change when batches are put together."""
    offsets = (
        fact.offsets if isinstance(fact, Moved) else range(fact.first_offset, fact.first_offset + fact.batch.count)
    )
    return [(offset, bytes(fact.batch.part(i, i)), fact.dead_letter) for i, offset in enumerate(offsets)]


def test_neighbours_are_put_together_up_to_their_limits() -> None:
    facts = [Published(5, 10 + n, Batch(bytes([n]) * (3 + n % 2), range(3 + n % 2, 4 + n % 2)), n) for n in range(12)]
    found = list(published([b"".join(encode(facts[:6])), b"".join(encode(facts[6:]))], 5))
    assert [(fact.first_offset, fact.batch.count) for fact in found if isinstance(fact, Published)] == [
        (10, 11),
        (21, 1),
    ]
    assert [row for fact in found for row in rows(fact)] == [row for fact in facts for row in rows(fact)]


@given(facts=st.lists(any_fact, min_size=1, max_size=3), data=st.data())
def test_a_payload_that_is_cut_short_is_refused(facts: list[Fact], data: st.DataObject) -> None:
    payload = b"".join(encode(facts))
    ends = {len(b"".join(encode(facts[:count]))) for count in range(len(facts) + 1)}
    cut = data.draw(st.integers(0, len(payload)).filter(lambda at: at not in ends))
    with pytest.raises(BrokerStopError):
        decode(payload[:cut])


@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_facts_never_pass_for_more_than_an_error(data: bytes) -> None:
    with suppress(BrokerStopError):
        decode(data)


scalars = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=20)
integer_columns = st.sampled_from("bBhHiIqQ").flatmap(
    lambda code: st.lists(st.integers(0, 2 ** (8 * array(code).itemsize - 1) - 1).map(lambda n: n), max_size=30).map(
        lambda values: array(code, values)
    )
)
float_columns = st.lists(st.floats(width=32, allow_nan=False), max_size=9).map(lambda values: array("f", values))
columns = integer_columns | float_columns | st.binary(max_size=50)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10)
states = st.dictionaries(
    names,
    st.recursive(
        scalars | columns,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
        max_leaves=12,
    ),
    max_size=6,
)


@given(state=states)
def test_sections_come_back(state: dict[str, object]) -> None:
    assert decode_section(encode_section(state)) == state


def test_every_type_of_column_comes_back() -> None:
    state = {code: array(code, [1, 2, 3]) for code in COLUMN_TYPES}
    found = decode_section(encode_section(state))
    assert found == state
    assert all(found[code].typecode == code for code in COLUMN_TYPES)


@pytest.mark.parametrize("wrong", [object(), {1, 2}, array("l", [1]), array("u", "x")])
def test_what_is_no_column_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="a section holds"):
        encode_section({"wrong": wrong})


@pytest.mark.parametrize("cut", [0, 3, 10, -1])
def test_a_section_that_is_cut_short_is_refused(cut: int) -> None:
    data = encode_section({"a": array("I", [1, 2, 3]), "b": b"bytes"})
    with pytest.raises(BrokerStopError, match="section"):
        decode_section(data[:cut])
    with pytest.raises(BrokerStopError, match="section"):
        decode_section(data + b"x")
