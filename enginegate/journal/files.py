"""Names and places: the directory, its lock, what lies in it, and how a new file comes to be.

A new file is written under a `.tmp` name, synced, read back past the cache and
compared, and only then renamed: a file that bears its real name was whole once.
The read-back is there because a write, and even a sync, can succeed and be lost.
"""

import errno
import fcntl
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn
from zlib import crc32

from enginegate.errors import JournalError
from enginegate.journal.failures import JournalFailed, JournalFull, new_file
from enginegate.journal.storage import Storage

log = logging.getLogger("enginegate.journal")

QUARANTINE = "quarantine"
LOCK = "LOCK"
TEMPORARY = ".tmp"
EX_TEMPFAIL, EX_CONFIG = 75, 78
COPY_HINT = "Put the file itself there, or a copy that `enginegate journal backup` made."
ACCESS_HINT = "Give the user that enginegate runs as access to it (`chown`, `chmod 600`)."

BLOCK_BYTES = 64 * 1024  # to read; the system takes 0.1 ms, and nobody else has the processor
_PATTERN = re.compile(r"(wal|snap)-(\d{1,18})-(\d{1,18})\.(egj|egs)")
_NOT_WHOLE = frozenset({errno.EINVAL, errno.EIO})  # odd, or the disk does not give it
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})
_ODD = {
    stat.S_IFIFO: "a pipe, not a regular file",
    stat.S_IFDIR: "a directory, not a regular file",
    stat.S_IFLNK: "a symbolic link, which is not followed",
    stat.S_IFSOCK: "a socket, not a regular file",
    stat.S_IFCHR: "a device, not a regular file",
    stat.S_IFBLK: "a device, not a regular file",
}


class Entry(NamedTuple):
    """A file of the journal, by its name. Sorts by age: sequences only rise."""

    sequence: int
    epoch: int
    name: str


class Listing(NamedTuple):
    """What lies in the directory, oldest first; `temporary` are leftovers of a crash."""

    segments: list[Entry]
    snapshots: list[Entry]
    temporary: list[str]


def segment_name(epoch: int, sequence: int) -> str:
    return f"wal-{epoch:08d}-{sequence:016d}.egj"


def snapshot_name(epoch: int, sequence: int) -> str:
    return f"snap-{epoch:08d}-{sequence:016d}.egs"


def listing(storage: Storage, directory: Path) -> Listing:
    """Sort the names in the directory; what is not ours is left alone."""
    found = Listing([], [], [])
    for name in storage.names(directory):
        stem = name.removesuffix(TEMPORARY)
        match = _PATTERN.fullmatch(stem)
        if not match or (match[1] == "wal") != (match[4] == "egj"):
            continue
        entry = Entry(int(match[3]), int(match[2]), name)
        if stem != name:
            found.temporary.append(name)
        else:
            (found.segments if match[1] == "wal" else found.snapshots).append(entry)
    found.segments.sort()
    found.snapshots.sort()
    return found


def glance(storage: Storage, directory: Path) -> Listing:
    """Return what `listing` does, nothing where the directory cannot be read just now.

    For what does no harm if it is done later.
    """
    try:
        return listing(storage, directory)
    except OSError as error:
        log.warning("%s cannot be read: %s", directory, error.strerror or error)
        return Listing([], [], [])


def open_file(storage: Storage, path: Path) -> int:
    """Open a file for reading. Raises OSError, also for what is none.

    To open a pipe would be to wait for somebody who writes into it.
    """
    odd = None
    with suppress(OSError):  # then opening it says why
        odd = _ODD.get(stat.S_IFMT(path.lstat().st_mode))
    if odd:
        raise OSError(errno.EINVAL, f"it is {odd}")
    return storage.open(path)


def unusable(directory: Path, error: OSError) -> JournalError:
    """Return what is said of a data directory that the system does not let us use."""
    message = f"the data directory cannot be used: {error.strerror}"
    denied = isinstance(error, PermissionError)
    hint = "Give the user that enginegate runs as access to it." if denied else ""
    return JournalError(message, path=str(directory), hint=hint, exit_code=EX_CONFIG)


