"""Messages that do not fit into a consumer's frames: set aside, and served by one who can."""

import pytest

from kyogo_broker.core import limits
from kyogo_broker.model.commands import DeleteQueue, Outcome, PauseQueue, PurgeQueue, StreamEnded
from kyogo_broker.model.effects import AdminDone
from kyogo_broker.model.settings import BalancePolicy, QueueSettings
from tests.support.shards import FRAME_HEAD_BYTES, Driver, offsets, only, runs, small_limits

SMALL = FRAME_HEAD_BYTES + 50
LARGE_BODY = b"L" * 200
IN_TURN = QueueSettings(balance_policy=BalancePolicy.ROUND_ROBIN)


def driver_with(settings: QueueSettings = IN_TURN) -> Driver:
    driver = Driver()
    driver.create(settings=settings)
    return driver


@pytest.mark.parametrize("policy", [BalancePolicy.ROUND_ROBIN, BalancePolicy.LEAST_IN_FLIGHT])
def test_it_goes_to_whoever_can_take_it_at_once(policy: BalancePolicy) -> None:
    driver = driver_with(QueueSettings(balance_policy=policy))
    small, large = driver.attach(max_frame_bytes=SMALL), driver.attach()
    driver.publish(LARGE_BODY)
    assert (offsets(driver.effects, small), offsets(driver.effects, large)) == ([], [1])


def test_it_waits_for_one_who_can_and_others_go_on() -> None:
    driver = driver_with()
    small = driver.attach(max_frame_bytes=SMALL)
    driver.publish(b"a", LARGE_BODY, b"c")
    assert offsets(driver.effects, small) == [1, 3]
    assert driver.shard.stats().queues[0].ready == 1
    large = driver.attach()
    assert offsets(driver.effects, large) == [2]
    run = driver.last_delivery(large)
    assert (run.attempt, run.reason, bytes(run.wire)) == (1, 0, LARGE_BODY)


def test_it_waits_for_room_at_one_who_can() -> None:
    driver = driver_with()
    large = driver.attach(prefetch_messages=1)
    driver.publish(b"a")
    small = driver.attach(max_frame_bytes=SMALL)
    driver.publish(LARGE_BODY, b"c")
    assert offsets(driver.effects, small) == [3]
    driver.settle(large, Outcome.ACK, driver.last_delivery(large).first_fence)
    assert offsets(driver.effects, large) == [1, 2]


def test_a_message_that_just_fits_is_delivered() -> None:
    driver = driver_with()
    small = driver.attach(max_frame_bytes=SMALL)
    driver.publish(b"x" * 50, b"x" * 51, b"x" * 50)
    assert offsets(driver.effects, small) == [1, 3]


def test_what_returned_keeps_its_history_while_it_is_aside() -> None:
    driver = driver_with(QueueSettings(balance_policy=BalancePolicy.ROUND_ROBIN, max_losses=10))
    large = driver.attach()
    driver.publish(LARGE_BODY)
    driver.do(StreamEnded(large))
    driver.attach(max_frame_bytes=SMALL)
    run = driver.last_delivery(driver.attach())
    assert (run.first_offset, run.losses) == (1, 1)


def evicted() -> Driver:
    """An oversize message whose body is no longer in memory."""
    with small_limits():
        driver = driver_with()
        small = driver.attach(max_frame_bytes=SMALL)
        driver.publish(LARGE_BODY)
        for _ in range(8):
            driver.publish(b"x" * 40)
            driver.settle(small, Outcome.ACK, driver.last_delivery(small).first_fence)
        assert driver.queue().window.find(1) is None
        return driver


def test_it_is_read_back_when_it_is_no_longer_in_memory() -> None:
    driver = evicted()
    large = driver.attach()
    assert offsets(driver.effects, large) == [1]
    assert driver.queue().ready_count == 0


def test_it_is_delivered_after_a_restart_of_the_broker() -> None:
    driver = evicted()
    after = driver.restarted()
    after.publish(3)
    port = after.attach()
    assert sorted(offsets(after.effects, port)) == [1, 10, 11, 12]
    assert {run.reason for run in runs(after.effects, port) if run.first_offset == 1} == {0}


