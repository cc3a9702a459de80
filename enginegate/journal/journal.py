"""The journal: opened by replay, begun with new files, then appended to by one thread.

    open   lock, read, judge; writes nothing but LOCK (and the quarantine)
    begin  a fresh snapshot and a fresh segment in a new epoch
    append one frame, one sync; facts are durable when it returns

`append`, `rotate`, `seal`, `make_room` and `close` exclude each other; `write_snapshot`
and `retain` may run beside them in another thread. `history` is for any thread.
"""

import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

from msgspec import Raw

from enginegate.clock import Clock, SystemClock
from enginegate.facts import AnyFact
from enginegate.journal import frames
from enginegate.journal.archive import Archive
from enginegate.journal.failures import JournalFailed, JournalFull
from enginegate.journal.files import (
    clear_leftovers,
    discard,
    filesystem_warnings,
    segment_name,
    snapshot_name,
)
from enginegate.journal.inherited import keep
from enginegate.journal.opening import take
from enginegate.journal.payloads import (
    SEGMENT,
    SNAPSHOT,
    FileHeader,
    cut,
    encode_fact,
    encode_facts,
)
from enginegate.journal.recovery import Position, Recovered
from enginegate.journal.segments import Segment, create_segment, publish_segment
from enginegate.journal.snapshot import create_snapshot, publish_snapshot
from enginegate.journal.storage import OsStorage, Storage
from enginegate.model import SnapshotRecord

log = logging.getLogger("enginegate.journal")

MIB, DAY_MS = 1024 * 1024, 86_400_000
SEGMENT_BYTES = SNAPSHOT_AFTER_BYTES = 16 * MIB
_SLOW_SYNC_S = 1.0
_OS, _CLOCK = OsStorage(), SystemClock()

Health = Literal["ok", "full", "failed"]


