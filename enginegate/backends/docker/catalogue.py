"""What the listing says of every container of ours, at the price of one call.

The listing has state, labels and networks, but neither when a life began nor how it
ended nor how often Docker restarted it. So what a closer look found is kept, and used for as
long as the listing agrees with it; a look is taken at what is new or changed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final

from msgspec.structs import replace

from enginegate.backends.base import Observation
from enginegate.backends.docker.answers import Listed
from enginegate.backends.docker.asking import Ask
from enginegate.backends.docker.container import ENGINE_ID, Container, is_ours

_STEADY: Final = frozenset({"created", "exited", "running", "paused"})
_SLACK_S: Final = 5.0  # between a life's beginning and the listing's word for its age


class Catalogue:
    """Keeps the last close look at each engine; `find` takes one."""

    def __init__(self, instance: str, find: Callable[[Ask], Awaitable[Container | None]]) -> None:
        self._instance = instance
        self._find = find
        self._seen: dict[str, Container] = {}

    async def read(self, ask: Ask, rows: Sequence[Listed]) -> list[Observation]:
        """Return what is known of the engines in a complete listing.

        Raises:
            BackendError: one of them could not be looked at; so nothing is complete.
        """
        mine = {engine_id: row for row in rows if (engine_id := self._engine_of(row))}
        fresh = {one: row for one, row in mine.items() if self._differs(one, row)}
        looks = [self._find(replace(ask, engine_id=engine_id)) for engine_id in fresh]
        found = await asyncio.gather(*looks, return_exceptions=True)
        self._seen = {one: kept for one, kept in self._seen.items() if one in mine.keys() - fresh}
        for engine_id, container in zip(fresh, found, strict=True):
            if isinstance(container, BaseException):
                raise container
            if container is not None:  # else it was removed since, says the Engine itself
                self._seen[engine_id] = container
        return [container.observation for container in self._seen.values()]

    def _engine_of(self, row: Listed) -> str | None:
        labels = row.labels or {}
        engine_id = labels.get(ENGINE_ID, "")
        for name in row.names or ():
            if is_ours(name, labels, engine_id=engine_id, instance=self._instance):
                return engine_id
        return None

    def _differs(self, engine_id: str, row: Listed) -> bool:
        """Return whether the row is of something else than what was looked at last."""
        kept = self._seen.get(engine_id)
        if kept is None or (kept.container_id, kept.status) != (row.id, row.state):
            return True
        if row.state not in _STEADY or kept.observation.connected != row.connected:
            return True
        return kept.alive and self._younger(kept, row)

    @staticmethod
    def _younger(kept: Container, row: Listed) -> bool:
        """Return whether it cannot be the life we know: the listing says it is too young."""
        known_s = _age_s(kept.started_at)
        at_most_s = row.up_at_most_s
        return known_s is None or at_most_s is None or known_s > at_most_s + _SLACK_S


def _age_s(started_at: str) -> float | None:
    """Return how long ago this was, by the clock of this machine; None if it is no time."""
    try:
        began = datetime.fromisoformat(started_at[:19] + "+00:00")
    except ValueError:
        return None
    return time.time() - began.timestamp()