def test_a_consumer_of_small_frames_alone_never_gets_it_read_over_and_over() -> None:
    driver = evicted()
    driver.attach(max_frame_bytes=SMALL)
    assert driver.shard.next_wake_ms() != 0
    assert driver.loads == []


@pytest.mark.parametrize("command", [PurgeQueue(0, 0, "q"), DeleteQueue(0, 0, "q")])
def test_what_is_aside_can_be_purged_and_deleted(command: PurgeQueue | DeleteQueue) -> None:
    driver = driver_with()
    driver.attach(max_frame_bytes=SMALL)
    driver.publish(LARGE_BODY, b"b")
    [done] = only(driver.do(command), AdminDone)
    assert done.count == (1 if isinstance(command, PurgeQueue) else 2)
    driver.shard.check_invariants()
    if isinstance(command, PurgeQueue):
        assert offsets(driver.effects, driver.attach()) == []


def test_what_is_set_aside_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kyogo_broker.core.dispatch.ASIDE_MAX", 10)
    driver = driver_with()
    small = driver.attach(max_frame_bytes=SMALL)
    driver.publish(*[LARGE_BODY] * 30)
    driver.publish(b"small")
    assert len(driver.queue().aside) == 10
    assert offsets(driver.effects, small) == []
    driver.shard.check_invariants()
    large = driver.attach(prefetch_messages=1_000)
    assert offsets(driver.effects, large)[:30] == list(range(1, 31))
    assert sorted(offsets(driver.effects)) == list(range(1, 32)), "all are served in the end"


def test_whoever_was_held_up_by_it_gets_on_when_the_rest_is_purged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kyogo_broker.core.dispatch.ASIDE_MAX", 2)
    driver = driver_with()
    small = driver.attach(max_frame_bytes=SMALL)
    driver.publish(*[LARGE_BODY] * 4)
    driver.do(PurgeQueue(0, 0, "q"))
    driver.publish(b"small")
    assert offsets(driver.effects, small) == [5]


def test_whoever_could_take_none_of_its_share_is_still_chosen() -> None:
    driver = driver_with(QueueSettings(balance_policy=BalancePolicy.LEAST_IN_FLIGHT))
    others = [driver.attach(prefetch_messages=9, weight=1) for _ in range(5)]
    driver.publish(*[b"x"] * 5)
    small = driver.attach(max_frame_bytes=SMALL, prefetch_messages=1, weight=10)
    driver.publish(*[LARGE_BODY] * 2)
    assert (offsets(driver.effects, small), len(offsets(driver.effects))) == ([], 7)
    driver.publish(b"x")
    assert offsets(driver.effects, small) == [8], "it holds least"
    assert {len(offsets(driver.effects, port)) for port in others} == {1, 2}


def test_what_was_set_aside_is_shared_out() -> None:
    driver = driver_with()
    driver.attach(max_frame_bytes=SMALL)
    driver.publish(*[LARGE_BODY] * 6)
    driver.do(PauseQueue(0, 0, "q", paused=True))
    ports = [driver.attach() for _ in range(3)]
    driver.do(PauseQueue(0, 0, "q", paused=False))
    assert [len(offsets(driver.effects, port)) for port in ports] == [2, 2, 2]


def test_whoever_waited_for_room_aside_gets_on_when_another_found_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kyogo_broker.core.dispatch.ASIDE_MAX", 2)
    driver = driver_with()
    waiting = driver.attach(max_frame_bytes=SMALL)
    driver.publish(*[LARGE_BODY] * 3)
    assert driver.shard._state.consumers[waiting].members[0].held_up
    large = driver.attach(prefetch_messages=1)
    assert offsets(driver.effects, large) == [1]
    driver.attach(max_frame_bytes=SMALL)
    driver.publish(*[b"x"] * 4)
    assert sorted(driver.queue().aside) == [2, 3]
    assert len(offsets(driver.effects, waiting)) == 2, "it has its half of the small ones"


def test_the_bound_is_worth_its_memory() -> None:
    assert 100 <= limits.ASIDE_MAX <= 10_000
