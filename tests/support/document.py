"""A Markdown page as its reader follows it: files are written, commands are run, output is compared.

    ```python            the first line names the file: `# worker.py`; it is written to the working
    directory and
                         must import without an error
    ```console           lines with `$ ` are commands, run in order; what stands below one is its output,
    where
                         `...` stands for anything; a command that has printed it and goes on is left running
    <!-- not run: why -->  before a block: it is only shown

Everything else is prose.
"""

import asyncio
import os
import re
import signal
from dataclasses import dataclass, field
from pathlib import Path

COMMAND_SECONDS = 30.0
POLL_SECONDS = 0.02
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    kind: str
    text: str
    line: int
    why_not_run: str | None


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a console block, and the output that the page shows."""

    text: str
    output: tuple[str, ...]


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page."""
    return [
        Block(match["kind"], match["text"], page.count("\n", 0, match.start("text")), match["why"])
        for match in _BLOCK.finditer(page)
    ]


def commands(block: Block) -> list[Command]:
    """The commands of a console block."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        elif found[-1][0].endswith("\\"):
            found[-1] = (f"{found[-1][0][:-1]}{line.removeprefix('> ')}", [])
        else:
            found[-1][1].append(line)
    return [Command(text, tuple(output)) for text, output in found]


def file_name(block: Block) -> str:
    """The file that a block of Python is; it says so in its first line."""
    match = re.match(r"# ([\w/]+\.py)\b", block.text)
    assert match is not None, f"the Python block at line {block.line} does not begin with `# name.py`"
    return match[1]


def matches(shown: tuple[str, ...], printed: str) -> bool:
    """Whether what the page shows was printed: its lines in this order, `...` anything, spaces as they like."""
    lines = iter(" ".join(line.split()) for line in printed.splitlines())
    return all(
        any(_pattern(line).fullmatch(candidate) for candidate in lines) for line in shown if line.strip() != "..."
    )


def _pattern(line: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in " ".join(line.split()).split("...")))


@dataclass(slots=True)
class Reader:
    """Follows a page in a directory."""

    directory: Path
    environment: dict[str, str]
    _running: list[asyncio.subprocess.Process] = field(default_factory=list)
    _count: int = 0

    async def follow(self, page: str) -> None:
        """Every block that is not marked otherwise."""
        for block in blocks(page):
            if block.why_not_run is None:
                await self._do(block)

    async def close(self) -> None:
        """End what was left running, politely; it has to end well."""
        for process in self._running:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._running:
            async with asyncio.timeout(COMMAND_SECONDS):
                await process.wait()

    async def _do(self, block: Block) -> None:
        if block.kind == "python":
            path = self.directory / file_name(block)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
            await self._run(Command(f"python -c 'import {path.stem}'", ()))
        elif block.kind == "console":
            for command in commands(block):
                await self._run(command)

    async def _run(self, command: Command) -> None:
        self._count += 1
        log = self.directory / f"command-{self._count}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *("bash", "-c", command.text),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                env=self.environment,
                start_new_session=True,
            )
        self._running.append(process)
        deadline = asyncio.get_running_loop().time() + COMMAND_SECONDS
        while process.returncode is None and not (command.output and matches(command.output, log.read_text())):
            assert asyncio.get_running_loop().time() < deadline, f"`{command.text}`: {log.read_text()}"
            await asyncio.sleep(POLL_SECONDS)
        printed = log.read_text()
        assert process.returncode in {None, 0}, f"`{command.text}` ended with {process.returncode}: {printed}"
        assert matches(command.output, printed), f"`{command.text}` printed:\n{printed}\nnot:\n{command.output}"
