"""What keeps a journal from being freed: a few messages that stay while millions flow, a queue that nobody reads."""

from typing import Final

from bench.deep.control import create_queue
from bench.deep.watching import Sampler, held, journal_figures, pinged
from bench.figures import Figure
from bench.load import Consume, Produce
from bench.processes import Load, Server
from bench.rows import Bench

BODY_BYTES: Final = 100
EVERY: Final = 10_000
FLOW: Final = 5_000_000
IDLE: Final = 1_000_000


def stragglers(bench: Bench, share: float) -> list[Figure]:
    """One message in 10,000 stays in flight or delayed while the rest flow."""
    messages = int(FLOW * share)
    with Server("broker", watched=True) as server:
        create_queue(server.target, "flow")
        producer = Produce(server.target, "flow", messages, BODY_BYTES, 256, 16, timed=False)
        kept = (messages + 1) // (2 * EVERY)
        consumer = Consume(server.target, "flow", messages + 1 - kept, straggle_every=EVERY)
        with Sampler(server, message_bytes=BODY_BYTES) as sampler, pinged(server) as pings:
            published, _ = bench.work("stragglers", messages, producer, consumer)
        rate = messages / (published.ended - published.began)
        return [
            Figure("stragglers", f"{messages:,} messages flow, 1 in {EVERY:,} stays", "messages/s", broker=rate),
            *journal_figures("stragglers", sampler.seen),
            *held(bench, "stragglers", server.holds(), pings[0]),
        ]


def idle(bench: Bench, share: float) -> list[Figure]:
    """A queue that is only published to, its messages between those of a busy one, which then goes on."""
    waiting, messages = int(IDLE * share), int(FLOW * share)
    with Server("broker", watched=True) as server:
        create_queue(server.target, "idle")
        create_queue(server.target, "busy")
        still = Produce(server.target, "idle", waiting, BODY_BYTES, 64, 4, timed=False)
        producer = Produce(server.target, "busy", messages, BODY_BYTES, 256, 16, timed=False)
        consumer = Consume(server.target, "busy", messages + 1)
        with Sampler(server, message_bytes=BODY_BYTES) as sampler, pinged(server) as pings, Load(still) as beside:
            beside.go()
            bench.work("an idle queue beside a busy one", messages, producer, consumer)
            beside.result()
        name = f"{waiting:,} messages wait beside {messages:,} that flow"
        return [
            Figure("idle", f"{name}: RSS at most", "MB", broker=sampler.seen.rss / 1e6),
            *journal_figures("idle", sampler.seen),
            *held(bench, "idle", server.holds(), pings[0]),
        ]
