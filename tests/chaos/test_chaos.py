"""The short form of `python -m tests.chaos`: half a minute of faults, and a clean history."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

SEED = 1
MINUTES = 0.5
"""Of faults; the last one of each kind is finished. Draining, restarts and checking take about as long again."""
RUN_SECONDS = 300
"""Some 60 s where nothing else runs."""
FAULTS_MIN = 6
"""A third of what half a minute has on two cores with nothing else to do."""


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("KYOGO_CHAOS", os.environ.get("CI", "0")) in ("", "0"), reason="a minute of chaos: KYOGO_CHAOS=1"
)
@pytest.mark.timeout(RUN_SECONDS + 30)
def test_nothing_is_lost_whatever_happens(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--minutes", str(MINUTES), "--seed", str(SEED), "--short"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    assert "lost 0, doubled 0" in done.stdout
    faults = re.search(r"^faults: (\d+):", done.stdout, re.MULTILINE)
    assert faults is not None
    assert int(faults[1]) >= FAULTS_MIN
