"""Sleep against everything that may come in between, in simulated time, by the seed.

`ENGINEGATE_LONG=1` runs ten thousand interleavings, one after the other; a seed that fails
is told, and `ENGINEGATE_SEED=n` runs it alone.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from enginegate.backends.base import Connection, Presence
from enginegate.config import Config, Idle
from enginegate.facts import AnyFact
from enginegate.registry import LiveEngine
from tests.fakes import FakeBackend
from tests.service.gate import Gate, MemoryJournal
from tests.simulation.loop import SimulatedLoop
from tests.simulation.world import SimulatedClock
from tests.sleep.races import ANSWER_S, Races

TRIES = 10_000 if os.environ.get("ENGINEGATE_LONG") == "1" else 1_000
LATENCY_S = 0.06  # of a call to the backend, at most; mostly much less


class SlowBackend(FakeBackend):
    """Takes its time before and after each effect, as the dice say."""

    def __init__(self, dice: random.Random, **options: Any) -> None:
        super().__init__(**options)
        self.dice = dice
        self.gate: Any = None
        self.faults: list[str] = []

    async def pause(self, engine_id: str) -> None:
        """Freeze it; nobody may ask for that, for idleness, while somebody has a lease."""
        live = self.gate.registry.engines[engine_id]
        if live.operation.params[0] == "idle" and live.lease_until > self.clock.now():
            self.faults.append("a freeze for idleness under a valid lease")
        await super().pause(engine_id)

    @asynccontextmanager
    async def _call(self, operation: str, engine_id: str | None = None) -> AsyncIterator[None]:
        await self.clock.sleep(self.dice.random() ** 3 * LATENCY_S)
        async with super()._call(operation, engine_id):
            yield
        await self.clock.sleep(self.dice.random() ** 3 * LATENCY_S)


class SlowJournal(MemoryJournal):
    """Has one thing after the other on the disk, each some time later."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.dice = dice
        self.done_at = 0.0

    def submit(self, fact: AnyFact, *, use_reserve: bool = False) -> "asyncio.Future[int]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self.done_at = max(self.done_at, loop.time()) + 1e-6 + self.dice.random() ** 3 * LATENCY_S
        loop.call_at(self.done_at, self._sync, fact, future)
        return future


def slow_gate(config: Config, clock: Any, dice: random.Random) -> Gate:
    backend = SlowBackend(dice, clock=clock)
    gate = Gate(config=config, clock=clock, backend=backend, journal=SlowJournal(dice))
    backend.gate = gate
    return gate


async def interleaving(dice: random.Random, loop: SimulatedLoop) -> tuple[Races, list[str]]:
    """Let a dozen callers meet one engine, wait until it is quiet, and compare row and world."""
    clock: Any = SimulatedClock(loop)
    idle = Idle(sleep_after_s=dice.choice((0.2, 0.4, 1.0)), stop_after_s=dice.choice((0, 0, 0.3)))
    gate = slow_gate(Config(idle=idle), clock, dice)

    async def answers(live: LiveEngine) -> bool:
        until = clock.now() + ANSWER_S
        while clock.now() < until:
            engine = gate.backend.world.engines.get(live.engine.engine_id)
            if engine is not None and engine.presence is Presence.RUNNING:
                return True
            await clock.sleep(0.01)
        return False

    await gate.start()
    gate.spawn(gate.idle.run_forever())
    gate.spawn(gate.tiers.run_forever())
    owner = await gate.product()
    await gate.engine(owner)
    races = Races(gate, owner, "ann", dice, answers)
    races.up = lambda live: gate.backend.engine(live.engine.engine_id).presence == "running"
    await races.run(dice.randint(3, 14), dice.choice((0.5, 2.0, 4.0)))
    await clock.sleep(4)
    wrong = [*races.faults, *gate.backend.faults]
    for live in gate.registry.engines.values():
        presence = gate.backend.engine(live.engine.engine_id).presence
        if (live.engine.status.value, presence.value) not in AT_REST:
            wrong.append(f"at rest it is {live.engine.status}, the backend says {presence}")
    await gate.close()
    return races, wrong


AT_REST = {
    ("sleeping", "paused"),
    ("sleeping", "stopped"),
    ("stopped", "stopped"),
}


def played(seed: int) -> tuple[Races, list[str]]:
    dice = random.Random(seed)
    loop = SimulatedLoop(dice, start_s=1000.0)
    try:
        return loop.run_until_complete(interleaving(dice, loop))
    finally:
        loop.close()


def test_no_interleaving_freezes_whom_somebody_was_promised() -> None:
    """Admit, touch, sleep, stop, start, destroy at any moment of each other: nothing is lost."""
    only = os.environ.get("ENGINEGATE_SEED")
    asked = admitted = 0
    for seed in [int(only)] if only else range(TRIES):
        races, wrong = played(seed)
        assert not wrong, f"seed {seed}: {wrong}\n" + "\n".join(races.story)
        asked += races.asked
        admitted += races.admitted
    assert only or asked > TRIES
    assert only or admitted > TRIES


def test_a_connection_at_any_moment_is_never_frozen() -> None:
    """Whoever connects while it runs gets an answer within the second, lease or no lease."""
    for seed in range(TRIES // 10):
        dice = random.Random(seed)
        loop = SimulatedLoop(dice, start_s=1000.0)
        try:
            loop.run_until_complete(_connected(dice, loop, seed))
        finally:
            loop.close()


async def _connected(dice: random.Random, loop: SimulatedLoop, seed: int) -> None:
    clock: Any = SimulatedClock(loop)
    gate = slow_gate(Config(idle=Idle(sleep_after_s=0.4)), clock, dice)
    await gate.start()
    gate.spawn(gate.idle.run_forever())
    live = await gate.engine(await gate.product())
    fake = gate.backend.engine(live.engine.engine_id)
    await clock.sleep(0.3 + dice.random() * 0.4)  # around the end of its lease
    if live.running and fake.presence is Presence.RUNNING:
        fake.connections = [Connection(0.0)]
        for _ in range(20):
            await clock.sleep(ANSWER_S / 4)
            if gate.backend.engine(live.engine.engine_id).presence is Presence.RUNNING:
                break
        else:
            raise AssertionError(f"seed {seed}: frozen under a connection")
        await clock.sleep(2)
        assert live.running, f"seed {seed}"
    await gate.close()
    await asyncio.sleep(0)
