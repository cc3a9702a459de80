"""Random interleavings of admit, touch, sleep, stop, destroy on one user's engine.

Whoever is admitted is promised that the engine answers, now and for as long as the lease
says, unless somebody stops, destroys or puts it to sleep on request. That alone is looked
at, from outside: a freeze for idleness in between is no matter if nobody can tell.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from enginegate.admission import Admitted, Refused
from enginegate.errors import GateError
from enginegate.registry import LiveEngine

ANSWER_S = 1.0  # within which an admitted user's engine must answer

Answers = Callable[[LiveEngine], Awaitable[bool]]
"""Asks an engine once; whether it answered within `ANSWER_S`."""

ACTIONS = (
    "admit",
    "admit",
    "admit",
    "touch",
    "touch",
    "sleep",
    "force",
    "stop",
    "start",
    "destroy",
)
ENDS = frozenset({"stop", "destroy"})
DISTURB = ENDS | {"sleep", "force"}
NOT_ENDED = frozenset({"engine_sleeping", "engine_waking", "engine_unhealthy", "engine_restarting"})


class Races:
    """Callers of one user's engine, who come when the dice say, and what they found wrong."""

    def __init__(
        self, gate: Any, owner: Any, user: str, dice: random.Random, answers: Answers
    ) -> None:
        self.gate = gate
        self.owner = owner
        self.user = user
        self.dice = dice
        self.answers = answers
        self.up: Callable[[LiveEngine], bool] = lambda _: True  # is it, at this very moment?
        self.margin_s = 0.05  # before its end, in which a request may come too late for a lease
        self.faults: list[str] = []
        self.admitted = 0
        self.asked = 0
        self.story: list[str] = []
        self._at_work: dict[str, int] = {}
        self._begun: dict[str, int] = {}

    async def run(self, callers: int, span_s: float) -> None:
        """Let so many callers come within the span; return when the last one has been served."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(callers):
                after_s = self.dice.random() * span_s
                tasks.create_task(self._call(after_s, self.dice.choice(ACTIONS)))

    async def _call(self, after_s: float, action: str) -> None:
        await self.gate.clock.sleep(after_s)
        if self.dice.random() < 0.6:
            await self._until_it_gets_interesting()
        self._tell(f"{action} …")
        try:
            match action:
                case "admit":
                    await self._admit()
                case "touch":
                    await self._touch()
                case _:
                    await self._verb(action)
        except GateError as error:
            self._tell(f"{action}: {error.code}")

    async def _until_it_gets_interesting(self) -> None:
        """Wait for the end of the lease, about: that is where a freeze is under way."""
        live = self.owner.engines.get(self.user)
        if live is not None and live.running:
            left_s = live.lease_until - self.gate.clock.now()
            await self.gate.clock.sleep(max(left_s + self.dice.random() * 0.4 - 0.05, 0.0))

    async def _admit(self) -> None:
        ended = self._count(ENDS)
        answer = await self.gate.admit(
            self.owner, self.user, auto_wake=True, auto_provision=self.dice.random() < 0.8
        )
        self._tell(f"admit: {answer.action if isinstance(answer, Admitted) else answer.reason}")
        if isinstance(answer, Admitted):
            if not self._working() and not self.up(answer.live):
                self.faults.append("admitted to a frozen engine")
            await self._promised(answer.live, answer.lease_s)
        elif isinstance(answer, Refused) and answer.reason in NOT_ENDED:
            self.faults.append(f"a wake was lost: {answer.reason}")
        elif not ended and not self._count(ENDS):
            self.faults.append(f"nobody stopped it, and yet: {answer.reason}")

    async def _touch(self) -> None:
        live = self.owner.engines.get(self.user)
        if live is not None and live.running:
            live.extend_lease(self.gate.clock.now())  # as the route does, in one turn
            await self._promised(live, live.lease_s)

    async def _verb(self, action: str) -> None:
        live = self.owner.engines.get(self.user)
        if live is None:
            return
        self._at_work[action] = self._at_work.get(action, 0) + 1
        self._begun[action] = self._begun.get(action, 0) + 1
        lifecycle = self.gate.lifecycle
        try:
            match action:
                case "sleep" | "force":
                    await lifecycle.sleep(live, actor="acme", force=action == "force")
                case "stop":
                    await lifecycle.stop(live, actor="acme")
                case "start":
                    await lifecycle.start(live, version=None, actor="acme")
                case _:
                    await lifecycle.destroy(live, actor="acme")
            self._tell(f"{action}: done")
        finally:
            self._at_work[action] -= 1

    async def _promised(self, live: LiveEngine, lease_s: float) -> None:
        """Ask the engine at once, and once more before the lease is over."""
        self.admitted += 1
        at_work, begun = self._working(), self._count(DISTURB)
        for wait_s in (0.0, self.dice.random() * max(lease_s - self.margin_s, 0.0)):
            if wait_s:
                await self.gate.clock.sleep(wait_s)
            answered = await self.answers(live)
            if at_work or self._working() or self._count(DISTURB) != begun:
                return  # somebody has stopped, destroyed or forced it to sleep since
            self.asked += 1
            if not answered:
                self._tell("no answer")
                self.faults.append(f"no answer {wait_s:.3f} s into a lease of {lease_s:g} s")
                return

    def _working(self) -> bool:
        return any(self._at_work.get(action) for action in DISTURB)

    def _count(self, actions: frozenset[str]) -> int:
        return sum(self._begun.get(action, 0) for action in actions)

    def _tell(self, what: str) -> None:
        self.story.append(f"{self.gate.clock.now():.4f} {what}")
