"""Campaigns: one fault, many times, bounded in count and in time.

A campaign is a function in a module of this folder, marked with `@campaign`; it goes
through `run.rounds()` and returns its figures in one line. A violation is an exception.
CI runs each at its small size; `python -m tests.faults --long` at its large one.
"""

import importlib
import logging
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRESS_EVERY_S = 10.0


class UnableError(Exception):
    """What the campaign needs is not here; it says what."""


@dataclass
class Run:
    """One run of a campaign: how much it is to do, and by when it stops at the latest.

    `every` is for those that go through all of a list in one round: take every so many-th.
    """

    count: int
    deadline: float = float("inf")
    name: str = ""
    every: int = 1
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    shown: float = field(default_factory=time.monotonic)

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.deadline

    @property
    def over(self) -> bool:
        return self.done >= self.count or self.late

    def rounds(self) -> Iterator[int]:
        """Yield the number of each round until all are done or the time is over."""
        while not self.over:
            yield self.done
            self.advance(1)

    def advance(self, rounds: int) -> None:
        """Count rounds that are done, and tell of it now and then."""
        self.done += rounds
        now = time.monotonic()
        if now - self.shown >= PROGRESS_EVERY_S:
            self.shown = now
            rate = self.done / max(now - self.began, 1e-9)
            told = f"  {self.name}: {self.done:,} of {self.count:,}, {rate:.1f} a second"
            print(told, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Campaign:
    """What is done, and how often in CI and in the long run."""

    name: str
    about: str
    ci: int
    long: int
    run: Callable[[Run], str]


CAMPAIGNS: dict[str, Campaign] = {}


def campaign(
    name: str, about: str, *, ci: int, long: int
) -> Callable[[Callable[[Run], str]], Callable[[Run], str]]:
    """Enter a function as a campaign; it gets a `Run` and returns its figures."""

    def enter(run: Callable[[Run], str]) -> Callable[[Run], str]:
        assert name not in CAMPAIGNS, f"two campaigns are called {name}"
        CAMPAIGNS[name] = Campaign(name, about, ci, long, run)
        return run

    return enter


def plain(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which processes are not measured: they are killed all the time."""
    return {name: value for name, value in environ.items() if not name.startswith("COVERAGE_")}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what enginegate logs to itself: faults by the thousand are the point here."""
    logger = logging.getLogger("enginegate")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def load() -> dict[str, Campaign]:
    """Import every module of this folder that is no test, and return their campaigns."""
    for found in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not found.name.startswith(("test_", "__", "conftest")):
            importlib.import_module(f"tests.faults.{found.name}")
    return CAMPAIGNS