class Journal:
    """The single writer of durable state. Made by `Journal.open`.

    `snapshot` and `tail` are what was read back; `next_number` is the number the next fact
    gets; `on_sync` is told the seconds and bytes of each synced frame, in the writing thread.
    """

    def __init__(
        self,
        directory: Path,
        recovered: Recovered,
        *,
        key_id: str,
        storage: Storage,
        clock: Clock,
        segment_bytes: int,
        snapshot_after_bytes: int,
        lock_fd: int,
    ) -> None:
        self.directory = directory
        self.instance = recovered.instance or str(uuid.uuid4())
        self.epoch = recovered.epoch + 1
        self.fresh = recovered.fresh
        self.snapshot = recovered.snapshot
        self.tail = recovered.tail
        self.warnings = recovered.warnings
        self.bytes_written = 0
        self.on_sync: Callable[[float, int], None] | None = None
        self._key_id = key_id
        self._storage = storage
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._snapshot_after = snapshot_after_bytes
        self._lock_fd: int | None = lock_fd
        self._position = recovered.position
        self._ends, self._last = recovered.ends, recovered.last
        self._archive = Archive(storage, directory)
        self._segment: Segment | None = None
        self._full = False
        self._failure: str | None = None
        self._sealed = True
        self._snapshot_bytes = recovered.snapshot_bytes
        self._snapshot_mark = 0  # `bytes_written` when the newest snapshot's state was current
        self._writing = threading.RLock()
        self._snapshotting = threading.Lock()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        key_id: str,
        storage: Storage = _OS,
        clock: Clock = _CLOCK,
        segment_bytes: int = SEGMENT_BYTES,
        snapshot_after_bytes: int = SNAPSHOT_AFTER_BYTES,
        check: Callable[[Path], list[str]] = filesystem_warnings,
        drop_suspect: bool = False,
    ) -> Self:
        """Lock the directory and read it back. Warnings are logged and kept in `warnings`.

        `key_id` names the master key; `check` says what is wrong with the file system;
        `drop_suspect` drops a suspect tail as if it were torn (into the quarantine).
        Raises JournalError: exit code 75 in use, 78 wrong key or directory, 65 damage.
        """
        recovered, lock_fd = take(
            storage, directory, key_id=key_id, check=check, drop_suspect=drop_suspect
        )
        return cls(
            directory,
            recovered,
            key_id=key_id,
            storage=storage,
            clock=clock,
            segment_bytes=segment_bytes,
            snapshot_after_bytes=snapshot_after_bytes,
            lock_fd=lock_fd,
        )

    # --- what it is ---------------------------------------------------------------------------

    @property
    def status(self) -> Health:
        """Tell whether changes can be written: `full` heals, `failed` wants a restart."""
        if self._failure is not None:
            return "failed"
        return "full" if self._full else "ok"

    @property
    def next_number(self) -> int:
        return self._position.number

    @property
    def sequence(self) -> int:
        """The last durable frame."""
        return self._position.sequence

    @property
    def should_snapshot(self) -> bool:
        """Tell whether replay would be long enough to be worth a snapshot."""
        since = self.bytes_written - self._snapshot_mark
        return since > max(self._snapshot_after, 2 * self._snapshot_bytes)

    @property
    def sealable(self) -> bool:
        """Tell whether a seal frame would protect anything."""
        return not self._sealed and self.status == "ok"

    def release_replay(self) -> None:
        """Forget what was read back; the registry has it now."""
        self.snapshot, self.tail = [], []

    # --- new files ----------------------------------------------------------------------------

    def begin(self, records: Iterable[SnapshotRecord], *, key_id: str | None = None) -> None:
        """Write the state into a fresh snapshot and segment; from here on facts can be appended.

        Pages read back after a crash may never have reached the disk, and the old segment may
        end torn: nothing is ever appended to a file of an earlier process. `key_id` names
        another master key, for records that were sealed anew. Raises JournalFull, JournalFailed.
        """
        assert self._segment is None, "begun already"
        self._demand_usable()
        self._key_id = key_id or self._key_id
        state = list(records)
        with self._writing:
            clear_leftovers(self._storage, self.directory)
            at = self._position
            path = self._make_snapshot(state, at)
            try:
                segment = self._create_segment(genesis=self.fresh and not state)
                keep(self._storage, self._last)
                self._publish(segment)
            except BaseException:
                discard(self._storage, path.with_name(path.name + ".tmp"))
                raise
            with self._latching():
                publish_snapshot(self._storage, path)
            self._snapshot_mark = at.written
            self._archive.trim(self._ends)
            self._archive.prune()

    def rotate(self, *, room: int = 0) -> Position:
        """Begin a new segment, with `room` bytes at least; return the position in between.

        The state as of that position is what `write_snapshot` wants. Raises JournalFull (and
        the old segment stays in use) or JournalFailed.
        """
        with self._writing:
            self._demand_usable()
            old, at = self._current, self._position
            self._publish(self._create_segment(genesis=False, room=room))
            old.close()
            self._archive.trim([(old.path, old.end)])
            return at

    def write_snapshot(self, records: Sequence[SnapshotRecord], *, state_at: Position) -> None:
        """Write the state as of a rotation; then forget generations beyond the third.

        May run while another thread appends. `records` must not change meanwhile.
        Raises JournalFull (no harm done) or JournalFailed.
        """
        with self._snapshotting:
            self._demand_usable()
            path = self._make_snapshot(records, state_at)
            with self._latching():
                publish_snapshot(self._storage, path)
            self._snapshot_mark = state_at.written
            self._archive.prune()

    def retain(self, *, days: float, max_mb: float) -> int:
        """Remove the oldest archived segments by age and total size; return how many.

        What the kept generations need is never removed.
        """
        with self._snapshotting:
            before_ms = self._clock.wall_ms() - round(days * DAY_MS)
            return self._archive.retain(before_ms=before_ms, max_bytes=round(max_mb * MIB))

    # --- appending ----------------------------------------------------------------------------

    def append(self, facts: Sequence[AnyFact | Raw], *, use_reserve: bool = False) -> int:
        """Make facts durable; return the number of the first one. Blocks until synced.

        One frame, unless they are more than 4 MiB. `Raw` facts are encoded already
        (`encode_fact`). With `use_reserve` the room kept for a full disk may be used.
        Raises JournalFull (not written, may be tried again), JournalFailed (unknown, final),
        ValueError or TypeError for a fact that cannot be written (nothing was).
        """
        raws = [fact if isinstance(fact, Raw) else encode_fact(fact) for fact in facts]
        batches = list(cut(raws))
        with self._writing:
            first, done = self.next_number, 0
            for batch in batches:
                try:
                    self._append_frame(batch, use_reserve=use_reserve)
                except (JournalFull, JournalFailed) as error:
                    error.durable = done
                    raise
                done += len(batch)
        return first

    def seal(self) -> None:
        """Write an empty frame: what is before it can no longer be mistaken for a torn tail.

        Does nothing where nothing follows the last one, or where there is no room.
        """
        with self._writing:
            if self.sealable and self._current.room(use_reserve=False) >= frames.frame_bytes(0):
                self._write(frames.SEAL, b"", count=0)

    def fail(self, reason: str) -> None:
        """Latch: nothing is written any more until a restart."""
        if self._failure is None:
            self._failure = reason
            log.critical("the journal has failed, changes are refused until a restart: %s", reason)

    def close(self) -> None:
        """Seal what is there and give the directory back. May be called again."""
        with self._writing, self._snapshotting:
            if self._lock_fd is None:
                return
            try:
                if self._segment:
                    self.seal()
            except JournalFailed:
                log.warning("the last seal could not be written; nothing is lost by that")
            finally:
                if self._segment:
                    self._segment.close()
                self._failure = self._failure or "closed"
                os.close(self._lock_fd)
                self._lock_fd = None

    # --- reading back -------------------------------------------------------------------------

    def history(self, *, before: int | None = None) -> Iterator[tuple[int, AnyFact]]:
        """Yield durable facts with their numbers, newest first, over all segments on disk.

        `before` leaves out that number and later ones. One segment is in memory at a time.
        What is removed or unreadable meanwhile ends the iteration.
        """
        limit = self.next_number if before is None else min(before, self.next_number)
        return self._archive.history(limit)

    # --- inside -------------------------------------------------------------------------------

    @property
    def _current(self) -> Segment:
        assert self._segment is not None, "begin comes first"
        return self._segment

    def _demand_usable(self) -> None:
        if self._failure is not None:
            raise JournalFailed(
                f"the journal takes no more changes: {self._failure}",
                path=str(self.directory),
                hint="Restart enginegate: it recovers into new files.",
            )

    @contextmanager
    def _latching(self) -> Iterator[None]:
        """Latch when something failed for good."""
        try:
            yield
        except JournalFailed as error:
            self.fail(str(error))
            raise

    def _append_frame(self, batch: list[Raw], *, use_reserve: bool) -> None:
        self._demand_usable()
        payload = encode_facts(self.next_number, batch)
        needed = frames.frame_bytes(len(payload))
        if self._full or self._current.room(use_reserve=False) < needed:
            try:
                self.rotate(room=needed)
            except JournalFull:
                self._full = True
                if not use_reserve or self._current.room(use_reserve=True) < needed:
                    raise
        self._write(frames.FACTS, payload, count=len(batch))

    def _write(self, kind: int, payload: bytes, *, count: int) -> None:
        segment = self._current
        begun = self._clock.now()
        with self._latching():
            size = segment.write(kind, payload)
        seconds = self._clock.now() - begun
        self._advance(segment, size, count)
        self._sealed = kind == frames.SEAL
        if seconds > _SLOW_SYNC_S:
            log.warning("a sync of %d bytes took %.1f s; the disk is too slow", size, seconds)
        if self.on_sync:
            self.on_sync(seconds, size)

    def _advance(self, segment: Segment, size: int, count: int) -> None:
        self.bytes_written += size
        link = segment.link
        number = self._position.number + count
        self._position = Position(link.sequence, number, link.crc, self.bytes_written)

    def _header(
        self, kind: str, at: Position, *, size_bytes: int = 0, genesis: bool = False
    ) -> FileHeader:
        return FileHeader(
            kind=kind,
            instance=self.instance,
            epoch=self.epoch,
            sequence=at.sequence + (kind == SEGMENT),
            number=at.number,
            crc=at.crc,
            key_id=self._key_id,
            created_at_ms=self._clock.wall_ms(),
            size_bytes=size_bytes,
            genesis=genesis,
        )

    def _create_segment(self, *, genesis: bool, room: int = 0) -> Segment:
        """Make the next segment, unpublished, with at least `room` bytes for a frame."""
        size = max(self._segment_bytes, room + room // 8 + 4096)
        header = self._header(SEGMENT, self._position, size_bytes=size, genesis=genesis)
        name = segment_name(self.epoch, header.sequence)
        with self._latching():
            return create_segment(self._storage, self.directory, name, header)

    def _publish(self, segment: Segment) -> None:
        """Put a new segment into use."""
        with self._latching():
            publish_segment(self._storage, segment)
        self._segment = segment
        self._sealed = True
        self._full = False
        self._archive.add(segment.path.name, segment.header)
        self._advance(segment, segment.end, 0)

    def _make_snapshot(self, records: Sequence[SnapshotRecord], at: Position) -> Path:
        path = self.directory / snapshot_name(self.epoch, at.sequence)
        with self._latching():
            header = self._header(SNAPSHOT, at)
            self._snapshot_bytes = create_snapshot(self._storage, path, header, records)
        return path
