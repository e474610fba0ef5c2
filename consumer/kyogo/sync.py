"""Publishing from programs that block: web applications in threads and forked processes, scripts.

    publisher = Publisher()                 # at import; connects in the process that publishes first
    publisher.publish("orders", {"id": 1})

One `Publisher` serves all threads of a process: what they publish at the same time travels together. It runs the
asyncio publisher on a thread of its own, opened lazily, one for each process.

gRPC does not survive a fork while it is in use: the child hangs in the library at its first call. So an open publisher
disconnects before `os.fork` and connects again after it, in the parent and in the child, each when it next publishes.
Where that is not possible (messages stay unconfirmed, or the process was forked by C code that runs no hooks before),
the child's publisher raises `ForkedError` instead of hanging; gRPC may also crash such a child at once. None of this
covers other users of gRPC in the parent.
"""

import asyncio
import atexit
import concurrent.futures
import ctypes
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Final, Self, TypeAlias, TypeVar, Unpack

from kyogo import publisher
from kyogo.codec import Codecs
from kyogo.errors import ClosedError, ForkedError, KyogoError, PublishTimeoutError
from kyogo.outgoing import NewMessage, PublishOptions
from kyogo.tickets import Bulk, OffsetRun

__all__ = ["NewMessage", "OffsetRun", "PublishOptions", "Publisher"]

_log = logging.getLogger("kyogo.sync")

Result = TypeVar("Result")

_FORK_TIMEOUT: Final = 2.0
"""Seconds that a fork waits for messages of other threads to be confirmed."""
_MARGIN: Final = 10.0
"""Seconds beyond the publisher's timeout after which its thread must have died."""
_CHUNK: Final = 1_024
"""Messages of `publish_many` handed to the publisher's thread at once; two chunks are under way."""


class Publisher:
    """A blocking publisher for any number of threads."""

    def __init__(self, url: str | None = None, *, token: str | None = None, timeout: float = 30.0) -> None:
        """A publisher; nothing is connected, and no thread started, before the first message.

        Args:
            url: `kyogo://host:port`. Default: KYOGO_URL, else this machine.
            token: default: KYOGO_TOKEN.
            timeout: seconds until an unconfirmed message is given up, reconnects and retries included.
        """
        self.codecs = Codecs()
        """Register a codec of one's own here."""
        self.timeout = timeout
        self._url = url
        self._token = token
        self._lock = threading.Lock()
        self._thread: _Thread | None = None
        self._go_on: threading.Event | None = None
        self._closed = False
        _hooks.watch(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def publish(self, queue: str, body: object, **options: Unpack[PublishOptions]) -> int:
        """Publish one message and block until it is durable; as `kyogo.Publisher.publish`.

        Raises:
            ForkedError: see the module.
            KyogoError: see `kyogo.Publisher.publish`.
        """
        answer: concurrent.futures.Future[int] = concurrent.futures.Future()
        with self._lock:
            thread = self._open()
            thread.submit(queue, thread.publisher.encode(body, options), _Answer(answer))
        return self._wait(answer)

    def publish_many(
        self, queue: str, messages: Iterable[object], **options: Unpack[PublishOptions]
    ) -> list[OffsetRun]:
        """Publish many messages, in order, with bounded memory; as `kyogo.Publisher.publish_many`.

        Raises:
            ForkedError: see the module.
            KyogoError: as for `publish`. What was confirmed before it stays.
        """
        runs: list[OffsetRun] = []
        under_way: deque[concurrent.futures.Future[list[OffsetRun]]] = deque()
        each = iter(messages)
        while chunk := list(islice(each, _CHUNK)):
            with self._lock:
                thread = self._open()
                fields = [thread.publisher.encode_each(message, options) for message in chunk]
                under_way.append(thread.submit_many(queue, fields))
            if len(under_way) > 1:
                _join(runs, self._wait(under_way.popleft()))
        while under_way:
            _join(runs, self._wait(under_way.popleft()))
        return runs

    def disconnect(self, timeout: float | None = None) -> bool:
        """Wait for what is unconfirmed, then give up thread and connection; the next message connects again.

        Args:
            timeout: seconds to wait. Default: until everything is confirmed or has failed.

        Returns:
            False: messages are still unconfirmed, and so it stays connected.
        """
        with self._lock:
            return self._disconnect(timeout)

    def close(self) -> None:
        """Wait for what is unconfirmed, then disconnect for good. Idempotent."""
        with self._lock:
            self._closed = True
            self._disconnect(None)

    # --- the thread ---

    def _open(self) -> "_Thread":
        if self._closed:
            raise ClosedError("this publisher is closed: make a new one")
        thread = self._thread
        if thread is None:
            thread = self._thread = _Thread(self._url, self._token, self.timeout, self.codecs)
        elif thread.pid != os.getpid():
            raise ForkedError(
                f"process {thread.pid} was publishing when it was forked into this one, and gRPC does not survive that:"
                " publish after forking, or call disconnect() before"
            )
        return thread

    def _disconnect(self, timeout: float | None) -> bool:
        thread = self._thread
        if thread is None or thread.pid != os.getpid():
            return True
        if not thread.close(timeout):
            return False
        self._thread = None
        return True

    def _wait(self, answer: "concurrent.futures.Future[Result]") -> Result:
        try:
            return answer.result(self.timeout + _MARGIN)
        except concurrent.futures.TimeoutError as error:
            if isinstance(error, KyogoError):
                raise
            raise PublishTimeoutError(
                "the publisher's thread does not answer; whether it is stored is unknown"
            ) from None

    # --- forks; the lock is held from before to after ---

    def before_fork(self) -> None:
        """Hold everybody off, and leave gRPC."""
        self._lock.acquire()
        if not self._disconnect(_FORK_TIMEOUT):
            _log.warning("messages stay unconfirmed: after this fork, the child cannot publish")
            assert self._thread is not None
            self._go_on = self._thread.hold()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._go_on is not None:
            self._go_on.set()
            self._go_on = None
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """The lock's holder may not exist here; what the parent had open is never touched again, not even freed."""
        self._lock = threading.Lock()
        if self._thread is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._thread))


