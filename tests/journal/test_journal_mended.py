"""What goes wrong in the middle of a start, of a retry or of clearing out, and what stays."""

import errno
import os
from pathlib import Path

import pytest

from enginegate.journal import Journal, JournalFailed, JournalFull, verify
from tests.journal.rig import (
    FaultyStorage,
    begun,
    booted,
    crash,
    note,
    opened,
    product,
    segments,
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
