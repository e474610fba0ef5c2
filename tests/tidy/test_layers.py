"""Who may import whom: the contracts in pyproject.toml hold, and each of them catches a violation."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.tidy.tree import ROOT

SCRIPTS = Path(sysconfig.get_path("scripts"))

SEEDS = {
    "the broker imports downwards only": ("model/seeded_upwards.py", "import kyogo_broker.clock\n"),
    "in the broker only server/wire imports": ("server/seeded_wire.py", "from kyogo.v1 import broker_pb2\n"),
    "in the broker only server/status.py": ("server/seeded_status.py", "import grpc_status\n"),
    "pure rooms import no clock": ("core/seeded_os.py", "import os\n"),
    "in the broker only clock.py": ("server/seeded_time.py", "import time\n"),
    "the SDK knows nothing of the broker": (
        "../../consumer/kyogo/seeded_sdk.py",
        "import kyogo_broker.model\n",
    ),
}
"""By the beginning of the contract's name: a file below the broker's package, and what it must not import."""

ALSO_SEEDED = {
    "ops/seeded_sibling.py": "import kyogo_broker.server\n",
    "policy/seeded_asyncio.py": "import asyncio\n",
    "seeded_room.py": "",
}
"""Further violations: of a sibling, of a second pure room, and a room that has no place in the layers."""


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(root / "broker"), str(root / "consumer")])
    return subprocess.run(
        [SCRIPTS / "lint-imports", "--no-cache", "--config", str(root / "pyproject.toml")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_tree_keeps_the_contracts() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What import-linter says about a copy of the tree with all violations in it."""
    root = tmp_path_factory.mktemp("seeded")
    for source in ("broker", "consumer"):
        shutil.copytree(ROOT / source, root / source, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for path, text in [*SEEDS.values(), *ALSO_SEEDED.items()]:
        (root / "broker" / "kyogo_broker" / path).write_text(text, encoding="utf-8")
    done = lint(root)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("contract", SEEDS)
def test_the_contract_is_broken_by_its_seed(contract: str, seeded: str) -> None:
    verdicts = [line for line in seeded.splitlines() if line.startswith(contract) and " BROKEN" in line]
    assert len(verdicts) == 1, seeded


@pytest.mark.parametrize("path", [path for path, _ in SEEDS.values()] + list(ALSO_SEEDED))
def test_the_seed_is_named(path: str, seeded: str) -> None:
    assert Path(path).stem in seeded


@pytest.mark.parametrize(
    ("path", "banned"),
    [
        ("core/queue.py", True),
        ("policy/balance/weighted.py", True),
        ("model/facts.py", True),
        ("engine.py", False),
    ],
)
def test_ruff_bans_the_clock_in_pure_rooms_only(path: str, *, banned: bool) -> None:
    done = subprocess.run(
        [
            SCRIPTS / "ruff",
            "check",
            "--select",
            "TID251",
            "--stdin-filename",
            f"broker/kyogo_broker/{path}",
            "-",
        ],
        cwd=ROOT,
        input="import time\n\ntime.sleep(1)\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("TID251" in done.stdout) is banned, done.stdout