@dataclass(slots=True)
class _Answer:
    """A ticket that is waited for in another thread."""

    future: "concurrent.futures.Future[int]"
    dropped: bool = False

    def stored(self, offset: int, *, duplicate: bool) -> None:  # noqa: ARG002 - a duplicate is stored too
        self.future.set_result(offset)

    def failed(self, error: KyogoError) -> None:
        self.future.set_exception(error)


_Chunk: TypeAlias = "tuple[str, list[bytes], concurrent.futures.Future[list[OffsetRun]]]"
_Single: TypeAlias = tuple[str, bytes, _Answer]


class _Thread:
    """A thread with a loop and a publisher in it."""

    def __init__(self, url: str | None, token: str | None, timeout: float, codecs: Codecs) -> None:
        self.pid = os.getpid()
        self.publisher = publisher.Publisher(url, token=token, timeout=timeout)
        self.publisher.codecs = codecs
        self._loop = asyncio.new_event_loop()
        self._inbox: deque[_Single | _Chunk] = deque()
        self._woken = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kyogo-publisher", daemon=True)
        self._thread.start()

    def submit(self, queue: str, field: bytes, answer: _Answer) -> None:
        """Hand over one message. Called under the publisher's lock."""
        self._inbox.append((queue, field, answer))
        self._wake()

    def submit_many(self, queue: str, fields: list[bytes]) -> "concurrent.futures.Future[list[OffsetRun]]":
        """Hand over messages that are answered together. Called under the publisher's lock."""
        answer: concurrent.futures.Future[list[OffsetRun]] = concurrent.futures.Future()
        self._inbox.append((queue, fields, answer))
        self._wake()
        return answer

    def close(self, timeout: float | None) -> bool:
        """End publisher, loop and thread; False: not in this time."""
        flushed = asyncio.run_coroutine_threadsafe(self.publisher.flush(), self._loop)
        try:
            flushed.result(timeout)
        except TimeoutError:
            flushed.cancel()
            return False
        asyncio.run_coroutine_threadsafe(self.publisher.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        return True

    def hold(self) -> threading.Event:
        """Stop the loop between two callbacks until the event is set.

        A forked child frees what the frames of other threads hold. Had it been in use by gRPC, the child would crash.
        """
        held, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            held.set()
            go_on.wait()

        self._loop.call_soon_threadsafe(wait)
        held.wait(_FORK_TIMEOUT)
        return go_on

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        """On the loop."""
        self._woken = False
        while self._inbox:
            queue, field, answer = self._inbox.popleft()
            if isinstance(answer, _Answer):
                assert isinstance(field, bytes)
                self.publisher.submit(queue, field, answer)
            else:
                assert isinstance(field, list)
                task = self._loop.create_task(self._publish_chunk(queue, field, answer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _publish_chunk(
        self, queue: str, fields: list[bytes], answer: "concurrent.futures.Future[list[OffsetRun]]"
    ) -> None:
        bulk = Bulk()
        try:
            for field in fields:
                bulk.sent += 1
                self.publisher.submit(queue, field, bulk)
            answer.set_result(await bulk.result())
        except KyogoError as error:
            answer.set_exception(error)


class _Hooks:
    """Process-wide: forks and the interpreter's end."""

    def __init__(self) -> None:
        self._publishers: weakref.WeakSet[Publisher] = weakref.WeakSet()
        self._held: list[Publisher] = []
        self._registered = False

    def watch(self, publisher: Publisher) -> None:
        """Care for one."""
        self._publishers.add(publisher)
        if not self._registered:
            self._registered = True
            os.register_at_fork(
                before=self._before,
                after_in_parent=lambda: self._after(Publisher.after_fork_in_parent),
                after_in_child=lambda: self._after(Publisher.after_fork_in_child),
            )
            atexit.register(self._at_exit)

    def _before(self) -> None:
        self._held = list(self._publishers)
        for each in self._held:
            each.before_fork()

    def _after(self, step: Callable[[Publisher], None]) -> None:
        # The child's list is its own copy: nothing else ran between `before` and here.
        held, self._held = self._held, []
        for each in held:
            step(each)

    def _at_exit(self) -> None:
        """The loop's thread must not meet the end of the interpreter inside of gRPC."""
        for each in list(self._publishers):
            each.disconnect(_FORK_TIMEOUT)


_hooks = _Hooks()


def _join(runs: list[OffsetRun], more: list[OffsetRun]) -> None:
    """Append runs, neighbours joined."""
    for run in more:
        last = runs[-1] if runs else None
        if last is not None and last.first + last.count == run.first and last.duplicate == run.duplicate:
            runs[-1] = OffsetRun(last.first, last.count + run.count, run.duplicate)
        else:
            runs.append(run)
