"""What goes wrong in the middle of a start, of a retry or of clearing out, and what stays."""

import asyncio
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enginegate.errors import JournalError
from enginegate.journal import Journal, JournalFailed, JournalFull, verify
from enginegate.journal.files import prepare_directory
from enginegate.server import RETAIN_EVERY_S, Parts
from tests.fakes import ManualClock as LoopClock
from tests.journal.rig import (
    FaultyStorage,
    ManualClock,
    begun,
    booted,
    crash,
    grow,
    note,
    opened,
    product,
    segments,
    snapshots,
    tail_of,
)


class WatchedStorage(FaultyStorage):
    """Knows which files are open, and lets no number be closed twice.

    Files with `unsynced` in their name cannot be synced, and what a failed sync leaves behind
    is lost; the directory cannot be read while `blind`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open_files: dict[int, Path] = {}
        self.unsynced = ""
        self.failed_syncs = 0
        self.blind = False

    def names(self, directory: Path) -> list[str]:
        if self.blind:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().names(directory)

    def create(self, path: Path) -> int:
        fd = super().create(path)
        self.open_files[fd] = path
        return fd

    def open(self, path: Path) -> int:
        fd = super().open(path)
        self.open_files[fd] = path
        return fd

    def close(self, fd: int) -> None:
        del self.open_files[fd]
        super().close(fd)

    def fsync(self, fd: int) -> None:
        path = self.open_files[fd]
        if self.unsynced and self.unsynced in path.name:
            self.failed_syncs += 1
            size = path.stat().st_size
            os.truncate(path, 200)  # the pages counted as clean, and memory was wanted
            os.truncate(path, size)
            raise OSError(errno.EIO, "an error of the disk")
        super().fsync(fd)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A directory whose process was killed after one fact; the next one has no ballast."""
    with begun(tmp_path / "data", [product()]) as journal:
        journal.append([booted()])
        crash(journal)
    (tmp_path / "data" / "ballast").unlink()
    return tmp_path / "data"


@pytest.fixture
def storage() -> WatchedStorage:
    return WatchedStorage()


def fill(journal: Journal) -> None:
    """Append until another segment is wanted, and further."""
    for index in range(100):
        journal.append([note(index, size=1000)])


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.glob("*.tmp")]


# --- a start that is tried again ----------------------------------------------------------------


class FullAfterTheFirstName(WatchedStorage):
    """The first snapshot gets no name, and no other one can be made."""

    def rename(self, old: Path, new: Path) -> None:
        try:
            super().rename(old, new)
        except OSError:
            self.faults = {"create": errno.ENOSPC}
            raise


def test_the_segment_of_an_earlier_try_is_closed_once(killed):
    """Its number may belong to a client by now: the tries that follow leave it alone."""
    storage = FullAfterTheFirstName()
    storage.faults["rename"], storage.only = errno.ENOSPC, "snap-"
    with opened(killed, storage=storage) as journal:
        journal.begin([product()], may_wait=True)
        for _ in range(2):
            assert journal.check() == "full"
            with pytest.raises(JournalFull):
                journal.heal()
        storage.faults.clear()
        journal.heal()
        assert journal.append([booted(1)]) == 2
    assert not storage.open_files
    assert tail_of(killed) == [(2, booted(1))]


def test_a_start_that_waits_is_closed_though_it_came_as_far_as_a_segment(killed):
    """Closing finds nothing to close any more."""
    storage = FullAfterTheFirstName()
    storage.faults["rename"], storage.only = errno.ENOSPC, "snap-"
    with opened(killed, storage=storage) as journal:
        journal.begin([product()], may_wait=True)
    assert not storage.open_files
    assert verify(killed).verdict == "clean"


def test_a_start_that_waits_is_full_until_all_of_it_is_there(killed, storage):
    """A try that comes as far as a segment is none: the next tick tries again."""
    storage.faults["create"] = errno.ENOSPC
    with opened(killed, storage=storage) as journal:
        journal.begin([product()], may_wait=True)
        storage.faults = {"rename": errno.ENOSPC}
        storage.only, storage.once = "snap-", True
        with pytest.raises(JournalFull):
            journal.heal()
        assert journal.check() == "full"
        journal.heal()
        assert journal.check() == "ok"
        assert journal.append([booted(1)]) == 2


