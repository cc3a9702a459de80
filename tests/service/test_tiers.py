"""Sleepers that are stopped to give their memory back, and woken all the same."""

import asyncio
from typing import Any

import pytest

from enginegate.admission import Admitted, Refused
from enginegate.config import Config, Idle
from tests.fakes import SimulatedCrash, settle

STOP_AFTER = Config(idle=Idle(stop_after_s=100))


async def asleep(gate: Any, owner: Any, *users: str) -> list[Any]:
    """Put new engines of these users to sleep, a second after one another."""
    lives = []
    for user in users:
        live = await gate.engine(owner, user)
        await gate.lifecycle.sleep(live, actor="acme")
        await gate.clock.advance(1)
        lives.append(live)
    return lives


def told(gate: Any, action: str) -> list[dict[str, Any]]:
    """Return what the entries of this action tell, oldest first."""
    return [entry.metadata for entry in gate.registry.trail.recent if entry.action == action]


async def test_long_sleepers_are_stopped_and_sleep_on(make_gate: Any, clock: Any) -> None:
    """After `idle.stop_after_s` the process is gone, the state is not; the trail says why."""
    gate = await make_gate(STOP_AFTER)
    gate.run_loops()
    (live,) = await asleep(gate, await gate.product(), "ann")
    await clock.advance(98)
    assert gate.backend.engine(live.engine.engine_id).presence == "paused"
    await clock.advance(2)
    assert gate.backend.engine(live.engine.engine_id).presence == "stopped"
    assert (live.engine.status, live.engine.deep) == ("sleeping", True)
    assert told(gate, "sleep")[-1] == {
        "reason": "stop_after",
        "tier": "stopped",
        "asleep_s": pytest.approx(100, abs=1),
    }
    await clock.advance(200)
    assert gate.backend.count("stop") == 1


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
async def test_a_clock_that_jumps_stops_nobody_for_good(
    make_gate: Any, clock: Any, jump_s: float
) -> None:
    """A planned stop waits by the monotonic clock, whatever the wall clock says meanwhile."""
    gate = await make_gate(STOP_AFTER)
    gate.run_loops()
    (live,) = await asleep(gate, await gate.product(), "ann")
    clock.jump_wall(jump_s)
    await clock.advance(97)
    assert not live.engine.deep
    await clock.advance(4)
    assert live.engine.deep


@pytest.mark.parametrize("deep", [False, True])
async def test_wake_works_from_both_tiers_and_the_trail_says_which(
    make_gate: Any, clock: Any, deep: bool
) -> None:
    """The same admit thaws the one and boots the other; entry and answer say how long it took."""
    gate = await make_gate(STOP_AFTER)
    gate.backend.boot_s = 0.2
    owner = await gate.product()
    engine = asyncio.create_task(gate.engine(owner))
    await clock.advance(1)
    live = await engine
    await gate.lifecycle.sleep(live, actor="acme")
    if deep:
        await gate.lifecycle.deepen(live, reason="stop_after")
    waking = asyncio.create_task(gate.admit(owner, auto_wake=True))
    await clock.advance(1)
    answer = await waking
    assert isinstance(answer, Admitted)
    assert (answer.action, live.engine.status, live.engine.deep) == ("woke", "running", False)
    entry = gate.registry.trail.recent[-1]
    assert (entry.action, entry.metadata["tier"]) == ("wake", "stopped" if deep else "frozen")
    assert (entry.duration_ms >= 200) == deep
    assert entry.duration_ms <= answer.waited_ms


async def test_a_start_wakes_deep_sleepers_too(gate: Any) -> None:
    """Its entry names the tier as well."""
    (live,) = await asleep(gate, await gate.product(), "ann")
    await gate.lifecycle.deepen(live, reason="stop_after")
    await gate.lifecycle.start(live, version=None, actor="acme")
    assert (live.running, told(gate, "start")[-1]) == (True, {"tier": "stopped"})


async def test_when_memory_is_short_the_longest_asleep_go_first(make_gate: Any) -> None:
    """One after the other, memory read anew in between, until there is enough."""
    gate = await make_gate(Config(idle=Idle(min_available_memory_mb=500)))
    lives = await asleep(gate, await gate.product(), "ann", "bob", "cid", "dan")
    readings = iter([100, 100, 300, 500])
    gate.tiers._available_mb = lambda: next(readings)
    await gate.tiers.relieve()
    assert [live.engine.deep for live in lives] == [True, True, False, False]
    assert [entry["available_mb"] for entry in told(gate, "sleep")[-2:]] == [100, 300]
    assert told(gate, "sleep")[-1]["reason"] == "low_memory"
    answer = await gate.admit(lives[0].owner, "ann", auto_wake=True)
    assert isinstance(answer, Admitted)


