"""Offline tools: look at a data directory, print it, rewrite it, repair its tail.

`verify` changes nothing and works on a copy; the others take the directory's lock.
"""

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from msgspec import to_builtins

from enginegate.errors import JournalError
from enginegate.facts import AnyFact
from enginegate.journal.archive import GENERATIONS
from enginegate.journal.files import (
    ACCESS_HINT,
    Entry,
    listing,
    lock_directory,
    lock_holder,
    read_whole,
    unreadable,
    unusable,
)
from enginegate.journal.journal import Journal
from enginegate.journal.opening import demand_one_instance
from enginegate.journal.recovery import (
    Content,
    Position,
    demand_segment,
    load_snapshot,
    read_segment,
    recover,
)
from enginegate.journal.storage import OsStorage, Storage
from enginegate.journal.traces import demand_journal
from enginegate.model import SnapshotRecord

Fold = Callable[[list[SnapshotRecord], list[tuple[int, AnyFact]]], list[SnapshotRecord]]
Verdict = Literal["clean", "torn", "damage"]

MASKED = "***"
_SECRET = frozenset({"sealed_key", "key_hash", "old_key_hash"})
_EXIT_CODES: dict[Verdict, int] = {"clean": 0, "torn": 1, "damage": 2}
_BACKUP_HINT = "Only a backup from before the damage has what is damaged whole."
_OS = OsStorage()

ATTEMPTS = 5
"""So often is read what does not hold still. Damage that is told twice is of the disk."""


class Fault(NamedTuple):
    """One thing that `verify` found: `path` and `offset` (bytes) say where, `message` what.

    What is `denied` may be whole, and takes no more than the right to read it.
    """

    message: str
    path: str
    offset: int | None = None
    verdict: Verdict = "damage"
    denied: bool = False

    def __str__(self) -> str:
        place = self.path if self.offset is None else f"{self.path} at offset {self.offset}"
        return f"{self.message} ({place})"

    @classmethod
    def of(cls, error: JournalError) -> "Fault":
        """Return an error without its hint."""
        bare = cls("", error.path, error.offset)
        message = str(error).removesuffix(f". {error.hint}").removesuffix(str(bare))
        return bare._replace(message=message, denied=isinstance(error.__cause__, PermissionError))


@dataclass
class VerifyReport:
    """What `verify` found. `message`, `path` and `offset` are of the first and worst fault.

    `refusal` is why a start would refuse the directory, and `hint` what helps then; without
    it a start does not need what is damaged. `in_use_by` is the pid of a running enginegate:
    then a torn tail may be a frame in flight.
    """

    faults: list[Fault] = field(default_factory=list)
    refusal: Fault | None = None
    hint: str = ""
    segments: int = 0
    snapshots: int = 0
    frames: int = 0
    facts: int = 0
    in_use_by: str | None = None

    @property
    def worst(self) -> Fault:
        """The first damage, else the torn tail, else a fault that is none."""
        ordered = sorted(self.faults, key=lambda fault: fault.verdict != "damage")
        return ordered[0] if ordered else _NO_FAULT

    @property
    def verdict(self) -> Verdict:
        return self.worst.verdict

    @property
    def message(self) -> str:
        return str(self.worst) if self.faults else ""

    @property
    def path(self) -> str:
        return self.worst.path

    @property
    def offset(self) -> int | None:
        return self.worst.offset

    @property
    def starts(self) -> bool:
        return self.refusal is None

    @property
    def files(self) -> int:
        return self.segments + self.snapshots

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self.verdict]

    @property
    def advice(self) -> str:
        """What helps against damage that a start does not need."""
        denied = {fault.denied for fault in self.faults if fault.verdict == "damage"}
        parts = [_BACKUP_HINT] * (False in denied) + [ACCESS_HINT] * (True in denied)
        return " ".join(parts)

    def refuse(self, fault: Fault, hint: str = "") -> None:
        """Note why a start would refuse, unless the same is noted already as damage."""
        self.refusal, self.hint = fault, hint
        if fault not in self.faults:
            self.faults.append(fault)


