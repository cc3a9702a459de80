"""The power goes, at any operation of a journal's life: nothing answered is lost."""

import os
import random
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from enginegate.facts import AnyFact, Noted
from enginegate.journal import Journal
from enginegate.journal.inspect import verify
from tests.fakes import SimulatedCrash
from tests.faults.campaign import Run, campaign, quiet
from tests.simulation.disk import Disk, Mount

KEY = "key-1"
OPERATIONS = 90  # about as many as the three lives of one history take


class History:
    """What a journal was told to keep, and what it said that it kept."""

    def __init__(self, directory: Path, dice: random.Random) -> None:
        self.directory = directory
        self.dice = dice
        self.disk = Disk(dice)
        self.answered: list[AnyFact] = []
        self.in_flight: list[AnyFact] = []

    def open(self, mount: Mount) -> Journal:
        options: dict[str, Any] = {"key_id": KEY, "segment_bytes": 4096, "check": lambda _: []}
        return Journal.open(self.directory, storage=mount, **options)

    def live(self, crash_at: int | None) -> bool:
        """Start, write at random, stop; return False where the process died of it."""
        mount = self.disk.mount()
        mount.crash_at = crash_at
        with suppress(SimulatedCrash):
            journal = self.open(mount)
            try:
                journal.begin([])
                self.check(journal)
                self._write(journal)
            finally:
                release(journal)
            return True
        return False

    def check(self, journal: Journal) -> None:
        """All that was answered is there in order; of what was in flight all or nothing."""
        pairs = [*journal.history()][::-1]
        found = [fact for _, fact in pairs]
        count = len(self.answered)
        assert [number for number, _ in pairs] == list(range(1, len(found) + 1))
        assert found[:count] == self.answered, "an answered fact was lost"
        assert found[count:] in ([], self.in_flight), "half of an unanswered batch is there"
        self.answered, self.in_flight = found, []

    def _write(self, journal: Journal) -> None:
        for _ in range(self.dice.randint(1, 8)):
            match self.dice.choice(("append", "append", "append", "seal", "snapshot", "rotate")):
                case "append":
                    self._append(journal)
                case "seal":
                    journal.seal()
                case "rotate":
                    journal.rotate()
                case _:
                    journal.write_snapshot([], state_at=journal.rotate())

    def _append(self, journal: Journal) -> None:
        size = self.dice.choice((0, 100, 500, 900))
        number = len(self.answered)
        batch: list[AnyFact] = [
            Noted(at_ms=number + n, action="recovered", metadata={"text": "x" * size})
            for n in range(self.dice.randint(1, 3))
        ]
        self.in_flight = batch
        journal.append(batch)
        self.answered += batch
        self.in_flight = []


def release(journal: Journal) -> None:
    """Let go of the directory as a killed process does."""
    if journal._lock_fd is not None:
        os.close(journal._lock_fd)
        journal._lock_fd = None


def lose_power(seed: int, directory: Path) -> None:
    """Live, and lose the power somewhere; the next start finds everything, and so does the next."""
    dice = random.Random(seed)
    history = History(directory, dice)
    crash_at = dice.randint(1, OPERATIONS)
    for _ in range(3):
        mounted = history.live(crash_at if crash_at > 0 else 1)
        if not mounted:
            break
        crash_at -= OPERATIONS // 3
    history.disk.cut_power(dice.choice((None, None, 0.0, 0.5, 1.0)))
    if dice.random() < 0.3:  # a second time, while the start is still at it
        history.live(dice.randint(1, 14))
        history.disk.cut_power()
    assert history.live(None)
    told = verify(directory, storage=history.disk.mount())
    assert told.verdict == "clean", told


@campaign("power", "the power goes at any operation of a journal", ci=2_000, long=50_000)
def power_losses(run: Run) -> str:
    """F3: 0 lost, 0 refused starts."""
    with quiet(), tempfile.TemporaryDirectory(prefix="enginegate-power-") as place:
        for number in run.rounds():
            try:
                lose_power(number, Path(place) / "data")
            except Exception as error:
                raise AssertionError(f"power loss {number}: {error}") from error
    return "0 lost, 0 refused starts"
