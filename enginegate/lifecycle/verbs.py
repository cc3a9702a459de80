"""What can be done to an engine. Each verb records its intent or its outcome as facts.

Every method that changes an engine runs as an operation: callers join it, and a
caller that leaves cancels nothing.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from enginegate import facts as f
from enginegate.errors import (
    BackendError,
    BackendUnavailableError,
    EngineAlreadyRunningError,
    EngineNotRunningError,
)
from enginegate.keys import new_engine_key
from enginegate.lifecycle.boot import Booter, told
from enginegate.lifecycle.failure import Failures
from enginegate.lifecycle.ground import Ground
from enginegate.lifecycle.noting import Noting
from enginegate.lifecycle.operations import Operations
from enginegate.lifecycle.provisioning import Provisioning
from enginegate.lifecycle.quiet import Quietness
from enginegate.lifecycle.rotation import Rotation
from enginegate.lifecycle.sleeping import Sleeper, StillDue
from enginegate.lifecycle.starting import Starter
from enginegate.lifecycle.stopping import Stopper
from enginegate.model import Outcome, Status
from enginegate.registry import LiveEngine, LiveProduct, Operation

DESTROY_S = 60.0


class Lifecycle:
    """The verbs. Holds no state of its own beyond the operations at work."""

    def __init__(self, ground: Ground, operations: Operations) -> None:
        self.ground = ground
        self.operations = operations
        self.booter = Booter(ground)
        self.failures = Failures(ground, self.booter)
        self.quietness = Quietness(ground, self.booter)
        self.rotation = Rotation(ground, self.booter, self.failures)
        self.starter = Starter(ground, self.booter, self.failures)
        self.stopper = Stopper(ground, self.failures)
        self.sleeper = Sleeper(ground, self.quietness, self.failures, self.starter)
        self.provisioning = Provisioning(ground, operations, self.starter, undo=self._destroy)

    async def provision(
        self, owner: LiveProduct, user_id: str, *, version: str | None, actor: str
    ) -> LiveEngine:
        """Create a user's engine and wait until it runs.

        Raises:
            EngineAlreadyExistsError: with `engine_id` and `status`, also during a boot.
            PolicyDeniedError, QuotaExceededError, PortExhaustionError: refused as asked.
            BackendFailedError, BootTimeoutError: it exists now, as `failed`.
            StorageUnavailableError: no room on the disk; what was begun is undone.
        """
        operation = None
        while operation is None:
            await self.provisioning.refuse_if_exists(owner, user_id)
            try:
                operation = await self.provisioning.begin(
                    owner, user_id, version=version, actor=actor
                )
            except BackendUnavailableError as error:
                self._note_refusal(owner, user_id, error, actor=actor)
                raise
        live: LiveEngine = await operation.join()
        return live

    def _note_refusal(
        self, owner: LiveProduct, user_id: str, error: BackendUnavailableError, *, actor: str
    ) -> None:
        self.ground.registry.note(
            "provision",
            product=owner.product,
            user_id=user_id,
            outcome=Outcome.FAILED,
            actor=actor,
            reason=error.message,
        )

    async def start(self, live: LiveEngine, *, version: str | None, actor: str) -> None:
        """Bring a stopped, sleeping or failed engine into service.

        `version` moves a stopped or failed engine to another allowed image on the
        same data.

        Raises:
            EngineAlreadyRunningError: it runs.
            BackendFailedError, BootTimeoutError, WakeTimeoutError: it is `failed` now.
        """
        if version is not None:
            version = self.provisioning.checked_version(version)

        async def work(_: Operation) -> None:
            await self._start(live, version=version, actor=actor)

        await self._perform(live, "start", work, actor=actor, params=version)

    async def _start(self, live: LiveEngine, *, version: str | None, actor: str) -> None:
        another = version is not None and version != live.engine.engine_version
        match live.engine.status:
            case Status.RUNNING:
                raise EngineAlreadyRunningError("The engine runs.", status="running")
            case Status.DESTROYING:
                raise EngineNotRunningError("The engine is being destroyed.", status="destroying")
            case Status.SLEEPING if another:
                raise EngineAlreadyRunningError(
                    "A sleeping engine keeps its version; stop it first.", status="sleeping"
                )
            case Status.SLEEPING:
                await self.starter.wake(live, actor=actor, via="start")
            case Status.PROVISIONING if another:
                # A crash cut it in half, and the backend has not been asked yet how far it got.
                raise EngineNotRunningError(
                    "The engine is half made: start it as it is, or stop it first once it runs.",
                    status="provisioning",
                )
            case _:
                if version is not None and another:
                    await self.ground.registry.commit(
                        f.VersionChanged(
                            **self.ground.ids(live),
                            at_ms=self.ground.clock.wall_ms(),
                            actor=actor,
                            engine_version=version,
                        )
                    )
                await self.starter.boot(live, via="start", actor=actor)

    async def wake(self, live: LiveEngine, *, actor: str) -> None:
        """Thaw a sleeping engine and wait until it answers; one that is awake stays so.

        Raises:
            WakeTimeoutError, BackendFailedError: it is `failed` now.
        """
        await (await self.begin_wake(live, actor=actor)).join()

    async def begin_wake(self, live: LiveEngine, *, actor: str) -> Operation:
        """Start waking an engine that has no operation at work."""
        self.operations.refuse_if_closed()
        self.ground.refuse_if_unwritable()

        async def work(_: Operation) -> None:
            if live.engine.status is Status.SLEEPING:
                await self.starter.wake(live, actor=actor, via="wake")

        return self.operations.begin(live, "wake", work, actor=actor)

    def begin_restart(self, live: LiveEngine) -> Operation:
        """Start one automatic restart attempt on a failed engine whose plan is due."""

        async def work(_: Operation) -> None:
            if live.engine.status is Status.FAILED and live.engine.restart_at_ms is not None:
                await self.starter.restart(live)

        return self.operations.begin(live, "restart", work, actor="system")

    async def stop(self, live: LiveEngine, *, actor: str) -> None:
        """Stop it with 30 s of grace; cancels a planned restart.

        Raises:
            EngineNotRunningError: it is stopped already.
        """

        async def work(_: Operation) -> None:
            if live.engine.status not in (Status.RUNNING, Status.SLEEPING, Status.FAILED):
                status = live.engine.status.value
                raise EngineNotRunningError(f"The engine is {status}.", status=status)
            await self.stopper.stop(live, actor=actor)

        await self._perform(live, "stop", work, actor=actor, reserve=True)

    def begin_stop(self, live: LiveEngine) -> Operation:
        """Go on with a stop that was cut in half, on an engine with nothing at work."""

        async def work(_: Operation) -> None:
            if live.engine.stopping:
                await self.stopper.stop(live, actor="system")

        return self.operations.begin(live, "stop", work, actor="system")

    async def sleep(
        self,
        live: LiveEngine,
        *,
        actor: str,
        force: bool = False,
        still_due: StillDue | None = None,
        probe_timeout_s: float | None = None,
    ) -> bool:
        """Freeze a running engine; return False if an admit came first.

        `still_due` makes it a sleep for idleness, a compare-and-set: it is asked right
        before and right after the freeze, and whatever an admit changes meanwhile
        undoes it. So does a connection that comes in between. The engine has
        `probe_timeout_s` to say that it is not busy, `health.timeout_s` if None.

        Raises:
            EngineNotRunningError: it does not run.
            EngineBusyError: it is in use (`signal` says how), and `force` is not set.
        """
        reason = "idle" if still_due else "request"

        async def work(_: Operation) -> bool:
            return await self.sleeper.sleep(
                live,
                actor=actor,
                force=force,
                still_due=still_due,
                probe_timeout_s=probe_timeout_s,
            )

        asleep: bool = await self._perform(
            live, "sleep", work, actor=actor, params=(reason, force), holds=still_due is None
        )
        return asleep

    async def deepen(self, live: LiveEngine, *, reason: str, **metadata: Any) -> bool:
        """Stop an engine that sleeps frozen, to give its memory back; it goes on sleeping.

        Return False if it does not sleep frozen any more. `reason` is that of `Deepened`.

        Raises:
            GateError: the backend could not; the periodic comparison tries again.
        """

        async def work(_: Operation) -> bool:
            return await self.sleeper.deepen(live, reason=reason, **metadata)

        stopped: bool = await self._perform(live, "deepen", work, actor="system")
        return stopped

    async def rotate_key(self, live: LiveEngine, *, actor: str) -> str:
        """Give a running engine a new key and return it.

        Raises:
            EngineNotRunningError: it does not run.
            GateError: the swap failed; the old key is still the valid one.
        """

        async def work(_: Operation) -> str:
            if not live.running:
                status = live.engine.status.value
                raise EngineNotRunningError(f"The engine is {status}.", status=status)
            key = new_engine_key()
            await self.rotation.rotate(live, key, actor=actor)
            return key

        holds = self.ground.config.engine.rotate_mode == "recreate"
        key: str = await self._perform(live, "rotate_key", work, actor=actor, holds=holds)
        return key

    async def destroy(self, live: LiveEngine, *, actor: str) -> str:
        """Remove the engine, its data, its port and its row; return its id.

        Overtakes whatever is at work. If the backend fails, the row stays
        `destroying` and the removal is tried again in the background.
        """
        engine_id: str = await self._perform(
            live, "destroy", lambda _: self._destroy(live, actor), actor=actor, reserve=True
        )
        return engine_id

    def begin_destroy(self, live: LiveEngine, *, actor: str) -> Operation:
        """Go on with a destroy that was cut in half, on an engine with nothing at work."""
        return self.operations.begin(
            live, "destroy", lambda _: self._destroy(live, actor), actor=actor
        )

    async def _destroy(self, live: LiveEngine, actor: str) -> str:
        ground, started = self.ground, self.ground.clock.now()
        ids = ground.ids(live)
        while ground.registry.ahead(ids["engine_id"]) is not live.engine and not live.gone:
            await ground.registry.flushed()  # what was overtaken has a fact on its way
        if live.gone:
            return ids["engine_id"]
        if live.engine.status is not Status.DESTROYING:
            await ground.registry.commit(
                f.DestroyBegun(**ids, at_ms=ground.clock.wall_ms(), actor=actor),
                use_reserve=True,
            )
        with Noting(ground.registry, live, "destroy", actor):
            await self._remove(live)
        await ground.registry.commit(
            f.Destroyed(
                **ids,
                at_ms=ground.clock.wall_ms(),
                actor=actor,
                duration_ms=ground.took_ms(started),
            ),
            use_reserve=True,
        )
        return ids["engine_id"]

    async def _remove(self, live: LiveEngine) -> None:
        try:
            async with asyncio.timeout(DESTROY_S):
                await self.ground.backend.destroy(live.engine.engine_id)
        except BackendError as error:
            raise told(error) from error

    async def _perform(
        self,
        live: LiveEngine,
        verb: str,
        work: Callable[[Operation], Any],
        *,
        actor: str,
        params: object = None,
        holds: bool = True,
        reserve: bool = False,
    ) -> Any:
        self.operations.refuse_if_closed()
        self.ground.refuse_if_unwritable(reserve=reserve)
        return await self.operations.perform(
            live, verb, work, actor=actor, params=params, holds=holds
        )
