"""Starts that were cut short, and starts on what the page cache remembers."""

import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from enginegate.facts import Noted
from enginegate.journal import Journal, JournalFailed
from enginegate.journal.inspect import verify
from enginegate.server import fold
from tests.fakes import SimulatedCrash
from tests.simulation.disk import Disk, Mount

KEY = "key-1"


def start(mount: Mount, directory: Path, *, may_wait: bool = False) -> Journal:
    """Start as the server does: replay, and begin with the state that adds up."""
    options: Any = {"key_id": KEY, "storage": mount, "segment_bytes": 8192, "check": lambda _: []}
    journal = Journal.open(directory, **options)
    try:
        journal.begin(fold(journal.snapshot, journal.tail), may_wait=may_wait)
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


def test_what_a_start_without_room_shows_outlives_the_power(tmp_path: Path) -> None:
    """Killed between write and sync, started where nothing can begin, then the power goes."""
    found = set()
    for seed in range(20):
        disk = Disk(random.Random(seed))
        die_in_append(disk, tmp_path / "data", after=1)
        disk.full = True
        waiting = start(disk.mount(), tmp_path / "data", may_wait=True)
        assert waiting.status == "full"
        numbers = [number for number, _ in waiting.history()]
        release(waiting)
        disk.cut_power(0.0)
        disk.full = False
        last = start(disk.mount(), tmp_path / "data")
        assert [number for number, _ in last.history()] == numbers
        release(last)
        found.add(len(numbers))
    assert 2 in found, "no frame was in the page cache alone"


def die_in_append(disk: Disk, directory: Path, *, after: int) -> None:
    """Live, append two facts, and be killed in the second append after so many operations."""
    mount = disk.mount()
    journal = start(mount, directory)
    journal.append([Noted(at_ms=1, action="recovered")])
    mount.crash_at = mount.operations + after + 1
    with suppress(SimulatedCrash):
        journal.append([Noted(at_ms=2, action="recovered")])
    release(journal)


def test_a_frame_that_only_the_page_cache_knew_is_on_disk_after_the_next_start(
    tmp_path: Path,
) -> None:
    """Killed between write and sync, started again, then the power goes: nothing is missing."""
    found = set()
    for seed in range(20):
        disk = Disk(random.Random(seed))
        die_in_append(disk, tmp_path / "data", after=1)
        second = start(disk.mount(), tmp_path / "data")
        numbers = [number for number, _ in second.history()]
        release(second)
        disk.cut_power(0.0)
        told = verify(tmp_path / "data", storage=disk.mount())
        assert told.verdict == "clean", told
        third = start(disk.mount(), tmp_path / "data")
        assert [number for number, _ in third.history()] == numbers
        release(third)
        found.add(len(numbers))
    assert 2 in found


def test_a_frame_whose_sync_failed_is_written_anew_or_is_no_frame(tmp_path: Path) -> None:
    """Pages that count as clean and were never written do not become damage later."""
    for seed in range(20):
        disk = Disk(random.Random(seed))
        mount = disk.mount()
        first = start(mount, tmp_path / "data")
        mount.faults["fdatasync"] = 5
        with pytest.raises(JournalFailed):
            first.append([Noted(at_ms=1, action="recovered", metadata={"text": "x" * 2000})])
        release(first)
        second = start(disk.mount(), tmp_path / "data")
        numbers = [number for number, _ in second.history()]
        release(second)
        disk.cut_power(0.0)
        third = start(disk.mount(), tmp_path / "data")
        assert [number for number, _ in third.history()] == numbers
        assert verify(tmp_path / "data", storage=disk.mount()).verdict == "clean"
        release(third)


def test_a_segment_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """What was replayed and what is made durable are the same bytes, or the start fails."""
    disk = Disk(random.Random(1))
    die_in_append(disk, tmp_path / "data", after=9)
    options: Any = {"key_id": KEY, "storage": disk.mount(), "check": lambda _: []}
    second = Journal.open(tmp_path / "data", **options)
    [segment] = [path for path in disk.contents() if path.suffix == ".egj"]
    disk.file(segment).now[100] ^= 1
    with pytest.raises(JournalFailed, match="it changed while"):
        second.begin([])
    release(second)
