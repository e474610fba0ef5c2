"""A recording consumer, straight from the contract: does what each message asks for, and writes down everything.

    python -m tests.chaos.consumer --queues orders,images [--level-1] [--consumer-id X] ...

It leaves and comes back now and then, changes its prefetch, repeats settlements that were answered, and on its next
stream those that were not; what it holds too long it settles too late.
"""

import asyncio
import os
import sys
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from kyogo.connection import FRAME_BYTES_MAX, channel_options
from kyogo.v1 import broker_pb2 as pb
from kyogo.v1.broker_pb2_grpc import BrokerServiceStub
from tests.chaos.process import Part, play
from tests.chaos.workload import EXIT_POISONED, HEARTBEAT_MS, MAILS, child_of, digest_of
from tests.support.history.lines import ranges_of

if TYPE_CHECKING:
    from kyogo.v1.broker_pb2_grpc import BrokerServiceAsyncStub

RUNNING_MAX = 6
PREFETCHES = (0, 4, 8, 16, 32)
ATTACH_SECONDS = 4.0
SILENCE_SECONDS = 3.0
"""Without a frame, though every heartbeat is answered: the stream is given up."""
BACKOFF_SECONDS = 0.6
DETACH_AFTER_SECONDS = (3.0, 15.0)
LEAVE_SECONDS = 5.0
LOOK_SECONDS = 0.1
POISON_SECONDS = 0.1
"""So that the broker knows that it has begun, and charges the loss."""
REPEAT_SHARE = 0.05
OUTCOMES = {"ACK": pb.OUTCOME_ACK, "RETRY": pb.OUTCOME_RETRY, "RELEASE": pb.OUTCOME_RELEASE,
            "DEAD_LETTER": pb.OUTCOME_DEAD_LETTER}  # fmt: skip


class Held:
    """One delivery in our hands."""

    __slots__ = ("attempt", "fence", "lost", "message", "queue", "reason", "visibility")

    def __init__(self, queue: str, fence: int, run: pb.DeliveryRun, message: pb.Message, visibility: float) -> None:
        self.queue = queue
        self.fence = fence
        self.attempt = run.attempt
        self.reason = run.redelivery_reason
        self.message = message
        self.visibility = visibility
        self.lost = asyncio.Event()


