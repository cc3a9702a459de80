"""`python -m tests.simulation --seed N`: live through one seed, or several, and tell."""

import argparse
import sys
import time

from tests.simulation.model import Violation
from tests.simulation.simulation import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1, help="how many seeds from there on")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--trace", action="store_true", help="print the whole history")
    asked = parser.parse_args()
    failed = 0
    for seed in range(asked.seed, asked.seed + asked.count):
        began = time.monotonic()
        try:
            report = simulate(seed, asked.steps)
        except Violation as violation:
            failed += 1
            print(violation)
            continue
        if asked.trace:
            print(*report.trace, sep="\n")
        print(
            f"seed {seed}: {report.steps} steps, {report.calls} calls, {report.answered} answered,"
            f" {report.lives} lives, {report.power_cuts} power cuts, {report.facts} facts,"
            f" {time.monotonic() - began:.2f} s"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
