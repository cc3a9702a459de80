"""What follows when an engine fails: a planned restart, or giving up."""

from typing import Any

from enginegate import facts as f
from enginegate.backoff import wait_s
from enginegate.errors import BackendError, GateError
from enginegate.lifecycle.boot import Booter, DataGoneError, told
from enginegate.lifecycle.ground import Ground
from enginegate.registry import LiveEngine

STOP_GRACE_S = 30.0
SLACK_S = 5.0  # beyond a verb's own deadline, before its caller is answered anyway
RESTART_GRACE_S = 10.0  # an engine that already failed gets less time to say goodbye


class Failures:
    def __init__(self, ground: Ground, booter: Booter) -> None:
        self.ground = ground
        self.booter = booter

    async def fail(
        self,
        live: LiveEngine,
        *,
        during: str,
        error: GateError | None = None,
        reason: str = "",
        started: float | None = None,
        actor: str = "system",
        **metadata: Any,
    ) -> None:
        """Record that the engine failed and plan its restart, or give up."""
        engine = live.engine
        attempts = engine.restart_attempts if self._flapping(live, during) else 0
        plan = self.plan(attempts + 1, error)
        await self.ground.registry.commit(
            f.Failed(
                **self.ground.ids(live),
                at_ms=self.ground.clock.wall_ms(),
                actor=actor,
                duration_ms=self.ground.took_ms(started) if started is not None else None,
                during=during,
                reason=error.message if error else reason,
                restart_at_ms=plan,
                restart_attempts=attempts,
                metadata={**metadata, "log": await self.log_tail(live, error)},
            )
        )
        if plan is None:
            await self.give_up(live)

    async def log_tail(self, live: LiveEngine, error: GateError | None) -> list[str]:
        """Return the engine's last words; none of a backend that does not answer anyway."""
        if error is not None and error.code == "BACKEND_UNAVAILABLE":
            return []
        return await self.booter.log_tail(live)

    def _flapping(self, live: LiveEngine, during: str) -> bool:
        """Whether it failed again before it was well for long enough to start counting anew.

        It was well until it ended, or until its last good probe where those fail by now.
        """
        booted_at_ms = live.engine.booted_at_ms
        if during not in ("running", "wake") or booted_at_ms is None:
            return False
        well_until_ms = self.ground.clock.wall_ms()
        if live.failing:
            well_until_ms = max(live.healthy_at_ms or 0, booted_at_ms)
        well_s = (well_until_ms - booted_at_ms) / 1000
        return 0 <= well_s < self.ground.config.restart.backoff_max_s

    def plan(self, attempt: int, error: GateError | None) -> int | None:
        """Return when attempt number `attempt` is due, None if there is to be none.

        That is so after too many, and where no attempt brings back what was lost.
        """
        restart = self.ground.config.restart
        if isinstance(error, DataGoneError) or attempt > restart.max_attempts:
            return None
        pause_s = wait_s(attempt, base_s=restart.backoff_base_s, max_s=restart.backoff_max_s)
        return self.ground.clock.wall_ms() + round(pause_s * 1000)

    async def give_up(self, live: LiveEngine) -> None:
        await self.ground.registry.commit(
            f.RestartsGivenUp(
                **self.ground.ids(live),
                at_ms=self.ground.clock.wall_ms(),
                attempts=live.engine.restart_attempts,
            )
        )
        try:
            await self.halt(live, grace_s=RESTART_GRACE_S)
        except GateError:
            return  # the periodic comparison stops what is left

    async def halt(self, live: LiveEngine, *, grace_s: float) -> None:
        """Stop the engine's process; what the backend says against it, a caller can be told."""
        try:
            await self.ground.backend.stop(live.engine.engine_id, grace_s=grace_s)
        except BackendError as error:
            raise told(error) from error
