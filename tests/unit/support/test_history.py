"""The history checker: a clean history passes, and a seeded violation of each invariant is caught as that one."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.history import Expectations, Recorder, check, digest, read
from tests.support.history.lines import fences_of, ranges_of
from tests.support.stories import Story, clean

Seed = Callable[[Story], None]


def story_with(seed: Seed) -> Story:
    """Broker, queue, one message `a` at offset 1, one consumer `s1`; then what is wrong."""
    story = Story()
    story.ready()
    story.created()
    story.publish("a")
    story.attach()
    seed(story)
    return story


def lost(story: Story) -> None:
    story.publish("b", "c", "d")
    story.settle(story.deliver("a", 1))
    story.killed()
    story.ready("b2")
    story.tell("drained", queues=["q"])


def lost_letter(story: Story) -> None:
    story.settle(story.deliver("a", 1), "DEAD_LETTER")
    story.tell("drained", queues=["q", "q.dlq"])


def invented(story: Story) -> None:
    story.deliver("nobody", 2)


def changed(story: Story) -> None:
    story.deliver("a", 1, digests=["another"])


def refused(story: Story) -> None:
    story.publish("b", status="refused")
    story.deliver("b", 2)


def again_after_ack(story: Story) -> None:
    story.settle(story.deliver("a", 1))
    story.killed()
    story.ready("b2")
    story.attach("s2", node="b2")
    story.deliver("a", 1, session="s2", reason="BROKER_RESTART")


def fence_twice(story: Story) -> None:
    story.publish("b")
    story.deliver("a", 1, fence=7)
    story.deliver("b", 2, fence=7)


def two_acks(story: Story) -> None:
    first = story.deliver("a", 1)
    story.attach("s2")
    second = story.deliver("a", 1, session="s2", reason="STREAM_LOSS")
    story.settle(second, session="s2")
    story.settle(first)


def ack_forgotten(story: Story) -> None:
    fence = story.deliver("a", 1)
    story.settle(fence)
    story.settle(fence, "ACK", "STALE")


def no_reason(story: Story) -> None:
    story.deliver("a", 1)
    story.attach("s2")
    story.deliver("a", 1, session="s2")


def nobody_released(story: Story) -> None:
    story.deliver("a", 1)
    story.deliver("a", 1, reason="RELEASE")


def nobody_lost(story: Story) -> None:
    fence = story.deliver("a", 1)
    story.attach("s2")
    story.deliver("a", 1, session="s2", reason="STREAM_LOSS")
    story.settle(fence, "ACK", "STALE")


def too_soon(story: Story) -> None:
    fence = story.deliver("a", 1)
    story.started(fence)
    story.deliver("a", 1, attempt=2, reason="VISIBILITY_TIMEOUT")


def never_restarted(story: Story) -> None:
    story.deliver("a", 1)
    story.deliver("a", 1, reason="BROKER_RESTART")


def late_settlement(story: Story) -> None:
    fence = story.deliver("a", 1)
    story.tell("revoked", "s1", session="s1", ranges=[[fence, fence]], mode="LOST", reason="SUSPECT")
    story.settle(fence, "RELEASE")


def late_extension(story: Story) -> None:
    fence = story.deliver("a", 1)
    story.settle(fence, "RETRY")
    story.extend(fence)


def not_charged(story: Story) -> None:
    story.settle(story.deliver("a", 1), "RETRY")
    story.deliver("a", 1, attempt=1, reason="RETRY")


def charged_unbegun(story: Story) -> None:
    story.deliver("a", 1)
    story.lose()
    story.attach("s2")
    story.deliver("a", 1, session="s2", losses=1, reason="STREAM_LOSS")


def begun_not_charged(story: Story) -> None:
    story.publish("b")
    fence, other = story.deliver("a", 1), story.deliver("b", 2)
    story.started(fence)
    story.wait(0.1)
    story.settle(other)
    story.lose()
    story.attach("s2")
    story.deliver("a", 1, session="s2", losses=0, reason="STREAM_LOSS")


def taken_back(story: Story) -> None:
    story.settle(story.deliver("a", 1), "RETRY")
    story.deliver("a", 1, attempt=2, reason="RETRY")
    story.killed()
    story.ready("b2")
    story.attach("s2", node="b2")
    story.deliver("a", 1, session="s2", attempt=1, reason="BROKER_RESTART")


def one_attempt_too_many(story: Story) -> None:
    story.deliver("a", 1, attempt=4, reason="RETRY")


def lettered_too_early(story: Story) -> None:
    story.settle(story.deliver("a", 1), "RETRY")
    letter = {"queue": "q", "offset": 1, "reason": "max_attempts", "attempts": 1, "losses": 0}
    story.deliver("a", 1, queue="q.dlq", letter=letter)


def lettered_for_nothing(story: Story) -> None:
    story.deliver("a", 1)
    letter = {"queue": "q", "offset": 1, "reason": "hopeless", "attempts": 1, "losses": 0}
    story.deliver("a", 1, queue="q.dlq", letter=letter)


def after_its_letter(story: Story) -> None:
    story.settle(story.deliver("a", 1), "DEAD_LETTER")
    story.deliver("a", 1, reason="RETRY", attempt=2)


def keyed(story: Story) -> None:
    story.queue = "k"
    story.offset = 0
    story.created(mode="KEYED")
    story.publish("k1", "k2", keys=["x", "x"])


def key_overtaken(story: Story) -> None:
    keyed(story)
    story.settle(story.deliver("k2", 2))
    story.deliver("k1", 1)


def key_twice(story: Story) -> None:
    keyed(story)
    story.deliver("k1", 1)
    story.deliver("k2", 2)


def out_of_order(story: Story) -> None:
    story.publish("b", "c", priorities=[4, 9])
    story.tell("order", queue="q", what="begin")
    for uid, offset in (("a", 1), ("b", 2), ("c", 3)):
        story.settle(story.deliver(uid, offset))
    story.tell("order", queue="q", what="end")


def starved(story: Story) -> None:
    story.tell("order", queue="q", what="begin", aging_bound_ms=1_000)
    story.wait(2.0)
    story.deliver("a", 1)
    story.tell("order", queue="q", what="end")


def before_its_time(story: Story) -> None:
    story.publish("b", delays_ms=[5_000])
    story.deliver("b", 2)


def after_its_expiry(story: Story) -> None:
    story.publish("b", ttls_ms=[500])
    story.wait(2.0)
    story.deliver("b", 2)


def retried_too_soon(story: Story) -> None:
    story.settle(story.deliver("a", 1), "RETRY", delay_ms=500)
    story.deliver("a", 1, attempt=2, reason="RETRY")


def stored_twice(story: Story) -> None:
    story.deliver("a", 1)
    story.deliver("a", 2)


def resent_elsewhere(story: Story) -> None:
    story.publish_again(1, "a")
    story.published(1, "ok", [[5, 1, True]])


def too_many(story: Story) -> None:
    uids = [f"m{number}" for number in range(11)]
    story.publish(*uids)
    for number, uid in enumerate(uids):
        story.deliver(uid, number + 2)


def too_many_of_level_1(story: Story) -> None:
    story.attach("s2", capabilities=[], prefetch=[1, 1 << 20])
    story.publish("b")
    story.settle(story.deliver("a", 1, session="s2"), status=None, session="s2")
    story.deliver("b", 2, session="s2")


def too_large(story: Story) -> None:
    story.publish("b", "c")
    story.deliver("b", 2, sizes=[800_000])
    story.deliver("c", 3, sizes=[800_000])


def frame_too_large(story: Story) -> None:
    story.deliver("a", 1, frame=2 << 20)


def prefetch_ignored(story: Story) -> None:
    story.publish("b", "c", "d")
    story.tell("prefetch", "s1", session="s1", messages=1, bytes=0)
    story.settle(story.deliver("a", 1))
    story.deliver("b", 2)
    story.deliver("c", 3)


def miscounted(story: Story) -> None:
    story.stats(accepted=3, ready=1, in_flight=1, quiet=False)


def restored_otherwise(story: Story) -> None:
    story.tell("state", of="live", round=1, queues={"q": {"accepted": 1, "ready": 1}})
    story.tell("state", of="restored", round=1, queues={"q": {"accepted": 1, "ready": 0}})


def two_owners(story: Story) -> None:
    story.ready("b2")


def former_owner(story: Story) -> None:
    fence = story.deliver("a", 1)
    story.killed()
    story.ready("b2")
    story.settle(fence)


def leak(story: Story) -> None:
    story.tell("resources", who="broker", when="before", rss=50 << 20, fds=20, threads=10)
    story.tell("resources", who="broker", when="after", rss=50 << 20, fds=90, threads=10)


def not_empty(story: Story) -> None:
    story.settle(story.deliver("a", 1))
    story.tell("drained", queues=["q"])
    story.stats(accepted=1, ready=1, delivered=1)


def slow_failover(story: Story) -> None:
    story.deliver("a", 1)
    story.fault("kill", "s1", bound_ms=500, of="worker")
    story.wait(2.0)
    story.attach("s2")
    story.deliver("a", 1, session="s2", reason="STREAM_LOSS")


def unnoticed_end(story: Story) -> None:
    story.deliver("a", 1)
    story.fault("kill", "s1", of="worker")
    story.wait(2.0)
    story.attach("s2")
    story.deliver("a", 1, session="s2", reason="SUSPECT")


def failed_by_a_stall(story: Story) -> None:
    story.deliver("a", 1)
    story.fault("pause", "broker")
    story.attach("s2")
    story.deliver("a", 1, session="s2", reason="SUSPECT")


def stats_lie(story: Story) -> None:
    story.settle(story.deliver("a", 1))
    story.stats(accepted=2, finished={"acked": 2}, delivered=1)


def metrics_lie(story: Story) -> None:
    story.stats(accepted=1, ready=1)
    story.stats(op="metrics", accepted=2, ready=2)


def half_a_unit(story: Story) -> None:
    said = [{"queue": "q", "uids": [uid], "digests": [f"d-{uid}"]} for uid in ("x", "y")]
    story.settle(story.deliver("a", 1), "ACK", None, publish=said)
    story.settle(story.deliver("x", 2))
    story.tell("drained", queues=["q"])


def unit_without_effect(story: Story) -> None:
    said = [{"queue": "q", "uids": ["x"], "digests": ["d-x"]}]
    story.settle(story.deliver("a", 1), "ACK", None, publish=said)
    story.deliver("x", 2)
    story.lose()
    story.attach("s2")
    story.deliver("a", 1, session="s2", reason="STREAM_LOSS")


SEEDS: list[tuple[str, Seed]] = [
    ("I1", lost), ("I1", lost_letter),
    ("I2", invented), ("I2", changed), ("I2", refused),
    ("I3", again_after_ack), ("I3", fence_twice),
    ("I4", two_acks), ("I4", ack_forgotten),
    ("I5", no_reason), ("I5", nobody_released), ("I5", nobody_lost), ("I5", too_soon), ("I5", never_restarted),
    ("I6", late_settlement), ("I6", late_extension),
    ("I7", not_charged), ("I7", charged_unbegun), ("I7", begun_not_charged), ("I7", taken_back),
    ("I8", one_attempt_too_many), ("I8", lettered_too_early), ("I8", lettered_for_nothing), ("I8", after_its_letter),
    ("I9", key_overtaken), ("I9", key_twice),
    ("I10", out_of_order), ("I10", starved),
    ("I11", before_its_time), ("I11", after_its_expiry), ("I11", retried_too_soon),
    ("I12", stored_twice), ("I12", resent_elsewhere),
    ("I13", too_many), ("I13", too_many_of_level_1), ("I13", too_large), ("I13", frame_too_large), ("I13", prefetch_ignored),
    ("I14", miscounted),
    ("I15", restored_otherwise),
    ("I16", two_owners), ("I16", former_owner),
    ("I17", leak), ("I17", not_empty),
    ("I18", slow_failover), ("I18", unnoticed_end), ("I18", failed_by_a_stall),
    ("I19", stats_lie), ("I19", metrics_lie),
    ("I20", half_a_unit), ("I20", unit_without_effect),
]  # fmt: skip


def test_a_clean_history_passes() -> None:
    report = check(clean().lines, Expectations(operations=("published ok", "settle ACK OK"), faults=("kill",)))
    assert report.text().endswith("took effect"), report.text()
    assert report.clean
    figures = report.figures
    assert (figures.published, figures.answered, figures.handled, figures.finished) == (6, 4, 4, 4)
    assert (figures.lost, figures.doubled, figures.unknown) == (0, 0, 1)
    assert figures.redelivered == {
        "RETRY": 1, "RELEASE": 2, "VISIBILITY_TIMEOUT": 1, "STREAM_LOSS": 1, "BROKER_RESTART": 1
    }  # fmt: skip
    assert figures.kills == {"broker": 1, "worker": 1}


@pytest.mark.parametrize(("invariant", "seed"), SEEDS, ids=lambda value: getattr(value, "__name__", value))
def test_a_seeded_violation_is_caught(invariant: str, seed: Seed) -> None:
    report = check(story_with(seed).lines)
    assert invariant in report.invariants(), report.text()
    assert not report.clean


def test_every_invariant_has_a_seed() -> None:
    assert {invariant for invariant, _ in SEEDS} == {f"I{number}" for number in range(1, 21)}


def test_what_is_lost_is_told_by_when_and_where() -> None:
    text = check(story_with(lost).lines).text()
    assert "I1 lost: 3 of 4 answered, all from the last 40 ms before the kill of b1" in text
    assert "front 3, middle 0, end 0 of the run; q 3" in text
    assert "q: b, answered" in text


def test_a_timeout_is_unknown_and_never_a_failure() -> None:
    story = story_with(lambda story: None)
    story.publish("unknown, stored", status="unknown")
    story.publish("unknown, not stored", status=None)
    story.settle(story.deliver("a", 1), "ACK", None)
    story.settle(story.deliver("unknown, stored", 2), "ACK", None)
    story.tell("drained", queues=["q"])
    story.stats(accepted=2, finished={"acked": 2}, delivered=2)
    report = check(story.lines, Expectations())
    assert report.clean, report.text()


def test_an_ack_without_an_answer_counts_for_nothing_once_there_is_a_newer_delivery() -> None:
    story = story_with(lambda story: None)
    story.settle(story.deliver("a", 1), "ACK", None)
    story.lose()
    story.attach("s2")
    story.deliver("a", 1, session="s2", reason="STREAM_LOSS")
    story.tell("drained", queues=["q"])
    assert check(story.lines).invariants() == {"I1"}


@pytest.mark.parametrize(("process", "broken"), [("s1", set()), ("harness", set()), ("s2", {"I18"})])
def test_who_stood_still_or_whose_network_did_may_be_suspect(process: str, broken: set[str]) -> None:
    story = story_with(lambda story: None)
    story.deliver("a", 1)
    story.wait(1.2)
    story.tell("lagged", process, ms=1_200)
    story.attach("s2")
    story.deliver("a", 1, session="s2", reason="SUSPECT")
    assert check(story.lines).invariants() == broken


@pytest.mark.parametrize(("attempt", "broken"), [(2, {"I1"}), (3, set())])
def test_a_last_attempt_that_ran_out_ends_a_message_where_no_letters_are_kept(attempt: int, broken: set[str]) -> None:
    story = story_with(lambda story: story.created(dead_letter_queue=""))
    for number in range(1, attempt + 1):
        story.settle(story.deliver("a", 1, attempt=number, reason="RETRY" if number > 1 else "UNSPECIFIED"), "RETRY")
    story.lines = story.lines[:-2]  # the last one is never settled
    story.tell("drained", queues=["q"])
    assert check(story.lines).invariants() == broken


def test_a_lease_of_level_1_that_ended_untold_takes_no_room() -> None:
    story = story_with(lambda story: None)
    story.attach("s2", capabilities=[], prefetch=[1, 1 << 20])
    story.publish("b")
    over = story.deliver("a", 1, session="s2")
    story.deliver("b", 2, session="s2")
    story.settle(over, status="STALE", session="s2")
    assert check(story.lines).invariants() == set()


def test_the_longest_gap_ends_when_nothing_is_left_to_deliver() -> None:
    story = story_with(lambda story: None)
    story.publish("b", "c")
    story.settle(story.deliver("a", 1))
    story.wait(2.0)
    story.settle(story.deliver("b", 2))
    story.tell("drained", queues=["q"])
    story.wait(9.0)
    story.settle(story.deliver("c", 3))
    assert check(story.lines).figures.longest_gap == pytest.approx(2.0, abs=0.1)


def test_a_purge_accounts_for_no_more_than_it_says() -> None:
    story = story_with(lambda story: None)
    story.publish("b", "c")
    story.tell("queue", queue="q", what="purged", count=2, status="ok")
    story.tell("drained", queues=["q"])
    report = check(story.lines)
    assert report.figures.lost == 1, report.text()
    story.lines[-2]["count"] = 3
    assert check(story.lines).clean


def test_a_late_purge_accounts_for_late_messages() -> None:
    story = story_with(lambda story: None)
    story.tell("queue", queue="q", what="purged", count=1, status="ok")
    story.publish("b", "c")
    story.tell("queue", queue="q", what="purged", count=2, status="ok")
    story.tell("drained", queues=["q"])
    assert check(story.lines).clean


def test_what_a_killed_process_did_not_write_down_excuses_no_more_than_it_can() -> None:
    """Fence 2 went to somebody who never wrote it down; it may have been this message's."""
    story = story_with(lambda story: None)
    story.deliver("a", 1)
    story.fence += 1
    story.attach("s2")
    story.deliver("a", 1, session="s2", losses=1, reason="STREAM_LOSS")
    assert check(story.lines).clean


