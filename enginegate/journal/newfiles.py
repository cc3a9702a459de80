"""The files that one process makes: each bears its instance, its epoch and its master key."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from enginegate.clock import Clock
from enginegate.journal.condition import Condition
from enginegate.journal.files import Rest, no_rest, segment_name, snapshot_name
from enginegate.journal.payloads import SEGMENT, SNAPSHOT, FileHeader
from enginegate.journal.recovery import Position
from enginegate.journal.room import SPARE_BYTES
from enginegate.journal.segments import Segment, create_segment
from enginegate.journal.snapshot import create_snapshot, encode_snapshot
from enginegate.journal.storage import Storage
from enginegate.model import SnapshotRecord

SMALLEST_PART = 16  # a segment on a nearly full disk is a sixteenth
_FRAME_SLACK_BYTES = 4096


class Origin(NamedTuple):
    """Who makes the files: the instance's UUID, the count of its starts, its master key's id."""

    instance: str
    epoch: int
    key_id: str


class NewFiles:
    """Makes segments and snapshots under temporary names; who calls publishes them.

    What fails for good on the way latches the journal.
    """

    def __init__(
        self,
        storage: Storage,
        directory: Path,
        condition: Condition,
        clock: Clock,
        origin: Origin,
        *,
        segment_bytes: int,
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._condition = condition
        self._room = condition.room
        self._clock = clock
        self._origin = origin
        self._segment_bytes = segment_bytes

    def segment(self, at: Position, *, genesis: bool, room: int = 0) -> Segment:
        """Make the segment that follows, with at least `room` bytes for a frame.

        On a nearly full disk it is a smaller one. Raises JournalFull, JournalFailed.
        """
        size = max(self._segment_size(), room + room // 8 + _FRAME_SLACK_BYTES)
        header = self._header(SEGMENT, at, size_bytes=size, genesis=genesis)
        name = segment_name(self._origin.epoch, header.sequence)
        with self._condition.latching():
            return create_segment(self._storage, self._directory, name, header)

    def encode_snapshot(self, records: Iterable[SnapshotRecord], at: Position) -> Iterator[bytes]:
        """Yield the bytes of a snapshot of that state, piece by piece."""
        return encode_snapshot(self._header(SNAPSHOT, at), records)

    def snapshot(
        self, encoded: Iterable[bytes], at: Position, *, rest: Rest = no_rest
    ) -> tuple[Path, int]:
        """Make a snapshot; return its name to be, and its bytes. Raises like `segment`."""
        path = self._directory / snapshot_name(self._origin.epoch, at.sequence)
        with self._condition.latching():
            return path, create_snapshot(self._storage, path, encoded, rest=rest)

    def keep_ballast(self, snapshot_bytes: int) -> None:
        """Keep what a start on a full disk needs: a small segment and a grown snapshot."""
        smallest = self._segment_bytes // SMALLEST_PART
        self._room.keep_ballast(2 * (smallest + snapshot_bytes))

    def _segment_size(self) -> int:
        """Return the usual size, or less where that would leave nothing to others."""
        free = self._room.free_bytes()
        usual = self._segment_bytes
        if free is None or free >= usual + SPARE_BYTES:
            return usual
        if free >= usual // 4 + SPARE_BYTES:
            return usual // 4
        return usual // SMALLEST_PART

    def _header(
        self, kind: str, at: Position, *, size_bytes: int = 0, genesis: bool = False
    ) -> FileHeader:
        return FileHeader(
            kind=kind,
            instance=self._origin.instance,
            epoch=self._origin.epoch,
            sequence=at.sequence + (kind == SEGMENT),
            number=at.number,
            crc=at.crc,
            key_id=self._origin.key_id,
            created_at_ms=self._clock.wall_ms(),
            size_bytes=size_bytes,
            genesis=genesis,
        )
