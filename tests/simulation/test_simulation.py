"""The simulation itself: a seed is a history, and a broken promise is seen."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.disk import Mount
from tests.simulation.model import ANY, GONE, Cell, Violation
from tests.simulation.simulation import simulate

ROOT = Path(__file__).parents[2]


def history(seed: int, hash_seed: str) -> str:
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed), "--trace"]
    environ = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, check=True, capture_output=True, text=True
    )
    return done.stdout.rsplit("\n", 2)[0]  # the last line tells how long it took


@pytest.mark.parametrize("seed", [3, 11])
def test_a_seed_is_a_history(seed: int) -> None:
    """The same one in every process, to the last byte of every answer."""
    assert history(seed, "1") == history(seed, "2")


def first_violation(seeds: range) -> str:
    for seed in seeds:
        try:
            simulate(seed, 100)
        except Violation as violation:
            return str(violation)
    return ""


def test_a_sync_that_does_nothing_is_found(monkeypatch: Any) -> None:
    """A journal that only seems to sync breaks a promise, and is told how to do so again."""
    monkeypatch.setattr(Mount, "fdatasync", lambda self, fd: None)
    told = first_violation(range(1, 20))
    assert re.match(r"seed \d+, step \d+: ", told)
    assert re.search(r"replay: python -m tests.simulation --seed \d+ --steps 100$", told)


def test_an_answer_that_contradicts_an_answer_is_a_violation() -> None:
    """What was told is what may be; an open call may have changed it, a refused one has not."""
    cell = Cell("the state")
    cell.succeed(cell.begin("on"), "on")
    with pytest.raises(Violation):
        cell.check("off", "on disk")
    late = cell.begin("off")
    cell.check("off", "on disk")
    cell.refuse(late)
    with pytest.raises(Violation):
        cell.check("off", "on disk")


def test_calls_that_overlap_leave_both_values_open() -> None:
    """Whichever came last counts, and nobody can say which that was."""
    cell = Cell("the key")
    first, second = cell.begin("a"), cell.begin(ANY)
    cell.succeed(first, "a")
    cell.succeed(second, "b")
    cell.check("a", "on disk")
    cell.check("b", "on disk")
    with pytest.raises(Violation):
        cell.check(GONE, "on disk")
    cell.settle("b")
    with pytest.raises(Violation):
        cell.check("a", "on disk")
