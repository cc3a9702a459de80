"""The journal: opened by replay, begun with new files, then appended to by one thread.

    open   lock, read, judge; writes nothing but LOCK (and the quarantine)
    begin  a fresh snapshot and a fresh segment in a new epoch
    append one frame, one sync; facts are durable when it returns

`append`, `rotate`, `heal`, `seal` and `close` exclude each other; `write_snapshot` and
`retain` may run beside them in another thread. `history` and `check` are for any thread.
"""

import logging
import os
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from msgspec import Raw

from enginegate.clock import Clock, SystemClock
from enginegate.facts import AnyFact
from enginegate.journal import frames
from enginegate.journal.archive import Archive, Numbered
from enginegate.journal.condition import Condition, Health
from enginegate.journal.failures import JournalFailed, JournalFull
from enginegate.journal.files import Rest, clear_leftovers, discard, no_rest
from enginegate.journal.generations import Generations
from enginegate.journal.inherited import keep
from enginegate.journal.mounts import filesystem_warnings
from enginegate.journal.newfiles import NewFiles, Origin
from enginegate.journal.opening import quarantine, take
from enginegate.journal.payloads import cut, encode_fact, encode_facts
from enginegate.journal.recovery import Position, Recovered
from enginegate.journal.room import Room
from enginegate.journal.segments import Segment, publish_segment
from enginegate.journal.storage import OsStorage, Storage
from enginegate.model import SnapshotRecord

log = logging.getLogger("enginegate.journal")
SEGMENT_BYTES, SNAPSHOT_AFTER_BYTES = 16 * 1024 * 1024, 2 * 1024 * 1024
_SLOW_SYNC_S = 1.0
_OS, _CLOCK = OsStorage(), SystemClock()


