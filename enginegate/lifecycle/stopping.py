"""Stopping an engine: the intent comes first, so that the next start finishes what was cut."""

import asyncio

from enginegate import facts as f
from enginegate.errors import GateError
from enginegate.lifecycle.boot import told, unanswered
from enginegate.lifecycle.failure import SLACK_S, STOP_GRACE_S, Failures
from enginegate.lifecycle.ground import Ground
from enginegate.registry import LiveEngine


class Stopper:
    def __init__(self, ground: Ground, failures: Failures) -> None:
        self.ground = ground
        self.failures = failures

    async def stop(self, live: LiveEngine, *, actor: str) -> None:
        """Stop it with 30 s of grace, out of the reserve if need be.

        Raises:
            BackendFailedError, BackendUnavailableError: it is what it was before.
            StorageUnavailableError: not even the reserve is left.
        """
        ground, started = self.ground, self.ground.clock.now()
        ids = ground.ids(live)
        if not live.engine.stopping:
            begun = f.StopBegun(**ids, at_ms=ground.clock.wall_ms(), actor=actor)
            await ground.registry.commit(begun, use_reserve=True)
        try:
            await self._halt(live)
        except GateError as error:
            failed = f.StopFailed(
                **ids, at_ms=ground.clock.wall_ms(), actor=actor, reason=error.message
            )
            await ground.registry.commit(failed, use_reserve=True)
            raise
        await ground.registry.commit(
            f.Stopped(
                **ids,
                at_ms=ground.clock.wall_ms(),
                actor=actor,
                duration_ms=ground.took_ms(started),
            ),
            use_reserve=True,
        )

    async def _halt(self, live: LiveEngine) -> None:
        try:
            async with asyncio.timeout(STOP_GRACE_S + SLACK_S):
                await self.failures.halt(live, grace_s=STOP_GRACE_S)
        except TimeoutError as error:
            raise told(unanswered("stop", live)) from error
