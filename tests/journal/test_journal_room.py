"""Room on the disk: who notices that there is none, what still works, and how it heals."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enginegate.journal import Journal, JournalFailed, JournalFull, OsStorage
from enginegate.journal.room import FLOOR_BYTES, SPARE_BYTES
from tests.journal.rig import (
    SEGMENT_BYTES,
    FaultyStorage,
    begun,
    booted,
    crash,
    engine,
    note,
    opened,
    product,
    segments,
    snapshots,
    tail_of,
)


class NarrowStorage(FaultyStorage):
    """A disk with so much room left; what is allocated does not count against it."""

    def __init__(self, free: int = 1 << 40) -> None:
        super().__init__()
        self.free = free

    def free_bytes(self, directory: Path) -> int:
        self._pass("free_bytes", directory)
        return self.free


@contextmanager
def narrow(directory: Path, free: int = 1 << 40) -> Iterator[tuple[Journal, NarrowStorage]]:
    storage = NarrowStorage(free)
    with begun(directory, [product()], storage=storage) as journal:
        yield journal, storage


def test_little_free_space_is_noticed_before_anything_fails(tmp_path):
    """Below the floor a look says full, though the open segment has room; stop facts go in."""
    with narrow(tmp_path / "data") as (journal, storage):
        assert journal.check() == "ok"
        storage.free = FLOOR_BYTES - 1
        assert journal.status == "ok"
        assert journal.check() == "full"
        assert journal.append([booted()], use_reserve=True) == 1
        with pytest.raises(JournalFull, match="bytes are free"):
            journal.heal()
        storage.free = FLOOR_BYTES
        assert journal.check() == "full"  # only a real allocation is believed
        journal.heal()
        assert journal.check() == "ok"


def test_room_that_cannot_be_allocated_is_none(tmp_path):
    """A quota shows in no number: it heals once the floor is really given."""
    with narrow(tmp_path / "data") as (journal, storage):
        journal.out_of_room("somebody's quota is used up")
        assert journal.status == "full"
        storage.faults["allocate"] = errno.EDQUOT
        with pytest.raises(JournalFull, match="no room on disk"):
            journal.heal()
        assert journal.status == "full"
        assert not (tmp_path / "data" / "ballast.tmp").exists()
        storage.faults.clear()
        journal.heal()
        assert journal.status == "ok"
        journal.heal()  # nothing to do, no harm


def test_a_disk_that_does_not_say_how_much_is_free_counts_as_roomy(tmp_path, caplog):
    """Without a number nothing is concluded; a failing write still tells."""
    with narrow(tmp_path / "data") as (journal, storage):
        storage.faults["free_bytes"] = errno.EIO
        assert journal.check() == "ok"
        assert "free space unknown" in caplog.text
        journal.rotate()
        assert segments(tmp_path / "data")[-1].stat().st_size == SEGMENT_BYTES
        journal.out_of_room("a test")
        journal.heal()
        assert journal.status == "ok"
    with narrow(tmp_path / "other") as (journal, storage):
        (tmp_path / "other" / "ballast").unlink()
        storage.faults["free_bytes"] = errno.EIO
        journal.write_snapshot([product()], state_at=journal.rotate())
        assert not (tmp_path / "other" / "ballast").exists()


def test_a_failed_journal_looks_at_nothing(tmp_path):
    """Once latched it is failed, whatever the disk has."""
    with narrow(tmp_path / "data") as (journal, storage):
        journal.fail("a test")
        asked = len(storage.asked)
        assert journal.check() == "failed"
        assert len(storage.asked) == asked
        with pytest.raises(JournalFailed):
            journal.heal()


@pytest.mark.parametrize(
    ("free", "size"),
    [
        (SPARE_BYTES + 16 * SEGMENT_BYTES, 16 * SEGMENT_BYTES),
        (SPARE_BYTES + 16 * SEGMENT_BYTES - 1, 4 * SEGMENT_BYTES),
        (SPARE_BYTES + 4 * SEGMENT_BYTES - 1, SEGMENT_BYTES),
        (0, SEGMENT_BYTES),
    ],
)
def test_segments_are_smaller_on_a_smaller_disk(tmp_path, free, size):
    """Our own large files leave something to others; the smallest is a sixteenth."""
    storage = NarrowStorage(free)
    options = {"storage": storage, "segment_bytes": 16 * SEGMENT_BYTES}
    with begun(tmp_path / "data", **options):
        assert segments(tmp_path / "data")[-1].stat().st_size == size


def test_the_ballast_grows_with_the_snapshot_and_leaves_room_for_others(tmp_path):
    """It has room for a small segment and a grown snapshot, and is not made on a narrow disk."""
    ballast = tmp_path / "data" / "ballast"
    with narrow(tmp_path / "data") as (journal, _):
        small = ballast.stat().st_size
        assert ballast.stat().st_mode & 0o777 == 0o600
        many = [product(), *map(engine, range(50))]
        journal.write_snapshot(many, state_at=journal.rotate())
        assert ballast.stat().st_size > small
        assert ballast.stat().st_size > snapshots(tmp_path / "data")[-1].stat().st_size
    with narrow(tmp_path / "other", free=SPARE_BYTES) as (journal, _):
        assert journal.status == "ok"
        assert not (tmp_path / "other" / "ballast").exists()


def test_a_ballast_that_cannot_be_made_is_warned_about(tmp_path, caplog):
    """It is for a bad day only: without it the journal works."""
    storage = NarrowStorage()
    storage.faults["create"], storage.only = errno.EACCES, "ballast"
    with begun(tmp_path / "data", storage=storage) as journal:
        assert journal.append([booted()]) == 1
    assert "no ballast" in caplog.text


class FullStorage(OsStorage):
    """A disk on which only so many bytes can be taken, the ballast's included.

    What is given back counts only for whole files; that is all a start does.
    """

    def __init__(self, room: int) -> None:
        self.room = room

    def free_bytes(self, directory: Path) -> int:
        return self.room

    def allocate(self, fd: int, size: int) -> None:
        self._take(size)
        super().allocate(fd, size)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        if offset + len(data) > self.size(fd):
            self._take(offset + len(data) - self.size(fd))
        return super().pwrite(fd, data, offset)

    def unlink(self, path: Path) -> None:
        size = path.stat().st_size
        super().unlink(path)
        self.room += size

    def truncate(self, path: Path, size: int) -> None:
        self.room += path.stat().st_size - size
        super().truncate(path, size)

    def _take(self, size: int) -> None:
        if size > self.room:
            raise OSError(errno.ENOSPC, "no room")
        self.room -= size


def killed_with_facts(directory: Path) -> None:
    with begun(directory, [product()], segment_bytes=16 * SEGMENT_BYTES) as journal:
        journal.append([booted()])
        crash(journal)


def test_a_start_on_a_full_disk_begins_with_its_ballast(tmp_path):
    """Its room is enough for a small segment and a snapshot; what a stop needs can be written."""
    killed_with_facts(tmp_path / "data")
    options = {"storage": FullStorage(0), "segment_bytes": 16 * SEGMENT_BYTES}
    with opened(tmp_path / "data", **options) as journal:
        assert journal.tail == [(1, booted())]
        journal.begin([product()])
        assert journal.check() == "full"
        assert journal.append([booted(1)], use_reserve=True) == 2
        crash(journal)
    assert tail_of(tmp_path / "data", **options) == [(2, booted(1))]


def test_a_ballast_that_a_start_gave_up_comes_back_with_the_room(tmp_path):
    """While the server runs and has nothing to do: the next full disk may be that of a start."""
    killed_with_facts(tmp_path / "data")
    storage, ballast = FullStorage(0), tmp_path / "data" / "ballast"
    with opened(tmp_path / "data", storage=storage, segment_bytes=16 * SEGMENT_BYTES) as journal:
        journal.begin([product()])
        assert not ballast.exists()
        storage.room = 64 * FLOOR_BYTES
        journal.heal()
        journal.append([booted(1)])
        journal.seal()
        assert ballast.stat().st_size > 0


def test_a_start_without_room_may_wait_for_it(tmp_path):
    """Without a ballast nothing begins, and nothing is lost; it begins once there is room."""
    killed_with_facts(tmp_path / "data")
    (tmp_path / "data" / "ballast").unlink()
    storage = FullStorage(0)
    with opened(tmp_path / "data", storage=storage) as journal:
        journal.begin([product()], may_wait=True)
        assert journal.status == "full"
        assert not journal.sealable
        assert not journal.has_reserve()
        for use_reserve in (False, True):
            with pytest.raises(JournalFull):
                journal.append([booted(1)], use_reserve=use_reserve)
        with pytest.raises(JournalFull):
            journal.rotate()
        storage.room = 64 * FLOOR_BYTES
        journal.heal()
        assert journal.status == "ok"
        assert journal.append([booted(2)]) == 2
    assert tail_of(tmp_path / "data") == [(2, booted(2))]
    with opened(tmp_path / "data", storage=FullStorage(0)) as journal:
        (tmp_path / "data" / "ballast").unlink()
        journal.begin([product()], may_wait=True)  # and closed while it waits


def test_a_start_that_came_as_far_as_a_segment_is_tried_again(tmp_path):
    """Room may end between the segment's name and the snapshot's: the next try is a new pair."""
    killed_with_facts(tmp_path / "data")
    storage = FaultyStorage()
    storage.faults["rename"], storage.only, storage.once = errno.ENOSPC, "snap-", True
    with begun(tmp_path / "data", [product()], storage=storage) as journal:
        assert journal.append([booted(1)]) == 2
    assert tail_of(tmp_path / "data") == [(2, booted(1))]


def test_what_is_done_already_may_share_a_batch_with_what_is_not(tmp_path):
    """A frame with one outcome in it may go into the reserve whole: nothing done goes unwritten."""
    storage = NarrowStorage()
    with begun(tmp_path / "data", storage=storage) as journal:
        while journal._current.room(use_reserve=False) > 600:
            journal.append([note()])
        storage.faults["allocate"] = errno.ENOSPC
        with pytest.raises(JournalFull):
            journal.append([note(size=700)])
        journal.append([note(size=700), booted()], use_reserve=True)
        storage.faults.clear()
        journal.heal()
        assert journal.status == "ok"