class Journal:
    """The single writer of durable state. Made by `Journal.open`.

    `snapshot` and `tail` are what was read back; `on_sync` is told the seconds and bytes of
    each synced frame, in the writing thread.
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
        self._storage = storage
        self._clock = clock
        self._lock_fd: int | None = lock_fd
        self._position = recovered.position
        self._ends, self._last, self._tear = recovered.ends, recovered.last, recovered.tear
        self.archive = Archive(storage, directory)
        self._room = Room(storage, directory)
        self._condition = Condition(self._room, directory)
        origin = Origin(self.instance, self.epoch, key_id)
        self._new = NewFiles(
            storage, directory, self._condition, clock, origin, segment_bytes=segment_bytes
        )
        self._generations = Generations(
            storage,
            self._new,
            self.archive,
            self._condition,
            after_bytes=snapshot_after_bytes,
            newest_bytes=recovered.snapshot_bytes,
        )
        self._waiting: list[SnapshotRecord] | None = None  # for room, to begin with
        self._segment: Segment | None = None
        self._sealed = True
        self._writing = threading.RLock()
        self._snapshotting = threading.Lock()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        key_id: str,
        older_key_ids: Collection[str] = (),
        storage: Storage = _OS,
        clock: Clock = _CLOCK,
        segment_bytes: int = SEGMENT_BYTES,
        snapshot_after_bytes: int = SNAPSHOT_AFTER_BYTES,
        check: Callable[[Path], list[str]] = filesystem_warnings,
        drop_suspect: bool = False,
        forsake_generations: bool = False,
    ) -> Self:
        """Lock the directory and read it back. Warnings are logged and kept in `warnings`.

        `key_id` names the master key, `older_key_ids` those that what is there may be sealed
        with as well; `check` says what is wrong with the file system; `drop_suspect` drops a
        suspect tail as if it were torn (into the quarantine); `forsake_generations` lets
        older generations be of a key that nobody has any more.
        Raises JournalError: exit code 75 in use, 78 wrong key or directory, 65 damage.
        """
        recovered, lock_fd = take(
            storage,
            directory,
            key_ids=frozenset({key_id, *older_key_ids}),
            check=check,
            drop_suspect=drop_suspect,
            forsake_generations=forsake_generations,
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
        return self._condition.status

    @property
    def next_number(self) -> int:
        """The number that the next fact gets."""
        return self._position.number

    @property
    def sequence(self) -> int:
        return self._position.sequence  # of the last durable frame

    @property
    def should_snapshot(self) -> bool:
        return self._generations.due(self.bytes_written)

    @property
    def sealable(self) -> bool:
        """Tell whether a seal frame would protect anything."""
        return not self._sealed and self.status == "ok"

    def release_replay(self) -> None:
        """Forget what was read back; the registry has it now."""
        self.snapshot, self.tail = [], []

    def check(self) -> Health:
        """Return the status after a look at the disk; a few microseconds, for any thread."""
        return self._condition.check()

    def has_reserve(self) -> bool:
        """Tell whether an outcome can be written though the disk is full."""
        return self._waiting is None and self._segment is not None and self._segment.has_reserve

    def out_of_room(self, why: str) -> None:
        """Be told that somebody else found the disk full."""
        self._room.lost(why)

    def heal(self) -> None:
        """Leave `full`. Raises JournalFull where there is no room yet, JournalFailed."""
        with self._writing:
            self._condition.demand_usable()
            self._room.demand()
            if self._waiting is not None:
                self._begin(self._waiting)
            elif self._condition.full:
                self.rotate()

    # --- new files ----------------------------------------------------------------------------

    def begin(self, records: Iterable[SnapshotRecord], *, may_wait: bool = False) -> None:
        """Write the state into a fresh snapshot and segment; from here on facts can be appended.

        Pages read back after a crash may never have reached the disk, and the old segment may
        have a torn end: so nothing is appended to a file of an earlier process. On a full disk
        the ballast makes room. Where that is not enough, `may_wait` leaves the journal `full`
        until `heal` succeeds. Raises JournalFull, JournalFailed.
        """
        assert self._segment is None, "begun already"
        self._condition.demand_usable()
        state = list(records)
        with self._writing:
            try:
                self._begin(state)
            except JournalFull as error:
                log.warning("beginning without its ballast: %s", error)
                self._begin_with_ballast(state, may_wait=may_wait)

    def _begin_with_ballast(self, state: list[SnapshotRecord], *, may_wait: bool) -> None:
        self._room.drop_ballast()
        try:
            self._begin(state)
        except JournalFull as error:
            if not may_wait:
                raise
            self._keep()  # what is shown from now on must outlive the power
            log.warning("changes are refused until there is room: %s", error)
            self._waiting, self._condition.full = state, True

    def _begin(self, state: list[SnapshotRecord]) -> None:
        clear_leftovers(self._storage, self.directory)
        if self._tear:
            with self._condition.latching():
                self.warnings.append(quarantine(self._storage, self.directory, self._tear))
            self._tear = None
        earlier, self._segment = self._segment, None
        if earlier:  # a try came so far, and no further; its number may be a stranger's next
            earlier.close()
        at = self._position
        path = self._generations.make(self._new.encode_snapshot(state, at), at)
        try:
            self._keep()
            self._publish(self._new.segment(at, genesis=self.fresh and not state))
        except BaseException:  # cleaned up, and raised again
            discard(self._storage, path.with_name(path.name + ".tmp"))
            raise
        self.archive.trim(self._ends)
        self._generations.publish(path, at)
        self.archive.look()
        self._waiting, self._condition.full = None, False
        self._room.look()

    def _keep(self) -> None:
        with self._condition.latching():
            keep(self._storage, self._last)

    def rotate(self, *, room: int = 0) -> Position:
        """Begin a new segment, with `room` bytes at least; return the position in between.

        The state as of that position is what `encode_snapshot` wants. Raises JournalFull
        (and the old segment stays in use) or JournalFailed.
        """
        with self._writing:
            self._condition.demand_usable()
            old, at = self._current, self._position
            self._publish(self._new.segment(at, genesis=False, room=room))
            old.close()
            self.archive.trim([(old.path, old.end)])
            return at

    def write_snapshot(self, records: Iterable[SnapshotRecord], *, state_at: Position) -> None:
        """Write the state as of a rotation, whoever waits meanwhile; see `write_encoded`."""
        self.write_encoded(self.encode_snapshot(records, state_at), state_at, rest=no_rest)

    def encode_snapshot(self, records: Iterable[SnapshotRecord], at: Position) -> Iterator[bytes]:
        """Yield what `write_encoded` writes; each step is the work of a few records."""
        return self._new.encode_snapshot(records, at)

    def write_encoded(self, encoded: Iterable[bytes], state_at: Position, *, rest: Rest) -> None:
        """Write the state as of a rotation; then forget generations beyond the third.

        May run while another thread appends, and rests after each block for its sake.
        Raises JournalFull (no harm done) or JournalFailed.
        """
        with self._snapshotting:
            self._condition.demand_usable()
            path = self._generations.make(encoded, state_at, rest=rest)
            self._generations.publish(path, state_at)

    def retain(self, *, days: float, max_mb: float) -> int:
        """Remove old segments that no generation needs, by age and size; return how many."""
        with self._snapshotting:
            return self.archive.retain(days=days, max_mb=max_mb, now_ms=self._clock.wall_ms())

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

        Only where something follows the last one, and fits; a ballast that is gone comes back.
        """
        with self._writing:
            if self.sealable and self._current.room(use_reserve=False) >= frames.frame_bytes(0):
                self._write(frames.SEAL, b"", count=0)
                self._generations.keep_ballast()

    def fail(self, reason: str) -> None:
        """Latch: nothing is written any more until a restart."""
        self._condition.fail(reason)

    def close(self) -> None:
        """Seal what is there and give the directory back. May be called again."""
        with self._writing, self._snapshotting:
            if self._lock_fd is None:
                return
            with ExitStack() as leaving:  # whatever fails on the way, the directory is free again
                leaving.callback(os.close, self._lock_fd)
                self._lock_fd = None
                leaving.callback(self._condition.close)
                if self._segment:
                    leaving.callback(self._segment.close)
                    try:
                        self.seal()
                    except JournalFailed:
                        log.warning("the last seal could not be written; nothing is lost by that")

    def history(self, *, before: int | None = None, naming: Collection[str] = ()) -> Numbered:
        """Yield durable facts with numbers below `before`, newest first; see `Archive.history`.

        What is removed or unreadable meanwhile is missing.
        """
        limit = self.next_number if before is None else min(before, self.next_number)
        return self.archive.history(limit, naming=naming)

    # --- inside -------------------------------------------------------------------------------

    @property
    def _current(self) -> Segment:
        """Return the open segment. Raises JournalFull where a full disk has let none begin."""
        if self._waiting is not None:
            raise JournalFull("no room on disk to begin with", path=str(self.directory))
        assert self._segment is not None, "begin comes first"
        return self._segment

    def _append_frame(self, batch: list[Raw], *, use_reserve: bool) -> None:
        self._condition.demand_usable()
        payload = encode_facts(self.next_number, batch)
        needed = frames.frame_bytes(len(payload))
        if self._condition.full or self._current.room(use_reserve=False) < needed:
            try:
                self.rotate(room=needed)
            except JournalFull:
                self._condition.full = True
                if not use_reserve or self._current.room(use_reserve=True) < needed:
                    raise
        self._write(frames.FACTS, payload, count=len(batch))

    def _write(self, kind: int, payload: bytes, *, count: int) -> None:
        segment = self._current
        begun = self._clock.now()
        with self._condition.latching():
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
        at, number = segment.link, self._position.number + count
        self._position = Position(at.sequence, number, at.crc, self.bytes_written)

    def _publish(self, segment: Segment) -> None:
        """Put a new segment into use."""
        with self._condition.latching():
            publish_segment(self._storage, segment)
        self._segment = segment
        self._sealed = True
        self._condition.full = self._waiting is not None  # then the snapshot is still to come
        self.archive.add(segment.path.name, segment.header)
        self._advance(segment, segment.end, 0)
