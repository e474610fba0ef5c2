"""One broker for the whole folder: it must survive all attacks, one after the other."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.bystander import QUEUE
from tests.security.victim import REPORT, Victim
from tests.support.processes import START_SECONDS, Processes


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """The processes of the whole folder."""
    children = Processes(Path(tmp_path_factory.mktemp("security")))
    try:
        yield children
    finally:
        children.end()


@pytest.fixture(scope="session")
def victim(children: Processes) -> Victim:
    """A running broker, and a client of it that is being served."""

    async def start() -> Victim:
        broker = await children.broker("--log-format", "json")
        bystander = children.python("bystander", "-m", "tests.security.bystander", broker.address)
        await bystander.wrote("served", START_SECONDS)
        return Victim(broker, bystander)

    assert QUEUE
    return asyncio.run(start())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the bystander felt, attack by attack."""
    if REPORT:
        terminalreporter.section("a client beside the attack: ms between messages, and growth of the broker")
        terminalreporter.write_line(f"{'attack':44} served   p50    p99   worst  MiB")
    for felt in REPORT:
        figures = f"{felt.served:6} {felt.p50_ms:6.0f} {felt.p99_ms:6.0f} {felt.worst_ms:6.0f} {felt.rss_mib:6.1f}"
        terminalreporter.write_line(f"{felt.name:44} {figures}")
