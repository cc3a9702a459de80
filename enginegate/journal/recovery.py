"""Reading the directory back: newest valid snapshot, every frame after it, and the verdict.

Reads only. What is read is applied or refused, never skipped: a frame may be dropped
in one case alone, where it provably was never acknowledged (a torn tail), or where an
operator says so after a look (a suspect one).
"""

import gc
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple, NoReturn
from zlib import crc32

from enginegate.errors import JournalError
from enginegate.facts import AnyFact
from enginegate.journal import frames
from enginegate.journal.files import (
    EX_CONFIG,
    Entry,
    Listing,
    listing,
    read_whole,
    segment_name,
)
from enginegate.journal.frames import Finding, Frame, Link
from enginegate.journal.inherited import Inherited
from enginegate.journal.payloads import (
    SEGMENT,
    FileHeader,
    UnreadableError,
    decode_facts,
    decode_header,
)
from enginegate.journal.snapshot import read_records, read_snapshot_header
from enginegate.journal.storage import Storage
from enginegate.journal.traces import demand_never_begun
from enginegate.model import SnapshotRecord

VERIFY_HINT = (
    "Put back a copy that `enginegate journal backup` made; `enginegate journal verify` shows"
    " everything that is damaged. Nothing was changed."
)
REPAIR_HINT = "If nobody can have been told of it: `enginegate journal repair --drop-suspect-tail`."


class Position(NamedTuple):
    """A point in the life of a data directory, between two frames.

    `sequence` is the last frame before it, `number` the next fact's, `crc` the chain's
    checksum; `written` counts the bytes this process had written until then.
    """

    sequence: int
    number: int
    crc: int
    written: int = 0


_START = Position(0, 1, 0)


class Tear(NamedTuple):
    """A tail to drop: the file, where it begins, its bytes, and what was judged of it."""

    path: Path
    offset: int
    content: bytes
    reason: str


class Content(NamedTuple):
    """What a segment holds up to `end`, where the chain stands then, and the torn rest if any."""

    header: FileHeader
    facts: list[tuple[int, AnyFact]]
    frames: int
    end: int
    size: int
    position: Position
    tear: Tear | None
    check: int = 0  # of the last segment alone: the CRC-32 of its bytes up to `end`


@dataclass
class Recovered:
    """Everything a start needs to know; `ends` maps replayed segments to their used bytes."""

    fresh: bool
    instance: str = ""
    epoch: int = 0
    position: Position = _START
    snapshot: list[SnapshotRecord] = field(default_factory=list)
    snapshot_bytes: int = 0
    tail: list[tuple[int, AnyFact]] = field(default_factory=list)
    ends: list[tuple[Path, int]] = field(default_factory=list)
    tear: Tear | None = None
    last: Inherited | None = None
    warnings: list[str] = field(default_factory=list)


def recover(
    storage: Storage,
    directory: Path,
    *,
    key_ids: Collection[str] | None = None,
    drop_suspect: bool = False,
) -> Recovered:
    """Read a directory as a start does. `key_ids` None takes any master key.

    Raises JournalError with the file, the offset and a hint, wherever going on could lose or
    invent something.
    """
    found = listing(storage, directory)
    if not found.segments and not found.snapshots:
        demand_never_begun(storage, directory)
        return Recovered(fresh=True)
    state = Recovered(fresh=False)
    state.epoch = max(entry.epoch for entry in found.segments + found.snapshots)
    with _without_collector():
        if found.snapshots:
            _load_snapshot(storage, directory, found.snapshots, key_ids, state)
            demand_segment(directory, found)
        base = state.position.sequence
        later = [entry for entry in found.segments if entry.sequence > base]
        _replay(storage, directory, later, key_ids, state, drop_suspect=drop_suspect)
    return state


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the garbage collector from walking, again and again, what is all kept anyway.

    Two thirds of the time of a replay of 200,000 facts.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _load_snapshot(
    storage: Storage,
    directory: Path,
    entries: list[Entry],
    key_ids: Collection[str] | None,
    state: Recovered,
) -> None:
    """Take the newest whole snapshot; an older one has the same end, by more segments."""
    unreadable: JournalError | None = None
    for entry in reversed(entries):
        path = directory / entry.name
        try:
            data = read_whole(storage, path)
        except JournalError as error:
            unreadable = unreadable or error
            state.warnings.append(f"{error}; an older one is used")
            continue
        loaded = load_snapshot(data, path, entry, key_ids=key_ids)
        if isinstance(loaded, int):
            state.warnings.append(f"{path} is damaged at offset {loaded}; an older one is used")
            continue
        header, state.snapshot = loaded
        state.instance = header.instance
        state.position = Position(header.sequence, header.number, header.crc)
        state.snapshot_bytes = len(data)
        return
    if unreadable:
        raise unreadable
    path = directory / entries[-1].name
    damage("no snapshot is whole; refusing to start with less than there was", path, 0)