def test_a_crash_may_take_a_loss_with_it_but_not_a_failure() -> None:
    story = story_with(lambda story: None)
    story.deliver("a", 1, losses=1, reason="STREAM_LOSS")
    story.killed()
    story.ready("b2")
    story.attach("s2", node="b2")
    story.deliver("a", 1, session="s2", losses=0, reason="BROKER_RESTART")
    assert check(story.lines).clean


def test_a_run_counts_only_if_everything_was_tried() -> None:
    story = story_with(lambda story: None)
    story.fault("cut", "s1", effect=None)
    gaps = check(story.lines, Expectations(operations=("settle RETRY OK",), faults=("kill",))).gaps
    assert [gap.split(":")[0] for gap in gaps] == [
        "it never happened", "no fault of this kind", "fault f5 (cut of s1) took no effect",
        "queue q did not drain, so nobody knows what is lost",
    ]  # fmt: skip


def test_an_unknown_line_is_refused() -> None:
    with pytest.raises(ValueError, match="knows no 'deliverd'"):
        check([{"t": 1.0, "p": "x", "op": "deliverd"}])


def test_processes_record_side_by_side(tmp_path: Path) -> None:
    one, two = Recorder(tmp_path, "one"), Recorder(tmp_path, "two")
    before = time.monotonic()
    one.write("lagged", ms=1)
    two.write("lagged", ms=2)
    one.write("lagged", ms=3)
    lines = read(tmp_path)
    assert [(line["p"], line["ms"]) for line in lines] == [("one", 1), ("two", 2), ("one", 3)]
    assert all(before <= line["t"] <= time.monotonic() + 1e-6 for line in lines)
    one.close()
    one.close()
    two.close()


