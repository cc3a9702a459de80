"""Taking a data directory: see that it is ours, lock it, read it back, keep what is dropped."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from enginegate.journal.failures import new_file
from enginegate.journal.files import (
    QUARANTINE,
    lock_directory,
    prepare_directory,
    publish,
    write_new,
)
from enginegate.journal.recovery import Recovered, Tear, recover
from enginegate.journal.storage import Storage

log = logging.getLogger("enginegate.journal")


def take(
    storage: Storage,
    directory: Path,
    *,
    key_id: str,
    check: Callable[[Path], list[str]],
    drop_suspect: bool,
) -> tuple[Recovered, int]:
    """Return what was read back, warnings included, and the fd that holds the lock.

    Raises JournalError; then the directory is free again.
    """
    warnings = prepare_directory(directory) + check(directory)
    lock_fd = lock_directory(directory)
    try:
        recovered = recover(storage, directory, key_id=key_id, drop_suspect=drop_suspect)
        if recovered.tear:
            recovered.warnings.append(_quarantine(storage, directory, recovered.tear))
    except BaseException:
        os.close(lock_fd)
        raise
    recovered.warnings[:0] = warnings
    for warning in recovered.warnings:
        log.warning("%s", warning)
    return recovered, lock_fd


def _quarantine(storage: Storage, directory: Path, tear: Tear) -> str:
    """Copy a tail away before it is dropped, for a human to look at; return the warning.

    Raises JournalFull or JournalFailed: then nothing may be dropped.
    """
    folder = directory / QUARANTINE
    copy = folder / f"{tear.path.name}-{tear.offset}.tail"
    with new_file(folder):
        storage.make_directory(folder)
    fd, _ = write_new(storage, copy, [tear.content])
    storage.close(fd)
    publish(storage, copy)
    with new_file(folder):
        storage.sync_directory(folder)
    return (
        f"{tear.path}: dropped {len(tear.content)} bytes at offset {tear.offset}, {tear.reason};"
        f" a copy is {copy}"
    )
