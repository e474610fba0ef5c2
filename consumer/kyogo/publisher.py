"""Publishing from asyncio programs.

    async with Publisher() as publisher:
        await publisher.publish("orders", {"total": 12})

Whoever publishes waits until the message is durable. What waits at the same time travels together (`outbox.py`), so
many waiting tasks make few frames; nothing is delayed to wait for company. One stream, opened when first needed and
again whenever it was lost.
"""

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Final, Self, Unpack

import grpc
import grpc.aio

from kyogo import errors, outgoing, wire
from kyogo.backoff import Backoff
from kyogo.codec import Codecs
from kyogo.connection import open_channel
from kyogo.errors import ClosedError, ConfigurationError, KyogoError, UnavailableError
from kyogo.outbox import Outbox, Ticket
from kyogo.outgoing import MESSAGE_BYTES_MAX, NewMessage, PublishOptions
from kyogo.target import Target
from kyogo.tickets import Bulk, OffsetRun, One

__all__ = ["OffsetRun", "Publisher"]

_log = logging.getLogger("kyogo.publisher")

MESSAGES_MAX: Final = 8_192
"""Unconfirmed at once; beyond, `publish` waits for room: some milliseconds of a broker's work."""
BYTES_MAX: Final = 16 * 1024 * 1024
_INFO_TIMEOUT: Final = 5.0
"""Seconds for the broker to say its limits, before the stream is opened."""
_STEADY_SECONDS: Final = 5.0
"""A stream that lived so long counts as success: the next wait is short again."""
_END_TIMEOUT: Final = 3.0
"""Seconds for the broker to end the stream, after everything is confirmed."""


