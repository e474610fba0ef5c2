"""What the pages show is what happens: their examples are run against a real broker."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kyogo_broker.config import settings_names
from tests.support.document import Block, Reader, blocks, commands, file_name, matches
from tests.support.processes import ROOT, Broker

PAGES = ["README.md", "docs/guide.md", "docs/operations.md"]
FIGURES = re.compile(r"<!-- figures: from bench/RESULTS.md -->\n(.*?)<!-- end of figures -->", re.DOTALL)


@pytest.mark.parametrize("name", PAGES)
async def test_its_examples_run(name: str, broker: Broker, tmp_path: Path) -> None:
    directory = tmp_path / "reader"
    directory.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "KYOGO_URL": broker.address,
        "COLUMNS": "80",
        "PYTHONUNBUFFERED": "1",
    }
    reader = Reader(directory, environment)
    try:
        await reader.follow((ROOT / name).read_text())
    finally:
        await reader.close()


@pytest.mark.parametrize("name", PAGES)
def test_its_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert targets
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_figures_are_those_of_the_benchmark() -> None:
    match = FIGURES.search((ROOT / "README.md").read_text())
    assert match is not None, "the README has lost its figures"
    results = ROOT / "bench" / "RESULTS.md"
    if not results.exists():
        pytest.skip("there is no bench/RESULTS.md yet")
    rows = [line for line in match[1].splitlines() if line.startswith("|") and not line.startswith("|---")]
    measured = results.read_text().splitlines()
    assert [row for row in rows if row not in measured] == []


def test_make_run_starts_a_broker() -> None:
    shown = subprocess.run(["make", "-n", "run"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "broker serve" in shown


def test_a_page_is_read_as_it_is_meant() -> None:
    page = "x\n```python\n# a/b.py\n1\n```\n<!-- not run: slow -->\n```console\n$ make\n```\n"
    assert blocks(page) == [
        Block("python", "# a/b.py\n1\n", 2, None),
        Block("console", "$ make\n", 7, "slow"),
    ]
    assert file_name(blocks(page)[0]) == "a/b.py"
    [first, second] = commands(Block("console", "$ a \\\n> b\nout\nmore\n$ c\n", 0, None))
    assert (first.text, first.output, second.text) == ("a b", ("out", "more"), "c")


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (("a", "b"), "a\nb\n", True),
        (("a", "b"), "b\na\n", False),
        (("a ... c",), "a b c", True),
        (("...", "b"), "a\nb", True),
        (("a",), "ab", False),
        (("a b",), "  a    b  ", True),
        ((), "whatever", True),
    ],
)
def test_output_is_compared_line_by_line(shown: tuple[str, ...], printed: str, *, same: bool) -> None:
    assert matches(shown, printed) == same


def test_every_setting_of_the_broker_is_described() -> None:
    table = (ROOT / "docs" / "operations.md").read_text().partition("| setting |")[2].partition("\n\n")[0]
    described = re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    assert sorted(described) == sorted(settings_names())
