"""The simulation, seed after seed, on as many processes as there are processors."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.faults.campaign import Run, campaign, plain

ROOT = Path(__file__).parents[2]
STEPS = 200
PORTION_MIN, PORTIONS = 25, 100  # each process loads everything anew
FIGURES = re.compile(
    r"seed \d+: (\d+) steps, (\d+) calls, (\d+) answered, (\d+) lives, (\d+) power cuts"
)


def portion(first: int, count: int) -> "subprocess.Popen[str]":
    span = ["--seed", str(first), "--count", str(count), "--steps", str(STEPS)]
    command = [sys.executable, "-m", "tests.simulation", *span]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=plain(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def portions(run: Run) -> Iterator[str]:
    """Have all seeds lived through, some at a time; yield what each portion printed."""
    width = os.cpu_count() or 1
    size = max(PORTION_MIN, run.count // PORTIONS)
    waiting = [(first, min(size, run.count - first)) for first in range(0, run.count, size)]
    going: list[tuple[int, subprocess.Popen[str]]] = []
    while going or (waiting and not run.over):
        while waiting and len(going) < width and not run.over:
            first, count = waiting.pop(0)
            going.append((count, portion(first + 1, count)))
        count, process = going.pop(0)
        told, _ = process.communicate()
        if process.returncode != 0:
            for _, other in going:
                other.kill()
                other.communicate()
            raise AssertionError(told[-20_000:])
        run.advance(count)
        yield told


@campaign(
    "simulation", "random verbs, faults, crashes and restarts from a seed", ci=300, long=10_000
)
def simulate_seeds(run: Run) -> str:
    """F30: every invariant after every step of every seed."""
    sums = [0] * 5
    for told in portions(run):
        for figures in FIGURES.findall(told):
            sums = [a + int(b) for a, b in zip(sums, figures, strict=True)]
    steps, calls, answered, lives, cuts = sums
    return (
        f"{steps:,} steps, {calls:,} calls, {answered:,} answered, {lives:,} lives,"
        f" {cuts:,} power cuts, 0 violations"
    )