class Consumer:
    """One consumer over all its streams."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.queues: list[str] = part.options.queues.split(",")
        self.token = ""
        self.unanswered: dict[int, pb.Settlement] = {}
        """Settlements whose answer a lost stream took with it, by fence."""

    async def run(self) -> int:
        """Stream after stream, until told to leave."""
        number = 0
        while not self.part.leaving.is_set():
            number += 1
            async with grpc.aio.insecure_channel(self.part.address, options=channel_options()) as channel:
                await Stream(self, f"{self.part.name}/{number}", BrokerServiceStub(channel)).run()
            await asyncio.sleep(BACKOFF_SECONDS * self.part.chance.random())
        return 0


class Stream:
    """One stream, from its attach to its end."""

    def __init__(self, consumer: Consumer, name: str, stub: "BrokerServiceAsyncStub") -> None:
        self._consumer = consumer
        self._part = consumer.part
        self._name = name
        self._call = stub.Consume()
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._attached = False
        self._out = pb.ConsumeRequest()
        self._dirty = False
        self._held: dict[int, Held] = {}
        self._open: dict[int, pb.Settlement] = {}
        """Settlements sent and not answered, by fence."""
        self._slots = asyncio.Semaphore(RUNNING_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._visibility: dict[str, float] = {}
        self._heard = self._loop.time()
        self._sequence = self._echo = 0
        self._detaching = False
        self._ok: list[pb.Settlement] = []
        """A few that were answered OK, to be repeated on purpose."""

    async def run(self) -> None:
        """Until it ends, whoever ends it."""
        workers = [asyncio.create_task(task) for task in (self._write(), self._watch())]
        try:
            await self._read()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        finally:
            for task in (*workers, *self._tasks):
                task.cancel()
            self._call.cancel()
            await asyncio.gather(*workers, *self._tasks, return_exceptions=True)
            if self._attached:
                how = "detached" if self._detaching else "lost"
                self._part.recorder.write("ended", session=self._name, how=how)
            self._consumer.unanswered = dict(self._open)

    # --- out ---

    async def _write(self) -> None:
        options = self._part.options
        attach = pb.Attach(
            subscriptions=[pb.Subscription(queue=queue) for queue in self._consumer.queues],
            consumer_id=options.consumer_id,
            client=pb.ClientInfo(name=self._part.name, version="chaos", language="raw"),
            capabilities=[] if options.level_1 else ["started"],
            prefetch=pb.Prefetch(messages=options.prefetch),
            heartbeat_interval_ms=HEARTBEAT_MS,
            max_frame_bytes=FRAME_BYTES_MAX,
            session_token=self._consumer.token if options.consumer_id else "",
        )
        try:
            await self._call.write(pb.ConsumeRequest(attach=attach))
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._dirty and self._attached:
                    frame, self._out, self._dirty = self._out, pb.ConsumeRequest(), False
                    await self._call.write(frame)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            return  # the reader is told why

    def _send(self) -> None:
        self._dirty = True
        self._wake.set()

    def _settle(self, settlement: pb.Settlement, *fences: int, publish: Iterable[tuple[str, pb.Message]] = ()) -> None:
        """Unless one of them has a settlement under way already."""
        if self._detaching or any(fence in self._open for fence in fences):
            return
        settlement.ranges.extend(pb.FenceRange(first=first, last=last) for first, last in ranges_of(fences))
        for queue, message in publish:
            settlement.publish.add(destination=queue, request_id=1, messages=[message])
        self._resettle(settlement)

    def _resettle(self, settlement: pb.Settlement) -> None:
        outcome = pb.Outcome.Name(settlement.outcome).removeprefix("OUTCOME_")
        fields: dict[str, object] = {}
        if settlement.HasField("delay_ms"):
            fields["delay_ms"] = settlement.delay_ms
        if settlement.publish:
            fields["publish"] = [
                {"queue": said.destination, "uids": [m.id for m in said.messages],
                 "digests": [digest_of(m) for m in said.messages]}
                for said in settlement.publish
            ]  # fmt: skip
        ranges = [[fences.first, fences.last] for fences in settlement.ranges]
        self._part.recorder.write(
            "settle", session=self._name, outcome=outcome, ranges=ranges, reason=settlement.reason, **fields
        )
        for first, last in ranges:
            self._open.update((fence, settlement) for fence in range(first, last + 1))
        self._out.settlements.append(settlement)
        self._send()

    # --- in ---

    async def _read(self) -> None:
        while isinstance(frame := await self._call.read(), pb.ConsumeResponse):
            self._heard = self._loop.time()
            if frame.HasField("attached"):
                self._on_attached(frame.attached)
            for result in frame.settled:
                self._on_settled(result)
            for extended in frame.extended:
                self._record_answer("extended", extended.range, extended.status)
            for revoke in frame.revokes:
                self._on_revoked(revoke)
            size = frame.ByteSize() if frame.deliveries else 0
            for run in frame.deliveries:
                self._on_deliveries(run, size)
            if frame.HasField("heartbeat"):
                self._echo = frame.heartbeat.sequence

    def _on_attached(self, attached: pb.Attached) -> None:
        self._attached = True
        self._consumer.token = attached.session_token
        self._visibility = {info.queue: info.visibility_timeout_ms / 1000 for info in attached.subscriptions}
        self._part.recorder.write(
            "attached", session=self._name, node=attached.node, queues=self._consumer.queues, raw=True,
            prefetch=[attached.prefetch.messages, attached.prefetch.bytes], max_frame=FRAME_BYTES_MAX,
            capabilities=[] if self._part.options.level_1 else ["started"], suspect_ms=attached.suspect_after_ms,
            visibility_ms={info.queue: info.visibility_timeout_ms for info in attached.subscriptions},
        )  # fmt: skip
        self._start(self._beat(attached.heartbeat_interval_ms / 1000))
        self._start(self._vary())
        repeated: set[int] = set()
        for settlement in self._consumer.unanswered.values():
            if id(settlement) not in repeated and self._part.chance.random() < 0.7:
                repeated.add(id(settlement))
                self._resettle(settlement)

    def _on_deliveries(self, run: pb.DeliveryRun, size: int) -> None:
        queue = self._consumer.queues[run.subscription]
        fields: dict[str, object] = {}
        if run.HasField("dead_letter"):
            letter = run.dead_letter
            fields["letter"] = {
                "queue": letter.queue, "offset": letter.offset, "reason": letter.reason, "attempts": letter.attempts,
                "losses": letter.losses, "last_error": letter.last_error,
            }  # fmt: skip
        self._part.recorder.write(
            "deliver", session=self._name, queue=queue, fence=run.first_fence, offset=run.first_offset,
            attempt=run.attempt, losses=run.losses, frame=size,
            reason=pb.RedeliveryReason.Name(run.redelivery_reason).removeprefix("REDELIVERY_REASON_"),
            uids=[message.id for message in run.messages], digests=[digest_of(message) for message in run.messages],
            sizes=[message.ByteSize() for message in run.messages], **fields,
        )  # fmt: skip
        for number, message in enumerate(run.messages):
            held = Held(queue, run.first_fence + number, run, message, self._visibility.get(queue, 30.0))
            self._held[held.fence] = held
            self._start(self._handle(held))

    def _on_settled(self, result: pb.SettleResult) -> None:
        self._record_answer("settled", result.range, result.status)
        for fence in range(result.range.first, result.range.last + 1):
            settlement = self._open.pop(fence, None)
            if result.status == pb.SETTLE_STATUS_REJECTED:
                self._settle(pb.Settlement(outcome=pb.OUTCOME_ACK), fence)  # it can do without what it published
                continue
            self._held.pop(fence, None)
            if settlement is not None and result.status == pb.SETTLE_STATUS_OK and len(self._ok) < 20:
                self._ok.append(settlement)

    def _on_revoked(self, revoke: pb.Revoke) -> None:
        ranges = [[fences.first, fences.last] for fences in revoke.ranges]
        mode = pb.RevokeMode.Name(revoke.mode).removeprefix("REVOKE_MODE_")
        reason = pb.RevokeReason.Name(revoke.reason).removeprefix("REVOKE_REASON_")
        self._part.recorder.write("revoked", session=self._name, ranges=ranges, mode=mode, reason=reason)
        for first, last in ranges:
            for fence in range(first, last + 1):
                if fence in self._held:
                    self._held[fence].lost.set()

    def _record_answer(self, op: str, fences: pb.FenceRange, status: "pb.SettleStatus.ValueType") -> None:
        name = pb.SettleStatus.Name(status).removeprefix("SETTLE_STATUS_")
        self._part.recorder.write(op, session=self._name, ranges=[[fences.first, fences.last]], status=name)

    # --- handling ---

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, held: Held) -> None:
        async with self._slots:
            if held.lost.is_set():
                return
            if not self._part.options.level_1:
                self._part.recorder.write("started", session=self._name, ranges=[[held.fence, held.fence]])
                self._out.started.add(first=held.fence, last=held.fence)
                self._send()
            await self._do(held, held.message.headers.get("do", "ok"))

    async def _do(self, held: Held, do: str) -> None:
        chance = self._part.chance
        if held.queue.endswith(".dlq"):
            do = "ok"
        if do == "poison":
            await asyncio.sleep(POISON_SECONDS)
            os._exit(EXIT_POISONED)
        await asyncio.sleep(chance.uniform(0.2, 0.6) if do == "slow" else chance.uniform(0.0, 0.02))
        if do == "extend":
            self._extend(held.fence, 1_500)
            await asyncio.sleep(0.1)
        first = held.attempt == 1
        if do == "exhaust" or (do in {"retry", "later"} and first):
            settlement = pb.Settlement(outcome=pb.OUTCOME_RETRY, reason="told to fail", error_type="Told")
            if do == "later":
                settlement.delay_ms = 300
            self._settle(settlement, held.fence)
        elif do == "dead":
            self._settle(pb.Settlement(outcome=pb.OUTCOME_DEAD_LETTER, reason="told to give up"), held.fence)
        elif do == "release" and not held.reason:
            self._settle(pb.Settlement(outcome=pb.OUTCOME_RELEASE), held.fence)
        elif do == "expire" and first:
            await self._expire(held)
        else:
            children = [(MAILS, child_of(held.message.id, held.fence, chance))] if do == "publish" else []
            self._settle(pb.Settlement(outcome=pb.OUTCOME_ACK), held.fence, publish=children)

    async def _expire(self, held: Held) -> None:
        """Hold it until it is another's; then settle and extend it, in vain."""
        try:
            async with asyncio.timeout(held.visibility * 1.5):
                await held.lost.wait()
        except TimeoutError:
            pass
        self._extend(held.fence, 5_000)
        self._settle(pb.Settlement(outcome=pb.OUTCOME_ACK), held.fence)

    def _extend(self, fence: int, milliseconds: int) -> None:
        if self._out.HasField("extend") and self._out.extend.extension_ms != milliseconds:
            return
        self._part.recorder.write("extend", session=self._name, ranges=[[fence, fence]], ms=milliseconds)
        self._out.extend.extension_ms = milliseconds
        self._out.extend.ranges.add(first=fence, last=fence)
        self._send()

    # --- time ---

    async def _beat(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            self._sequence += 1
            self._out.heartbeat.sequence, self._out.heartbeat.echo = self._sequence, self._echo
            self._send()

    async def _vary(self) -> None:
        """Prefetch up and down, repeats, and in the end a polite leave."""
        chance = self._part.chance
        end = self._loop.time() + chance.uniform(*DETACH_AFTER_SECONDS)
        while self._loop.time() < end:
            await asyncio.sleep(chance.uniform(0.5, 2.0))
            if self._ok and chance.random() < 10 * REPEAT_SHARE:
                self._repeat(self._ok.pop(chance.randrange(len(self._ok))))
            if chance.random() < 4 * REPEAT_SHARE:
                await self._change_prefetch(chance.choice(PREFETCHES))
        await self._detach()

    def _repeat(self, settlement: pb.Settlement) -> None:
        fences = [fence for r in settlement.ranges for fence in range(r.first, r.last + 1)]
        if not any(fence in self._open for fence in fences):
            self._resettle(settlement)

    async def _change_prefetch(self, messages: int) -> None:
        self._set_prefetch(messages)
        if not messages:
            await asyncio.sleep(0.5)
            self._set_prefetch(self._part.options.prefetch)

    def _set_prefetch(self, messages: int) -> None:
        self._part.recorder.write("prefetch", session=self._name, messages=messages, bytes=0)
        self._out.prefetch.messages = messages
        self._send()

    async def _detach(self) -> None:
        self._part.recorder.write("detach", session=self._name)
        self._detaching = True
        self._out.detach.SetInParent()
        self._send()
        await asyncio.sleep(LEAVE_SECONDS)
        self._call.cancel()

    async def _watch(self) -> None:
        """Give up a stream that is silent; leave when told to."""
        began = self._loop.time()
        while True:
            before = self._loop.time()
            await asyncio.sleep(LOOK_SECONDS)
            self._heard += max(0.0, self._loop.time() - before - 2 * LOOK_SECONDS)  # we did not listen
            if self._part.leaving.is_set() and self._attached and not self._detaching:
                self._start(self._detach())
            limit = SILENCE_SECONDS if self._attached else ATTACH_SECONDS
            now = self._loop.time()
            if now - max(self._heard, began) > limit:
                self._call.cancel()
                return


async def run(part: Part) -> int:
    """Its part."""
    return await Consumer(part).run()


if __name__ == "__main__":
    sys.exit(
        play(
            run,
            lambda parser: parser.add_argument("--queues", required=True),
            lambda parser: parser.add_argument("--prefetch", type=int, default=16),
            lambda parser: parser.add_argument("--level-1", action="store_true"),
            lambda parser: parser.add_argument("--consumer-id", default=""),
        )
    )
