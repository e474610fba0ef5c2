"""Large and heavy frames, one after the other.

What a frame costs is bounded by its bytes, but 4 MiB of the smallest fields there are take 200 ms where a plain batch
takes 2. So large frames are decoded one at a time, whoever sends them, and after one that took long the loop has as
much time for everything else: others wait for one such frame, never for all of them. The same holds for frames that
ask for much work in few bytes: one of them at a time is in the engine's inbox.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from kyogo_broker.model.errors import RefusedError
from kyogo_broker.server.limits import LARGE_FRAME_BYTES
from kyogo_broker.server.wire import UndecodableError

SLOW_SECONDS = 0.02
"""No frame of a well-meant client takes so long; shorter ones follow each other at once."""

_T = TypeVar("_T")


class Turnstile:
    """One for all streams and calls of a server."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self.heavy = asyncio.Lock()
        """Held while the engine handles a heavy frame."""

    async def decode(self, raw: bytes, decode: Callable[[bytes], _T]) -> _T:
        """What `decode` makes of a frame, in its turn; raises what that raises."""
        if len(raw) < LARGE_FRAME_BYTES:
            return decode(raw)
        loop = asyncio.get_running_loop()
        async with self._turn:
            began = loop.time()
            try:
                return decode(raw)
            except (RefusedError, UndecodableError) as error:
                # Its frames hold what was parsed, thirty times the bytes, until the client has been told.
                raise error.with_traceback(None) from None
            finally:
                took = loop.time() - began
                if took >= SLOW_SECONDS:
                    await asyncio.sleep(took)
