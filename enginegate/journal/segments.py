"""The segment that is being written: preallocated, one frame at a time, never appended to twice.

`end` is what is durable. Room at the end of the file is a reserve, for facts that
must be written even when the disk is full. After the first failed write or sync the
segment is never touched again.
"""

from pathlib import Path

from enginegate.journal import frames
from enginegate.journal.failures import live_file
from enginegate.journal.files import publish, write_all, write_new
from enginegate.journal.frames import Link
from enginegate.journal.payloads import FileHeader, encode_header
from enginegate.journal.storage import Storage

OUTCOME_BYTES = 2048  # of the last fact of a verb, with room for long names
RESERVE_BYTES = 1024 * 1024
_RESERVE_PART = 16  # small segments keep a sixteenth


class Segment:
    """An open segment. Not safe for use by two threads at once."""

    def __init__(
        self, storage: Storage, path: Path, fd: int, header: FileHeader, *, end: int, link: Link
    ) -> None:
        self.path = path
        self.header = header
        self.end = end
        self.link = link
        self._storage = storage
        self._fd = fd
        self.reserve = min(RESERVE_BYTES, header.size_bytes // _RESERVE_PART)

    def room(self, *, use_reserve: bool) -> int:
        """Return how many bytes more fit."""
        return self.header.size_bytes - self.end - (0 if use_reserve else self.reserve)

    @property
    def has_reserve(self) -> bool:
        """Tell whether what a verb ends with still fits."""
        return self.room(use_reserve=True) >= OUTCOME_BYTES

    def write(self, kind: int, payload: bytes) -> int:
        """Write one frame and sync it; return its size. Raises JournalFailed, for good."""
        frame, link = frames.encode(kind, payload, self.link)
        assert self.end + len(frame) <= self.header.size_bytes
        with live_file(self.path):
            write_all(self._storage, self._fd, frame, self.end)
            self._storage.fdatasync(self._fd)
        self.end += len(frame)
        self.link = link
        return len(frame)

    def close(self) -> None:
        """Release the file; nothing is to be done with it any more."""
        self._storage.close(self._fd)


def create_segment(storage: Storage, directory: Path, name: str, header: FileHeader) -> Segment:
    """Write a new segment under its temporary name: preallocated, header frame, synced, read back.

    Raises JournalFull or JournalFailed; then no file is left.
    """
    before = Link(header.sequence - 1, header.crc, 0)
    frame, link = frames.encode(frames.FILE, encode_header(header), before)
    path = directory / name
    fd, end = write_new(storage, path, [frame], allocate_bytes=header.size_bytes)
    return Segment(storage, path, fd, header, end=end, link=link)


def publish_segment(storage: Storage, segment: Segment) -> None:
    """Give the segment its real name, durably. Raises JournalFull or JournalFailed."""
    try:
        publish(storage, segment.path)
        with live_file(segment.path):
            storage.sync_directory(segment.path.parent)
    except BaseException:  # cleaned up, and raised again
        segment.close()
        raise
