"""Engines without a user: booted in advance, claimed by a provision.

That one exists is durable; that one is ready is not, and is found out anew after a
restart. Whoever claims takes it in one turn of the loop, so that nobody else can.
"""

from collections import deque
from collections.abc import Iterable

from enginegate.model import Spare


class Spares:
    """The rows, and which of them may be claimed. Rows are changed by the index alone."""

    def __init__(self) -> None:
        self.rows: dict[str, Spare] = {}
        self.claims: set[str] = set()
        self._ready: deque[str] = deque()

    def offer(self, engine_id: str) -> None:
        """Let it be claimed: it is healthy, or a claim came to nothing."""
        self.claims.discard(engine_id)
        if engine_id in self.rows:
            self._ready.append(engine_id)

    def take(self, engine_version: str) -> Spare | None:
        """Return the one that has been ready longest, claimed from now on."""
        for engine_id in self._ready:
            if self.rows[engine_id].engine_version == engine_version:
                self._ready.remove(engine_id)
                self.claims.add(engine_id)
                return self.rows[engine_id]
        return None

    def withdraw(self, engine_id: str) -> None:
        """Let it no longer be claimed; nothing, where it was not to be."""
        if engine_id in self._ready:
            self._ready.remove(engine_id)

    @property
    def ready(self) -> Iterable[str]:
        return tuple(self._ready)

    def add(self, spare: Spare) -> None:
        self.rows[spare.engine_id] = spare

    def remove(self, engine_id: str) -> Spare:
        self.withdraw(engine_id)
        self.claims.discard(engine_id)
        return self.rows.pop(engine_id)