async def test_memory_is_watched_only_where_it_is_asked_for(make_gate: Any, clock: Any) -> None:
    """Without a floor nobody is stopped; an unreadable figure is no reason either."""
    gate = await make_gate()
    gate.run_loops()
    (live,) = await asleep(gate, await gate.product(), "ann")
    gate.available_mb = 0
    await clock.advance(10)
    assert not live.engine.deep
    watching = await make_gate(Config(idle=Idle(min_available_memory_mb=500)))
    watching.run_loops()
    (live,) = await asleep(watching, await watching.product(), "ann")
    watching.available_mb = None
    await clock.advance(3)
    assert not live.engine.deep
    watching.available_mb = 10
    await clock.advance(1.5)
    assert live.engine.deep


async def test_one_that_cannot_be_stopped_does_not_keep_the_others(make_gate: Any) -> None:
    """The next one is stopped instead; the comparison finishes what was begun."""
    gate = await make_gate(Config(idle=Idle(min_available_memory_mb=500)))
    ann, bob = await asleep(gate, await gate.product(), "ann", "bob")
    gate.available_mb = 100
    gate.backend.fail("stop")
    await gate.tiers.relieve()
    world = gate.backend.world.engines
    assert world[ann.engine.engine_id].presence == "paused"
    assert world[bob.engine.engine_id].presence == "stopped"
    await gate.recovery.compare()
    await settle()
    assert world[ann.engine.engine_id].presence == "stopped"


async def test_an_admit_during_the_stop_waits_for_it_and_wakes(gate: Any, clock: Any) -> None:
    """No wake is lost; one that does not ask for it hears at once that the engine sleeps."""
    owner = await gate.product()
    (live,) = await asleep(gate, owner, "ann")
    hang = gate.backend.hang("stop")
    stopping = asyncio.create_task(gate.lifecycle.deepen(live, reason="low_memory"))
    await hang.reached.wait()
    assert await gate.admit(owner, "ann") == Refused("engine_sleeping")
    waking = asyncio.create_task(gate.admit(owner, "ann", auto_wake=True))
    await settle()
    hang.release()
    assert await stopping
    answer = await waking
    assert isinstance(answer, Admitted)
    assert answer.action == "woke"


async def test_a_sleeper_that_woke_is_not_stopped(gate: Any) -> None:
    """Whoever was there first is heard; there is nothing to stop any more."""
    (live,) = await asleep(gate, await gate.product(), "ann")
    await gate.lifecycle.wake(live, actor="acme")
    assert not await gate.lifecycle.deepen(live, reason="low_memory")
    assert live.running


@pytest.mark.parametrize("after", [False, True])
async def test_a_crash_in_the_middle_of_the_stop_is_made_good(gate: Any, after: bool) -> None:
    """The next start stops what was to be stopped, and a wake works."""
    owner = await gate.product()
    (live,) = await asleep(gate, owner, "ann")
    gate.backend.die("stop", after=after)
    with pytest.raises(SimulatedCrash):
        await gate.lifecycle.sleeper.deepen(live, reason="stop_after")
    again = await gate.crash_and_restart()
    live = again.registry.engines[live.engine.engine_id]
    assert (live.engine.status, live.engine.deep) == ("sleeping", True)
    assert again.backend.engine(live.engine.engine_id).presence == "stopped"
    assert isinstance(await again.admit(live.owner, "ann", auto_wake=True), Admitted)
    await again.close()


async def test_a_sleeper_whose_process_died_is_started_when_it_is_woken(gate: Any) -> None:
    """It was frozen, says the row; the backend knows better, and so does the trail afterwards."""
    owner = await gate.product()
    (live,) = await asleep(gate, owner, "ann")
    gate.backend.crash(live.engine.engine_id)
    await settle()
    await gate.recovery.compare()
    assert live.engine.status == "sleeping"
    assert isinstance(await gate.admit(owner, "ann", auto_wake=True), Admitted)
    assert told(gate, "wake")[-1]["tier"] == "stopped"


async def test_plans_to_stop_survive_a_restart(make_gate: Any, clock: Any) -> None:
    """Who fell asleep before it is stopped when it was to be, not later."""
    gate = await make_gate(STOP_AFTER)
    (live,) = await asleep(gate, await gate.product(), "ann")
    await clock.advance(60)
    again = await gate.crash_and_restart()
    again.run_loops()
    live = again.registry.engines[live.engine.engine_id]
    await clock.advance(37)
    assert not live.engine.deep
    await clock.advance(4)
    assert live.engine.deep
    await again.close()
