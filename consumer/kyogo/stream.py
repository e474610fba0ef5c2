"""The IO around a `Session`: one reader, one writer, one ticking timer over one gRPC stream.

The reader is never cancelled on its own: in grpc.aio that would lose messages or end the call. What ends a stream
is its end, or `abort`. The writer takes all that waits as one frame, as soon as the one before is written: that is
the whole of the batching. The timer beats, notices when this process's loop was blocked, and gives up on a broker
that has been silent for too long, the loop's own lag not counted.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio

from kyogo import errors, wire
from kyogo.actions import Action, Attached, Load
from kyogo.errors import KyogoError, ProtocolError, UnavailableError
from kyogo.session import Phase, Session

_log = logging.getLogger("kyogo.stream")

_ATTACH_TIMEOUT: Final = 30.0
"""Seconds until `attach` has to be answered: a broker that recovers a large journal may take its time."""
_SILENCE_MIN: Final = 15.0
"""Seconds of silence before a broker counts as gone: it promises a sign of life each 5 s, but its disk may stall."""
_INTERVAL_DEFAULT: Final = 1.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a stream ended."""

    error: KyogoError | None
    """None: OK, after a `detach`."""
    attached: bool
    """Whether it ever was a session."""


class Stream:
    """One `Consume` call and its session."""

    def __init__(
        self,
        call: wire.ConsumeCall,
        session: Session,
        *,
        address: str,
        act: Callable[[list[Action]], None],
        beat: Callable[[], float],
    ) -> None:
        self._call = call
        self._session = session
        self._address = address
        self._act = act
        self._process = _Process(beat)
        self._loop = asyncio.get_running_loop()
        self._wanted: asyncio.Future[None] | None = None
        self._flushes: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._interval = _INTERVAL_DEFAULT
        self._patience = _ATTACH_TIMEOUT
        self._heard = self._loop.time()
        self._aborted: KyogoError | None = None
        self._attached = False
        self._over = False

    async def run(self) -> Ending:
        """Read and write until the stream ends."""
        self._schedule()
        writer = asyncio.create_task(self._write(), name="kyogo-writer")
        try:
            error = await self._read()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._call.cancel()  # no effect on a call that has ended
            writer.cancel()
            await asyncio.wait({writer})
            self._over = True
            _resolve(self._flushes)
        return Ending(error=error, attached=self._attached)

    def wake(self) -> None:
        """Something waits to be sent."""
        wanted = self._wanted
        if wanted is not None:
            self._wanted = None
            if not wanted.done():
                wanted.set_result(None)

    async def flush(self) -> None:
        """Wait until everything that waits now has been handed to the network, or the stream is over."""
        if self._over:
            return
        waiter = self._loop.create_future()
        self._flushes.append(waiter)
        self.wake()
        await waiter

    def abort(self, error: KyogoError) -> None:
        """End the stream now, with this as the cause."""
        if self._aborted is None:
            self._aborted = error
        self._call.cancel()

    # --- reading ---

    async def _read(self) -> KyogoError | None:
        try:
            while (frame := await wire.read(self._call)) is not None:
                self._heard = self._loop.time()
                actions = self._session.receive(frame)
                if actions:
                    self._note(actions)
                    self._act(actions)
            code = await self._call.code()
        except grpc.aio.AioRpcError as error:
            return self._aborted or errors.from_stream(error, address=self._address)
        except KyogoError as error:  # the frame was against the contract
            return error
        except asyncio.CancelledError:
            if self._aborted is None:
                raise
            return self._aborted
        if self._aborted is not None:
            return self._aborted
        if code is grpc.StatusCode.OK and self._session.phase is Phase.LEAVING:
            return None
        return UnavailableError(f"the broker at {self._address} ended the stream without a reason ({code.name})")

    def _note(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Attached):
                self._attached = True
                if action.heartbeat_interval_ms > 0:
                    self._interval = action.heartbeat_interval_ms / 1_000
                self._patience = max(_SILENCE_MIN, action.failed_after_ms / 1_000)
                self._beat()
                self._schedule()

    # --- writing ---

    async def _write(self) -> None:
        flushes: list[asyncio.Future[None]] = []
        try:
            while True:
                flushes, self._flushes = self._flushes, []
                frame = self._session.next_frame()
                if frame is not None:
                    await self._call.write(frame)
                _resolve(flushes)
                if frame is not None and frame.HasField("detach"):
                    await self._call.done_writing()
                    return
                if frame is None and not self._flushes:
                    self._wanted = self._loop.create_future()
                    await self._wanted
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            _log.debug("cannot write any more: %s", error)  # the reader is told why the stream ended
        except Exception as error:  # noqa: BLE001 - without a writer nothing goes on: the stream has to end
            _log.exception("a frame could not be made: this is a bug of the SDK")
            self.abort(ProtocolError(f"a frame could not be made: {error}"))
        finally:
            _resolve(flushes)

    # --- the timer ---

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self._loop.time() + self._interval
        self._timer = self._loop.call_at(due, self._tick, due)

    def _tick(self, due: float) -> None:
        now = self._loop.time()
        lag = now - due
        if lag > self._interval:
            self._heard += lag  # we did not listen: that is not the broker's silence
            _log.warning(
                "the event loop was blocked for %.1f s: heartbeats were late, and the broker may have given work to"
                " others. A handler computes or waits without `await`: make it a plain function, to run in a thread",
                lag,
            )
        if now - self._heard > self._patience:
            what = "silent" if self._attached else "not answering `attach`"
            self.abort(UnavailableError(f"the broker at {self._address} has been {what} for {now - self._heard:.0f} s"))
            return
        if self._attached:
            self._beat()
        self._schedule()

    def _beat(self) -> None:
        self._session.beat(self._process.load())
        self.wake()


def _resolve(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


class _Process:
    """What this process costs, for heartbeats."""

    def __init__(self, beat: Callable[[], float]) -> None:
        self._beat = beat
        self._wall = time.monotonic()
        self._cpu = time.process_time()

    def load(self) -> Load:
        """Since the last call."""
        wall, cpu = time.monotonic(), time.process_time()
        passed = wall - self._wall
        share = (cpu - self._cpu) / passed if passed > 0 else 0.0
        self._wall, self._cpu = wall, cpu
        return Load(utilization=self._beat(), cpu=share, rss_bytes=_rss_bytes())


def _rss_bytes() -> int:
    """Resident memory; 0 where the system does not say it the way Linux does."""
    try:
        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123 - a second, on the loop: the plain call
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
