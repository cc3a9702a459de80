"""Into service: boot, wake, and the automatic restart."""

import asyncio
from contextlib import AbstractAsyncContextManager

from enginegate import facts as f
from enginegate.backends.base import Presence
from enginegate.errors import (
    BackendError,
    BackendUnavailableError,
    BootTimeoutError,
    GateError,
    NotRunningError,
    PortExhaustionError,
    StorageUnavailableError,
    WakeTimeoutError,
)
from enginegate.lifecycle.boot import Booter, told, unanswered
from enginegate.lifecycle.failure import RESTART_GRACE_S, Failures
from enginegate.lifecycle.fair import FairPlaces
from enginegate.lifecycle.ground import Ground
from enginegate.model import Outcome, Status
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
            await self._make_way(live)
            begun = await self.booter.bring_up(live, late=BootTimeoutError)
        except GateError as error:
            await self._fail(live, error, via=via, started=started, actor=actor)
            raise
        await self.ground.registry.commit(
            f.Booted(
                **self.ground.ids(live),
                at_ms=self.ground.clock.wall_ms(),
                actor=actor,
                duration_ms=self.ground.took_ms(started),
                via=via,
                metadata={
                    "engine_version": live.engine.engine_version,
                    "url": live.url,
                    **({"image": begun.image} if begun.image else {}),
                },
            ),
            use_reserve=True,
        )

    async def wake(self, live: LiveEngine, *, actor: str, via: str) -> None:
        started = self.ground.clock.now()
        try:
            tier = await self._thaw(live)
        except GateError as error:
            await self._fail(live, error, via=via, started=started, actor=actor)
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
        await self.ground.registry.commit(fact, use_reserve=True)

    async def _fail(
        self, live: LiveEngine, error: GateError, *, via: str, started: float, actor: str
    ) -> None:
        """Record what came of it: a backend that was not to be asked says nothing of an engine."""
        provisioning = via == "provision"
        if isinstance(error, StorageUnavailableError):
            return
        if isinstance(error, PortExhaustionError) and provisioning:
            return  # it is undone, as if the port had been missing from the start
        if isinstance(error, BackendUnavailableError) and not provisioning:
            self.ground.registry.note(
                via, live=live, outcome=Outcome.FAILED, actor=actor, reason=error.message
            )
            return
        await self.failures.fail(live, during=via, error=error, started=started, actor=actor)

    async def _thaw(self, live: LiveEngine) -> str:
        """Bring it up from wherever it sleeps; return the tier it slept in."""
        timeout_s = self.ground.config.engine.wake_timeout_s
        began = self.ground.clock.now()
        try:
            async with asyncio.timeout(timeout_s), self._turn(live):
                frozen = await self._thawed(live)
        except TimeoutError as error:
            raise told(unanswered("wake", live)) from error
        if not frozen:
            await self.booter.bring_up(live, late=WakeTimeoutError, turn=self._turn(live))
            return STOPPED
        await self.booter.until_healthy(
            live, since=began, timeout_s=timeout_s, late=WakeTimeoutError
        )
        return FROZEN

    def _turn(self, live: LiveEngine) -> AbstractAsyncContextManager[None]:
        return self._wakes.place(live.engine.product_id)

    async def _thawed(self, live: LiveEngine) -> bool:
        """Thaw it, with one call where the row is right; False where it has to be started."""
        backend, engine_id = self.ground.backend, live.engine.engine_id
        try:
            if live.engine.deep:
                seen = await backend.inspect(engine_id)
                if seen.presence is Presence.RUNNING:  # the stop did not come to its end
                    await self.failures.halt(live, grace_s=RESTART_GRACE_S)
                if seen.presence is not Presence.PAUSED:
                    return False
            live.life = (await backend.unpause(engine_id)).life
        except NotRunningError:
            return False
        except BackendError as error:
            raise told(error) from error
        return True

    async def restart(self, live: LiveEngine) -> None:
        attempt = live.engine.restart_attempts + 1
        started = self.ground.clock.now()
        ids = self.ground.ids(live)
        await self.ground.registry.commit(
            f.RestartBegun(**ids, at_ms=self.ground.clock.wall_ms(), attempt=attempt)
        )
        try:
            await self._make_way(live)
            begun = await self.booter.bring_up(live, late=BootTimeoutError)
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
                metadata={"attempt": attempt, "backend_restarts": begun.restarts},
            ),
            use_reserve=True,
        )

    async def _make_way(self, live: LiveEngine) -> None:
        """End what is left of a life that failed, so that another begins."""
        if live.engine.status is Status.FAILED and not await self._restarted_already(live):
            await self.failures.halt(live, grace_s=RESTART_GRACE_S)

    async def _restarted_already(self, live: LiveEngine) -> bool:
        """Return whether the backend has begun another life by itself: then that one is taken."""
        try:
            seen = await self.ground.backend.inspect(live.engine.engine_id)
        except BackendError as error:
            raise told(error) from error
        return seen.presence is Presence.RUNNING and bool(live.life) and seen.life != live.life

    async def _restart_failed(
        self, live: LiveEngine, attempt: int, error: GateError, started: float
    ) -> None:
        blameless = error.code == "BACKEND_UNAVAILABLE"
        plan = self.failures.plan(1 if blameless else attempt + 1, error)
        await self.ground.registry.commit(
            f.RestartFailed(
                **self.ground.ids(live),
                at_ms=self.ground.clock.wall_ms(),
                duration_ms=self.ground.took_ms(started),
                attempt=attempt - 1 if blameless else attempt,
                reason=error.message,
                restart_at_ms=plan,
                metadata={"log": await self.failures.log_tail(live, error)},
            )
        )
        if plan is None:
            await self.failures.give_up(live)
