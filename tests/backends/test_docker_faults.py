"""Every fault of every call to Docker, under the whole gate: the right state, or a reason.

The Engine is one in memory, and time jumps. `ENGINEGATE_LONG=1` takes each call of a verb
by itself, however often the verb makes it; else each kind of call once.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from enginegate.backends.docker import DockerBackend, daemon
from enginegate.config import Config, EngineSettings
from enginegate.errors import GateError
from enginegate.model import Status
from enginegate.probe import Health
from enginegate.registry import LiveEngine
from tests.backends.dockerd import (
    FAULTS,
    Dockerd,
)
from tests.backends.jumping import LoopClock, run
from tests.service.gate import Gate, MemoryJournal

IMAGE = "my-engine:1"
SLACK_S = 5.0
CONVERGED_S = 150.0  # two comparisons after the last fault, the longest backoff, and a restart

CONFIG = Config(engine=EngineSettings(backend="docker", image=IMAGE, wake_timeout_s=10))
KEY_FILE = ".enginegate/key_hash"


class DockerdProbe:
    """Answers for the containers of an Engine in memory."""

    sources: frozenset[tuple[str, int]] = frozenset()

    def __init__(self, dockerd: Dockerd) -> None:
        self.dockerd = dockerd

    async def check(self, url: str, *, timeout_s: float) -> Health:
        box = self.dockerd.by_port(urlsplit(url).port or 0)
        if box is None or not box.networks:
            return Health(ok=False, detail="connection refused")
        if box.status == "paused":
            await asyncio.sleep(timeout_s)
            return Health(ok=False, detail="no answer")
        return Health(ok=True)


class World:
    """An Engine in memory, and a gate on it that can be killed and started again."""

    def __init__(self, dockerd: Dockerd, config: Config) -> None:
        self.dockerd = dockerd
        self.config = config
        self.journal = MemoryJournal()
        self.clock = LoopClock()

    async def start(self) -> None:
        self.backend = DockerBackend(
            instance="here",
            docker_host=self.dockerd.address,
            rotate_mode=self.config.engine.rotate_mode,
        )
        await self.backend.open()
        self.gate = Gate(
            config=self.config,
            clock=self.clock,  # type: ignore[arg-type]
            journal=self.journal,
            backend=self.backend,  # type: ignore[arg-type]
            probe=DockerdProbe(self.dockerd),
        )
        await self.gate.recovery.at_start()
        self.gate.run_loops()
        self.gate.spawn(self.gate.recovery.watch_forever())

    async def stop(self) -> None:
        await self.gate.close()
        await self.backend.close()

    def wrong(self) -> list[str]:
        """Return what rows, containers and volumes are not of one mind about."""
        rows = self.gate.registry.engines
        found = [
            fault for live in rows.values() for fault in self._wrong_with(live) if fault is not None
        ]
        by_name = Counter(box.name for box in self.dockerd.boxes.values())
        found += [f"{name} is there {count} times" for name, count in by_name.items() if count > 1]
        names = {f"enginegate-{engine_id}" for engine_id in rows}
        found += [f"{name} has no row" for name in by_name if name not in names]
        volumes = {f"engine-data-{engine_id}" for engine_id in rows}
        found += [f"{name} has no row" for name in self.dockerd.volumes if name not in volumes]
        return found

    def _wrong_with(self, live: LiveEngine) -> list[str | None]:
        status, box = live.engine.status, self.dockerd.box(live.engine.engine_id)
        seen = None if box is None else box.status
        if live.operation is not None:
            return [f"{live.operation.verb} is still at work"]
        if status is Status.FAILED:
            return [None if live.engine.reason else "failed without a reason"]
        fits = {
            Status.RUNNING: ("running",),
            Status.SLEEPING: ("paused", "exited"),
            Status.STOPPED: ("exited", "created", None),
        }
        if status not in fits or seen not in fits[status]:
            return [f"row {status}, container {seen}"]
        if box is not None and box.alive:
            keys = self.dockerd.volumes[box.volume].get(KEY_FILE, b"").decode().split()
            return [None if live.engine.key_hash in keys else "it has another key"]
        return []


@asynccontextmanager
async def world(config: Config = CONFIG) -> AsyncIterator[World]:
    """Have a world, and see at its end that nothing was left at work in it."""
    dockerd = Dockerd(images=(IMAGE, "my-engine:2"))
    await dockerd.open()
    made = World(dockerd, config)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
        await asyncio.sleep(1)
        left = dockerd.at_work
        await dockerd.close()
    assert left == [], "calls that nobody waits for any more"
    assert made.backend._daemon.budget.free == daemon.IN_FLIGHT
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert others == set()


Verb = Callable[[Gate, LiveEngine], Awaitable[object]]

VERBS: dict[str, tuple[Status, Verb, float]] = {
    "sleep": (Status.RUNNING, lambda g, e: g.lifecycle.sleep(e, actor="a", force=True), 10),
    "wake": (Status.SLEEPING, lambda g, e: g.lifecycle.wake(e, actor="a"), 10),
    "stop": (Status.RUNNING, lambda g, e: g.lifecycle.stop(e, actor="a"), 35),
    "start": (Status.STOPPED, lambda g, e: g.lifecycle.start(e, version=None, actor="a"), 60),
    "rotate": (Status.RUNNING, lambda g, e: g.lifecycle.rotate_key(e, actor="a"), 120),
    "destroy": (Status.RUNNING, lambda g, e: g.lifecycle.destroy(e, actor="a"), 60),
    "compare": (Status.RUNNING, lambda g, e: g.recovery.compare(), 60),
}
"""What state it starts from, what is done, and the deadline of that in seconds."""


async def made_ready(world: World, verb: str) -> LiveEngine:
    gate, state = world.gate, VERBS[verb][0]
    live = await gate.engine(await gate.product())
    if state is Status.SLEEPING:
        await gate.lifecycle.sleep(live, actor="a", force=True)
    elif state is Status.STOPPED:
        await gate.lifecycle.stop(live, actor="a")
    await asyncio.sleep(2)
    return live


async def did(world: World, verb: str) -> tuple[BaseException | None, float]:
    """Do the verb; return how it ended and how long it took."""
    gate, began = world.gate, asyncio.get_running_loop().time()
    try:
        if verb == "provision":
            await gate.engine(await gate.product())
        else:
            [live] = gate.registry.engines.values()
            await VERBS[verb][1](gate, live)
    except GateError as error:
        return error, asyncio.get_running_loop().time() - began
    return None, asyncio.get_running_loop().time() - began


async def calls_of(verb: str) -> list[str]:
    """Return the calls that a verb makes when all goes well."""
    async with world() as one:
        if verb != "provision":
            await made_ready(one, verb)
        one.dockerd.asked.clear()
        ended, _ = await did(one, verb)
        assert ended is None
        return list(one.dockerd.asked)


async def survives(verb: str, route: str, nth: int, kind: str | int) -> str | None:
    """Live through one fault; return what was wrong in the end, None if nothing was."""
    deadline_s = VERBS[verb][2] if verb in VERBS else CONFIG.boot.timeout_s
    async with world() as one:
        if verb != "provision":
            await made_ready(one, verb)
        one.dockerd.fail(route, kind, nth=nth)
        ended, took_s = await did(one, verb)
        if took_s > deadline_s + SLACK_S:
            return f"answered after {took_s:.1f} s: {ended}"
        if ended is not None and ended.code == "INTERNAL_ERROR":  # type: ignore[attr-defined]
            return f"a bug: {ended}"
        await asyncio.sleep(CONVERGED_S)
        wrong = one.wrong()
        return f"{ended}: {wrong}" if wrong else None


def numbered(calls: list[str]) -> list[tuple[str, int]]:
    """Return each call with the number of its occurrence; in short, each route once."""
    seen: Counter[str] = Counter()
    found = []
    for call in calls:
        seen[call] += 1
        found.append((call, seen[call]))
    return found if os.environ.get("ENGINEGATE_LONG") else [one for one in found if one[1] == 1]


@pytest.mark.parametrize("verb", ["provision", *VERBS])
def test_every_fault_of_every_call_ends_in_the_right_state(verb: str) -> None:
    """Answered within the deadline; then row, container and key agree, or it failed for a reason.

    Nothing is there twice, nothing without a row, and no call, task or place is left over.
    """
    calls = numbered(run(calls_of(verb)))
    wrong = [
        f"{route} [{nth}] {kind}: {found}"
        for route, nth in calls
        for kind in FAULTS
        if (found := run(survives(verb, route, nth, kind))) is not None
    ]
    assert wrong == []
