"""The command `kyogo`, run as users run it."""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did."""

    code: int | None
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Kyogo:
    """Runs `kyogo` in a directory, with a broker's address in the environment."""

    def __init__(self, directory: Path, address: str) -> None:
        self._directory = directory
        self._environment = {**os.environ, "KYOGO_URL": address, "COLUMNS": "80", "NO_COLOR": "1"}

    async def __call__(self, *arguments: str, stdin: str = "") -> Outcome:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kyogo.cli", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self._directory,
            env=self._environment,
        )
        async with asyncio.timeout(COMMAND_SECONDS):
            out, err = await process.communicate(stdin.encode())
        assert b"Traceback" not in err, err.decode()
        return Outcome(process.returncode, out.decode(), err.decode())
