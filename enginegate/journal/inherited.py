"""The last segment of an earlier process: proven to be on the disk before anything follows it.

What a start reads back may have come out of the page cache. A killed process leaves a
frame that was written and not synced; after a failed sync pages count as clean and were
never written. A later segment says that those frames exist, so it must not be on the
disk before they are: a power cut would turn them into damage.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from enginegate.journal.failures import JournalFailed, live_file
from enginegate.journal.files import publish, read_start, spare_descriptor, write_new
from enginegate.journal.storage import Storage

log = logging.getLogger("enginegate.journal")


@dataclass(slots=True)
class Inherited:
    """A segment that was read back: its size, how many bytes of it count, and their CRC-32.

    `rescued` are those bytes, once the disk is known not to have them. The file is asked for
    nothing after that: another sync would succeed without writing, another read give less.
    """

    path: Path
    size: int
    end: int
    check: int
    rescued: bytes | None = None


def keep(storage: Storage, inherited: Inherited | None) -> None:
    """Sync the segment and its name, read it past the cache; where that differs, write it anew.

    None is a first start: there is nothing to keep. Raises JournalFull or JournalFailed.
    """
    if inherited is None:
        return
    if inherited.rescued is None:
        used = _read_again(storage, inherited)
        if not _on_disk(storage, inherited):
            log.warning("%s was never wholly on the disk; it is written anew", inherited.path)
            inherited.rescued = used
    if inherited.rescued is not None:
        _write_anew(storage, inherited, inherited.rescued)
    with live_file(inherited.path), spare_descriptor(inherited.path):
        storage.sync_directory(inherited.path.parent)  # its name may be as new as that


def _read_again(storage: Storage, inherited: Inherited) -> bytes:
    with live_file(inherited.path), spare_descriptor(inherited.path):
        used = read_start(storage, inherited.path, inherited.end)
    if crc32(used) != inherited.check:
        raise JournalFailed(
            "it changed while it was read", path=str(inherited.path), hint="Start again."
        )
    return used


def _write_anew(storage: Storage, inherited: Inherited, used: bytes) -> None:
    """Put another file in its place; that one is synced like any other."""
    fd, _ = write_new(storage, inherited.path, [used], allocate_bytes=inherited.size)
    storage.close(fd)
    publish(storage, inherited.path)
    inherited.rescued = None


def _on_disk(storage: Storage, inherited: Inherited) -> bool:
    try:
        fd = storage.open(inherited.path)
        try:
            storage.fsync(fd)
            storage.drop_cache(fd, 0, 0)
            return crc32(storage.pread(fd, inherited.end, 0)) == inherited.check
        finally:
            storage.close(fd)
    except OSError as error:
        log.warning("%s cannot be synced: %s", inherited.path, error.strerror or error)
        return False
