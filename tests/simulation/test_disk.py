"""The simulated disk forgets what a real one may forget, and nothing else."""

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import SimulatedCrash
from tests.simulation.disk import Disk, Mount

PLACE = Path("/simulated")
FILE = PLACE / "file"


@pytest.fixture
def disk() -> Disk:
    return Disk(random.Random(1))


@pytest.fixture
def mount(disk: Disk) -> Mount:
    return disk.mount()


def read(disk: Disk, path: Path = FILE) -> bytes | None:
    return disk.contents().get(path)


def saved(mount: Mount, content: bytes) -> int:
    """Write a file and all that it takes to keep it."""
    fd = mount.create(FILE)
    mount.pwrite(fd, content, 0)
    mount.fsync(fd)
    mount.sync_directory(PLACE)
    return fd


def images(disk: Disk, mount: Mount, fd: int, content: bytes) -> Iterator[bytes | None]:
    """Yield what is found when the power goes after an unsynced write, many times over."""
    for _ in range(100):
        mount.pwrite(fd, content, 0)
        disk.cut_power(0.5)
        yield read(disk)
        mount.pwrite(fd, bytes(len(content)), 0)
        mount.fsync(fd)


def test_what_is_synced_with_its_directory_stays(disk: Disk, mount: Mount) -> None:
    """File and directory synced: a power cut takes nothing."""
    saved(mount, b"content")
    disk.cut_power(0.0)
    assert read(disk) == b"content"


def test_without_a_sync_of_the_directory_there_may_be_no_file(disk: Disk, mount: Mount) -> None:
    """A synced file whose name is not durable is gone."""
    fd = mount.create(FILE)
    mount.pwrite(fd, b"content", 0)
    mount.fsync(fd)
    disk.cut_power(0.0)
    assert read(disk) is None


def test_a_renaming_without_a_sync_may_not_have_been(disk: Disk, mount: Mount) -> None:
    """The old name is there again, with the same content."""
    saved(mount, b"content")
    mount.rename(FILE, PLACE / "other")
    disk.cut_power(0.0)
    assert read(disk) == b"content"
    assert read(disk, PLACE / "other") is None


def test_writes_are_torn_at_sectors_and_in_any_order(disk: Disk, mount: Mount) -> None:
    """Each piece of 512 bytes is there whole or not at all, later ones without earlier ones."""
    fd = saved(mount, bytes(1536))
    found = set(images(disk, mount, fd, b"x" * 1536))
    pieces = {bytes(512), b"x" * 512}
    assert len(found) == 8
    assert all(
        {image[at : at + 512] for at in (0, 512, 1024)} <= pieces for image in found if image
    )


def test_a_kill_takes_nothing_that_was_written(disk: Disk, mount: Mount) -> None:
    """The page cache outlives the process; the process does nothing any more."""
    fd = saved(mount, b"old")
    mount.pwrite(fd, b"new", 0)
    mount.kill()
    assert read(disk) == b"new"
    with pytest.raises(SimulatedCrash):
        mount.fsync(fd)


def test_a_failed_sync_marks_clean_what_it_did_not_write(disk: Disk, mount: Mount) -> None:
    """The second sync succeeds and writes nothing: that is why nobody may try it."""
    lost = 0
    for _ in range(50):
        fd = saved(mount, b"old")
        mount.pwrite(fd, b"new", 0)
        mount.faults["fsync"] = errno.EIO
        with pytest.raises(OSError, match="EIO"):
            mount.fsync(fd)
        mount.fsync(fd)
        assert read(disk) == b"new"
        mount.drop_cache(fd, 0, 3)
        lost += read(disk) == b"old"
    assert 0 < lost < 50


def test_a_full_disk_takes_no_more_but_what_it_has_room_for(disk: Disk, mount: Mount) -> None:
    """Preallocated room stays writable; new files and growth do not."""
    fd = mount.create(FILE)
    mount.allocate(fd, 100)
    disk.full = True
    mount.pwrite(fd, b"x" * 100, 0)
    for refused in (
        lambda: mount.pwrite(fd, b"x", 100),
        lambda: mount.create(PLACE / "other"),
        lambda: mount.allocate(fd, 200),
    ):
        with pytest.raises(OSError, match="ENOSPC"):
            refused()


def test_a_crash_comes_at_the_operation_it_was_planned_for(disk: Disk) -> None:
    """Before it, after it, or with half of a write done."""
    found = set()
    for _ in range(60):
        mount = disk.mount()
        fd = mount.create(FILE)
        mount.crash_at = 2
        with pytest.raises(SimulatedCrash):
            mount.pwrite(fd, b"abcd", 0)
        found.add(read(disk))
    assert {b"", b"abcd"} < found