def verify(directory: Path, key_id: str | None = None, *, storage: Storage = _OS) -> VerifyReport:
    """Read every file, archived ones included, and say whether a start would accept them.

    `key_id` is what a start would demand of the files it reads; None accepts any. Changes
    nothing, makes no file, takes no lock. Beside a running server what looks like damage may
    be a file that was just removed or followed by another: then all is read again.
    """
    report, before = _look(directory, key_id, storage), list[Fault]()
    for _ in range(ATTEMPTS - 1):
        if report.verdict != "damage" or report.faults == before:
            break
        if not (report.in_use_by or lock_holder(directory)):  # nor did one begin meanwhile
            break
        report, before = _look(directory, key_id, storage), report.faults
    return report


def _look(directory: Path, key_id: str | None, storage: Storage) -> VerifyReport:
    """Read every file once."""
    report = VerifyReport(in_use_by=lock_holder(directory))
    try:
        found = listing(storage, directory)
        for entry in found.snapshots:
            _verify_snapshot(storage, directory, entry, report)
        _verify_segments(storage, directory, found.segments, report)
        read = recover(storage, directory, key_ids=None if key_id is None else {key_id})
        demand_one_instance(storage, directory, read.instance)
    except JournalError as error:
        report.refuse(Fault.of(error), error.hint)
    except PermissionError as error:
        raise unusable(directory, error) from error  # says nothing about the journal
    except OSError as error:
        failure = unreadable(directory, error)
        report.refuse(Fault.of(failure), failure.hint)
    return report


def dump(directory: Path, *, storage: Storage = _OS) -> Iterator[dict[str, Any]]:
    """Yield every fact on disk, oldest first, as `{"number": …, "fact": …}` without secrets.

    Raises JournalError where there is no journal, before a lock is made, and where the directory
    is in use; and after all that can be read is yielded, where a segment is damaged or the last
    one is missing.
    """
    demand_journal(directory, storage=storage)
    lock = lock_directory(directory)
    try:
        found, failures = listing(storage, directory), list[JournalError]()
        for content in _contents(storage, directory, found.segments, failures.append):
            for number, fact in content.facts:
                yield {"number": number, "fact": masked(fact)}
        if found.snapshots:
            demand_segment(directory, found)
        if failures:
            raise _left_out(failures)
    finally:
        os.close(lock)


def compact(
    directory: Path,
    key_id: str,
    fold: Fold,
    *,
    older_key_ids: Collection[str] = (),
    days: float | None = None,
    max_mb: float | None = None,
    drop_suspect: bool = False,
    storage: Storage = _OS,
) -> list[str]:
    """Start and stop without a server: replay, write a new generation; return warnings.

    `fold` makes the records of the state out of a snapshot and the facts after it, sealed
    with the key that `key_id` names. `days` and `max_mb`, where given, limit the archive as a
    running server would. Raises JournalError where there is no journal, and begins none.
    """
    demand_journal(directory, storage=storage)
    journal = Journal.open(
        directory,
        key_id=key_id,
        older_key_ids=older_key_ids,
        storage=storage,
        drop_suspect=drop_suspect,
    )
    try:
        journal.begin(fold(journal.snapshot, journal.tail))
        if days is not None or max_mb is not None:
            journal.retain(
                days=_FOR_EVER_DAYS if days is None else days,
                max_mb=_ENDLESS_MB if max_mb is None else max_mb,
            )
    finally:
        journal.close()
    return journal.warnings


def repair(
    directory: Path,
    key_id: str,
    fold: Fold,
    *,
    older_key_ids: Collection[str] = (),
    drop_suspect_tail: bool = False,
    storage: Storage = _OS,
) -> list[str]:
    """Drop a torn tail, and on request a suspect one, into the quarantine; return warnings.

    Damage before the tail is not repaired: JournalError says where it is.
    """
    return compact(
        directory,
        key_id,
        fold,
        older_key_ids=older_key_ids,
        drop_suspect=drop_suspect_tail,
        storage=storage,
    )


