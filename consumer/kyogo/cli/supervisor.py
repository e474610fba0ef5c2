"""Several worker processes as one: started, watched, started again when they die, and ended together.

Every child is a fresh interpreter (`create_subprocess_exec`): gRPC does not survive a fork. A child that
ends with 0 was told to (a rollout, a drain) and stays away; one that ends with 2 can never start, so all
end; any other end is an accident, and another child takes its place after a backoff. A child notices the
end of its supervisor, even by kill -9, at the end of its standard input, see `end_with_parent`.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Sequence

from kyogo.backoff import Backoff, BackoffSettings
from kyogo.cli.terminal import Exit

STEADY_SECONDS = 10.0
"""A child that lived so long was well: its next accident begins a new series of backoffs."""
_CLEAN_ENDS = {Exit.OK, -signal.SIGTERM}
"""When told to stop; by the signal itself ends who was still starting, and had begun nothing."""
RESTARTS = BackoffSettings(initial=0.2, maximum=10.0)


class Supervisor:
    """`count` children of one command."""

    def __init__(self, command: Sequence[str], count: int, note: Callable[[str], None]) -> None:
        """Nothing is started yet.

        Args:
            command: program and arguments, the same for every child.
            count: how many.
            note: is told what happens, a line at a time.
        """
        self._command = command
        self._count = count
        self._note = note
        self._children: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._exit = Exit.OK

    async def run(self) -> int:
        """Keep the children alive until a signal, or until all ended on purpose; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        async with asyncio.TaskGroup() as group:
            for index in range(1, self._count + 1):
                group.create_task(self._keep(index))
        return self._exit

    async def _keep(self, index: int) -> None:
        backoff = Backoff(RESTARTS)
        while not self._stopping.is_set():
            began = asyncio.get_running_loop().time()
            code = await self._live(index)
            if code == Exit.USAGE and not self._stopping.is_set():
                self._exit = Exit.USAGE
                self._end_all()
            elif self._stopping.is_set() and code not in _CLEAN_ENDS and self._exit == Exit.OK:
                self._exit = Exit.WORKER_FAILED
            if self._stopping.is_set() or code == Exit.OK:
                return
            if asyncio.get_running_loop().time() - began > STEADY_SECONDS:
                backoff.reset()
            wait = backoff.next()
            self._note(f"worker {index} {_ended(code)}; another one starts in {wait:.1f} s")
            await self._sleep(wait)

    async def _live(self, index: int) -> int:
        child = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is for the supervisor, which passes it on once
        )
        self._children[index] = child
        self._note(f"worker {index} runs, pid {child.pid}")
        if self._stopping.is_set():  # told to stop while it was being started
            _send(child, signal.SIGTERM)
        try:
            return await child.wait()
        finally:
            del self._children[index]

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _signalled(self) -> None:
        if self._stopping.is_set():
            self._note("once more: killing the workers; what they run goes to others")
            for child in self._children.values():
                _send(child, signal.SIGKILL)
        else:
            self._note("stopping: the workers finish what they run (again: kill them)")
            self._end_all()

    def _end_all(self) -> None:
        self._stopping.set()
        for child in self._children.values():
            _send(child, signal.SIGTERM)


def end_with_parent() -> None:
    """In a child: when the supervisor is gone, end as on SIGTERM."""

    def wait() -> None:
        # Not through `sys.stdin`: a thread that waits in it would keep the interpreter from ending.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


def _send(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if child.returncode is None:
        child.send_signal(number)


def _ended(code: int) -> str:
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
