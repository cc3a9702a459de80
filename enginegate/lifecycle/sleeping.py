"""Into sleep: the freeze, which whoever comes in between undoes, and the stop of long sleepers."""

import asyncio
import logging
from collections.abc import Callable
from math import isfinite
from typing import Any

from enginegate import facts as f
from enginegate.errors import (
    BackendError,
    EngineBusyError,
    EngineNotRunningError,
    StorageUnavailableError,
)
from enginegate.lifecycle.boot import told
from enginegate.lifecycle.failure import Failures
from enginegate.lifecycle.ground import Ground
from enginegate.lifecycle.noting import Noting
from enginegate.lifecycle.quiet import Quietness
from enginegate.lifecycle.starting import Starter
from enginegate.model import Status
from enginegate.registry import LiveEngine
from enginegate.registry.fleet import Signal

log = logging.getLogger(__name__)

PAUSE_S = 10.0
UNDO_S = 3.0  # beyond that; a caller is answered 5 s after the verb's own deadline at the latest
ANSWER_S = 1.0  # to show that it is not frozen
DEEPEN_GRACE_S = 30.0  # what the contract gives an engine to end cleanly

StillDue = Callable[[], bool]


class Sleeper:
    """The work of sleep; `Lifecycle` decides when it may run."""

    def __init__(
        self, ground: Ground, quietness: Quietness, failures: Failures, starter: Starter
    ) -> None:
        self.ground = ground
        self.quietness = quietness
        self.failures = failures
        self.starter = starter

    async def sleep(
        self,
        live: LiveEngine,
        *,
        actor: str,
        force: bool,
        still_due: StillDue | None,
        probe_timeout_s: float | None,
    ) -> bool:
        """Freeze a running engine if it is quiet; see `Lifecycle.sleep`."""
        _refuse_unless_running(live)
        idle, looked = still_due is not None, self.ground.clock.now()
        if not force:
            with Noting(self.ground.registry, live, "sleep", actor):
                found = await self.quietness.veto(live, idle=idle, probe_timeout_s=probe_timeout_s)
            _refuse_if_used(found)
        stays = still_due or (lambda: True)
        if not stays():
            return False
        live.hold()  # no await since the last look at the lease: no admit can slip in between
        with Noting(self.ground.registry, live, "sleep", actor):
            found = await self._freeze(live, actor, stays, idle=idle, force=force, looked=looked)
        _refuse_if_used(found)
        return live.engine.status is Status.SLEEPING

    async def _freeze(
        self,
        live: LiveEngine,
        actor: str,
        stays: StillDue,
        *,
        idle: bool,
        force: bool,
        looked: float,
    ) -> Signal | None:
        """Freeze, look again, and only then record it; return who came in between."""
        fact = self._slept(live, actor, idle=idle, looked=looked)
        started = self.ground.clock.now()
        try:
            async with asyncio.timeout(PAUSE_S):
                await self.ground.backend.pause(live.engine.engine_id)
                found = None if force else await self.quietness.came_in(live)
        except (BackendError, TimeoutError) as error:
            await self._undo(live, fact(started))
            if isinstance(error, BackendError):
                raise told(error) from error
            raise
        if found is not None or not stays():
            await self._undo(live, fact(started))
            return found
        await self._record(live, fact(started))
        if not stays():  # an admit came while the sleep went to the disk
            await self.starter.wake(live, actor=actor, via="wake")
        return None

    def _slept(
        self, live: LiveEngine, actor: str, *, idle: bool, looked: float
    ) -> Callable[[float], f.Slept]:
        """Return what makes the fact; it tells how long nobody had used the engine."""
        unused_s = looked - live.last_use()
        metadata = {"unused_s": round(unused_s, 3)} if isfinite(unused_s) else {}

        def fact(started: float) -> f.Slept:
            return f.Slept(
                **self.ground.ids(live),
                at_ms=self.ground.clock.wall_ms(),
                actor=actor,
                duration_ms=self.ground.took_ms(started),
                reason="idle" if idle else "request",
                metadata=metadata,
            )

        return fact

    async def _record(self, live: LiveEngine, fact: f.Slept) -> None:
        """Make the sleep durable; an engine whose sleep cannot be written stays awake."""
        try:
            await self.ground.registry.commit(fact, use_reserve=True)
        except StorageUnavailableError:
            await self._thawed(live)
            raise

    async def _undo(self, live: LiveEngine, fact: f.Slept) -> None:
        """Thaw it again; what cannot be thawed is recorded as what it is: asleep.

        Then whoever is admitted next wakes it, and nobody is sent to a frozen engine. One
        that answers is not frozen, whatever the backend fails to say.
        """
        if await self._thawed(live) or await self._answers(live):
            return
        log.error("engine %s cannot be thawed, it counts as asleep", live.engine.engine_id)
        await self.ground.registry.commit(fact, use_reserve=True)

    async def _thawed(self, live: LiveEngine) -> bool:
        try:
            async with asyncio.timeout(UNDO_S):
                await self.ground.backend.unpause(live.engine.engine_id)
        except (BackendError, TimeoutError) as error:
            log.warning("not thawed: %s", error)
            return False
        return True

    async def _answers(self, live: LiveEngine) -> bool:
        return (await self.quietness.booter.check(live, timeout_s=ANSWER_S)).ok

    async def deepen(self, live: LiveEngine, *, reason: str, **metadata: Any) -> bool:
        """Stop an engine that sleeps frozen; it goes on sleeping. False if it does not any more.

        The intent is durable before the stop, so that recovery finishes what a crash
        cut in half.
        """
        if live.engine.status is not Status.SLEEPING or live.engine.deep:
            return False
        ground = self.ground
        asleep_s = max(ground.clock.wall_ms() - live.engine.changed_at_ms, 0) / 1000
        await ground.registry.commit(
            f.Deepened(
                **ground.ids(live),
                at_ms=ground.clock.wall_ms(),
                reason=reason,
                metadata={"asleep_s": asleep_s, **metadata},
            )
        )
        with Noting(ground.registry, live, "sleep", "system"):
            async with asyncio.timeout(DEEPEN_GRACE_S + PAUSE_S):
                await self.failures.halt(live, grace_s=DEEPEN_GRACE_S)
        return True


def _refuse_unless_running(live: LiveEngine) -> None:
    if not live.running:
        status = live.engine.status.value
        raise EngineNotRunningError(f"The engine is {status}.", status=status)


def _refuse_if_used(found: Signal | None) -> None:
    if found is not None:
        raise EngineBusyError(
            f"The engine is in use ({found.kind}); force overrides.", signal=found.kind
        )
