"""The broker with a watch on its loop: `python -m bench.deep.watched FILE serve ...`.

Every callback of the loop is timed, by the wall and by the thread's processor time: the wall is what clients feel, but
on a busy machine it also counts what others ran; processor time is what this code is to blame for. A thread looks at
what the loop is doing when it is held. FILE gets the findings as JSON, twice a second, so that they outlive a kill -9.
"""

import asyncio.events
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from kyogo_broker.__main__ import main

NOTED_S: Final = 0.008
"""A hold of less processor time is not described."""
WALL_S: Final = 0.020
"""Nor is one of less than this by the wall."""
LOOK_S: Final = 0.004
KEPT: Final = 1_000
"""Holds; beyond it the shortest are forgotten."""
STACKS: Final = 16
FRAMES: Final = 5
"""Innermost ones shown of a hold."""
REPORT_S: Final = 0.5
PLACE: Final = "kyogo_broker/"


class Watch:
    """Times what the loop runs."""

    def __init__(self) -> None:
        self.holds: list[dict[str, Any]] = []
        self._began = 0.0
        self._stacks: list[str] = []
        self._loop = threading.get_ident()

    def run(self, handle: asyncio.events.Handle, original: Callable[[asyncio.events.Handle], None]) -> None:
        """Run one callback."""
        self._began = wall = time.monotonic()
        cpu = time.thread_time()
        original(handle)
        cpu = time.thread_time() - cpu
        wall = time.monotonic() - wall
        self._began = 0.0
        if cpu > NOTED_S or wall > WALL_S:
            self._note(handle, cpu, wall)
        if self._stacks:
            self._stacks = []

    def look(self) -> None:
        """In a thread of its own: note what a callback is doing once it takes long."""
        while True:
            time.sleep(LOOK_S)
            began = self._began
            if began and time.monotonic() - began > LOOK_S:
                self._stacks.append(stack(self._loop))

    def _note(self, handle: asyncio.events.Handle, cpu: float, wall: float) -> None:
        callback = getattr(handle, "_callback", None)
        task = getattr(callback, "__self__", None)
        what = getattr(task.get_coro(), "__qualname__", "") if isinstance(task, asyncio.Task) else repr(callback)[:120]
        hold = {"at": time.monotonic() - wall, "cpu_ms": cpu * 1e3, "wall_ms": wall * 1e3, "what": what}
        self.holds.append({**hold, "stacks": list(dict.fromkeys(self._stacks))[:STACKS]})
        if len(self.holds) > 2 * KEPT:
            self.holds = sorted(self.holds, key=lambda hold: -float(hold["cpu_ms"]))[:KEPT]

    def report(self, path: Path) -> None:
        """In a thread of its own: write the findings down, whole or not at all."""
        beside = path.with_suffix(".tmp")
        written = -1.0
        while True:
            holds = self.holds[:]
            newest = holds[-1]["at"] if holds else 0.0
            if newest != written:
                beside.write_text(json.dumps(holds))
                beside.replace(path)
                written = newest
            time.sleep(REPORT_S)


def stack(thread: int) -> str:
    """The innermost frames of a thread that are the broker's own."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - there is no other way
    lines: list[str] = []
    while frame is not None and len(lines) < FRAMES:
        name = frame.f_code.co_filename
        if PLACE in name:
            lines.append(f"{name.rpartition(PLACE)[2]}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(lines)


def watch(path: Path) -> None:
    """Put the watch on."""
    watching = Watch()
    path.write_text("[]")
    original = asyncio.events.Handle._run  # noqa: SLF001 - the one place through which everything goes

    def run(handle: asyncio.events.Handle) -> None:
        watching.run(handle, original)

    asyncio.events.Handle._run = run  # type: ignore[method-assign, assignment]  # noqa: SLF001 - as above
    for target, arguments in ((watching.look, ()), (watching.report, (path,))):
        threading.Thread(target=target, args=arguments, daemon=True).start()


if __name__ == "__main__":
    watch(Path(sys.argv.pop(1)))
    main()
