"""One broker for the whole folder: it must survive all attacks, one after the other."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.victim import REPORT, Victim, attackable, raise_file_limit
from tests.support.processes import Processes


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
def victim(children: Processes) -> Victim:
    """A running broker, and a client of it that is being served."""
    return asyncio.run(attackable(children, "broker"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the bystander felt, attack by attack."""
    if not REPORT:
        return
    terminalreporter.section("a client beside the attack: ms between its messages; growth of the broker")
    terminalreporter.write_line(f"{'attack':48} served    p50    p99  worst    MiB")
    for attack in REPORT:
        gaps = f"{attack.p50_ms:6.0f} {attack.p99_ms:6.0f} {attack.worst_ms:6.0f}"
        terminalreporter.write_line(f"{attack.name:48} {attack.served:6} {gaps} {attack.rss_mib:6.1f}")
