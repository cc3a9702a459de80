"""A copy of the journal that a start accepts, also made beside a running server.

The files of a journal are made whole, and after that only removed; the last segment
alone grows, frame by frame. So all files are opened first and read afterwards: what is
removed meanwhile stays readable. A frame on its way into the last one is left out.
"""

import os
from pathlib import Path

from enginegate.errors import JournalError
from enginegate.journal import frames
from enginegate.journal.archive import first_frame
from enginegate.journal.failures import live_file
from enginegate.journal.files import (
    EX_CONFIG,
    discard,
    listing,
    lock_holder,
    publish,
    read_fd,
    write_new,
)
from enginegate.journal.frames import Finding, Link
from enginegate.journal.inspect import VerifyReport, verify
from enginegate.journal.payloads import UnreadableError, decode_header
from enginegate.journal.storage import OsStorage, Storage

ATTEMPTS = 5  # a listing beside a running server may miss a file that is just being made

_OS = OsStorage()


def backup(directory: Path, target: Path, *, storage: Storage = _OS) -> VerifyReport:
    """Copy the journal's files into `target`, new or empty; return what `verify` says of the copy.

    Neither keys nor engines' data are in it. Raises JournalError, and leaves no files, where
    the target cannot be used or the journal is damaged; JournalFull, JournalFailed.
    """
    _prepare(target)
    attempts = ATTEMPTS if lock_holder(directory) else 1
    while True:
        _copy(storage, directory, target)
        report = verify(target, storage=storage)
        if report.verdict != "damage":
            return report
        _clear(storage, target)
        attempts -= 1
        if attempts == 0:
            break
    raise JournalError(
        f"no copy: {report.message}",
        path=str(directory),
        hint="Look at it with `enginegate journal verify`.",
    )


def _prepare(target: Path) -> None:
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        taken = any(target.iterdir())
        target.chmod(0o700)
    except OSError as error:
        message = f"the copy cannot be made there: {error.strerror}"
        raise JournalError(message, path=str(target), exit_code=EX_CONFIG) from error
    if taken:
        raise JournalError(
            "the copy is to go into a new or empty directory",
            path=str(target),
            exit_code=EX_CONFIG,
        )


def _copy(storage: Storage, directory: Path, target: Path) -> None:
    names = _open_all(storage, directory)
    last = max((name for name in names if name.startswith("wal-")), key=_age, default=None)
    try:
        for name, fd in names.items():
            try:
                data = read_fd(storage, fd)
            except OSError as error:
                path = str(directory / name)
                raise JournalError(f"cannot be read: {error.strerror}", path=path) from error
            content = _whole(data) if name == last else data
            copy, _ = write_new(storage, target / name, [content])
            storage.close(copy)
            publish(storage, target / name)
    finally:
        for fd in names.values():
            storage.close(fd)
    with live_file(target):
        storage.sync_directory(target)


def _open_all(storage: Storage, directory: Path) -> dict[str, int]:
    """Open every file of one listing, oldest first; begin again when one has just gone."""
    while True:
        found = listing(storage, directory)
        if not found.segments and not found.snapshots:
            raise JournalError("there is no journal", path=str(directory), exit_code=EX_CONFIG)
        opened: dict[str, int] = {}
        try:
            for entry in sorted(found.segments + found.snapshots):
                opened[entry.name] = storage.open(directory / entry.name)
        except OSError as error:
            for fd in opened.values():
                storage.close(fd)
            if not isinstance(error, FileNotFoundError):
                path = str(directory)
                raise JournalError(f"cannot be read: {error.strerror}", path=path) from error
        else:
            return opened


def _age(name: str) -> tuple[int, int]:
    _, epoch, sequence = name.removesuffix(".egj").split("-")
    return int(sequence), int(epoch)


def _whole(data: bytes) -> bytes:
    """Return the last segment without a frame that is on its way, in its full size.

    It may have been followed, and trimmed, since it was listed.
    """
    first = first_frame(data)
    if first is None:
        return data
    try:
        size = decode_header(first.payload).size_bytes
    except UnreadableError:
        return data
    link, end = Link(first.sequence, first.crc, first.crc), first.end
    for frame in frames.walk(data, link, first.end):
        link, end = Link(frame.sequence, frame.crc, first.crc), frame.end
    padded = data.ljust(size, b"\0")
    torn = frames.judge(padded, link, end).finding is Finding.TORN
    return padded[:end].ljust(size, b"\0") if torn else padded


def _clear(storage: Storage, target: Path) -> None:
    for name in os.listdir(target):  # noqa: PTH208 - names are wanted, not paths
        discard(storage, target / name)
