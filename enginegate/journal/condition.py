"""Whether changes can be written, and why not: `full` heals, `failed` wants a restart."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from enginegate.journal.failures import JournalFailed
from enginegate.journal.room import Room

log = logging.getLogger("enginegate.journal")

Health = Literal["ok", "full", "failed"]


class Condition:
    """The latch of one journal, and its `room`. `full` is set while no segment can be begun."""

    def __init__(self, room: Room, directory: Path) -> None:
        self.full = False
        self._failure: str | None = None
        self.room = room
        self._directory = directory

    @property
    def status(self) -> Health:
        if self._failure is not None:
            return "failed"
        return "full" if self.full or self.room.low else "ok"

    def check(self) -> Health:
        """Return the status after a look at the disk."""
        if self._failure is None:
            self.room.look()
        return self.status

    def fail(self, reason: str) -> None:
        """Latch: nothing is written any more until a restart."""
        if self._failure is None:
            self._failure = reason
            log.critical("the journal has failed, changes are refused until a restart: %s", reason)

    def close(self) -> None:
        """Latch without a word."""
        self._failure = self._failure or "closed"

    def demand_usable(self) -> None:
        """Raise JournalFailed once latched."""
        if self._failure is not None:
            raise JournalFailed(
                f"the journal takes no more changes: {self._failure}",
                path=str(self._directory),
                hint="Restart enginegate: it recovers into new files.",
            )

    @contextmanager
    def latching(self) -> Iterator[None]:
        """Latch when something failed for good."""
        try:
            yield
        except JournalFailed as error:
            self.fail(str(error))
            raise
