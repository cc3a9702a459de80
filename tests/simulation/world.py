"""What a simulated server stands on: its clock, and a backend that gives it trouble."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from enginegate.backends.base import EngineSpec, Observation, Presence
from enginegate.errors import BackendError
from tests.fakes import WALL_START_MS, FakeBackend, FakeWorld, SimulatedCrash
from tests.simulation.loop import SimulatedLoop

T = TypeVar("T")

HANG_S = 30.0  # after so long a backend gives up on a call, as ours do
LATENCY_S = 0.4


class SimulatedClock:
    """The loop's time; the wall clock is a whim of its own and may jump.

    On a busy machine whoever sleeps wakes up to `late_s` after the time.
    """

    def __init__(
        self, loop: SimulatedLoop, *, wall_jump_s: float = 0.0, late_s: float = 0.0
    ) -> None:
        self.loop = loop
        self.wall_jump_s = wall_jump_s
        self.late_s = late_s

    def now(self) -> float:
        return self.loop.time()

    def wall_ms(self) -> int:
        return WALL_START_MS + round((self.loop.time() + self.wall_jump_s) * 1000)

    async def sleep(self, seconds: float) -> None:
        late_s = self.loop.dice.random() * self.late_s if self.late_s else 0.0
        await asyncio.sleep(seconds + late_s)


class TroubledBackend(FakeBackend):
    """A fake backend that is slow, refuses, loses answers, hangs, or sees enginegate die.

    What it was asked to do it does even if the caller leaves meanwhile: a daemon does not
    hear of that. `guard` is asked before each change takes place, with its name and engine.
    """

    def __init__(
        self,
        dice: random.Random,
        clock: SimulatedClock,
        world: FakeWorld,
        *,
        guard: Callable[[str, str], None],
        on_crash: Callable[[], None],
    ) -> None:
        super().__init__(clock=clock, world=world, boot_s=0.0)
        self.dice = dice
        self.guard = guard
        self.on_crash = on_crash
        self.trouble = 0.0  # the share of calls that do not go well
        self.crash_in: int | None = None  # enginegate dies at this call from now
        self._effects: set[asyncio.Task[Any]] = set()

    async def start(self, spec: EngineSpec) -> Observation:
        return await self._outlive(super().start(spec))

    async def stop(self, engine_id: str, *, grace_s: float) -> None:
        await self._outlive(super().stop(engine_id, grace_s=grace_s))

    async def pause(self, engine_id: str) -> None:
        await self._outlive(super().pause(engine_id))

    async def unpause(self, engine_id: str) -> Observation:
        return await self._outlive(super().unpause(engine_id))

    async def destroy(self, engine_id: str) -> None:
        await self._outlive(super().destroy(engine_id))

    async def remove_orphan(self, engine_id: str) -> None:
        await self._outlive(super().remove_orphan(engine_id))

    async def _outlive(self, effect: Coroutine[Any, Any, T]) -> T:
        task = asyncio.get_running_loop().create_task(effect)
        self._effects.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._effects.discard(task)
        if not task.cancelled():
            task.exception()

    @asynccontextmanager
    async def _call(self, operation: str, engine_id: str | None = None) -> AsyncIterator[None]:
        crash = self._crash_here()
        if crash == "before":
            self._crash()
        ill = self.dice.choice(ILLS) if self.dice.random() < self.trouble else ""
        await self.clock.sleep(self.dice.random() ** 3 * LATENCY_S)
        if ill == "refused":
            raise BackendError(operation, engine_id, "simulated: refused")
        if ill == "unreachable":
            raise BackendError(operation, engine_id, "simulated: away", unavailable=True)
        if ill == "hang":
            await self.clock.sleep(HANG_S)
            raise BackendError(operation, engine_id, "simulated: no answer", unavailable=True)
        if ill == "slow":
            await self.clock.sleep(self.dice.random() * HANG_S)
        async with super()._call(operation, engine_id):
            if engine_id is not None:
                self.guard(operation, engine_id)
            yield
        if crash == "after":
            self._crash()
        if ill == "lost":
            raise BackendError(operation, engine_id, "simulated: lost answer", unavailable=True)

    def _crash_here(self) -> str:
        if self.crash_in is None:
            return ""
        self.crash_in -= 1
        return self.dice.choice(("before", "after")) if self.crash_in == 0 else ""

    def _crash(self) -> None:
        self.on_crash()
        raise SimulatedCrash("killed in the middle of a backend call")


ILLS = ("refused", "unreachable", "hang", "slow", "lost")


def happen(dice: random.Random, backend: TroubledBackend) -> str:
    """Let something happen to an engine, or to the machine, behind enginegate's back."""
    world = backend.world
    if dice.random() < 0.15:
        port = dice.choice((9001, 9002, 9003))
        world.taken_ports ^= {port}
        return f"a stranger takes or frees port {port}"
    if not world.engines:
        return "nothing happens"
    engine_id = dice.choice(list(world.engines))
    engine = world.engines[engine_id]
    what = dice.choice(EVENTS)
    match what:
        case "exits" if engine.alive:
            backend.crash(engine_id, exit_code=dice.choice((0, 1, 137)), tell=dice.random() < 0.7)
        case "vanishes":
            backend.vanish(engine_id, tell=dice.random() < 0.5)
        case "is frozen" if engine.presence is Presence.RUNNING:
            backend.freeze_behind(engine_id)
        case "is thawed" if engine.presence is Presence.PAUSED:
            backend.thaw_behind(engine_id)
        case "restarts" if world.by_port(engine.spec.port) in (None, engine):
            backend.restart_behind(engine_id)
        case "falls ill":
            engine.healthy = not engine.healthy
        case "gets busy":
            engine.busy = not engine.busy
        case "gets slow":
            engine.probe_delay_s = dice.choice((0.0, 0.5, 20.0))
        case "ignores SIGTERM":
            engine.ignores_sigterm = not engine.ignores_sigterm
        case _:
            return "nothing happens"
    return f"{engine_id[:4]} {what}"


EVENTS = (
    "exits",
    "exits",
    "vanishes",
    "is frozen",
    "is thawed",
    "restarts",
    "falls ill",
    "gets busy",
    "gets slow",
    "ignores SIGTERM",
)


def reboot(dice: random.Random, world: FakeWorld) -> None:
    """The machine went down with all engines; some the backend brings up again by itself."""
    for engine in world.engines.values():
        if not engine.alive:
            continue
        engine.connections = []
        if dice.random() < 0.5:
            engine.presence, engine.exit_code = Presence.STOPPED, 137
        else:
            world.lives += 1
            engine.presence, engine.life = Presence.RUNNING, world.lives


def heal(world: FakeWorld) -> None:
    """Let every engine be well, and strangers leave."""
    world.taken_ports.clear()
    for engine in world.engines.values():
        engine.healthy, engine.busy, engine.probe_delay_s = True, False, 0.0
        engine.ignores_sigterm = False
