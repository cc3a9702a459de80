"""Engines of this instance that have no row: removed after a grace, never many, never their data.

One without a row is the tail of something that a crash cut in half, or a sign that the
journal is not the one they were made with. So it must be missing in two complete
listings, and many at once are left alone, with an alarm.
"""

import logging
from collections.abc import Sequence

from enginegate.backends.base import Observation, Presence
from enginegate.errors import BackendError
from enginegate.lifecycle import Operations
from enginegate.lifecycle.boot import told
from enginegate.lifecycle.ground import Ground
from enginegate.model import Outcome
from enginegate.registry import Operation
from enginegate.slices import sliced

log = logging.getLogger(__name__)

GRACE_S = 60.0
AT_ONCE_MIN = 3
AT_ONCE_SHARE = 0.05  # of the fleet


class Orphans:
    """Shown every complete listing, in order."""

    def __init__(self, ground: Ground, operations: Operations) -> None:
        self.ground = ground
        self.operations = operations
        self._since: dict[str, float] = {}
        self._removing: set[str] = set()
        self._too_many = 0

    async def remove(self, seen: Sequence[Observation]) -> None:
        """Remove engines of this instance without a row, after a grace and never many."""
        now, registry = self.ground.clock.now(), self.ground.registry
        strangers = {
            one.engine_id
            async for one in sliced(seen)
            if one.presence is not Presence.ABSENT and not registry.knows(one.engine_id)
        }
        self._since = {one: self._since.get(one, now) for one in sorted(strangers)}
        self.ground.registry.meters.orphans = len(strangers)
        due = [one for one, since in self._since.items() if now - since >= GRACE_S]
        limit = max(AT_ONCE_MIN, AT_ONCE_SHARE * len(self.ground.registry.engines))
        if len(due) > limit:
            self._alarm(len(due))
            return
        self._too_many = 0
        for engine_id in due:
            if engine_id not in self._removing:
                self._remove(engine_id)

    def _alarm(self, count: int) -> None:
        """Say that there are too many orphans to be true; once for each number of them."""
        log.error("%d engines without a row: too many to be true, hands off", count)
        if count != self._too_many:
            self._too_many = count
            self.ground.registry.note("orphan_removed", outcome=Outcome.DENIED, orphans=count)

    def _remove(self, engine_id: str) -> None:
        async def work(_: Operation) -> None:
            try:
                await self.ground.backend.remove_orphan(engine_id)
            except BackendError as error:
                raise told(error) from error
            self._since.pop(engine_id, None)
            self.ground.registry.note("orphan_removed", orphan=engine_id)

        if self.operations.closed:
            return
        self._removing.add(engine_id)
        operation = self.operations.operation(
            "remove_orphan", actor="system", params=None, holds=False
        )
        self.operations.launch(operation, work, lambda: self._removing.discard(engine_id))
