"""The short form of `python -m tests.chaos`: every kind of fault once, and a clean history."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

RUN_SECONDS = 300
"""Some 70 s where nothing else runs: faults, draining, restarts, checking."""


@pytest.mark.slow
@pytest.mark.skipif(
    "KYOGO_CHAOS" not in os.environ, reason="a minute of chaos: KYOGO_CHAOS=1, or python -m tests.chaos"
)
@pytest.mark.timeout(RUN_SECONDS + 30)
def test_nothing_is_lost_whatever_happens(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--minutes", "0.5", "--seed", "1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    assert "lost 0" in done.stdout
