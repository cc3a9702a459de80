"""Faults during recovery, one after the other: the start that meets none succeeds."""

import errno
import os
import random
from pathlib import Path
from typing import Any

from enginegate.errors import JournalError
from enginegate.facts import Noted
from enginegate.journal import Journal, verify
from enginegate.server import fold
from tests.fakes import SimulatedCrash
from tests.simulation.disk import Disk

CHAINS = int(os.environ.get("ENGINEGATE_FAULTS_CHAINS", "1000"))
FAULTS = 5
OPERATIONS = 45  # more than a start takes
ERRNOS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
FALLIBLE = (
    "create",
    "allocate",
    "pwrite",
    "fsync",
    "rename",
    "unlink",
    "truncate",
    "sync_directory",
)


def start(disk: Disk, directory: Path, fault: Any, acknowledged: list[int]) -> str | None:
    """Start, and if that works append facts and be killed; return how the start ended, if badly."""
    mount = disk.mount()
    if isinstance(fault, int):
        mount.crash_at = fault
    elif fault is not None:
        mount.faults[fault[0]] = fault[1]
    journal = None
    try:
        options: Any = {"storage": mount, "segment_bytes": 8192, "check": lambda _: []}
        journal = Journal.open(directory, key_id="k", **options)
        told = [fact.at_ms for _, fact in reversed(list(journal.history()))]
        assert told[: len(acknowledged)] == acknowledged[: len(told)]
        assert len(told) >= len(acknowledged), (told, acknowledged)
        journal.begin(fold(journal.snapshot, journal.tail))
        acknowledged[:] = told
        for _ in range(3):
            at_ms = len(acknowledged) + 1
            journal.append([Noted(at_ms=at_ms, action="recovered")])
            acknowledged.append(at_ms)
    except (JournalError, SimulatedCrash) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        mount.dead = True
        if journal is not None and journal._lock_fd is not None:
            os.close(journal._lock_fd)
    return None


def test_chains_of_faults_in_recovery_lose_nothing(tmp_path: Path) -> None:
    """Killed, no room, failing calls, power cuts, five in a row: then a start has everything."""
    met: dict[str, int] = {}
    for seed in range(CHAINS):
        dice = random.Random(seed)
        disk, acknowledged = Disk(dice), list[int]()
        directory = tmp_path / "data"
        assert start(disk, directory, None, acknowledged) is None
        for _ in range(FAULTS):
            if dice.random() < 0.5:
                fault: Any = dice.randrange(1, OPERATIONS)
            else:
                fault = (dice.choice(FALLIBLE), dice.choice(ERRNOS))
            ended = start(disk, directory, fault, acknowledged)
            name = "went on" if ended is None else ended.partition(":")[0]
            met[name] = met.get(name, 0) + 1
            if dice.random() < 0.5:
                disk.cut_power()
        assert start(disk, directory, None, acknowledged) is None, seed
        assert verify(directory, storage=disk.mount()).verdict == "clean", seed
    assert {"SimulatedCrash", "JournalFailed"} <= met.keys(), met
