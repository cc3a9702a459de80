"""Into service: boot, wake, and the automatic restart."""

from enginegate import facts as f
from enginegate.backends.base import Presence
from enginegate.errors import (
    BackendError,
    BootTimeoutError,
    GateError,
    StorageUnavailableError,
    WakeTimeoutError,
)
from enginegate.lifecycle.boot import Booter, DataGoneError, told
from enginegate.lifecycle.failure import RESTART_GRACE_S, Failures
from enginegate.lifecycle.fair import FairPlaces
from enginegate.lifecycle.ground import Ground
from enginegate.registry import LiveEngine

# A little more than a backend does at once: its own queue, in which wakes go first, is
# never without one, and the rest wait here, where products take turns.
WAKES_AT_ONCE = 12

FROZEN, STOPPED = "frozen", "stopped"


class Starter:
    """The work of the starting verbs; `Lifecycle` decides when they may run."""

    def __init__(self, ground: Ground, booter: Booter, failures: Failures) -> None:
        self.ground = ground
        self.booter = booter
        self.failures = failures
        self._wakes = FairPlaces(WAKES_AT_ONCE)

    async def boot(self, live: LiveEngine, *, via: str, actor: str) -> None:
        started = self.ground.clock.now()
        try:
            await self.booter.start(live)
            await self.booter.until_healthy(
                live, timeout_s=self.ground.config.boot.timeout_s, late=BootTimeoutError
            )
        except GateError as error:
            if not isinstance(error, StorageUnavailableError):
                await self.failures.fail(
                    live, during=via, error=error, started=started, actor=actor
                )
            raise
        await self.ground.registry.commit(
            f.Booted(
                **self.ground.ids(live),
                at_ms=self.ground.clock.wall_ms(),
                actor=actor,
                duration_ms=self.ground.took_ms(started),
                via=via,
                metadata={"engine_version": live.engine.engine_version, "url": live.url},
            )
        )

    async def wake(self, live: LiveEngine, *, actor: str, via: str) -> None:
        started = self.ground.clock.now()
        try:
            tier = await self._thaw(live)
        except GateError as error:
            if not isinstance(error, StorageUnavailableError):
                await self.failures.fail(
                    live, during=via, error=error, started=started, actor=actor
                )
            raise
        ids = self.ground.ids(live)
        at_ms, took_ms = self.ground.clock.wall_ms(), self.ground.took_ms(started)
        fact: f.Booted | f.Woken
        if via == "start":
            fact = f.Booted(
                **ids,
                at_ms=at_ms,
                actor=actor,
                duration_ms=took_ms,
                via="start",
                metadata={"tier": tier},
            )
        else:
            fact = f.Woken(**ids, at_ms=at_ms, actor=actor, duration_ms=took_ms, tier=tier)
        await self.ground.registry.commit(fact)

    async def _thaw(self, live: LiveEngine) -> str:
        """Bring it up from wherever it sleeps; return the tier it slept in."""
        config = self.ground.config
        async with self._wakes.place(live.engine.product_id):
            tier = await self._brought_up(live)
        timeout_s = config.engine.wake_timeout_s if tier == FROZEN else config.boot.timeout_s
        await self.booter.until_healthy(live, timeout_s=timeout_s, late=WakeTimeoutError)
        return tier

    async def _brought_up(self, live: LiveEngine) -> str:
        """Thaw it with one call where the row is right; else look how it sleeps."""
        try:
            if not live.engine.deep:
                await self.ground.backend.unpause(live.engine.engine_id)
                return FROZEN
        except BackendError as error:
            if error.unavailable:
                raise told(error) from error
        return await self._looked_up(live)

    async def _looked_up(self, live: LiveEngine) -> str:
        backend, engine_id = self.ground.backend, live.engine.engine_id
        try:
            seen = await backend.inspect(engine_id)
            if seen.presence is Presence.PAUSED:
                await backend.unpause(engine_id)
        except BackendError as error:
            raise told(error) from error
        up = seen.presence is Presence.RUNNING
        if seen.presence is Presence.PAUSED or (up and not live.engine.deep):
            return FROZEN
        if up:  # the stop that gives its memory back did not come to its end
            await self.failures.halt(live, grace_s=RESTART_GRACE_S)
        await self.booter.start(live)
        return STOPPED

    async def restart(self, live: LiveEngine) -> None:
        attempt = live.engine.restart_attempts + 1
        started = self.ground.clock.now()
        ids = self.ground.ids(live)
        await self.ground.registry.commit(
            f.RestartBegun(**ids, at_ms=self.ground.clock.wall_ms(), attempt=attempt)
        )
        try:
            await self.failures.halt(live, grace_s=RESTART_GRACE_S)
            await self.booter.start(live)
            await self.booter.until_healthy(
                live, timeout_s=self.ground.config.boot.timeout_s, late=BootTimeoutError
            )
        except StorageUnavailableError:
            raise
        except GateError as error:
            await self._restart_failed(live, attempt, error, started)
            raise
        await self.ground.registry.commit(
            f.Booted(
                **ids,
                at_ms=self.ground.clock.wall_ms(),
                duration_ms=self.ground.took_ms(started),
                via="auto_restart",
                metadata={"attempt": attempt},
            )
        )

    async def _restart_failed(
        self, live: LiveEngine, attempt: int, error: GateError, started: float
    ) -> None:
        blameless = error.code == "BACKEND_UNAVAILABLE"
        lost = isinstance(error, DataGoneError)
        plan = None if lost else self.failures.plan(1 if blameless else attempt + 1)
        await self.ground.registry.commit(
            f.RestartFailed(
                **self.ground.ids(live),
                at_ms=self.ground.clock.wall_ms(),
                duration_ms=self.ground.took_ms(started),
                attempt=attempt - 1 if blameless else attempt,
                reason=error.message,
                restart_at_ms=plan,
                metadata={"log": await self.booter.log_tail(live)},
            )
        )
        if plan is None:
            await self.failures.give_up(live)
