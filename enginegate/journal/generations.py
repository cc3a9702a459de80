"""Snapshots, from which a start begins: when one is due, how it comes to be, which stay."""

from collections.abc import Iterable
from pathlib import Path

from enginegate.journal.archive import Archive
from enginegate.journal.condition import Condition
from enginegate.journal.files import Rest, no_rest
from enginegate.journal.newfiles import NewFiles
from enginegate.journal.recovery import Position
from enginegate.journal.snapshot import publish_snapshot
from enginegate.journal.storage import Storage


class Generations:
    """Makes snapshots. Not safe for use by two threads at once.

    `newest_bytes` is the size of the last one, with the state as of the position `since`.
    """

    def __init__(
        self,
        storage: Storage,
        new: NewFiles,
        archive: Archive,
        condition: Condition,
        *,
        after_bytes: int,
        newest_bytes: int,
    ) -> None:
        self._storage = storage
        self._new = new
        self._archive = archive
        self._condition = condition
        self._after_bytes = after_bytes
        self.newest_bytes = newest_bytes
        self.since = 0

    def due(self, written: int) -> bool:
        """Tell whether replay would be long enough to be worth another: half as long as the last.

        Half: more often costs writes, less often costs starts, which fold the tail fact by fact.
        """
        return written - self.since > max(self._after_bytes, self.newest_bytes // 2)

    def make(self, encoded: Iterable[bytes], at: Position, *, rest: Rest = no_rest) -> Path:
        """Write a snapshot under its temporary name, and return the name it will have."""
        path, self.newest_bytes = self._new.snapshot(encoded, at, rest=rest)
        return path

    def publish(self, path: Path, at: Position) -> None:
        """Put a snapshot in force, forget those beyond the third, keep room for as large a one."""
        with self._condition.latching():
            publish_snapshot(self._storage, path)
        self.since = at.written
        self._archive.prune()
        self.keep_ballast()

    def keep_ballast(self) -> None:
        """Keep room for as large a snapshot as the newest, if the disk has it."""
        self._new.keep_ballast(self.newest_bytes)
