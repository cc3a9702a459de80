"""The files behind the one being written: generations to recover from, and the audit trail.

Three snapshots are kept, with every segment since the oldest of them. Segments older
than that serve the audit trail alone, until `retain` removes them, oldest first.
"""

import logging
from collections.abc import Collection, Iterator
from itertools import count, islice, takewhile
from pathlib import Path

from enginegate.errors import JournalError
from enginegate.facts import AnyFact
from enginegate.journal import frames
from enginegate.journal.files import (
    Entry,
    discard,
    glance,
    listing,
    open_file,
    read_start,
    read_whole,
)
from enginegate.journal.frames import Frame, Link
from enginegate.journal.names import Names, named
from enginegate.journal.payloads import (
    FileHeader,
    UnreadableError,
    decode_facts,
    decode_header,
)
from enginegate.journal.storage import Storage

GENERATIONS = 3
START_BYTES = 4096
MIB, DAY_MS = 1024 * 1024, 86_400_000

log = logging.getLogger("enginegate.journal")

Numbered = Iterator[tuple[int, AnyFact]]


class Archive:
    """All files of a data directory, for reading and for clearing out."""

    def __init__(self, storage: Storage, directory: Path) -> None:
        self._storage = storage
        self._directory = directory
        self._headers: dict[str, FileHeader] = {}
        self._names: dict[str, Names] = {}  # of finished segments that were read once
        self._told = set[str]()  # files that the log has named
        self.oldest_number = 0

    def add(self, name: str, header: FileHeader) -> None:
        """Note a new segment, so that its header need not be read."""
        self._headers[name] = header

    def trim(self, ends: list[tuple[Path, int]]) -> None:
        """Give back the unused room of segments that a later one follows.

        Their end is proven by the later one; a last segment shorter than it was made is refused.
        """
        for path, end in ends:
            try:
                self._storage.truncate(path, end)
            except OSError as error:
                log.warning("%s keeps its unused room: %s", path, error.strerror or error)

    def prune(self) -> None:
        """Remove snapshots beyond the third generation; their segments become archive."""
        for entry in glance(self._storage, self._directory).snapshots[:-GENERATIONS]:
            discard(self._storage, self._directory / entry.name)

    def retain(self, *, days: float, max_mb: float, now_ms: int) -> int:
        """Remove archived segments whose facts are all older than that, or over the size.

        Always the oldest first, and no further than the first that cannot be removed, so that
        what stays has no gap. Returns how many were removed.
        """
        before_ms, max_bytes = now_ms - round(days * DAY_MS), round(max_mb * MIB)
        found = listing(self._storage, self._directory)
        if not found.snapshots:
            return 0
        needed_from = found.snapshots[-GENERATIONS:][0].sequence + 1
        archived = [entry for entry in found.segments if entry.sequence < needed_from]
        sizes = {entry.name: self._size(entry) for entry in found.segments + found.snapshots}
        total, removed = sum(sizes.values()), 0
        for place, entry in enumerate(archived, 1):
            # Facts are older than any later segment: the next one, unless it is damaged.
            header = next(filter(None, map(self._header, found.segments[place:])), None)
            if total <= max_bytes and not (header and header.created_at_ms < before_ms):
                break
            if not discard(self._storage, self._directory / entry.name):
                break
            self._headers.pop(entry.name, None)
            self._names.pop(entry.name, None)
            self._told.discard(entry.name)
            total -= sizes[entry.name]
            removed += 1
        self.look()
        return removed

    def look(self) -> None:
        """See how far back the segments go: `oldest_number` is the first fact's, 0 if unknown."""
        segments = glance(self._storage, self._directory).segments
        header = self._header(segments[0]) if segments else None
        self.oldest_number = header.number if header else 0

    def history(self, limit: int, *, naming: Collection[str] = ()) -> Iterator[tuple[int, AnyFact]]:
        """Yield facts with numbers below `limit`, newest first.

        Segments none of whose facts can name what is in `naming` are left out; others yield
        all their facts. What cannot be read is missing, which the log says once a file.
        """
        following: Entry | None = None
        for entry in reversed(listing(self._storage, self._directory).segments):
            header = self._header(entry)
            if header is not None:
                names = self._names.get(entry.name)
                if header.number < limit and (names is None or names.may_have(naming)):
                    yield from self._facts(entry, limit, following)
                limit = min(limit, header.number)
            following = entry

    def _facts(self, entry: Entry, limit: int, following: Entry | None) -> Numbered:
        """Yield one segment's facts backwards; decodes a frame at a time.

        Whoever reads a finished one to its end, and found it whole, leaves behind what it names.
        """
        try:
            data = read_whole(self._storage, self._directory / entry.name)
        except JournalError as error:
            self._tell(entry, "cannot be read", error.__cause__ or error)
            return
        found = _frames(data, following)
        finished = following is not None and self._is_whole(entry, found, following)
        names = set[str]()
        for frame in reversed([one for one in found if one.kind == frames.FACTS]):
            try:
                number, facts = decode_facts(frame.payload)
            except UnreadableError as error:
                self._tell(entry, f"frame {frame.sequence}", error)
                continue
            if finished:
                names.update(name for fact in facts for name in named(fact))
            numbered = list(islice(zip(count(number), facts, strict=False), max(0, limit - number)))
            yield from reversed(numbered)
        if finished and entry.name not in self._names:
            self._names[entry.name] = Names(names)

    def _is_whole(self, entry: Entry, found: list[Frame], following: Entry) -> bool:
        """Return whether the frames reach to the next segment; tell where they do not.

        What a damaged one names stays unknown: it may be mended while we run.
        """
        behind = found[-1].sequence + 1 if found else entry.sequence
        if behind != following.sequence:
            what = f"frame {behind} is broken or missing"
            self._tell(entry, what, f"{following.name} begins at {following.sequence}")
        return behind == following.sequence

    def _header(self, entry: Entry) -> FileHeader | None:
        """Return a segment's header, None where the file is gone or unreadable."""
        header = self._headers.get(entry.name)
        if header is None:
            try:
                data = read_start(self._storage, self._directory / entry.name, START_BYTES)
                header = header_in(data)
            except (OSError, UnreadableError) as error:
                self._tell(entry, "cannot be read", error)
            else:
                self._headers[entry.name] = header
        return header

    def _tell(self, entry: Entry, what: str, why: BaseException | str) -> None:
        """Log once what is missing from the history; retention may remove files meanwhile."""
        if entry.name in self._told or isinstance(why, FileNotFoundError):
            return
        self._told.add(entry.name)
        because = (why.strerror if isinstance(why, OSError) else None) or why
        path = self._directory / entry.name
        log.warning("history: entries are missing, %s: %s: %s", path, what, because)

    def _size(self, entry: Entry) -> int:
        try:
            fd = open_file(self._storage, self._directory / entry.name)
        except OSError:
            return 0
        try:
            return self._storage.size(fd)
        finally:
            self._storage.close(fd)


def first_frame(data: bytes) -> Frame | None:
    """Return the header frame of a segment, whatever its place in the chain."""
    start = frames.header_at(data, 0, 0)
    if start is None:
        return None
    return next(frames.walk(data, Link(start.sequence - 1, start.previous, 0)), None)


def header_in(data: bytes) -> FileHeader:
    """Return the header that a file begins with. Raises UnreadableError."""
    frame = first_frame(data)
    if frame is None:
        raise UnreadableError("its first frame is broken")
    return decode_header(frame.payload)


def _frames(data: bytes, following: Entry | None) -> list[Frame]:
    """Return the whole frames of a segment behind its header, as far as the next one continues."""
    first = first_frame(data)
    if first is None:
        return []
    link = Link(first.sequence, first.crc, first.crc)
    found = frames.walk(data, link, first.end)
    if following is None:
        return list(found)
    return [first, *takewhile(lambda frame: frame.sequence < following.sequence, found)]
