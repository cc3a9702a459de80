"""What a benchmark says: figures, and the goals that some ratios of them have to reach.

Absolute figures are of one machine and one run; a goal is always a ratio of two
figures taken side by side, so that it means the same on any machine.
"""

import os
import platform
import subprocess
from pathlib import Path
from typing import Literal

from msgspec import Struct

ROOT = Path(__file__).parents[1]


class Figure(Struct, frozen=True, kw_only=True):
    """One measured value: the median of some rounds, with the lowest and the highest of them."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None


class Goal(Struct, frozen=True, kw_only=True):
    """A ratio and what it has to be.

    `bound` is what we promise of a quiet machine; `guard` is what even a short run on a
    busy one must keep, so that a regression is caught and noise is not.
    """

    name: str
    value: float
    must: Literal["at most", "at least"]
    bound: float
    guard: float
    low: float | None = None
    high: float | None = None

    @property
    def reached(self) -> bool:
        return self._holds(self.bound)

    @property
    def guarded(self) -> bool:
        return self._holds(self.guard)

    def _holds(self, bound: float) -> bool:
        return self.value <= bound if self.must == "at most" else self.value >= bound


class Result(Struct, kw_only=True):
    """What one benchmark found; `skipped` says what it could not measure here, and why."""

    bench: str
    figures: list[Figure] = []
    goals: list[Goal] = []
    skipped: list[str] = []


class Report(Struct, kw_only=True):
    """One run: where, of what, and everything found."""

    machine: str
    commit: str
    smoke: bool
    results: list[Result]


def machine() -> str:
    """Return what the figures were measured on, as far as it says something about them."""
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{platform.python_implementation()} {platform.python_version()}"
    )


def commit() -> str:
    """Return the commit that was measured, marked where the tree differs from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
