"""Is anybody using this engine right now? Asked before every freeze.

Evidence comes from the kernel (established connections to the engine's port) and
from the engine's own word (`busy`), never from a memory of finished requests.
"""

from enginegate.errors import BackendError
from enginegate.lifecycle.boot import Booter
from enginegate.lifecycle.ground import Ground
from enginegate.registry import LiveEngine
from enginegate.registry.fleet import Signal

VETOES_KEPT = 10


class Quietness:
    def __init__(self, ground: Ground, booter: Booter) -> None:
        self.ground = ground
        self.booter = booter

    async def veto(self, live: LiveEngine, *, idle: bool) -> Signal | None:
        """Return what speaks against a freeze, None if nothing does.

        A connection over which nothing has moved for `idle.connection_idle_s` does
        not count: pooled and half-open ones must not keep an engine awake for ever.
        An engine that does not answer is left to the health loop.
        """
        found = await self._in_use(live, idle=idle)
        if found is not None:
            live.signals[found.kind] = found
            live.vetoes = [*live.vetoes, found][-VETOES_KEPT:]
        return found

    async def _in_use(self, live: LiveEngine, *, idle: bool) -> Signal | None:
        config, at_ms = self.ground.config, self.ground.clock.wall_ms()
        health = await self.booter.check(live, timeout_s=config.health.timeout_s)
        if health.busy:
            return Signal(kind="busy", value=True, at_ms=at_ms)
        if not health.ok and idle:
            return Signal(kind="unanswered", value=health.detail, at_ms=at_ms)
        engine = live.engine
        try:
            found = await self.ground.backend.connections(engine.engine_id, port=engine.port)
        except BackendError as error:
            return Signal(kind="unknown", value=error.detail, at_ms=at_ms)
        active = [one for one in found if one.quiet_s < config.idle.connection_idle_s]
        if active:
            return Signal(kind="connections", value=len(active), at_ms=at_ms)
        return None
