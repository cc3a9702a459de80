"""A copy of the journal that a start accepts, also made beside a running server.

The files of a journal are made whole, and after that only removed; the last segment
alone grows, frame by frame. So all files are opened first and read afterwards: what is
removed meanwhile stays readable. A frame on its way into the last one is left out.
Nothing else is made good: a copy is what the original is, and is judged as that.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from enginegate.errors import JournalError
from enginegate.journal import frames
from enginegate.journal.archive import first_frame
from enginegate.journal.failures import (
    EX_FAILED,
    JournalFailed,
    JournalFull,
    live_file,
    no_room,
)
from enginegate.journal.files import (
    ACCESS_HINT,
    EX_CONFIG,
    Entry,
    discard,
    listing,
    lock_holder,
    open_file,
    publish,
    read_fd,
    unreadable,
    write_new,
)
from enginegate.journal.frames import Finding, Link
from enginegate.journal.inspect import ATTEMPTS, Fault, VerifyReport, verify
from enginegate.journal.payloads import UnreadableError, decode_header
from enginegate.journal.recovery import recover
from enginegate.journal.storage import OsStorage, Storage
from enginegate.journal.traces import demand_journal

_OS = OsStorage()
_LIMIT = frozenset({errno.EMFILE, errno.ENFILE})
_OF_NO_FILE = _LIMIT | {errno.ENOENT}  # of opening one, and do not say that it cannot be read


def backup(directory: Path, target: Path, *, storage: Storage = _OS) -> VerifyReport:
    """Copy the journal's files into `target`, new or empty; return what `verify` says of the copy.

    Neither keys nor engines' data are in it. Damage that a start does not need is copied as
    it is, and what of that cannot be read is left out: both are faults in the report, under
    the paths they were copied from. Raises JournalError, and leaves nothing behind, where the
    target cannot be used or a start would refuse the journal; exit code 1 where the target's
    disk is full or broken (JournalFull, JournalFailed), or fewer files may be open than there are.
    """
    with _place(storage, target), _written(directory, target):
        return _settled(storage, directory, target)


@contextmanager
def _place(storage: Storage, target: Path) -> Iterator[None]:
    """Make the directory for the copy; where none comes about, take away what was made."""
    made: list[Path] = []
    try:
        made += [path for path in (target, *target.parents) if not path.exists()]
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        _demand_empty(target)
        target.chmod(0o700)
    except OSError as error:
        _remove(made)
        if no_room(error):
            raise _full(target, error) from error
        message = f"the copy cannot be made there: {error.strerror}"
        raise JournalError(message, path=str(target), exit_code=EX_CONFIG) from error
    try:
        yield
    except BaseException:  # cleaned up, and raised again
        _clear(storage, target)
        _remove(made)
        raise


def _demand_empty(target: Path) -> None:
    if any(target.iterdir()):
        raise JournalError(
            "the copy must go into a new or empty directory", path=str(target), exit_code=EX_CONFIG
        )


@contextmanager
def _written(directory: Path, target: Path) -> Iterator[None]:
    """Say of errors of writing that they are the target's: nothing is wrong with the journal.

    Nor with the target where no more files may be open: that may show at any of them.
    """
    try:
        yield
    except (JournalError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in _LIMIT:
            raise _limited(directory, cause) from error
        if isinstance(error, JournalFull):
            raise _full(target, cause) from error
        if isinstance(error, JournalFailed):
            message = f"no backup was made: {Fault.of(error).message}"
            raise JournalFailed(message, path=error.path) from error
        raise


def _limited(directory: Path, error: OSError) -> JournalError:
    return JournalError(
        f"no backup was made: {error.strerror}",
        path=str(directory),
        hint="All files of the journal are open at once for it: raise the limit on open files"
        " (`ulimit -n`, systemd: LimitNOFILE).",
        exit_code=EX_FAILED,
    )


def _full(target: Path, error: BaseException | None) -> JournalFull:
    why = getattr(error, "strerror", error)
    message = f"no backup was made, the disk that the copy goes to is full: {why}"
    return JournalFull(message, path=str(target))


def _remove(made: list[Path]) -> None:
    """Remove directories that were made for nothing, the innermost first."""
    for path in made:
        with suppress(OSError):
            path.rmdir()


def _settled(storage: Storage, directory: Path, target: Path) -> VerifyReport:
    """Copy again while damage may be of the moment: told twice, it is of the disk."""
    before: list[Fault] = []
    attempts = ATTEMPTS if lock_holder(directory) else 1
    while True:
        report = _attempt(storage, directory, target)
        attempts -= 1
        settled = attempts == 0 or report.faults == before
        if report.verdict != "damage" or (report.refusal is None and settled):
            return report
        if report.refusal and attempts == 0:
            raise _none(report.refusal, report.hint)
        before = report.faults
        _clear(storage, target)


def _attempt(storage: Storage, directory: Path, target: Path) -> VerifyReport:
    """Make one copy; return what is wrong with it, in terms of what was copied."""

    def source(fault: Fault) -> Fault:
        return fault._replace(path=fault.path.replace(str(target), str(directory), 1))

    lost = _copy(storage, directory, target)
    report = verify(target, storage=storage)
    report.faults = [*lost, *map(source, report.faults)]
    report.refusal = report.refusal and source(report.refusal)
    if lost and report.starts:
        _demand_original(storage, directory, report)
    return report


def _demand_original(storage: Storage, directory: Path, report: VerifyReport) -> None:
    """Note what a start says of the original: a file that is left out may hide what it shows."""
    try:
        recover(storage, directory)
    except JournalError as error:
        report.refuse(Fault.of(error), error.hint)


def _none(fault: Fault, hint: str = "") -> JournalError:
    return JournalError(
        f"no backup was made: {fault.message}", path=fault.path, offset=fault.offset, hint=hint
    )


def _copy(storage: Storage, directory: Path, target: Path) -> list[Fault]:
    """Copy what can be read; return the rest. Raises JournalError where a start needs that."""
    opened, lost = _open_all(storage, directory)
    last = max((entry for entry in [*opened, *lost] if _is_segment(entry)), default=None)
    copied: list[Entry] = []
    try:
        for entry, fd in opened.items():
            try:
                data = read_fd(storage, fd)
            except OSError as error:
                lost[entry] = _unread(directory, entry, error)
                continue
            content = _whole(storage, directory, data) if entry == last else data
            copy, _ = write_new(storage, target / entry.name, [content])
            storage.close(copy)
            publish(storage, target / entry.name)
            copied.append(entry)
    finally:
        for fd in opened.values():
            storage.close(fd)
    with live_file(target):
        storage.sync_directory(target)
    _demand_spared(copied, lost)
    return list(lost.values())


def _demand_spared(copied: list[Entry], lost: dict[Entry, Fault]) -> None:
    """See that what cannot be read lies before the newest snapshot.

    A copy without a later segment might start, and lack what was answered. Raises JournalError.
    """
    newest = max((one.sequence for one in copied if not _is_segment(one)), default=-1)
    for entry, fault in lost.items():
        if not copied or (_is_segment(entry) and entry.sequence > newest):
            raise _none(fault, ACCESS_HINT if fault.denied else "")


def _open_all(storage: Storage, directory: Path) -> tuple[dict[Entry, int], dict[Entry, Fault]]:
    """Open every file of one listing, oldest first; begin again when one has just gone.

    Also returns those that do not open. Raises OSError where no more files may be open.
    """
    while True:
        found = demand_journal(directory, storage=storage)
        opened: dict[Entry, int] = {}
        lost: dict[Entry, Fault] = {}
        try:
            for entry in sorted(found.segments + found.snapshots):
                _open(storage, directory, entry, opened, lost)
        except OSError as error:
            for fd in opened.values():
                storage.close(fd)
            if not isinstance(error, FileNotFoundError):
                raise
        else:
            return opened, lost


def _open(
    storage: Storage,
    directory: Path,
    entry: Entry,
    opened: dict[Entry, int],
    lost: dict[Entry, Fault],
) -> None:
    """Open one file, or note why it does not open. Raises OSError where that is not its fault."""
    try:
        opened[entry] = open_file(storage, directory / entry.name)
    except OSError as error:
        if error.errno in _OF_NO_FILE:
            raise
        lost[entry] = _unread(directory, entry, error)


def _unread(directory: Path, entry: Entry, error: OSError) -> Fault:
    return Fault.of(unreadable(directory / entry.name, error))


def _is_segment(entry: Entry) -> bool:
    return entry.name.startswith("wal-")


def _whole(storage: Storage, directory: Path, data: bytes) -> bytes:
    """Return the last segment without a frame that is on its way, in its full size.

    One that is shorter than it was made was cut from outside, and is copied so, to be refused;
    unless it was followed, and trimmed, since it was listed.
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
    if len(data) < size:
        return data.ljust(size, b"\0") if _followed(storage, directory, link.sequence) else data
    torn = frames.judge(data, link, end).finding is Finding.TORN
    return data[:end].ljust(len(data), b"\0") if torn else data


def _followed(storage: Storage, directory: Path, sequence: int) -> bool:
    """Return whether a segment goes on right after that frame: it proves where the one before ends.

    A segment is trimmed only after the next one has its name.
    """
    return any(one.sequence == sequence + 1 for one in listing(storage, directory).segments)


def _clear(storage: Storage, target: Path) -> None:
    for name in os.listdir(target):  # noqa: PTH208 - names are wanted, not paths
        discard(storage, target / name)
