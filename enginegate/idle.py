"""Who may sleep: engines whose lease has ended and whom nobody uses.

One look a tick over what is due, never a task per engine. The lease in memory is the
one truth; this agenda only says when to look at it again: a window before its end, for
the first of two looks at the CPU time, and at its end.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from math import inf
from typing import Any

from enginegate import facts as f
from enginegate.agenda import Agenda
from enginegate.due import look_when_due
from enginegate.errors import BackendError, EngineBusyError, GateError
from enginegate.lifecycle import Lifecycle
from enginegate.lifecycle.ground import Ground
from enginegate.lifecycle.operations import Spawn
from enginegate.model import Outcome
from enginegate.registry import LiveEngine

log = logging.getLogger(__name__)

TICK_S = 0.1
VETO_SHARE = 0.1  # of the lease: how soon after a veto to look again
VETO_MIN_S = 1.0
VETO_NOTED_EVERY_S = 60.0
AT_ONCE = 8  # looks and freezes at a time, so that they never crowd out an admit or a wake
BRIEF_S = 0.25  # to answer in; who is slower is asked again, out of the way of the others

# A restart gives everybody a full lease at the same moment. Spread over half of what
# the end of a lease may be late, they do not all fall due together.
SPREAD_SHARE, SPREAD_MIN_S = 0.05, 0.3


LookInto = Callable[[LiveEngine], Awaitable[None]]
"""Asks the backend about an engine, and puts right what it finds."""


class IdleLoop:
    """Owned by the server, which runs `run_forever`."""

    def __init__(
        self, ground: Ground, lifecycle: Lifecycle, *, look_into: LookInto, spawn: Spawn
    ) -> None:
        self.ground = ground
        self.lifecycle = lifecycle
        self.quietness = lifecycle.quietness
        self.agenda: Agenda[str] = Agenda()
        self._look_into = look_into
        self._spawn = spawn
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._slow_slots = asyncio.Semaphore(AT_ONCE)
        self._readings = asyncio.Semaphore(AT_ONCE)
        self._noted: dict[str, float] = {}
        ground.registry.listeners.append(self.plan)

    def plan(self, live: LiveEngine, _: f.AnyFact | None = None, *, late_s: float = 0.0) -> None:
        """Look at the engine a window before its lease ends, and `late_s` later."""
        engine_id = live.engine.engine_id
        if live.running and live.lease_until != inf:
            look_at = live.lease_until - self.quietness.window_s(live) + late_s
            self.agenda.put(engine_id, look_at)
        else:
            self.agenda.drop(engine_id)
        if not live.running:
            self._noted.pop(engine_id, None)

    def plan_all(self) -> None:
        """Give every running engine a full lease from now: nobody sleeps for our downtime.

        They do not all fall due together: each has its own place in a spread.
        """
        now = self.ground.clock.now()
        for live in self.ground.registry.engines.values():
            live.extend_lease(now)
            self.plan(live, late_s=max(live.lease_s * SPREAD_SHARE, SPREAD_MIN_S) * _share(live))

    async def run_forever(self) -> None:
        await look_when_due(self.agenda, self.look, self.ground.clock, tick_s=TICK_S)

    def look(self) -> None:
        """Put to sleep whose lease has ended; look later at whose has moved."""
        now = self.ground.clock.now()
        for engine_id in self.agenda.due(now):
            live = self.ground.registry.engines.get(engine_id)
            if live is not None and live.running:
                self._look_at(live, now)

    def _look_at(self, live: LiveEngine, now: float) -> None:
        engine_id, window_s = live.engine.engine_id, self.quietness.window_s(live)
        if live.lease_until - window_s > now:
            self.plan(live)
        elif live.operation is not None or self.ground.registry.journal_status != "ok":
            self.agenda.put(engine_id, now + VETO_MIN_S)
        elif self.quietness.read_at(live) < now - 2 * window_s - TICK_S:
            self._begin(self._read(live), live)
        elif live.lease_until > now:
            self.agenda.put(engine_id, live.lease_until)
        else:
            self._begin(self._sleep(live), live)

    async def _read(self, live: LiveEngine) -> None:
        """Take the first look at the CPU time, and come back when it can be compared."""
        async with self._readings:
            try:
                await self.quietness.read(live)
            except BackendError as error:
                log.info("engine %s not looked at: %s", live.engine.engine_id, error)
                self._later(live)
                return
        if live.running:
            comparable_at = self.ground.clock.now() + self.quietness.window_s(live) - TICK_S
            self.agenda.put(live.engine.engine_id, max(live.lease_until, comparable_at))

    async def _sleep(self, live: LiveEngine, *, patient: bool = False) -> None:
        """Put it to sleep if it is quiet. One slow engine must not hold up the others.

        So an engine has a moment to answer; one that lets it pass is asked once more,
        patiently, where only slow ones wait for each other.
        """
        async with self._slow_slots if patient else self._slots:
            if not self._due(live) or live.operation is not None:
                self.plan(live)
                return
            try:
                await self._put_to_sleep(live, None if patient else BRIEF_S)
            except EngineBusyError as veto:
                self._refused(live, str(veto.fields.get("signal")), patient=patient)
            except GateError as error:
                log.info("engine %s not put to sleep: %s", live.engine.engine_id, error)
                self._later(live)
            else:
                self.plan(live)

    async def _put_to_sleep(self, live: LiveEngine, probe_timeout_s: float | None) -> None:
        incarnation = live.engine.incarnation
        limit_s = self.ground.config.health.timeout_s
        await self.lifecycle.sleep(
            live,
            actor="system",
            still_due=lambda: (
                live.engine.incarnation == incarnation
                and live.lease_until <= self.ground.clock.now()
            ),
            probe_timeout_s=limit_s if probe_timeout_s is None else min(probe_timeout_s, limit_s),
        )

    def _due(self, live: LiveEngine) -> bool:
        return live.running and live.lease_until <= self.ground.clock.now()

    def _refused(self, live: LiveEngine, signal: str, *, patient: bool) -> None:
        if signal == "unanswered" and not patient:
            self._begin(self._ask_again(live), live)
        else:
            self._vetoed(live, signal)

    async def _ask_again(self, live: LiveEngine) -> None:
        """Look whether who let the moment pass can answer at all, then ask with patience.

        It may have ended, or others may have frozen it. A comparison sees that only where no
        sleep is tried at the very moment, and with a short lease one nearly always is.
        """
        await self._look_into(live)
        await self._sleep(live, patient=True)

    def _begin(self, work: Coroutine[Any, Any, None], live: LiveEngine) -> None:
        _ = self._spawn(work, f"idle {live.engine.engine_id}")

    def _vetoed(self, live: LiveEngine, signal: str) -> None:
        self._later(live)
        now, engine_id = self.ground.clock.now(), live.engine.engine_id
        if signal != "unread" and now - self._noted.get(engine_id, -inf) >= VETO_NOTED_EVERY_S:
            self._noted[engine_id] = now
            self.ground.registry.note(
                "sleep_vetoed", live=live, outcome=Outcome.DENIED, signal=signal
            )

    def _later(self, live: LiveEngine) -> None:
        """Move the deadline by a part of the lease, never by more than all of it."""
        pause_s = min(max(live.lease_s * VETO_SHARE, VETO_MIN_S), live.lease_s or VETO_MIN_S)
        live.put_off(self.ground.clock.now() + pause_s)
        self.plan(live)


def _share(live: LiveEngine) -> float:
    """Return where in the spread an engine has its place: from 0 to 1, the same each time."""
    return int(live.engine.engine_id.replace("-", "")[:8], 16) / 0xFFFFFFFF
