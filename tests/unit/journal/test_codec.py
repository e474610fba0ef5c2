"""What the codec promises beyond coming back as it was: cost, refusals."""

import pytest

from kyogo_broker.journal.codec import SMALL_WIRE_BYTES, decode, encode, published
from kyogo_broker.model.errors import BrokerStopError
from kyogo_broker.model.facts import FencesReserved, Published, QueueDeleted
from kyogo_broker.model.message import Batch
from tests.support.facts import EXAMPLES


def batch(size: int) -> Batch:
    return Batch(bytes(size), range(size, size + 1, size))


def test_large_bodies_are_handed_on_uncopied() -> None:
    large = [Published(1, n, batch(SMALL_WIRE_BYTES), 0) for n in (1, 2)]
    small = Published(1, 3, batch(SMALL_WIRE_BYTES - 1), 0)
    parts = encode([QueueDeleted(1), *large, small, FencesReserved(9)])
    assert [any(part is fact.batch.wire for fact in large) for part in parts] == [False, True, False, True, False]


def test_one_size_needs_no_list_of_ends() -> None:
    def head(fact: Published) -> int:
        return len(b"".join(encode([fact]))) - len(fact.batch.wire)

    few, many = (Published(1, 1, Batch(bytes(10 * n), [*range(10, 10 * n + 1, 10)]), 0) for n in (1, 256))
    uneven = Published(1, 1, Batch(bytes(31), [10, 20, 31]), 0)
    assert head(many) == head(few) == head(uneven) - 3 * 4
    (decoded,) = decode(b"".join(encode([many])))
    assert isinstance(decoded, Published)
    assert decoded.batch.ends == range(10, 2561, 10)


def test_a_newer_kind_and_a_newer_version_are_called_by_their_name() -> None:
    payload = bytearray(b"".join(encode([EXAMPLES["Settled"]])))
    newer = r"kind {}, version {}, which this Kyogo does not know: it was written by a newer Kyogo; start that version"
    payload[1] = 2
    with pytest.raises(BrokerStopError, match=newer.format(19, 2)):
        decode(bytes(payload))
    payload[:2] = bytes([200, 1])
    with pytest.raises(BrokerStopError, match=newer.format(200, 1)):
        list(published([bytes(payload)], 1))


def test_a_damaged_fact_is_named_with_its_place() -> None:
    payload = b"".join(encode([EXAMPLES["Settled"], EXAMPLES["QueueDeleted"]]))
    with pytest.raises(BrokerStopError, match=r"kind 6 at byte 45 does not decode.*broker inspect"):
        decode(payload[:-1] + b"x")
    with pytest.raises(BrokerStopError, match="runs past the end"):
        decode(payload[:-1])
    with pytest.raises(BrokerStopError, match="breaks off at byte 39"):
        decode(payload[:42])


def test_settings_that_are_refused_today_are_not_taken_for_something_else() -> None:
    payload = b"".join(encode([EXAMPLES["QueueUpdated"]]))
    with pytest.raises(BrokerStopError, match="visibility_timeout_ms is 1;"):
        decode(payload.replace(b":30000,", b":00001,").replace(b":00001,", b":    1,"))
