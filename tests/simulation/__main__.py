"""Live through many histories: `python -m tests.simulation --seed N --count K [--seconds S]`."""

import argparse
import sys
import time
from collections import Counter

from tests.simulation.coverage import seen
from tests.simulation.run import simulating
from tests.simulation.simulate import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="the first one; default: by the clock")
    parser.add_argument("--count", type=int, default=1 << 30, help="histories")
    parser.add_argument("--seconds", type=float, default=None, help="stop after so long")
    parser.add_argument("--all", action="store_true", help="go on after a failure")
    parser.add_argument("--cover", action="store_true", help="print what happened how often")
    asked = parser.parse_args()
    first = int(time.time()) % 1_000_000 * 1_000 if asked.seed is None else asked.seed
    seconds = asked.seconds if asked.seconds is not None or asked.count < 1 << 30 else 60.0
    cover, failed, done, operations = Counter[str](), [], 0, 0
    began, began_cpu = time.perf_counter(), time.process_time()
    with simulating():
        while done < asked.count and (seconds is None or time.perf_counter() - began < seconds):
            history = simulate(first + done)
            done += 1
            operations += history.operations
            cover += history.cover
            if history.violation:
                failed.append(history.seed)
                print(f"seed {history.seed}: {history.violation}", flush=True)
                if not asked.all:
                    break
    took, worked = time.perf_counter() - began, time.process_time() - began_cpu
    print(
        f"seeds {first} to {first + done - 1}: {done} histories, {operations} operations in {took:.1f} s: "
        f"{done / took * 60:.0f} histories a minute, {done / worked * 60:.0f} a minute of processor time"
    )
    print("faults:", ", ".join(f"{kind} {count}" for kind, count in seen(cover).items()))
    if asked.cover:
        for name, count in sorted(cover.items()):
            print(f"{count:>9} {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
