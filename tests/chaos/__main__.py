"""Real processes on loopback, and everything that can happen to them.

    python -m tests.chaos [--minutes M] [--seed N] [--rate R] [--short] [--keep]

Ends with 0 if the history is clean and everything was tried; else with 1, and the history stays.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.disk import NAMESPACE, Disk
from tests.chaos.run import Settings, played


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--minutes", type=float, default=1.0, help="of faults, at least; draining comes on top [1]")
    parser.add_argument("--seed", type=int, help="of a run; the machine's own timing is not part of it [any]")
    parser.add_argument("--rate", type=float, default=240.0, help="messages a second, over all producers [240]")
    parser.add_argument("--only", default="", help="faults by name, with commas, such as 'kill broker,cut' [all]")
    parser.add_argument("--short", action="store_true", help="leave out the faults that there is no time for")
    parser.add_argument("--keep", action="store_true", help="keep histories and logs of a clean run, too")
    options = parser.parse_args()
    _take_namespace()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    directory = Path(tempfile.mkdtemp(prefix="kyogo-chaos-"))
    only = tuple(filter(None, options.only.split(",")))
    report = played(Settings(directory, options.minutes * 60, seed, options.rate, only, options.short))
    print(f"seed {seed}, {options.minutes:g} min of faults\n{report.text()}")
    if report.clean and not options.keep:
        shutil.rmtree(directory, ignore_errors=True)
        return 0
    print(f"histories and logs: {directory}; again: python -m tests.chaos --minutes {options.minutes} --seed {seed}")
    return 0 if report.clean else 1


def _take_namespace() -> None:
    """Start over with a mount namespace of our own, so that the small disk is gone with the last process."""
    if NAMESPACE in os.environ:
        return
    command = Disk.namespace_command()
    os.environ[NAMESPACE] = "none" if command is None else "own"
    if command is not None:
        arguments = [*command, sys.executable, "-m", "tests.chaos", *sys.argv[1:]]
        os.execvp(command[0], arguments)  # noqa: S606 - there is nothing to quote


if __name__ == "__main__":
    sys.exit(main())
