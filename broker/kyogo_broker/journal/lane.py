"""A thread that does calls one after the other, and its stand-in without a thread."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Lane(Protocol):
    """Does calls in the order in which they come."""

    def do(self, call: Callable[..., T], *arguments: Any) -> Future[T]:  # noqa: ANN401 - they are the call's own
        """Have it done; the future holds what came of it."""

    def close(self) -> None:
        """Finish what came so far and end. Idempotent."""


class ThreadLane:
    """A lane in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, call: Callable[..., T], *arguments: Any) -> Future[T]:  # noqa: ANN401 - they are the call's own
        """Have it done by the thread; the future is completed there."""
        future: Future[T] = Future()
        self._calls.put((future, call, arguments))
        return future

    def close(self) -> None:
        """Wait for what came so far."""
        self._calls.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (entry := self._calls.get()) is not None:
            _complete(*entry)
            del entry  # the next one may be long in coming, and this one's buffers large


class InlineLane:
    """A lane that does everything at once, in the caller's thread."""

    def __init__(self, _name: str) -> None:
        pass

    def do(self, call: Callable[..., T], *arguments: Any) -> Future[T]:  # noqa: ANN401 - they are the call's own
        """Do it now; the future is done."""
        future: Future[T] = Future()
        _complete(future, call, arguments)
        return future

    def close(self) -> None:
        """Nothing is under way, ever."""


def _complete(future: Future[T], call: Callable[..., T], arguments: tuple[Any, ...]) -> None:
    try:
        result = call(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the asker's
        future.set_exception(error)
    else:
        future.set_result(result)
