"""The very first start of a data directory, cut short."""

import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from enginegate.journal import Journal
from enginegate.server import fold
from tests.fakes import SimulatedCrash
from tests.simulation.disk import Disk, Mount

KEY = "key-1"


def start(mount: Mount, directory: Path) -> Journal:
    """Start as the server does: replay, and begin with the state that adds up."""
    options: Any = {"key_id": KEY, "storage": mount, "segment_bytes": 8192, "check": lambda _: []}
    journal = Journal.open(directory, **options)
    try:
        journal.begin(fold(journal.snapshot, journal.tail))
    except BaseException:
        release(journal)
        raise
    return journal


def release(journal: Journal) -> None:
    assert journal._lock_fd is not None
    os.close(journal._lock_fd)


@pytest.mark.parametrize("share", [None, 0.0, 1.0])
def test_a_first_start_that_dies_anywhere_is_no_obstacle(tmp_path: Path, share: float) -> None:
    """Killed at any operation, with or without the power going, the next start succeeds."""
    for crash_at in range(1, 40):
        disk = Disk(random.Random(crash_at))
        mount = disk.mount()
        mount.crash_at = crash_at
        with suppress(SimulatedCrash):
            release(start(mount, tmp_path / "data"))
        if share is not None:
            disk.cut_power(share)
        release(start(disk.mount(), tmp_path / "data"))
    assert not mount.dead, "the first start takes more operations than were tried"