# --- the last segment of an earlier process -----------------------------------------------------


def test_a_failed_sync_while_healing_is_final(killed, storage):
    """A second one would succeed without having written anything: nothing is asked again."""
    storage.faults["create"] = errno.ENOSPC
    with opened(killed, storage=storage) as journal:
        journal.begin([product()], may_wait=True)
        storage.faults = {"sync_directory": errno.EIO}
        storage.once = True
        with pytest.raises(JournalFailed):
            journal.heal()
        assert journal.check() == "failed"
        storage.asked.clear()
        with pytest.raises(JournalFailed):
            journal.heal()
        with pytest.raises(JournalFailed):
            journal.append([booted(1)])
        assert storage.asked == []
    assert tail_of(killed) == [(1, booted())]


def test_a_failed_sync_of_a_start_that_would_wait_is_final(killed, storage):
    """What is shown while it waits must be on the disk; where that is unknown nothing begins."""
    storage.faults = {"create": errno.ENOSPC, "sync_directory": errno.EIO}
    with opened(killed, storage=storage) as journal:
        with pytest.raises(JournalFailed):
            journal.begin([product()], may_wait=True)
        assert journal.status == "failed"


def test_an_inherited_segment_whose_sync_failed_is_not_synced_again(killed, storage):
    """It is written anew from what was read back, however often that takes another try."""
    storage.unsynced = segments(killed)[0].name
    storage.faults["create"], storage.only = errno.ENOSPC, storage.unsynced
    with opened(killed, storage=storage) as journal:
        with pytest.raises(JournalFull):
            journal.begin([product()], may_wait=True)
        assert storage.failed_syncs == 1
        storage.unsynced = ""  # the next sync would have nothing left to write
        storage.faults.clear()
        journal.begin([product()])
        assert storage.failed_syncs == 1
        assert [fact for _, fact in journal.history()] == [booted()]
    assert verify(killed).verdict == "clean"


def test_a_start_that_cannot_keep_what_it_read_leaves_nothing_behind(killed, storage):
    """No open file and no half one: the next try may be an hour away."""
    storage.unsynced = segments(killed)[0].name
    storage.faults["create"], storage.only = errno.ENOSPC, storage.unsynced
    with opened(killed, storage=storage) as journal:
        with pytest.raises(JournalFull):
            journal.begin([product()], may_wait=True)
        assert not storage.open_files
        assert leftovers(killed) == []


# --- no descriptor is left ----------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_heal_like_a_full_disk(tmp_path, storage, number):
    """Nothing was written and no sync has failed: it goes on once files can be opened."""
    with begun(tmp_path / "data", [product()], storage=storage) as journal:
        at = journal.rotate()
        storage.faults["create"] = number
        with pytest.raises(JournalFull, match="no file can be opened"):
            journal.write_snapshot([product()], state_at=at)
        assert journal.status == "ok"
        with pytest.raises(JournalFull, match="no file can be opened"):
            fill(journal)
        assert journal.check() == "full"
        storage.faults.clear()
        journal.heal()
        assert journal.check() == "ok"
        last = journal.append([booted()])
    assert [number for number, _ in tail_of(tmp_path / "data")] == list(range(1, last + 1))


@pytest.mark.parametrize("operation", ["open", "sync_directory"])
def test_a_start_that_waits_goes_on_waiting_for_a_descriptor(killed, storage, operation):
    """The segment read back could not be opened, or its directory: no sync of it has failed."""
    storage.faults["create"] = errno.ENOSPC
    with opened(killed, storage=storage) as journal:
        journal.begin([product()], may_wait=True)
        storage.faults = {operation: errno.EMFILE}
        storage.once = True
        storage.only = segments(killed)[0].name
        with pytest.raises(JournalFull, match="no file can be opened"):
            journal.heal()
        journal.heal()
        assert journal.append([booted(1)]) == 2


