"""What a plain message costs, counted instead of timed: calls, facts, effects, frames, syncs and memory, within budgets.

One turn of each kind is run with the interpreter's profiler on: a request is decoded, stored, delivered to one consumer,
framed, and settled. What grows with the messages of a request is the cost of a message; what does not, of a request.
"""

import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import pytest

from kyogo.v1 import broker_pb2 as pb
from kyogo_broker.core.limits import ShardConfig
from kyogo_broker.journal.codec import encode
from kyogo_broker.model.commands import Attach, Command, Publish, Subscription, Tick
from kyogo_broker.model.effects import Deliver, Effect
from kyogo_broker.model.facts import Fact
from kyogo_broker.server import wire
from kyogo_broker.server.limits import Limits
from tests.support.shards import Driver

SMALL, LARGE = 16, 256
"""Messages a request."""
CALLS_A_REQUEST = {"decode": 42, "store and deliver": 205, "record": 39, "frame": 39, "settle": 340}
"""Of Python and C functions, found and a third on top. Whoever raises one of these says in the commit what for."""
CALLS_A_MESSAGE = 0.1
WAITING_BYTES_A_MESSAGE = 1.0
"""Of a plain backlog, its bodies not counted."""
LIMITS = Limits()

T = TypeVar("T")


class Turns:
    """A shard with one queue and one consumer, taken through the stations of the way of a message."""

    def __init__(self, *, consumer: bool = True) -> None:
        self.driver = Driver(ShardConfig(auto_create=True))
        self.fence = self.settled = 0
        self.calls: dict[str, int] = {}
        self.facts: list[Fact] = []
        self.frames = self.records = 0
        self.port = self.driver.port()
        self.publish(1)
        if consumer:
            attach = Attach(
                self.port, 1, "token", "c", (Subscription("orders"),), prefetch_messages=10_000,
                prefetch_bytes=64 << 20, capabilities=frozenset({"started"}),
            )  # fmt: skip
            self.deliver(self.handle(attach, Tick()))
            self.settle()

    def counted(self, station: str, call: Callable[[], T]) -> T:
        """Run it; how many functions were called is noted."""
        count = 0

        def profile(_frame: FrameType, event: str, _argument: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(profile)
        try:
            return call()
        finally:
            sys.setprofile(None)
            self.calls[station] = count

    def handle(self, *commands: Command) -> list[Effect]:
        shard, driver = self.driver.shard, self.driver
        self.facts, effects = [], []
        self.records += 1
        shard.begin(position=self.records * 1_000_000, now=driver.now, stalled_ms=0)
        for command in commands:
            step = shard.handle(command, driver.now)
            self.facts += step.facts
            effects += step.effects
        return effects

    def publish(self, messages: int) -> list[Effect]:
        raw = pb.PublishRequest(
            destination="orders", request_id=1, messages=[pb.Message(body=b"x" * 100)] * messages
        ).SerializeToString()
        command: Publish = self.counted("decode", lambda: wire.decode_publish(raw, port=9, limits=LIMITS))
        effects = self.counted("store and deliver", lambda: self.handle(command, Tick()))
        self.counted("record", lambda: encode(self.facts))
        return effects

    def deliver(self, effects: list[Effect]) -> None:
        sent = [effect for effect in effects if isinstance(effect, Deliver)]
        self.fence += sum(run.count for effect in sent for run in effect.runs)
        frames = self.counted("frame", lambda: list(wire.frames(sent, max_frame_bytes=4 << 20)))
        self.frames = len(frames)

    def settle(self) -> None:
        session = wire.Session(port=self.port, session_id=1, session_token="token", consumer_id="c")
        ranges = [pb.FenceRange(first=self.settled + 1, last=self.fence)]
        self.settled = self.fence
        raw = pb.ConsumeRequest(
            started=ranges, settlements=[pb.Settlement(outcome=pb.OUTCOME_ACK, ranges=ranges)]
        ).SerializeToString()

        def settle() -> list[Effect]:
            frame = wire.decode_consume(raw, session, LIMITS)
            return self.handle(*frame.commands, Tick())

        self.counted("settle", settle)


@pytest.fixture(scope="module")
def costs() -> dict[int, dict[str, int]]:
    """Calls of each station, by the messages of a request; when everything is warm."""
    found = {}
    for messages in (SMALL, LARGE):
        turns = Turns()
        for _ in range(5):
            turns.deliver(turns.publish(messages))
            turns.settle()
        found[messages] = turns.calls
    return found


@pytest.mark.parametrize("station", CALLS_A_REQUEST)
def test_calls_a_request(costs: dict[int, dict[str, int]], station: str) -> None:
    assert 0 < costs[SMALL][station] <= CALLS_A_REQUEST[station], costs


@pytest.mark.parametrize("station", CALLS_A_REQUEST)
def test_calls_a_message(costs: dict[int, dict[str, int]], station: str) -> None:
    assert costs[LARGE][station] - costs[SMALL][station] <= CALLS_A_MESSAGE * (LARGE - SMALL), costs


def test_a_request_is_two_facts_one_effect_and_one_frame() -> None:
    turns = Turns()
    effects = turns.publish(LARGE)
    assert [type(fact).__name__ for fact in turns.facts] == ["Published", "Leased"]
    assert [type(effect).__name__ for effect in effects] == ["PublishDone", "Deliver"]
    turns.deliver(effects)
    assert turns.frames == 1
    turns.settle()
    assert [type(fact).__name__ for fact in turns.facts] == ["Settled"]


def test_what_waits_takes_no_memory() -> None:
    """Beyond the window that is kept ready: extents grow with stretches of the journal, not with messages."""
    turns = Turns(consumer=False)
    for _ in range(400):
        turns.publish(LARGE)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(400):
            turns.publish(LARGE)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown <= WAITING_BYTES_A_MESSAGE * 400 * LARGE