def rekey(
    directory: Path,
    key_id: str,
    fold: Fold,
    *,
    older_key_ids: Collection[str] = (),
    forsake_generations: bool = False,
    storage: Storage = _OS,
) -> None:
    """Write every generation that is kept anew, under the key that `key_id` names.

    Afterwards nothing that a start may need is sealed with an older key. Killed at any step,
    it leaves generations that the older keys and the new one together open. Raises
    JournalError where there is no journal, and begins none.
    """
    demand_journal(directory, storage=storage)
    journal = Journal.open(
        directory,
        key_id=key_id,
        older_key_ids=older_key_ids,
        storage=storage,
        forsake_generations=forsake_generations,
    )
    try:
        records = fold(journal.snapshot, journal.tail)
        journal.begin(records)
        for _ in range(GENERATIONS - 1):
            journal.write_snapshot(records, state_at=journal.rotate())
    finally:
        journal.close()


def masked(fact: AnyFact) -> dict[str, Any]:
    """Return a fact as plain data for JSON, keys and their digests made unreadable."""
    plain: dict[str, Any] = to_builtins(fact)
    return {name: MASKED if name in _SECRET else value for name, value in plain.items()}


_NO_FAULT = Fault("", "", None, "clean")
_FOR_EVER_DAYS = 36_500.0
_ENDLESS_MB = 1e12


def _contents(
    storage: Storage,
    directory: Path,
    entries: list[Entry],
    failed: Callable[[JournalError], None],
) -> Iterator[Content]:
    """Read all segments in order; behind a damaged one, begin wherever the next begins."""
    before: Position | None = None
    instance = ""
    for entry, following in pairwise([*entries, None]):
        assert entry is not None
        behind = following or _newer(storage, directory, entry)
        try:
            content = read_segment(
                storage, directory, entry, behind, before, instance=instance, key_ids=None
            )
        except JournalError as error:
            failed(error)
            before = None
            continue
        before, instance = content.position, content.header.instance
        yield content


def _left_out(failures: list[JournalError]) -> JournalError:
    """Return what is said of segments that could not be printed: the first, and how many more."""
    first, more = failures[0], len(failures) - 1
    fault = Fault.of(first)
    others = f", and {more} other segments are left out, too" if more else ""
    return JournalError(
        f"all facts are printed but those of this segment: {fault.message}{others}",
        path=fault.path,
        offset=fault.offset,
        hint=ACCESS_HINT
        if fault.denied
        else "`enginegate journal verify` says whether a start needs what is damaged.",
        exit_code=first.exit_code,
    )


def _verify_snapshot(storage: Storage, directory: Path, entry: Entry, report: VerifyReport) -> None:
    path = directory / entry.name
    report.snapshots += 1
    try:
        loaded = load_snapshot(read_whole(storage, path), path, entry, key_ids=None)
    except JournalError as error:
        report.faults.append(Fault.of(error))
        return
    if isinstance(loaded, int):
        report.faults.append(Fault("the snapshot is damaged", str(path), loaded))


def _verify_segments(
    storage: Storage, directory: Path, entries: list[Entry], report: VerifyReport
) -> None:
    report.segments += len(entries)

    def failed(error: JournalError) -> None:
        report.faults.append(Fault.of(error))

    for content in _contents(storage, directory, entries, failed):
        report.frames += content.frames
        report.facts += len(content.facts)
        if tear := content.tear:
            report.faults.append(Fault(tear.reason, str(tear.path), tear.offset, "torn"))


def _newer(storage: Storage, directory: Path, last: Entry) -> Entry | None:
    """Return what follows by now: while the others were read, the last may have been trimmed."""
    return next((one for one in listing(storage, directory).segments if one > last), None)