def unreadable(path: Path, error: OSError) -> JournalError:
    """Return what is said of a file that cannot be read; its cause is the error."""
    denied = isinstance(error, PermissionError)
    hint = ACCESS_HINT if denied else COPY_HINT if error.errno in _NOT_WHOLE else ""
    said = JournalError(f"cannot be read: {error.strerror or error}", path=str(path), hint=hint)
    said.__cause__ = error
    return said


def read_whole(storage: Storage, path: Path) -> bytes:
    """Return a file's bytes. Raises JournalError where it cannot be read."""
    try:
        fd = open_file(storage, path)
        try:
            return read_fd(storage, fd)
        finally:
            storage.close(fd)
    except OSError as error:
        raise unreadable(path, error) from error


def read_fd(storage: Storage, fd: int) -> bytes:
    """Return the bytes of an open file. Raises OSError."""
    size, parts, offset = storage.size(fd), [], 0
    while offset < size and (part := storage.pread(fd, size - offset, offset)):
        parts.append(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_start(storage: Storage, path: Path, size: int) -> bytes:
    """Return the first `size` bytes of a file, fewer where it is shorter. Raises OSError."""
    fd = open_file(storage, path)
    try:
        return storage.pread(fd, size, 0)
    finally:
        storage.close(fd)


Rest = Callable[[int], None]
"""Lets others have the processor for a moment, after so many bytes."""


def no_rest(_: int) -> None:
    """Go on at once: nobody waits."""


def write_new(
    storage: Storage,
    path: Path,
    blocks: Iterable[bytes],
    *,
    allocate_bytes: int = 0,
    rest: Rest = no_rest,
) -> tuple[int, int]:
    """Write a `.tmp` file for `path`, sync it, read it back; return its open fd and length.

    `rest` is called after each step with a block: written, on its way to the disk, read back.
    Raises JournalFull where there is no room (the file is gone again), JournalFailed otherwise.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    with new_file(temporary), spare_descriptor(temporary):
        fd = storage.create(temporary)
    try:
        with new_file(temporary):
            if allocate_bytes:
                storage.allocate(fd, allocate_bytes)
            length, check = 0, 0
            for block in blocks:
                write_all(storage, fd, block, length)
                check = crc32(block, check)
                rest(len(block) // 2)
                storage.begin_write_back(fd, length, len(block))  # not all of it in the sync
                length += len(block)
                rest(len(block) // 2)
            storage.fsync(fd)
            if _checksum(storage, fd, length, rest) != check:
                _refuse_disk(temporary)
    except BaseException:  # cleaned up, and raised again
        storage.close(fd)
        discard(storage, temporary)
        raise
    return fd, length


@contextmanager
def spare_descriptor(path: Path) -> Iterator[None]:
    """Translate that no more files can be opened, for us or the whole machine: `JournalFull`.

    Like room it comes back by itself, and like a full disk it is told before anything was
    written or synced: so there is nothing unknown that a restart would have to find out.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_DESCRIPTOR:
            raise
        raise JournalFull(f"no file can be opened: {error.strerror}", path=str(path)) from error


def publish(storage: Storage, path: Path) -> None:
    """Give a `.tmp` file its real name, durably. The caller translates errors of the sync."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with new_file(path):
            storage.rename(temporary, path)
    except BaseException:  # cleaned up, and raised again
        discard(storage, temporary)
        raise


def write_all(storage: Storage, fd: int, data: bytes, offset: int) -> None:
    """Write at an absolute offset, again for the rest where the system takes only a part."""
    taken = storage.pwrite(fd, data, offset)
    while taken < len(data):
        more = storage.pwrite(fd, memoryview(data)[taken:], offset + taken)
        if more == 0:
            raise OSError(f"the disk takes no more bytes at {offset + taken}")
        taken += more


def discard(storage: Storage, path: Path) -> bool:
    """Remove a file if that is possible, and tell whether it was; what stays does no harm."""
    try:
        storage.unlink(path)
    except OSError as error:
        log.warning("%s stays behind: %s", path, error.strerror or error)
        return False
    return True


def clear_leftovers(storage: Storage, directory: Path) -> None:
    """Remove the files that a crash left under temporary names, if that is possible."""
    for name in glance(storage, directory).temporary:
        discard(storage, directory / name)


def _refuse_disk(path: Path) -> NoReturn:
    raise JournalFailed(
        "what was written and synced reads back differently; the disk cannot be trusted",
        path=str(path),
    )


def _checksum(storage: Storage, fd: int, length: int, rest: Rest) -> int:
    check, offset = 0, 0
    while offset < length:
        # Not all at once, which holds up others on the processor, and whole pages: others stay.
        storage.drop_cache(fd, offset, BLOCK_BYTES)
        block = storage.pread(fd, min(BLOCK_BYTES, length - offset), offset)
        if not block:
            return -1
        check, offset = crc32(block, check), offset + len(block)
        rest(len(block))
    return check


# --- the directory and its lock ---------------------------------------------------------------


def prepare_directory(directory: Path) -> list[str]:
    """Make the directory if it is missing, see that it is ours alone; return warnings.

    Raises JournalError (exit code 78) where it is not ours or not a directory.
    """
    try:
        if not directory.exists():
            directory.mkdir(mode=0o700, parents=True)
            directory.chmod(0o700)
        return _tighten(directory)
    except OSError as error:
        raise unusable(directory, error) from error


def _tighten(directory: Path) -> list[str]:
    """Take from others what they should not have had, the files as well; return warnings."""
    status, paths = directory.stat(), sorted(directory.iterdir())
    if status.st_uid != os.geteuid():
        raise JournalError(
            f"the data directory belongs to user {status.st_uid}, not to us ({os.geteuid()})",
            path=str(directory),
            exit_code=EX_CONFIG,
        )
    warnings = []
    if status.st_mode & 0o077:
        directory.chmod(0o700)
        mode = status.st_mode & 0o777
        warnings.append(f"{directory} was open to others (mode {mode:04o}); now it is 0700")
    for path in paths:
        if not _PATTERN.fullmatch(path.name.removesuffix(TEMPORARY)):
            continue
        with suppress(FileNotFoundError):  # a server is at work here; the lock will tell
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                warnings.append(f"{path} {_tightened(path, mode & 0o777)}")
    return warnings


def _tightened(path: Path, mode: int) -> str:
    """Take a file from others; return what is said of it. Raises FileNotFoundError."""
    try:
        path.chmod(0o600)
    except FileNotFoundError:
        raise
    except OSError as error:  # it is somebody else's; whether we may read it is seen when we do
        return f"is open to others (mode {mode:04o}) and stays so: {error.strerror}"
    return f"was open to others (mode {mode:04o}); now it is 0600"


def lock_directory(directory: Path) -> int:
    """Take the directory for this process; return the fd that holds it, for `os.close`.

    The lock is on the directory itself, which nobody removes by mistake; LOCK says whose it is.
    Raises JournalError: exit code 75 where another process holds it, 78 where LOCK cannot be made.
    """
    path = directory / LOCK
    try:
        note = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"the lock cannot be made: {error.strerror}"
        raise JournalError(message, path=str(path), exit_code=EX_CONFIG) from error
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(note, 0o600)
        with suppress(OSError):  # the pid is for people; a full disk takes not even that
            os.ftruncate(note, 0)
            os.pwrite(note, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        os.close(fd)
        raise JournalError(
            f"the data directory is in use by another enginegate (pid {_holder(note)})",
            path=str(directory),
            hint="Stop that one first, or give this one a data_dir of its own.",
            exit_code=EX_TEMPFAIL,
        ) from error
    finally:
        os.close(note)
    return fd


def _holder(note: int) -> str:
    return os.pread(note, 32, 0).decode("ascii", "replace").strip() or "unknown"


def lock_holder(directory: Path) -> str | None:
    """Return the pid of the process that holds the directory, None where nobody does.

    Makes no file and changes none, so that it can be asked of a read-only copy.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(OSError):
            return (directory / LOCK).read_text("ascii", "replace").strip() or "unknown"
        return "unknown"
    finally:
        os.close(fd)
    return None
