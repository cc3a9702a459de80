"""Are the engines well, and what if not: probes, crash notices, automatic restarts.

A failed probe is counted against an engine only while the backend itself answers,
and never when so many fail at once that the fault must lie elsewhere. A process that
exits needs no probe: the backend tells at once, and `recovery` passes it on.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from enginegate import facts as f
from enginegate.agenda import Agenda
from enginegate.backends.base import Observation, Presence
from enginegate.due import look_when_due
from enginegate.errors import BackendError, GateError
from enginegate.lifecycle import Lifecycle
from enginegate.lifecycle.boot import lost
from enginegate.lifecycle.ground import Ground
from enginegate.lifecycle.operations import Work
from enginegate.model import Outcome, Status
from enginegate.probe import Health
from enginegate.registry import LiveEngine

log = logging.getLogger(__name__)

SHARED_OUTAGE_MIN = 5
SHARED_OUTAGE_SHARE = 0.2
SPREAD_SHARE = 0.5  # of the interval, over which the probes of a sweep begin
TICK_S = 0.1


class HealthLoop:
    """Owned by the server, which runs `sweep_forever` and `restart_forever`.

    `backend_ok` says that the backend answers, `blind` that its events do not come.
    """

    def __init__(self, ground: Ground, lifecycle: Lifecycle) -> None:
        self.ground = ground
        self.lifecycle = lifecycle
        self.backend_ok = True
        self.blind = False
        self.restarts: Agenda[str] = Agenda()
        self._waiting: set[str] = set()  # engines whose failure waits its turn
        self._slots = asyncio.Semaphore(ground.config.health.concurrency)
        ground.registry.listeners.append(self._plan_restart)

    # Probes

    async def sweep_forever(self) -> None:
        """Probe every running engine each `health.interval_s`; sweeps do not overlap."""
        interval_s = self.ground.config.health.interval_s
        spread_s = interval_s * SPREAD_SHARE
        while True:
            await self.ground.clock.sleep(interval_s - spread_s)
            began = self.ground.clock.now()
            await self.sweep(spread_s=spread_s)
            await self.ground.clock.sleep(began + spread_s - self.ground.clock.now())

    async def sweep(self, *, spread_s: float = 0.0) -> None:
        """Probe every running engine once and act on what was found, all together.

        The probes begin evenly over `spread_s`, so that a large fleet is no burst.
        """
        await self.ask_backend()
        registry = self.ground.registry
        awake = [live async for live in registry.walk(running=True) if live.in_service]
        async with asyncio.TaskGroup() as group:
            probes = [
                group.create_task(self._probe(live))
                async for live in self._in_turn(awake, spread_s)
            ]
        failed = [found for probe in probes if (found := probe.result())]
        if len(failed) > max(SHARED_OUTAGE_MIN, SHARED_OUTAGE_SHARE * len(registry.engines)):
            self._suspend([live for live, _ in failed])
            return
        # Whoever was stopped or began another life since its probe is not failed.
        worn_out = [live for live, life in failed if self._current(live, life)]
        await asyncio.gather(*(self._fail(live, reason="unhealthy") for live in worn_out))

    async def _in_turn(self, awake: list[LiveEngine], spread_s: float) -> AsyncIterator[LiveEngine]:
        """Yield each engine at its time, if it still runs then."""
        clock, began = self.ground.clock, self.ground.clock.now()
        for place, live in enumerate(awake):
            due_at = began + spread_s * place / len(awake)
            if due_at > clock.now():
                await clock.sleep(due_at - clock.now())
            if live.in_service:
                yield live

    async def ask_backend(self) -> None:
        """Find out whether the backend answers."""
        self.backend_ok = await self.ground.backend.ping()

    async def _probe(self, live: LiveEngine) -> tuple[LiveEngine, int] | None:
        """Probe one engine; return it and its life if its failures have reached the threshold."""
        incarnation = live.engine.incarnation
        async with self._slots:
            health = await self.lifecycle.booter.check(
                live, timeout_s=self.ground.config.health.timeout_s
            )
        if not self._current(live, incarnation):
            return None  # it began another life meanwhile: the result is about the old one
        self._take(live, health)
        worn_out = live.probe_failures >= self.ground.config.health.max_failures
        return (live, incarnation) if worn_out and self.backend_ok else None

    def _current(self, live: LiveEngine, incarnation: int) -> bool:
        """Return whether it is in service, and in the same life.

        Work that admits need not wait for leaves it in service: tries to put a hung engine to
        sleep follow each other closely, and must not shield it from its probes.
        """
        return live.in_service and live.engine.incarnation == incarnation

    def _take(self, live: LiveEngine, health: Health) -> None:
        live.answer = None  # it shows when the engine was last seen well
        if health.ok:
            live.healthy_at_ms = self.ground.clock.wall_ms()
            live.probe_failures = 0
        elif self.backend_ok:
            live.probe_failures += 1
        if live.failing != (not health.ok):
            live.failing = not health.ok
            self.ground.registry.note(
                "health_check",
                live=live,
                outcome=Outcome.OK if health.ok else Outcome.FAILED,
                duration_ms=round(health.took_ms, 3),
                detail=health.detail,
            )

    def _suspend(self, failed: list[LiveEngine]) -> None:
        """Leave everyone alone: so many at once are not each at fault.

        They are counted from anew, so that those who are slower to come out of it are not
        blamed one by one.
        """
        log.warning("%d engines failed in one sweep: restarts suspended", len(failed))
        for live in failed:
            live.probe_failures = 0
        self.ground.registry.note("restarts_suspended", engines=len(failed))

    async def verify(self, live: LiveEngine, timeout_s: float) -> bool:
        """Probe once for a caller who wants to be sure; tells the health machinery.

        A failure counts like that of a sweep, and an engine whose process is gone
        fails at once.
        """
        incarnation = live.engine.incarnation
        health = await self.lifecycle.booter.check(live, timeout_s=timeout_s)
        if not self._current(live, incarnation):
            return live.running and health.ok
        self._take(live, health)
        if health.ok:
            return True
        if live.probe_failures >= self.ground.config.health.max_failures:
            await self._fail(live, reason="unhealthy")
        else:
            await self.fail_if_gone(live)
        return False

    # Crash notices

    async def fail_if_gone(self, live: LiveEngine, *, exit_code: int | None = None) -> None:
        """Fail a running engine whose life is over, also if the backend began another.

        That one is taken as the restart. Where the backend does not count it as a restart
        of its own, other hands ended the life, and the engine is not to blame.
        """
        incarnation = live.engine.incarnation
        try:
            seen = await self.ground.backend.inspect(live.engine.engine_id)
        except BackendError:
            return  # unknown changes nothing; the next look decides
        if not self._current(live, incarnation):
            return
        if seen.data_lost:
            await self.fail_without_data(live, seen.detail)
        elif seen.presence in (Presence.STOPPED, Presence.ABSENT):
            code = seen.exit_code if exit_code is None else exit_code
            live.ended, live.answer = incarnation, None
            await self._fail(live, reason="exited", exit_code=code)
        elif live.life and seen.life != live.life:
            await self._replaced(live, seen, exit_code)

    async def _replaced(self, live: LiveEngine, seen: Observation, exit_code: int | None) -> None:
        if seen.restarts:
            told, during = "exited; the backend restarted it", "running"
        else:
            told, during = "restarted by other hands, or with the backend", "outage"
        await self._fail(
            live,
            reason=told,
            during=during,
            exit_code=exit_code,
            backend_restarts=seen.restarts,
        )
        self.hasten(live)

    def hasten(self, live: LiveEngine) -> None:
        """Take at once what the backend restarted after a first crash; later ones wait."""
        engine = live.engine
        planned = engine.status is Status.FAILED and engine.restart_at_ms is not None
        if planned and engine.restart_attempts == 0:
            self.restarts.put(engine.engine_id, self.ground.clock.now())

    async def fail_without_data(self, live: LiveEngine, detail: str) -> None:
        """Fail an engine, up or not, that has lost its data; it is not restarted without them."""
        await self._fail(live, during="outage", error=lost(detail))

    async def _fail(
        self,
        live: LiveEngine,
        *,
        reason: str = "",
        during: str = "running",
        exit_code: int | None = None,
        error: GateError | None = None,
        **metadata: Any,
    ) -> None:
        """Record the failure as an operation, so that it cannot overlap a verb.

        It waits its turn where the one at work leaves the engine in service, and nobody
        waits with it: that may be as long as the slowest engine.
        """
        before = (live.engine.status, live.engine.incarnation)

        async def work(_: object) -> None:
            if (live.engine.status, live.engine.incarnation) == before:
                await self.lifecycle.failures.fail(
                    live,
                    during=during,
                    reason=reason,
                    exit_code=exit_code,
                    error=error,
                    **metadata,
                )

        held = live.operation is not None and live.operation.holds
        if held or self.lifecycle.operations.closed:
            return
        if live.operation is None:
            await self._record(live, work)
        elif live.engine.engine_id not in self._waiting:
            self._waiting.add(live.engine.engine_id)
            self.lifecycle.operations.later(self._record_in_turn(live, work), "fail in turn")

    async def _record(self, live: LiveEngine, work: Work) -> None:
        try:
            await self.lifecycle.operations.perform(live, "fail", work, actor="system")
        except GateError as refused:
            log.warning("engine %s failed, not recorded: %s", live.engine.engine_id, refused)

    async def _record_in_turn(self, live: LiveEngine, work: Work) -> None:
        """Record it when it is its turn; look again if the engine has moved on until then."""
        try:
            await self._record(live, work)
        finally:
            self._waiting.discard(live.engine.engine_id)
        if live.in_service:
            await self.fail_if_gone(live)

    # Automatic restarts

    def _plan_restart(self, live: LiveEngine, fact: f.AnyFact | None) -> None:
        at_ms, now = live.engine.restart_at_ms, self.ground.clock.now()
        config = self.ground.config
        if live.engine.status is not Status.FAILED or at_ms is None:
            self.restarts.drop(live.engine.engine_id)
        elif isinstance(fact, f.RestartBegun):
            # The attempt's own outcome replaces this; it is for one that leaves none.
            latest_s = config.boot.timeout_s + config.restart.backoff_base_s
            self.restarts.put(live.engine.engine_id, now + latest_s)
        else:
            # A wall clock that jumped must not make the wait longer than any backoff.
            wait_s = (at_ms - self.ground.clock.wall_ms()) / 1000
            wait_s = min(max(wait_s, 0.0), config.restart.backoff_max_s)
            self.restarts.put(live.engine.engine_id, now + wait_s)

    def plan_all(self) -> None:
        """Take over the plans that the journal remembers."""
        for live in self.ground.registry.engines.values():
            self._plan_restart(live, None)

    async def restart_forever(self) -> None:
        """Start restarts as they fall due."""
        await look_when_due(
            self.restarts, self.begin_due_restarts, self.ground.clock, tick_s=TICK_S
        )

    def begin_due_restarts(self) -> None:
        now = self.ground.clock.now()
        for engine_id in self.restarts.due(now):
            live = self.ground.registry.engines.get(engine_id)
            if live is None or self.lifecycle.operations.closed:
                continue
            self.restarts.put(engine_id, now + 1.0)  # what the attempt records replaces this
            if live.operation is None and self.ground.registry.journal_status == "ok":
                self.lifecycle.begin_restart(live)
