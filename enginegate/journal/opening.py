"""Taking a data directory: see that it is ours, lock it, read it back, keep what is dropped."""

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from enginegate.errors import JournalError
from enginegate.journal.archive import GENERATIONS, START_BYTES, header_in
from enginegate.journal.failures import JournalFull, live_file, new_file
from enginegate.journal.files import (
    EX_CONFIG,
    QUARANTINE,
    Entry,
    listing,
    lock_directory,
    lock_holder,
    prepare_directory,
    publish,
    read_start,
    write_new,
)
from enginegate.journal.payloads import FileHeader, UnreadableError
from enginegate.journal.recovery import Recovered, Tear, check_key, recover
from enginegate.journal.storage import OsStorage, Storage

log = logging.getLogger("enginegate.journal")

_STORAGE = OsStorage()


def take(
    storage: Storage,
    directory: Path,
    *,
    key_ids: Collection[str],
    check: Callable[[Path], list[str]],
    drop_suspect: bool,
    forsake_generations: bool,
) -> tuple[Recovered, int]:
    """Return what was read back, warnings included, and the fd that holds the lock.

    Raises JournalError; then the directory is free again.
    """
    warnings = prepare_directory(directory) + check(directory)
    lock_fd = lock_directory(directory)
    try:
        recovered = recover(storage, directory, key_ids=key_ids, drop_suspect=drop_suspect)
        demand_one_instance(storage, directory, recovered.instance)
        if not forsake_generations:
            _check_generations(storage, directory, key_ids)
        recovered.warnings[:0] = warnings
        for warning in recovered.warnings:
            log.warning("%s", warning)
        if recovered.tear:
            _keep(storage, directory, recovered)
    except BaseException:  # cleaned up, and raised again
        os.close(lock_fd)
        raise
    return recovered, lock_fd


def demand_key(directory: Path, key_ids: Collection[str], storage: Storage = _STORAGE) -> None:
    """Refuse another master key by the newest header alone, before anything that costs time.

    Says nothing of all else, damage included: `take` judges that. Nor of a directory in use,
    which `take` refuses for that first.
    Raises JournalError (exit code 78), the one that `take` would raise.
    """
    try:
        found = listing(storage, directory)
    except OSError:
        return
    for entry in reversed(found.snapshots):
        header = _header_of(storage, directory / entry.name)
        if header is not None:
            if header.key_id not in key_ids and lock_holder(directory):
                return
            check_key(header, key_ids, directory / entry.name)
            return


def demand_one_instance(storage: Storage, directory: Path, instance: str) -> None:
    """See that all snapshots are of the instance that was read.

    The newest files are what counts. Where others put them there, whole as they are, a start
    would go on with the state of somebody else, and in time remove its own.
    Raises JournalError (exit code 65).
    """
    for path, header in _headers(storage, directory, listing(storage, directory).snapshots):
        if instance and header.instance != instance:
            raise JournalError(
                "files of two instances lie in one directory:"
                f" this one is of {header.instance}, the newest is of {instance}",
                path=str(path),
                hint="Move away those that do not belong here, `enginegate journal verify` names"
                " them. Nothing was changed.",
            )


def _check_generations(storage: Storage, directory: Path, key_ids: Collection[str]) -> None:
    """See that the generations kept to fall back on are sealed with keys that are there.

    Raises JournalError (exit code 78).
    """
    found = listing(storage, directory)
    kept = found.snapshots[-GENERATIONS:]
    since = kept[0].sequence if kept else 0
    kept += (one for one in found.segments if one.sequence > since)
    for path, header in _headers(storage, directory, kept):
        if header.key_id not in key_ids:
            raise JournalError(
                f"an older generation still needs master key {header.key_id}",
                path=str(path),
                hint="Give both keys, the new one first, and run `enginegate rekey`; where the old"
                " one is gone for good, `enginegate rekey --purge-old-generations`.",
                exit_code=EX_CONFIG,
            )


def _headers(
    storage: Storage, directory: Path, entries: Iterable[Entry]
) -> Iterator[tuple[Path, FileHeader]]:
    """Yield the files whose headers can be read; damage is no matter here."""
    for entry in entries:
        header = _header_of(storage, directory / entry.name)
        if header is not None:
            yield directory / entry.name, header


def _header_of(storage: Storage, path: Path) -> FileHeader | None:
    """Return a file's header, None where it cannot be read."""
    try:
        return header_in(read_start(storage, path, START_BYTES))
    except (OSError, UnreadableError):
        return None


def _keep(storage: Storage, directory: Path, recovered: Recovered) -> None:
    """Copy a torn end away; on a full disk `begin` does it, once there is room."""
    assert recovered.tear is not None
    try:
        recovered.warnings.append(quarantine(storage, directory, recovered.tear))
    except JournalFull as error:
        recovered.warnings.append(f"{recovered.tear.path}: a torn end is not copied yet: {error}")
        log.warning("%s", recovered.warnings[-1])
    else:
        recovered.tear = None


def quarantine(storage: Storage, directory: Path, tear: Tear) -> str:
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
    with live_file(folder):
        storage.sync_directory(folder)
    kept = (
        f"{tear.path}: dropped {len(tear.content)} bytes at offset {tear.offset}, {tear.reason};"
        f" a copy is {copy}"
    )
    log.warning("%s", kept)
    return kept
