"""The last segment of an earlier process: proven to be on the disk before anything follows it.

What a start reads back may have come out of the page cache. A killed process leaves a
frame that was written and not synced; after a failed sync pages count as clean and were
never written. A later segment says that those frames exist, so it must not be on the
disk before they are: a power cut would turn them into damage.
"""

import logging
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from enginegate.journal.failures import JournalFailed, live_file
from enginegate.journal.files import publish, read_start, write_new
from enginegate.journal.storage import Storage

log = logging.getLogger("enginegate.journal")


class Inherited(NamedTuple):
    """A segment that was read back: its size, how many bytes of it count, and their CRC-32."""

    path: Path
    size: int
    end: int
    check: int


def keep(storage: Storage, inherited: Inherited | None) -> None:
    """Sync the segment and its name, read it past the cache; where that differs, write it anew.

    None is a first start: there is nothing to keep. Raises JournalFull or JournalFailed.
    """
    if inherited is None:
        return
    with live_file(inherited.path):
        used = read_start(storage, inherited.path, inherited.end)
    if crc32(used) != inherited.check:
        raise JournalFailed(
            "it changed while it was read", path=str(inherited.path), hint="Start again."
        )
    if not _on_disk(storage, inherited):
        log.warning("%s was never wholly on the disk; it is written anew", inherited.path)
        fd, _ = write_new(storage, inherited.path, [used], allocate_bytes=inherited.size)
        storage.close(fd)
        publish(storage, inherited.path)
    with live_file(inherited.path):
        storage.sync_directory(inherited.path.parent)  # its name may be as new as that


def _on_disk(storage: Storage, inherited: Inherited) -> bool:
    try:
        fd = storage.open(inherited.path)
        try:
            storage.fsync(fd)
            storage.drop_cache(fd)
            return crc32(storage.pread(fd, inherited.end, 0)) == inherited.check
        finally:
            storage.close(fd)
    except OSError as error:
        log.warning("%s cannot be synced: %s", inherited.path, error.strerror or error)
        return False
