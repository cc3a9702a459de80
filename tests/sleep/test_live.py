"""Sleep on real engines, process and Docker: what is never frozen, and what races it.

`ENGINEGATE_LONG=1` makes a hundred tries of each, and five hundred races.
"""

import asyncio
import os
import random
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from enginegate.admission import Admitted
from enginegate.registry import LiveEngine
from tests.backends import image
from tests.docker.conftest import need_docker
from tests.sleep.races import Races
from tests.sleep.rig import Rig, rig

LONG = os.environ.get("ENGINEGATE_LONG") == "1"
KINDS = ["process", pytest.param("docker", marks=pytest.mark.docker)]
USES = ("stream", "websocket", "job", "busy")
AT_ONCE = 2  # of each use
ROUNDS = int(os.environ.get("ENGINEGATE_ROUNDS", "50")) if LONG else 1
USE_S = 5.0
LOOKS = 3  # that have to find it in use meanwhile
SLOW_MACHINE_S = 4.0
RACES, RACES_AT_ONCE = (500, 10) if LONG else (40, 10)


@pytest.fixture(params=KINDS)
def kind(request: Any) -> str:
    """Name a backend that there is."""
    if request.param == "docker":
        need_docker()
        image.build()
    return str(request.param)


@pytest.fixture
async def made(kind: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """Have a rig on either backend whose engines sleep after a second."""
    async with rig(kind, tmp_path, sleep_after_s=1.0) as one:
        yield one


async def used(made: Rig, use: str, user: str) -> tuple[str, list[str]]:
    """Admit, use the engine in this way for five leases; return what was wrong."""
    live = await made.admitted(user)
    before, vetoes = made.pauses[live.engine.engine_id], len(live.vetoes)
    live.vetoes = []
    async with asyncio.timeout(USE_S + 10):
        await getattr(made, use)(live, USE_S)
    kinds = [veto.kind for veto in live.vetoes]
    wrong = []
    if made.pauses[live.engine.engine_id] != before:
        wrong.append(f"{use}: frozen, after {kinds} (and {vetoes} before)")
    if len(kinds) < LOOKS:
        wrong.append(f"{use}: looked at too seldom, {kinds}")
    if not await made.asleep(live, within_s=10.0):
        wrong.append(f"{use}: still awake, after {[veto.kind for veto in live.vetoes]}")
    return use, wrong


async def test_what_is_in_use_is_never_frozen_and_sleeps_when_it_is_not(made: Rig) -> None:
    """A stream, a websocket, work without a connection, the word `busy`: five leases long each."""
    wrong: list[str] = []
    for _ in range(ROUNDS):
        await asyncio.gather(
            *(made.admitted(f"{use}-{at}") for use in USES for at in range(AT_ONCE))
        )
        found = await asyncio.gather(
            *(used(made, use, f"{use}-{at}") for use in USES for at in range(AT_ONCE))
        )
        wrong += [one for _, faults in found for one in faults]
    assert wrong == []


async def test_random_callers_find_every_engine_they_are_admitted_to(made: Rig) -> None:
    """Admit, touch, sleep, stop, start, destroy at any moment of each other, and real requests."""
    seed = random.randrange(1 << 30)
    rounds = RACES // RACES_AT_ONCE if made.kind == "process" or LONG else 1
    for number in range(rounds):
        races = [
            Races(
                made.gate,
                made.owner,
                f"user-{at}",
                random.Random(f"{seed} {number} {at}"),
                _asks(made),
            )
            for at in range(RACES_AT_ONCE if made.kind == "process" else 4)
        ]
        await asyncio.gather(*(made.ready(one.user) for one in races))
        for one in races:
            one.margin_s = 0.6  # a busy machine takes its time to get a request to the engine
        await asyncio.gather(*(one.run(8, 2.5) for one in races))
        for one in races:
            assert one.faults == [], f"seed {seed} {number} {one.user}\n" + "\n".join(one.story)


def _asks(made: Rig) -> Any:
    async def answers(live: LiveEngine) -> bool:
        """Ask the engine; on a machine that is too busy to answer in time, see if it runs."""
        if await made.answers(live):
            return True
        running = await made.presence(live) == "running"
        return running and await made.answers(live, SLOW_MACHINE_S)

    return answers


async def test_when_memory_is_short_the_longest_asleep_are_stopped_and_wake(
    kind: str, tmp_path: Path
) -> None:
    """One after the other until there is enough; a wake of either kind answers at once after."""
    async with rig(kind, tmp_path, min_available_memory_mb=500) as made:
        await _ladder(made, ["ann", "bob", "cid"])


async def _ladder(made: Rig, users: list[str]) -> None:
    lives: list[LiveEngine] = []
    for user in users:
        lives.append(await made.admitted(user))
        await made.gate.lifecycle.sleep(lives[-1], actor="acme", force=True)

    stopped: set[str] = set()

    def available_mb() -> int:
        stopped.update(one.engine.user_id for one in lives if one.engine.deep)
        return 100 if len(stopped) < 2 else 900

    made.gate.tiers._available_mb = available_mb
    await made.gate.tiers.relieve()
    assert [await made.presence(live) for live in lives] == ["stopped", "stopped", "paused"]
    assert {live.engine.status.value for live in lives} == {"sleeping"}
    for user, live in zip(users, lives, strict=True):
        answer = await made.gate.admit(made.owner, user, auto_wake=True)
        assert isinstance(answer, Admitted)
        assert await made.answers(live)
    wakes = [e for e in made.gate.registry.trail.recent if e.action == "wake"]
    assert [entry.metadata["tier"] for entry in wakes] == ["stopped", "stopped", "frozen"]


@pytest.mark.docker
async def test_fifty_woken_at_once_are_as_fast_as_docker_thaws_them(tmp_path: Path) -> None:
    """Beside fifty unpauses and probes by hand, as many at a time as the backend does.

    The short size has fewer of both, and a bound that only guards against a mishap.
    """
    need_docker()
    image.build()
    count = 50 if LONG else 16
    async with rig("docker", tmp_path, sleep_after_s=600.0) as made:
        slots = asyncio.Semaphore(4)

        async def born(user: str) -> LiveEngine:
            async with slots:
                return await made.admitted(user)

        lives = await asyncio.gather(*(born(f"user-{at}") for at in range(count)))
        for task in made.gate.tasks:  # else what is thawed by hand would be frozen again
            task.cancel()
        ratios = []
        for _ in range(5 if LONG else 3):
            by_hand = await _timed(made, lives, _by_hand(made, asyncio.Semaphore(8)))
            by_admit = await _timed(made, lives, _by_admit(made))
            ratios.append(by_admit / by_hand)
            print(f"{count} at once: by hand {by_hand:.3f} s, by admit {by_admit:.3f} s")
        assert statistics.median(ratios) <= (1.3 if LONG else 2.0), ratios


def _by_hand(made: Rig, places: asyncio.Semaphore) -> Any:
    async def wake(live: LiveEngine) -> None:
        async with places:
            await made.backend._daemon._control.containers.container(
                f"enginegate-{live.engine.engine_id}"
            ).unpause()
        async with asyncio.timeout(10):
            while not (await made.probe.check(f"{live.url}/health", timeout_s=5)).ok:
                pass

    return wake


def _by_admit(made: Rig) -> Any:
    async def wake(live: LiveEngine) -> None:
        answer = await made.gate.admit(made.owner, live.engine.user_id, auto_wake=True)
        assert isinstance(answer, Admitted)

    return wake


async def _timed(made: Rig, lives: list[LiveEngine], wake: Any) -> float:
    """Put all to sleep, wake all at once, and return how long that took."""
    for live in lives:
        if live.running:
            await made.gate.lifecycle.sleep(live, actor="acme", force=True)
    began = time.perf_counter()
    await asyncio.gather(*(wake(live) for live in lives))
    took = time.perf_counter() - began
    for live in lives:
        if not live.running:  # thawed by hand: let the gate have it as it left it
            await made.gate.lifecycle.wake(live, actor="acme")
    return took
