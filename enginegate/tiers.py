"""How deep sleepers sleep: frozen at first, stopped after long or when memory is short.

A frozen engine is back in milliseconds and keeps its memory; a stopped one gives it back
and takes a boot to wake. Both are `sleeping`, and both are woken by the same admit.
"""

import asyncio
import logging
from collections.abc import Callable

from enginegate import facts as f
from enginegate.agenda import Agenda
from enginegate.backends.proc import available_memory_mb
from enginegate.due import look_when_due
from enginegate.errors import GateError
from enginegate.lifecycle import Lifecycle
from enginegate.lifecycle.ground import Ground
from enginegate.lifecycle.operations import Spawn
from enginegate.model import Status
from enginegate.registry import LiveEngine

log = logging.getLogger(__name__)

TICK_S = 0.5
RETRY_S = 5.0
MEMORY_EVERY_S = 1.0
AT_ONCE = 4  # stops for having slept long; those for want of memory go one by one


class TierLoop:
    """Owned by the server, which runs `run_forever` and `relieve_forever`.

    `available_mb` returns the memory (MiB) that the host could still give, None where
    nobody knows.
    """

    def __init__(
        self,
        ground: Ground,
        lifecycle: Lifecycle,
        *,
        spawn: Spawn,
        available_mb: Callable[[], int | None] = available_memory_mb,
    ) -> None:
        self.ground = ground
        self.lifecycle = lifecycle
        self.agenda: Agenda[str] = Agenda()
        self._spawn = spawn
        self._available_mb = available_mb
        self._slots = asyncio.Semaphore(AT_ONCE)
        ground.registry.listeners.append(self.plan)

    def plan(self, live: LiveEngine, _: f.AnyFact | None = None) -> None:
        """Stop the engine when it will have been asleep for `idle.stop_after_s`."""
        engine_id, stop_after_s = live.engine.engine_id, self.ground.config.idle.stop_after_s
        if not stop_after_s or not _frozen(live):
            self.agenda.drop(engine_id)
            return
        asleep_s = (self.ground.clock.wall_ms() - live.engine.changed_at_ms) / 1000
        # A wall clock that jumped must not make the wait longer than the setting.
        left_s = min(max(stop_after_s - asleep_s, 0.0), stop_after_s)
        self.agenda.put(engine_id, self.ground.clock.now() + left_s)

    def plan_all(self) -> None:
        """Take over the sleepers that the journal remembers."""
        for live in self.ground.registry.engines.values():
            self.plan(live)

    async def run_forever(self) -> None:
        await look_when_due(self.agenda, self.look, self.ground.clock, tick_s=TICK_S)

    def look(self) -> None:
        """Stop who has slept long enough."""
        for engine_id in self.agenda.due(self.ground.clock.now()):
            live = self.ground.registry.engines.get(engine_id)
            if live is not None and _frozen(live):
                _ = self._spawn(self._deepen_in_turn(live), f"deepen {engine_id}")

    async def _deepen_in_turn(self, live: LiveEngine) -> None:
        async with self._slots:
            await self._deepen(live, "stop_after")

    async def relieve_forever(self) -> None:
        """Watch the host's memory, if `idle.min_available_memory_mb` says so."""
        while self.ground.config.idle.min_available_memory_mb:
            await self.ground.clock.sleep(MEMORY_EVERY_S)
            await self.relieve()

    async def relieve(self) -> None:
        """Stop the longest asleep, one after the other, until enough memory is available.

        Memory is read anew after each; what could not be stopped is left for the next round.
        """
        if self._too_little_mb() is None:
            return
        for live in self._longest_asleep_first():
            available_mb = self._too_little_mb()
            if available_mb is None:
                return
            if _frozen(live) and live.operation is None:
                await self._deepen(live, "low_memory", available_mb=available_mb)

    def _too_little_mb(self) -> int | None:
        """Return the memory available, where it is known and less than it should be."""
        available_mb = self._available_mb()
        floor_mb = self.ground.config.idle.min_available_memory_mb
        return available_mb if available_mb is not None and available_mb < floor_mb else None

    def _longest_asleep_first(self) -> list[LiveEngine]:
        asleep = [live for live in self.ground.registry.engines.values() if _frozen(live)]
        return sorted(asleep, key=lambda live: (live.engine.changed_at_ms, live.engine.engine_id))

    async def _deepen(self, live: LiveEngine, reason: str, **metadata: int) -> None:
        try:
            await self.lifecycle.deepen(live, reason=reason, **metadata)
        except GateError as error:
            log.warning("sleeper %s not stopped: %s", live.engine.engine_id, error)
            if _frozen(live):
                self.agenda.put(live.engine.engine_id, self.ground.clock.now() + RETRY_S)


def _frozen(live: LiveEngine) -> bool:
    return live.engine.status is Status.SLEEPING and not live.engine.deep
