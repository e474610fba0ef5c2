"""Who waits for the confirmation of messages: one caller for one of them, or one for many."""

import asyncio
from dataclasses import dataclass

from kyogo.errors import KyogoError


@dataclass(frozen=True, slots=True)
class OffsetRun:
    """Consecutive offsets of consecutively published messages."""

    first: int
    count: int
    duplicate: bool = False
    """They were stored before (same id within the dedup window); the offsets are those of then."""


class One:
    """Waits for one message."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[int]) -> None:
        self.future = future

    @property
    def dropped(self) -> bool:
        """Whoever waited has gone."""
        return self.future.done()

    def stored(self, offset: int, *, duplicate: bool) -> None:  # noqa: ARG002 - a duplicate is stored too
        """It is durable."""
        if not self.future.done():
            self.future.set_result(offset)

    def failed(self, error: KyogoError) -> None:
        """It is not stored, or nobody knows."""
        if not self.future.done():
            self.future.set_exception(error)


class Bulk:
    """Waits for many messages: the ticket of each of them."""

    dropped = False

    def __init__(self) -> None:
        self.sent = 0
        self.error: KyogoError | None = None
        self._done = 0
        self._confirmed = 0
        self._runs: list[OffsetRun] = []
        self._first = self._count = 0
        self._duplicate = False
        self._waiter: asyncio.Future[None] | None = None

    async def result(self) -> list[OffsetRun]:
        """Their offsets, once all of them are stored or have failed.

        Raises:
            KyogoError: the first failure.
        """
        while self._done < self.sent:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._close_run()
        if self.error is not None:
            self.error.add_note(f"{self._confirmed} messages of this publish_many were confirmed")
            raise self.error
        return self._runs

    def stored(self, offset: int, *, duplicate: bool) -> None:
        """It is durable."""
        if offset != self._first + self._count or duplicate is not self._duplicate:
            self._close_run()
            self._first, self._duplicate = offset, duplicate
        self._count += 1
        self._confirmed += 1
        self._tell()

    def failed(self, error: KyogoError) -> None:
        """It is not stored, or nobody knows."""
        if self.error is None:
            self.error = error
        self._tell()

    def _tell(self) -> None:
        self._done += 1
        if self._waiter is not None and self._done >= self.sent and not self._waiter.done():
            self._waiter.set_result(None)

    def _close_run(self) -> None:
        if self._count:
            self._runs.append(OffsetRun(self._first, self._count, self._duplicate))
        self._count = 0