def demand_segment(directory: Path, found: Listing) -> None:
    """See that a segment follows the newest snapshot, also one that is not used: there was one."""
    newest = found.snapshots[-1]
    if not found.segments or found.segments[-1].sequence <= newest.sequence:
        frame = newest.sequence + 1
        message = f"the segment after the snapshot is missing: {newest.name} goes on with frame"
        damage(f"{message} {frame}", directory / segment_name(newest.epoch, frame), None)


def load_snapshot(
    data: bytes, path: Path, entry: Entry, *, key_ids: Collection[str] | None
) -> tuple[FileHeader, list[SnapshotRecord]] | int:
    """Return a snapshot's header and records, or the offset where it is damaged.

    Raises JournalError where it is whole but not for us: newer, another master key.
    """
    try:
        header = read_snapshot_header(data)
        if header is None or (header.epoch, header.sequence) != (entry.epoch, entry.sequence):
            return 0
        check_key(header, key_ids, path)
        records, end = read_records(data)
    except UnreadableError as error:
        refuse(str(error), path)
    return end if records is None else (header, records)


def _replay(
    storage: Storage,
    directory: Path,
    entries: list[Entry],
    key_ids: Collection[str] | None,
    state: Recovered,
    *,
    drop_suspect: bool,
) -> None:
    """Apply all segments after the snapshot, in order."""
    for entry, following in pairwise([*entries, None]):
        assert entry is not None
        content = read_segment(
            storage,
            directory,
            entry,
            following,
            state.position,
            instance=state.instance,
            key_ids=key_ids,
            drop_suspect=drop_suspect,
        )
        if not state.instance and not content.header.genesis:
            damage("the snapshot before it is missing", directory / entry.name, 0)
        state.instance = content.header.instance
        state.position, state.tear = content.position, content.tear
        state.tail += content.facts
        if following is None:
            path = directory / entry.name
            state.last = Inherited(path, content.size, content.end, content.check)
        if content.size > content.end:
            state.ends.append((directory / entry.name, content.end))


def read_segment(
    storage: Storage,
    directory: Path,
    entry: Entry,
    following: Entry | None,
    before: Position | None,
    *,
    instance: str,
    key_ids: Collection[str] | None,
    drop_suspect: bool = False,
) -> Content:
    """Read a whole segment that must continue at `before` (None: wherever it begins).

    `following` is the segment after it: what that one does not continue was dropped by the
    start that made it. The last segment is judged to the end of the file. `instance` ""
    takes any. Raises JournalError.
    """
    path = directory / entry.name
    data = read_whole(storage, path)
    header, first = _segment_header(data, path, entry)
    if instance and header.instance != instance:
        refuse(f"it belongs to another instance ({header.instance}, not {instance})", path)
    check_key(header, key_ids, path)
    if before is not None:
        _check_follows(header, before, path)
    if following is None and len(data) < header.size_bytes:
        missing = header.size_bytes - len(data)
        damage(f"the file was cut from outside: {missing} bytes are missing", path, len(data))
    content = _read_frames(data, path, header, first)
    if following:
        _check_reaches(content, following, path)
        return content
    tear = _tail(data, path, content, first.crc, drop_suspect=drop_suspect)
    return content._replace(tear=tear, check=crc32(data[: content.end]))


