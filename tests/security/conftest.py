"""One broker for the whole folder: it must survive all attacks, one after the other, and be whole at the end."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.sizes import FULL
from tests.security.victim import REPORT, Victim, attackable, raise_file_limit
from tests.support.processes import Processes

TIMEOUT_SECONDS = 600 if FULL else 120
"""Of one test: its waits have deadlines of their own, which say what was waited for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder more time than others."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """The processes of the whole folder."""
    raise_file_limit()
    children = Processes(Path(tmp_path_factory.mktemp("security")))
    try:
        yield children
    finally:
        children.end()


@pytest.fixture(scope="session")
def victim(children: Processes) -> Iterator[Victim]:
    """A running broker, and a client of it that is being served; after all tests, whether it is whole."""
    victim = asyncio.run(attackable(children, "broker"))
    asyncio.run(left_alone(victim))
    yield victim
    asyncio.run(victim.end())


async def left_alone(victim: Victim) -> None:
    """What the bystander feels of the machine itself: the first line of the report."""
    async with victim.attacked("none"):
        pass


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the bystander felt, attack by attack."""
    if not REPORT:
        return
    terminalreporter.section("a client beside the attack: ms between its messages; growth of the broker")
    write = terminalreporter.write_line
    write("| attack | served | p50 ms | p99 ms | worst ms | broker grew by MiB |")
    write("|---|--:|--:|--:|--:|--:|")
    for attack in REPORT:
        gaps = f"{attack.p50_ms:.0f} | {attack.p99_ms:.0f} | {attack.worst_ms:.0f}"
        write(f"| {attack.name} | {attack.served} | {gaps} | {attack.rss_mib:.0f} |")
