"""Who may sleep: engines whose lease has ended and whom nobody uses.

One look a tick over what is due, never a task per engine. The lease in memory is the
one truth; this agenda only says when to look at it again.
"""

import asyncio
import logging
from math import inf

from enginegate import facts as f
from enginegate.agenda import Agenda
from enginegate.errors import EngineBusyError, GateError
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
AT_ONCE = 4  # freezes at a time, so that they never crowd out a wake


class IdleLoop:
    """Owned by the server, which runs `run_forever`."""

    def __init__(self, ground: Ground, lifecycle: Lifecycle, *, spawn: Spawn) -> None:
        self.ground = ground
        self.lifecycle = lifecycle
        self.agenda: Agenda[str] = Agenda()
        self._spawn = spawn
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._noted: dict[str, float] = {}
        ground.registry.listeners.append(self.plan)

    def plan(self, live: LiveEngine, _: f.AnyFact | None = None) -> None:
        """Look at the engine when its lease ends."""
        engine_id = live.engine.engine_id
        if live.running and live.lease_until != inf:
            self.agenda.put(engine_id, live.lease_until)
        else:
            self.agenda.drop(engine_id)

    def plan_all(self) -> None:
        """Give every running engine a full lease from now: nobody sleeps for our downtime."""
        now = self.ground.clock.now()
        for live in self.ground.registry.engines.values():
            live.extend_lease(now)
            self.plan(live)

    async def run_forever(self) -> None:
        while True:
            await self.ground.clock.sleep(TICK_S)
            self.look()

    def look(self) -> None:
        """Put to sleep whose lease has ended; look later at whose has moved."""
        now = self.ground.clock.now()
        for engine_id in self.agenda.due(now):
            live = self.ground.registry.engines.get(engine_id)
            if live is None or not live.running:
                continue
            if live.lease_until > now:
                self.plan(live)
            elif live.operation is not None or self.ground.registry.journal_status != "ok":
                self.agenda.put(engine_id, now + VETO_MIN_S)
            else:
                _ = self._spawn(self._sleep(live), f"idle {engine_id}")

    async def _sleep(self, live: LiveEngine) -> None:
        async with self._slots:
            if not self._due(live) or live.operation is not None:
                self.plan(live)
                return
            incarnation = live.engine.incarnation
            try:
                await self.lifecycle.sleep(
                    live,
                    actor="system",
                    still_due=lambda: (
                        live.engine.incarnation == incarnation
                        and live.lease_until <= self.ground.clock.now()
                    ),
                )
            except EngineBusyError as veto:
                self._vetoed(live, str(veto.fields.get("signal")))
            except GateError as error:
                log.info("engine %s not put to sleep: %s", live.engine.engine_id, error)
                self._later(live)
            else:
                self.plan(live)

    def _due(self, live: LiveEngine) -> bool:
        return live.running and live.lease_until <= self.ground.clock.now()

    def _vetoed(self, live: LiveEngine, signal: str) -> None:
        self._later(live)
        now, engine_id = self.ground.clock.now(), live.engine.engine_id
        if now - self._noted.get(engine_id, -inf) >= VETO_NOTED_EVERY_S:
            self._noted[engine_id] = now
            self.ground.registry.note(
                "sleep_vetoed", live=live, outcome=Outcome.DENIED, signal=signal
            )

    def _later(self, live: LiveEngine) -> None:
        """Move the deadline by a part of the lease, never by more than all of it."""
        pause_s = min(max(live.lease_s * VETO_SHARE, VETO_MIN_S), live.lease_s or VETO_MIN_S)
        live.lease_until = max(live.lease_until, self.ground.clock.now() + pause_s)
        self.plan(live)
