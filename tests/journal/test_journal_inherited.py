"""What an earlier process left may have been known to the page cache alone."""

import errno
import os
from pathlib import Path

import pytest

from enginegate.journal import JournalFailed, OsStorage, verify
from enginegate.journal.files import BLOCK_BYTES, write_new
from tests.journal.rig import begun, booted, crash, note, opened, product, segments

PAGE = 4096


class Forgetful(OsStorage):
    """Past the cache, the end of a segment that was only read back is not there.

    `syncs` False lets its sync fail instead, as the first one after an error may.
    """

    def __init__(self, path: Path, kept: int, *, syncs: bool = True) -> None:
        self.path = path
        self.kept = kept
        self.syncs = syncs
        self.inherited: set[int] = set()
        self.inode = path.stat().st_ino

    def open(self, path: Path) -> int:
        fd = super().open(path)
        if path == self.path:
            self.inherited.add(fd)
        return fd

    def close(self, fd: int) -> None:
        self.inherited.discard(fd)
        super().close(fd)

    def fsync(self, fd: int) -> None:
        if fd in self.inherited and not self.syncs:
            raise OSError(errno.EIO, "an error of the disk")
        super().fsync(fd)

    def drop_cache(self, fd: int, offset: int, size: int) -> None:
        there = self.path.stat().st_size
        if fd in self.inherited and (size == 0 or offset + size >= there):  # a part of a page stays
            self.forget()

    def forget(self) -> None:
        """Lose what was never on the disk, unless it stands in another file by now."""
        found = self.path.stat()
        if found.st_ino == self.inode:
            os.truncate(self.path, self.kept)
            os.truncate(self.path, found.st_size)


@pytest.mark.parametrize("syncs", [True, False])
def test_a_tail_that_was_never_on_the_disk_is_written_anew(tmp_path, syncs):
    """What was read back is what stays, though the disk never had it; it is no damage later."""
    with begun(tmp_path / "data", [product()]) as journal:
        journal.append([booted()])
        kept = journal.bytes_written
        journal.append([booted(1)])
        crash(journal)
    storage = Forgetful(segments(tmp_path / "data")[0], kept, syncs=syncs)
    with begun(tmp_path / "data", [product()], storage=storage) as journal:
        assert [number for number, _ in journal.history()] == [2, 1]
    storage.forget()
    assert verify(tmp_path / "data").verdict == "clean"


def test_a_segment_that_changes_between_reading_and_keeping_is_refused(tmp_path):
    """What was replayed and what is kept are the same bytes, or nothing begins."""
    with begun(tmp_path / "data", [product()]) as journal:
        journal.append([note(size=100)])
        crash(journal)
    path = segments(tmp_path / "data")[0]
    with opened(tmp_path / "data") as journal:
        content = path.read_bytes()
        path.write_bytes(content.replace(b"xxx", b"xyx", 1))
        with pytest.raises(JournalFailed, match="changed while it was read"):
            journal.begin([product()])


class Lossy(OsStorage):
    """Takes what is written into the cache alone: whole pages that are dropped read as zeros."""

    def drop_cache(self, fd: int, offset: int, size: int) -> None:
        there = self.size(fd)
        end = there if size == 0 or offset + size >= there else (offset + size) // PAGE * PAGE
        begin = -(-offset // PAGE) * PAGE
        if begin < end:
            os.pwrite(fd, bytes(end - begin), begin)


@pytest.mark.parametrize("allocated", [0, 1 << 20])
@pytest.mark.parametrize("length", [100, 3 * BLOCK_BYTES + 5])
def test_what_the_disk_never_had_is_not_taken_for_written(tmp_path, allocated, length):
    """A new file is read back past the cache, also where room for more was kept behind it."""
    blocks = [b"x" * min(BLOCK_BYTES, length - at) for at in range(0, length, BLOCK_BYTES)]
    with pytest.raises(JournalFailed):
        write_new(Lossy(), tmp_path / "new", blocks, allocate_bytes=allocated)
    assert list(tmp_path.iterdir()) == []