def _segment_header(data: bytes, path: Path, entry: Entry) -> tuple[FileHeader, Frame]:
    """Read a segment's first frame, which was on disk before the file had its name."""
    start = frames.header_at(data, 0, 0)
    link = Link(start.sequence - 1, start.previous, 0) if start else Link(0, 0, 0)
    first = next(frames.walk(data, link), None)
    if first is None or first.kind != frames.FILE:
        damage("the first frame is broken" if data else "the file is empty", path, 0)
    try:
        header = decode_header(first.payload)
    except UnreadableError as error:
        refuse(str(error), path)
    if header.kind != SEGMENT or (header.epoch, header.sequence) != (entry.epoch, entry.sequence):
        damage("the file does not bear its own name", path, 0)
    return header, first


def check_key(header: FileHeader, key_ids: Collection[str] | None, path: Path) -> None:
    """Refuse a file of another master key. Raises JournalError with exit code 78."""
    if key_ids is not None and header.key_id not in key_ids:
        raise JournalError(
            f"wrong master key: written with key {header.key_id},"
            f" given is {' and '.join(sorted(key_ids))}",
            path=str(path),
            hint="Start with the key that it was written with; after a `rekey` that was cut off,"
            " with both.",
            exit_code=EX_CONFIG,
        )


def _check_follows(header: FileHeader, before: Position, path: Path) -> None:
    if header.sequence != before.sequence + 1:
        missing = before.sequence + 1
        damage(f"frame {missing} is missing: this file begins at {header.sequence}", path, 0)
    if header.crc != before.crc or header.number != before.number:
        damage("it does not continue the file before it", path, 0)


def _check_reaches(content: Content, following: Entry, path: Path) -> None:
    """See that the whole frames end exactly where the next segment begins."""
    last = content.position.sequence
    if last + 1 != following.sequence:
        damage(
            f"frame {last + 1} is broken or missing, but {following.name} follows"
            if last < following.sequence
            else f"it goes on to frame {last}, but {following.name} follows",
            path,
            content.end,
        )


def _read_frames(data: bytes, path: Path, header: FileHeader, first: Frame) -> Content:
    """Decode every frame, as far as the chain holds."""
    facts: list[tuple[int, AnyFact]] = []
    number, end, total = header.number, first.end, 1
    link = Link(first.sequence, first.crc, first.crc)
    for frame in frames.walk(data, link, first.end):
        if frame.kind == frames.FACTS:
            start, batch = _facts(frame, path)
            if start != number:
                damage(f"fact {start} stands where {number} belongs", path, frame.offset)
            facts += zip(count(number), batch, strict=False)  # count has no end
            number += len(batch)
        elif frame.kind != frames.SEAL:
            damage(f"a frame of kind {frame.kind} in a segment", path, frame.offset)
        link = Link(frame.sequence, frame.crc, first.crc)
        end, total = frame.end, total + 1
    position = Position(link.sequence, number, link.crc)
    return Content(header, facts, total, end, len(data), position, None)


def _facts(frame: Frame, path: Path) -> tuple[int, list[AnyFact]]:
    try:
        return decode_facts(frame.payload)
    except UnreadableError as error:
        refuse(str(error), path, frame.offset)


def _tail(
    data: bytes, path: Path, content: Content, seed: int, *, drop_suspect: bool
) -> Tear | None:
    """Judge what follows the last whole frame of the last segment."""
    link = Link(content.position.sequence, content.position.crc, seed)
    finding, reason, used = frames.judge(data, link, content.end)
    if finding is Finding.CLEAN:
        return None
    if finding is Finding.NEWER:
        refuse(f"written by a newer version: {reason}", path, content.end)
    if finding is Finding.DAMAGE:
        damage(f"acknowledged data is damaged: {reason}", path, content.end)
    if finding is Finding.SUSPECT and not drop_suspect:
        message = f"suspect tail of {used - content.end} bytes: {reason}"
        raise JournalError(message, path=str(path), offset=content.end, hint=REPAIR_HINT)
    return Tear(path, content.end, data[content.end : used], reason)


def damage(message: str, path: Path, offset: int | None) -> NoReturn:
    """Refuse damaged data."""
    raise JournalError(f"damaged: {message}", path=str(path), offset=offset, hint=VERIFY_HINT)


def refuse(message: str, path: Path, offset: int | None = None) -> NoReturn:
    """Refuse whole data that is not for this version or this directory."""
    raise JournalError(message, path=str(path), offset=offset, hint="Nothing was changed.")
