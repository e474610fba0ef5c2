"""Consumers come, fall silent, come back and go."""

from kyogo_broker.core.consumers import (
    END_INTERVALS,
    FAILED_INTERVALS,
    SUSPECT_INTERVALS,
    Consumer,
    ConsumerEvent,
    Member,
)  # fmt: skip
from kyogo_broker.core.letters import Letters
from kyogo_broker.core.limits import CAPABILITIES
from kyogo_broker.core.publishing import DRAINING_RETRY_MS, queue_not_found
from kyogo_broker.core.settling import Settling
from kyogo_broker.core.state import State
from kyogo_broker.model.commands import Attach, Drain, SetPrefetch
from kyogo_broker.model.effects import (
    AttachDone,
    AttachRefused,
    EndStream,
    Notice,
    Revoke,
    SubscriptionInfo,
    TellDrain,
)  # fmt: skip
from kyogo_broker.model.errors import ErrorCode, Refusal
from kyogo_broker.model.message import FenceRange
from kyogo_broker.model.now import Now
from kyogo_broker.model.states import ConsumerState, RedeliveryReason, RevokeMode, RevokeReason

SILENT = (ConsumerState.SUSPECT, ConsumerState.FAILED)
PREFETCH_BYTES_DEFAULT = 4 << 20
LOST_TOLD_MAX = 10_000
"""Ranges of fences that a consumer is told of when it is heard again."""