def test_a_directory_that_cannot_be_read_for_a_while_stops_nothing(killed, storage, caplog):
    """Clearing out is left for later; what is durable is not said to have failed."""
    storage.faults["create"] = errno.ENOSPC
    with opened(killed, storage=storage) as journal:
        journal.begin([product()], may_wait=True)
        storage.faults.clear()
        storage.blind = True
        journal.heal()
        assert journal.check() == "ok"
        for _ in range(3):
            journal.write_snapshot([product()], state_at=journal.rotate())
        assert len(snapshots(killed)) == 5
        assert journal.archive.oldest_number == 0
        storage.blind = False
        journal.write_snapshot([product()], state_at=journal.rotate())
        assert len(snapshots(killed)) == 3
    assert "Too many open files" in caplog.text


async def asleep(clock: LoopClock, work: asyncio.Task[None]) -> None:
    """Wait until the work sleeps; raise what it has ended with instead."""
    async with asyncio.timeout(5):
        while not clock.sleepers:
            await asyncio.sleep(0.001)
            if work.done():
                work.result()


async def test_retention_that_fails_is_tried_again(caplog):
    """It ends neither itself nor what runs beside it."""
    tries: list[float] = []

    def retain(*, days: float, max_mb: float) -> int:
        tries.append(days)
        if len(tries) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return 0

    clock = LoopClock()
    audit = SimpleNamespace(retention_days=30.0, max_mb=100.0)
    parts: Any = SimpleNamespace(
        ground=SimpleNamespace(config=SimpleNamespace(audit=audit), clock=clock)
    )
    journal: Any = SimpleNamespace(retain=retain)
    work = asyncio.create_task(Parts._retain_forever(parts, journal))
    await asleep(clock, work)
    assert "Too many open files" in caplog.text
    await clock.advance(RETAIN_EVERY_S)
    await asleep(clock, work)
    assert len(tries) == 2
    work.cancel()


# --- what cannot be removed ---------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1])
def test_a_segment_that_cannot_be_removed_keeps_those_after_it(tmp_path, storage, place):
    """Retention makes no gap: it goes as far as it can, and on from there the next time."""
    clock = ManualClock()
    grow(tmp_path / "data", 6, clock)
    with begun(tmp_path / "data", [product()], clock=clock, storage=storage) as journal:
        all_of_them = segments(tmp_path / "data")
        storage.faults["unlink"], storage.only = errno.EPERM, all_of_them[place].name
        assert journal.retain(days=0, max_mb=0) == place
        assert segments(tmp_path / "data") == all_of_them[place:]
        assert [number for number, _ in journal.history()] == list(range(6, place, -1))
        assert verify(tmp_path / "data").verdict == "clean"
        storage.faults.clear()
        assert journal.retain(days=0, max_mb=0) == 4 - place
    assert verify(tmp_path / "data").verdict == "clean"


# --- the place ----------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["lstat", "chmod"])
def test_a_file_that_goes_while_it_is_looked_at_stops_no_start(killed, monkeypatch, operation):
    """A server that runs removes and renames files; it is the lock that says that it runs."""
    segments(killed)[0].chmod(0o644)
    really = getattr(Path, operation)

    def vanished(path: Path, *args: int) -> object:
        if path.suffix == ".egj":
            path.unlink()
        return really(path, *args)

    monkeypatch.setattr(Path, operation, vanished)
    assert prepare_directory(killed) == []


def test_a_directory_that_cannot_be_tightened_is_told(killed, monkeypatch):
    """Open to others on a read-only mount: exit code 78, with the system's words."""
    killed.chmod(0o755)

    def refuse(path: Path, mode: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(JournalError, match="cannot be used: Read-only file system") as caught:
        prepare_directory(killed)
    assert caught.value.exit_code == 78


def test_a_failed_sync_of_the_quarantine_is_final_also_for_want_of_room(tmp_path: Path) -> None:
    """Nobody knows then what the disk holds: another sync that succeeds would prove nothing."""
    with begun(tmp_path / "data", [product()]) as journal:
        journal.append([note(1, size=50)])
        crash(journal)
    path = segments(tmp_path / "data")[-1]
    content = path.read_bytes()
    used = len(content.rstrip(b"\0"))
    path.write_bytes(content[: used - 20].ljust(len(content), b"\0"))
    storage = FaultyStorage()
    storage.faults, storage.once = {"sync_directory": errno.ENOSPC}, True
    with pytest.raises(JournalFailed), opened(tmp_path / "data", storage=storage):
        pass