def test_a_digest_is_of_everything_that_must_arrive_unchanged() -> None:
    fields = {"id": "i", "body": b"b", "content_type": "c", "headers": {"h": "v", "g": "w"}, "type": "t", "key": "k"}
    changes = {"id": "", "body": b"B", "content_type": "", "headers": {"h": "v"}, "type": "", "key": ""}
    digests = {digest(**{**fields, name: value}) for name, value in changes.items()}  # type: ignore[arg-type]
    assert len(digests | {digest(**fields)}) == len(changes) + 1  # type: ignore[arg-type]
    assert digest(**{**fields, "headers": {"g": "w", "h": "v"}}) == digest(**fields)  # type: ignore[arg-type]


def test_ranges() -> None:
    assert ranges_of([5, 1, 2, 3, 7]) == [[1, 3], [5, 5], [7, 7]]
    assert list(fences_of([[1, 3], [5, 5]])) == [1, 2, 3, 5]


def test_a_long_history_is_checked_in_little_time() -> None:
    """Some 100,000 lines; quadratic work would take minutes."""
    story = story_with(lambda story: None)
    story.settle(story.deliver("a", 1))
    for number in range(20_000):
        story.publish(f"m{number}")
        story.settle(story.deliver(f"m{number}", number + 2))
    story.tell("drained", queues=["q"])
    began = os.times().user
    report = check(story.lines)
    assert report.clean, report.text()
    assert os.times().user - began < 20.0
