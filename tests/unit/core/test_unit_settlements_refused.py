"""A settlement with a publish that the edge could not accept."""

from kyogo_broker.core.shard import Shard, ShardConfig
from kyogo_broker.model.commands import Attach, Outcome, Publish, Settle, Settlement, Subscription, Tick
from kyogo_broker.model.effects import SettleDone
from kyogo_broker.model.errors import ErrorCode, Refusal
from kyogo_broker.model.message import Batch, FenceRange
from kyogo_broker.model.now import Now
from kyogo_broker.model.states import SettleStatus

NOW = Now(1_000, 1_000)


def test_it_is_rejected_whole_and_keeps_its_leases() -> None:
    shard = Shard(ShardConfig(auto_create=True), seed=1, stretch=65_536)
    shard.begin(position=0, now=NOW)
    shard.open(1, NOW)
    shard.handle(Publish(1, 1, "orders", Batch(b"x" * 4, range(1, 5))), NOW)
    shard.handle(Attach(2, 5, "token", "worker", (Subscription("orders"),)), NOW)
    shard.handle(Tick(), NOW)
    why = Refusal(ErrorCode.UNSUPPORTED, "keys are not built")
    ranges = (FenceRange(1, 2), FenceRange(90, 90))
    step = shard.handle(Settle(2, (Settlement(Outcome.ACK, ranges, refusal=why),)), NOW)
    [done] = step.effects
    assert isinstance(done, SettleDone)
    assert [(result.range, result.status) for result in done.results] == [
        (FenceRange(1, 2), SettleStatus.REJECTED),
        (FenceRange(90, 90), SettleStatus.UNKNOWN),
    ]
    assert step.facts == []
    step = shard.handle(Settle(2, (Settlement(Outcome.ACK, (FenceRange(1, 2),), refusal=why),)), NOW)
    [done] = step.effects
    assert isinstance(done, SettleDone)
    assert done.results[0].refusal is why
    assert shard.in_flight() == 4
