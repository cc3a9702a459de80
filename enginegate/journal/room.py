"""Room on the disk: watched while there is some, asked for while there is none.

The open segment is preallocated, so the journal itself would be the last to notice a
full disk: changes would be decided, and fail in the backend. So free space is looked
at before a change, and below a floor nothing new is begun.

The ballast is a file that only takes up room. A start on a full disk gives it up for
a fresh snapshot and a small segment, so that stop and destroy work there too.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enginegate.journal.failures import JournalFull
from enginegate.journal.files import discard
from enginegate.journal.storage import Storage

log = logging.getLogger("enginegate.journal")

BALLAST = "ballast"
FLOOR_BYTES = 1024 * 1024  # what a change may need on the disk beside its facts
SPARE_BYTES = 4 * FLOOR_BYTES  # what our own large files leave to others

_PROBE = "ballast.tmp"


class Room:
    """What is known of the free space of one directory.

    `low` is set by a look that finds less than the floor, or by `lost`; only `demand`
    clears it, by really allocating the floor: quotas and reserved blocks are seen by that
    alone. Used by the event loop and the journal's thread; each step is one assignment.
    """

    def __init__(self, storage: Storage, directory: Path) -> None:
        self.low = False
        self._told = False  # that there is no ballast
        self._storage = storage
        self._directory = directory

    def free_bytes(self) -> int | None:
        """Return how much more the file system takes, None where it does not say."""
        try:
            return self._storage.free_bytes(self._directory)
        except OSError as error:
            log.warning("%s: free space unknown: %s", self._directory, error)
            return None

    def look(self) -> None:
        """Ask for the free space; one system call, a few microseconds."""
        free = self.free_bytes()
        if free is not None and free < FLOOR_BYTES:
            self.lost(f"{free} bytes are free")

    def lost(self, why: str) -> None:
        """Take note that somebody found no room."""
        if not self.low:
            log.warning("%s: changes are refused until there is room: %s", self._directory, why)
        self.low = True

    def demand(self) -> None:
        """Raise JournalFull unless the floor can be allocated; clears `low` then."""
        path = self._directory / _PROBE
        free = self.free_bytes()
        if free is not None and free < FLOOR_BYTES:
            raise JournalFull(f"no room on disk: {free} bytes are free", path=str(self._directory))
        self._allocate(path, FLOOR_BYTES)
        discard(self._storage, path)
        self.low = False

    def keep_ballast(self, size: int) -> None:
        """See that the ballast has this size, where that leaves room for others."""
        path = self._directory / BALLAST
        if self._size(path) >= size:
            return
        free = self.free_bytes()
        if free is None or free < size + SPARE_BYTES:
            return
        try:
            self._allocate(path, size)
        except JournalFull as error:
            if not self._told:
                log.warning("no ballast for a start on a full disk: %s", error)
            self._told = True

    def drop_ballast(self) -> None:
        """Give the ballast's room back to the disk."""
        path = self._directory / BALLAST
        if self._size(path) >= 0:
            discard(self._storage, path)

    def _size(self, path: Path) -> int:
        """Return a file's size, -1 where there is none."""
        try:
            fd = self._storage.open(path)
        except OSError:
            return -1
        try:
            return self._storage.size(fd)
        finally:
            self._storage.close(fd)

    def _allocate(self, path: Path, size: int) -> None:
        """Make a file of this size without content. Raises JournalFull, and no file is left."""
        with _full(path):
            fd = self._storage.create(path)
        try:
            with _full(path):
                self._storage.allocate(fd, size)
        except JournalFull:
            discard(self._storage, path)
            raise
        finally:
            self._storage.close(fd)


@contextmanager
def _full(path: Path) -> Iterator[None]:
    """Translate errors of a file that nobody relies on: whatever it is, there is no room."""
    try:
        yield
    except OSError as error:
        raise JournalFull(f"no room on disk: {error.strerror}", path=str(path)) from error