class Sessions:
    """All consumers of a shard."""

    def __init__(self, state: State, settling: Settling, letters: Letters) -> None:
        self._state = state
        self._settling = settling
        self._letters = letters

    def attach(self, command: Attach, now: Now) -> None:
        """Open a session."""
        refusal = self._refusal(command)
        if refusal is not None:
            self._state.emit(AttachRefused(command.port, refusal))
            return
        before = self._state.consumer_ids.get(command.consumer_id)
        if before is not None:
            # It showed the token: its old stream is half dead, and this one takes over.
            self._state.emit(EndStream(before.port, Refusal(ErrorCode.CONSUMER_ID_IN_USE, "taken over by its resume")))
            self.lost(before.port, now)
        consumer = self._consumer(command, now)
        for member in self._members(consumer, command):
            member.queue.members[consumer.session_id] = member
            consumer.members.append(member)
        self._state.emit(self._attached(consumer, command))
        self._state.touch(consumer)
        self._remind(consumer, now)
        queues = ",".join(member.queue.name for member in consumer.members)
        self._notice("consumer_attached", consumer, queues=queues, client=command.client.name)

    def set_prefetch(self, command: SetPrefetch) -> None:
        """Grant what is asked, up to the limits."""
        config = self._state.config
        consumer = self._state.consumers[command.port]
        octets = command.bytes if command.bytes else PREFETCH_BYTES_DEFAULT
        consumer.grant(min(command.messages, config.prefetch_messages_max), min(octets, config.prefetch_bytes_max))
        self._state.touch(consumer)

    def heard(self, port: int, now: Now) -> None:
        """A consumer gave a sign of life: any command of its port."""
        state = self._state
        consumer = state.consumers.get(port)
        if consumer is None:
            return
        consumer.heard_ms = state.patience_ms
        if consumer.state in SILENT:
            was_failed = consumer.state is ConsumerState.FAILED
            consumer.happens(ConsumerEvent.HEARD)
            if state.draining:
                consumer.happens(ConsumerEvent.DRAIN)
            if consumer.lost and consumer.capabilities:
                reason = RevokeReason.FAILED if was_failed else RevokeReason.SUSPECT
                ranges = tuple(FenceRange(first, last) for first, last in consumer.lost[:LOST_TOLD_MAX])
                state.emit(Revoke(port, ranges, RevokeMode.LOST, reason))
            consumer.lost.clear()
            state.touch(consumer)
            self._remind(consumer, now)
            self._notice("consumer_heard_again", consumer)

    def look_at(self, consumer: Consumer, now: Now) -> None:
        """A consumer's silence asked to be looked at."""
        if self._state.consumers.get(consumer.port) is not consumer:
            return
        silent_ms = self._state.patience_ms - consumer.heard_ms
        interval = consumer.heartbeat_interval_ms
        if silent_ms >= END_INTERVALS * interval:
            text = f"nothing was heard for {silent_ms} ms; attach again"
            self._state.emit(EndStream(consumer.port, Refusal(ErrorCode.INTERNAL, text), unavailable=True))
            return
        if silent_ms >= FAILED_INTERVALS * interval and consumer.state is not ConsumerState.FAILED:
            self._fail(consumer, now)
        elif silent_ms >= SUSPECT_INTERVALS * interval and consumer.state not in SILENT:
            self._suspect(consumer)
        self._remind(consumer, now)

    def detach(self, port: int) -> None:
        """A polite leave: everything goes back uncharged."""
        consumer = self._state.consumers[port]
        returned = self._settling.give_back(consumer, RedeliveryReason.DETACH, begun=True)
        self._leave(consumer)
        self._letters.end_stream(port)
        self._notice("consumer_detached", consumer, returned=returned)

    def lost(self, port: int, now: Now) -> None:
        """The stream is gone: what had begun is charged with a loss, the rest goes back."""
        self._letters.stream_ended(port)
        consumer = self._state.consumers.get(port)
        if consumer is None:
            return
        if not consumer.counts_start():
            for lease in consumer.leases.values():
                lease.started |= lease.live
        begun = self._settling.lose(consumer, RedeliveryReason.STREAM_LOSS, now)
        returned = self._settling.give_back(consumer, RedeliveryReason.STREAM_LOSS, begun=False)
        self._leave(consumer)
        self._count_failover("stream_loss")
        self._notice("consumer_lost", consumer, started=begun, returned=returned)

    def drain(self, command: Drain) -> None:
        """The broker stops: tell everyone who can be told."""
        self._state.draining = True
        for consumer in self._state.consumers.values():
            if consumer.state not in SILENT:
                consumer.happens(ConsumerEvent.DRAIN)
            self._state.touch(consumer)
            if "drain" in consumer.capabilities:
                self._state.emit(TellDrain(consumer.port, "the broker is stopping", command.deadline_ms))

    def _suspect(self, consumer: Consumer) -> None:
        consumer.happens(ConsumerEvent.SILENT)
        self._state.touch(consumer)
        # Who never says what has begun must be taken to have begun everything.
        returned = 0
        if consumer.counts_start():
            returned = self._settling.give_back(consumer, RedeliveryReason.SUSPECT, begun=False)
        self._count_failover("suspect")
        self._notice("consumer_suspect", consumer, returned=returned)

    def _fail(self, consumer: Consumer, now: Now) -> None:
        consumer.happens(ConsumerEvent.GIVEN_UP)
        self._state.touch(consumer)
        begun = self._settling.lose(consumer, RedeliveryReason.FAILED, now)
        returned = self._settling.give_back(consumer, RedeliveryReason.SUSPECT, begun=True)
        self._count_failover("failed")
        self._notice("consumer_failed", consumer, started=begun, returned=returned)

    def _leave(self, consumer: Consumer) -> None:
        state = self._state
        consumer.happens(ConsumerEvent.LEFT)
        state.touch(consumer)
        for member in consumer.members:
            member.queue.members.pop(consumer.session_id, None)
        for lease in consumer.leases.values():
            # Only what waits for its dead letter is left; its consumer is not accounted for any more.
            lease.consumer = lease.member = None
        del state.consumers[consumer.port], state.sessions[consumer.session_id]
        if state.consumer_ids.get(consumer.consumer_id) is consumer:
            del state.consumer_ids[consumer.consumer_id]

    def _refusal(self, command: Attach) -> Refusal | None:
        state, config = self._state, self._state.config
        if state.draining:
            return Refusal(ErrorCode.BROKER_DRAINING, "the broker is stopping; attach again", DRAINING_RETRY_MS)
        names = [subscription.queue for subscription in command.subscriptions]
        if not 1 <= len(names) <= config.subscriptions_max or len(set(names)) < len(names):
            text = f"attach names {len(names)} queues; it takes 1 to {config.subscriptions_max}, each once"
            return Refusal(ErrorCode.FRAME_INVALID, text)
        weights = [command.weight, *(subscription.weight for subscription in command.subscriptions)]
        if any(weight is not None and not 1 <= weight <= config.weight_max for weight in weights):
            return Refusal(ErrorCode.FRAME_INVALID, f"a weight must lie between 1 and {config.weight_max}")
        if any(subscription.max_unsettled == 0 for subscription in command.subscriptions):
            return Refusal(ErrorCode.FRAME_INVALID, "max_unsettled must be 1 or more; leave it unset for no limit")
        before = state.consumer_ids.get(command.consumer_id)
        for name in names:
            queue = state.names.get(name)
            if queue is None:
                return queue_not_found(state, name)
            others = len(queue.members) - (before is not None and before.session_id in queue.members)
            if others >= queue.settings.max_consumers:
                text = f"'{name}' has {others} consumers, its max_consumers; raise it or detach some"
                return Refusal(ErrorCode.LIMIT_EXCEEDED, text)
        if before is not None and command.resumed_token != before.session_token:
            wait = before.heartbeat_interval_ms * FAILED_INTERVALS
            text = (
                f"'{command.consumer_id}' is attached already; show its session token to take over, "
                "choose another consumer_id, or leave it empty"
            )
            return Refusal(ErrorCode.CONSUMER_ID_IN_USE, text, wait)
        return None

    def _consumer(self, command: Attach, now: Now) -> Consumer:
        state, config = self._state, self._state.config
        asked = command.heartbeat_interval_ms or config.heartbeat_interval_ms
        interval = min(max(asked, config.heartbeat_interval_ms_min), config.heartbeat_interval_ms_max)
        consumer = Consumer(command, interval_ms=interval, heard_ms=state.patience_ms, attached_unix_ms=now.unix_ms)
        messages = min(command.prefetch_messages, config.prefetch_messages_max)
        consumer.grant(messages, min(command.prefetch_bytes, config.prefetch_bytes_max))
        consumer.capabilities = command.capabilities & CAPABILITIES
        state.consumers[consumer.port] = consumer
        state.sessions[consumer.session_id] = consumer
        state.consumer_ids[consumer.consumer_id] = consumer
        return consumer

    def _members(self, consumer: Consumer, command: Attach) -> list[Member]:
        return [
            Member(
                consumer, self._state.names[subscription.queue], index=index,
                weight=subscription.weight, max_unsettled=subscription.max_unsettled,
            )
            for index, subscription in enumerate(command.subscriptions)
        ]  # fmt: skip

    def _attached(self, consumer: Consumer, command: Attach) -> AttachDone:
        interval = consumer.heartbeat_interval_ms
        infos = []
        for member in consumer.members:
            settings = member.queue.settings
            infos.append(
                SubscriptionInfo(member.queue.name, settings.visibility_timeout_ms, settings.max_attempts,
                                 settings.balance_policy)
            )  # fmt: skip
        return AttachDone(
            port=consumer.port, session_id=consumer.session_id, session_token=consumer.session_token,
            consumer_id=consumer.consumer_id, prefetch_messages=consumer.prefetch_messages,
            prefetch_bytes=consumer.prefetch_bytes, heartbeat_interval_ms=interval,
            suspect_after_ms=SUSPECT_INTERVALS * interval, failed_after_ms=FAILED_INTERVALS * interval,
            capabilities=tuple(sorted(consumer.capabilities)), subscriptions=tuple(infos), lost=command.held,
        )  # fmt: skip

    def _remind(self, consumer: Consumer, now: Now) -> None:
        """Look again when the next threshold of silence could be reached."""
        silent = self._state.patience_ms - consumer.heard_ms
        interval = consumer.heartbeat_interval_ms
        for intervals in (SUSPECT_INTERVALS, FAILED_INTERVALS, END_INTERVALS):
            if silent < intervals * interval:
                self._state.timers.remind(consumer, now.steady_ms + intervals * interval - silent)
                return

    def _count_failover(self, reason: str) -> None:
        self._state.failovers[reason] = self._state.failovers.get(reason, 0) + 1

    def _notice(self, event: str, consumer: Consumer, **fields: str | int) -> None:
        self._state.emit(Notice(event, {"consumer": consumer.consumer_id, **fields}))