class Publisher:
    """Publishes to any queue; one for each program and loop is enough."""

    def __init__(self, url: str | None = None, *, token: str | None = None, timeout: float = 30.0) -> None:
        """A publisher; nothing is connected before the first message.

        Args:
            url: `kyogo://host:port`. Default: KYOGO_URL, else this machine.
            token: default: KYOGO_TOKEN.
            timeout: seconds until an unconfirmed message is given up, reconnects and retries included.

        Raises:
            ConfigurationError: the timeout is not positive.
        """
        if timeout <= 0:
            raise ConfigurationError(f"timeout={timeout}: give the seconds to try for")
        self.codecs = Codecs()
        """Register a codec of one's own here."""
        self.timeout = timeout
        self._url = url
        self._token = token
        self._outbox = Outbox(str(uuid.uuid4()))
        self._message_bytes_max = MESSAGE_BYTES_MAX
        self._backoff = Backoff()
        self._task: asyncio.Task[None] | None = None
        self._call: wire.PublishCall | None = None
        self._wanted: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._room: deque[asyncio.Future[None]] = deque()
        self._empty: list[asyncio.Future[None]] = []
        self._heard = 0.0
        self._gave_up: KyogoError | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # --- publishing ---

    async def publish(self, queue: str, body: object, **options: Unpack[PublishOptions]) -> int:
        """Publish one message and wait until it is durable.

        Messages of one task to one queue are stored in the order of the calls. Refusals that pass (a full queue, a
        broker that restarts) are tried again until `timeout`; all others are raised at once.

        Args:
            queue: where to.
            body: bytes and str as they are, protobuf and pydantic as they serialise, else JSON.
            options: see `PublishOptions`.

        Returns:
            Its offset in the queue; that of the first one if its id is a duplicate.

        Raises:
            BrokerError: the broker refused it; `code` says why. Nothing is stored.
            UnavailableError: no broker could be reached in time. Nothing is stored.
            PublishTimeoutError: no answer in time. Whether it is stored is unknown.
            CodecError: the body cannot be written in its content type.
            MessageInvalidError: options contradict each other.
            MessageTooLargeError: it is above the broker's limit.
            ClosedError: the publisher is closed.
        """
        field = self.encode(body, options)
        if self._room or self._is_full():
            await self._wait_for_room()
        ticket = One(asyncio.get_running_loop().create_future())
        self.submit(queue, field, ticket)
        return await ticket.future

    async def publish_many(
        self, queue: str, messages: Iterable[object] | AsyncIterable[object], **options: Unpack[PublishOptions]
    ) -> list[OffsetRun]:
        """Publish many messages, in order, with bounded memory; returns when all are durable.

        Not all or nothing: what was confirmed before an error stays. Its first error ends it.

        Args:
            queue: where to.
            messages: bodies, or `NewMessage` where one has options of its own.
            options: for all of them.

        Returns:
            Their offsets, in order, as few runs as they make.

        Raises:
            KyogoError: as for `publish`; a note says how many were confirmed.
        """
        bulk = Bulk()
        async for message in _each(messages):
            field = self.encode_each(message, options)
            if self._room or self._is_full():
                await self._wait_for_room()
            if bulk.error is not None:
                break
            bulk.sent += 1
            self.submit(queue, field, bulk)
        return await bulk.result()

    async def flush(self) -> None:
        """Wait until everything published so far is confirmed or has failed."""
        while self._outbox.messages:
            waiter = asyncio.get_running_loop().create_future()
            self._empty.append(waiter)
            await waiter

    async def close(self) -> None:
        """Wait for what is unconfirmed, then disconnect. Idempotent."""
        self._closing = True
        await self.flush()
        if self._task is not None:
            self._wake()
            task = self._task
            await asyncio.wait({task}, timeout=_END_TIMEOUT)
            task.cancel()
            await asyncio.wait({task})
        self._release(self._room, len(self._room))

    # --- for kyogo.sync ---

    def encode(self, body: object, options: PublishOptions) -> bytes:
        """A message as it will travel; from any thread.

        Raises:
            KyogoError: it cannot be published, see `publish`.
        """
        return outgoing.encode(body, options, codecs=self.codecs, message_bytes_max=self._message_bytes_max)

    def encode_each(self, message: object, options: PublishOptions) -> bytes:
        """A body, or a `NewMessage` with options of its own.

        Raises:
            KyogoError: it cannot be published, see `publish`.
        """
        if isinstance(message, NewMessage):
            return self.encode(message.body, {**options, **message.options})
        return self.encode(message, options)

    def submit(self, queue: str, field: bytes, ticket: Ticket) -> None:
        """Take a message, room or not; the ticket is told what became of it.

        Raises:
            ClosedError: the publisher is closed.
        """
        if self._closing:
            raise ClosedError("this publisher is closed: make a new one")
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._run(), name="kyogo-publisher")
            self._task.add_done_callback(self._ended)
        self._outbox.add(queue, field, ticket, loop.time() + self.timeout)
        if self._timer is None:
            self._arm(loop)
        self._wake()

    # --- room ---

    def _is_full(self) -> bool:
        return self._outbox.messages >= MESSAGES_MAX or self._outbox.bytes >= BYTES_MAX

    async def _wait_for_room(self) -> None:
        """First come, first served, so that order is kept."""
        while not self._closing:
            waiter = asyncio.get_running_loop().create_future()
            self._room.append(waiter)
            try:
                await waiter
            finally:
                if waiter.cancelled() or not waiter.done():
                    self._room.remove(waiter)
            if not self._is_full():
                return

    def _settle(self) -> None:
        """Something was confirmed or has failed: there may be room, or nothing left."""
        if self._room and not self._is_full():
            self._release(self._room, MESSAGES_MAX - self._outbox.messages)
        if self._empty and not self._outbox.messages:
            empty, self._empty = self._empty, []
            for waiter in empty:
                if not waiter.done():
                    waiter.set_result(None)

    @staticmethod
    def _release(waiters: deque[asyncio.Future[None]], count: int) -> None:
        while waiters and count > 0:
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1

    # --- the stream ---

    def _wake(self) -> None:
        wanted = self._wanted
        if wanted is not None:
            self._wanted = None
            if not wanted.done():
                wanted.set_result(None)

    async def _work(self) -> None:
        """Wait until there may be something to do."""
        self._wanted = asyncio.get_running_loop().create_future()
        await self._wanted

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        attempt = 0
        while not self._closing or self._outbox.messages:
            if not self._outbox.messages:
                await self._work()
                continue
            began = loop.time()
            error = await self._connect_and_serve(attempt)
            self._outbox.stream_lost()
            if error is None:
                continue
            attempt += 1
            if loop.time() - began >= _STEADY_SECONDS:
                self._backoff.reset()
            if not error.retryable:
                self._outbox.fail_all(error)
                self._settle()
                continue
            self._outbox.unreachable = error
            wait = self._backoff.next(at_least=(error.retry_after_ms or 0) / 1_000)
            _log.warning("no stream to publish on: %s. Trying again in %.1f s", error, wait)
            await self._pause(wait)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Nobody may wait for a task that is gone: it was cancelled with its loop, or has a bug."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("the publisher failed: this is a bug of the SDK", exc_info=error)
        if self._outbox.messages:
            self._outbox.fail_all(KyogoError(f"the publisher's task has ended: {error!r}. Make a new publisher"))
            self._settle()
        if self._timer is not None:
            self._timer.cancel()
        self._task = self._wanted = self._timer = None  # another loop may be next

    async def _pause(self, seconds: float) -> None:
        """Wait, unless there is nothing left to wait for."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self._outbox.messages and loop.time() < end:
            try:
                async with asyncio.timeout_at(end):
                    await self._work()
            except TimeoutError:
                return

    async def _connect_and_serve(self, attempt: int) -> KyogoError | None:
        """One stream, from its opening to its end. None: it ended as asked."""
        try:
            target = Target.resolve(self._url, self._token)
        except ConfigurationError as error:
            return error
        address = target.addresses[attempt % len(target.addresses)]
        channel = open_channel(target, attempt=attempt, repeat_calls=False)
        try:
            limits = await wire.server_limits(channel, target.metadata(), timeout=_INFO_TIMEOUT)
            if limits.max_message_bytes:
                self._message_bytes_max = limits.max_message_bytes
            return await self._serve(wire.publish_stream(channel, target.metadata()))
        except grpc.aio.AioRpcError as error:
            return errors.from_stream(error, address=address)
        except asyncio.CancelledError:
            if self._gave_up is None:  # we are cancelled ourselves; the call says so in both cases
                raise
            given_up, self._gave_up = self._gave_up, None
            return given_up
        finally:
            self._call = None
            await channel.close()

    async def _serve(self, call: wire.PublishCall) -> KyogoError | None:
        self._call = call
        self._heard = asyncio.get_running_loop().time()
        writer = asyncio.create_task(self._write(call), name="kyogo-publisher-writer")
        try:
            while (response := await wire.read(call)) is not None:
                self._heard = asyncio.get_running_loop().time()
                self._outbox.unreachable = None
                self._outbox.answered(response, self._heard)
                self._wake()  # first: the next request travels while more is being encoded
                self._settle()
            if self._closing and not self._outbox.messages:
                return None
            return UnavailableError("the broker ended the stream without a reason")
        finally:
            call.cancel()
            writer.cancel()
            await asyncio.wait({writer})

    async def _write(self, call: wire.PublishCall) -> None:
        loop = asyncio.get_running_loop()
        try:
            while not self._closing or self._outbox.messages:
                request = self._outbox.next_request(loop.time())
                if request is None:
                    self._arm(loop)
                    await self._work()
                else:
                    await call.write(request)
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            _log.debug("cannot write any more: %s", error)  # the reader is told why the stream ended
        except Exception as error:  # noqa: BLE001 - without a writer nothing goes on: the stream has to end
            _log.exception("a request could not be made: this is a bug of the SDK")
            self._give_up(call, KyogoError(f"a request could not be made: {error!r}"))

    def _give_up(self, call: wire.PublishCall, error: KyogoError) -> None:
        """End the stream; `_run` goes by the error."""
        self._gave_up = error
        call.cancel()

    # --- time ---

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Be called when the outbox wants to be."""
        due = self._outbox.due()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if due is None else loop.call_at(max(due, loop.time()), self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._timer = None
        sent_at = self._outbox.expire(now)
        if sent_at is not None and self._call is not None and self._heard <= sent_at:
            # Nothing at all came for so long: another stream may do better.
            self._give_up(self._call, UnavailableError(f"the broker has not answered for {self.timeout:g} s"))
        self._settle()
        self._wake()
        self._arm(loop)


async def _each(messages: Iterable[object] | AsyncIterable[object]) -> AsyncIterator[object]:
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            yield message
    else:
        for message in messages:
            yield message
