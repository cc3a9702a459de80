"""A wall clock that jumps: nothing waits by it, nothing ends early, and order stays order."""

from typing import Any

import pytest

from enginegate.model import Status
from tests.fakes import settle

HOUR_S, YEAR_S = 3600.0, 365 * 86_400.0
JUMPS = (HOUR_S, -HOUR_S, 10 * YEAR_S, -10 * YEAR_S)


async def failed(gate: Any) -> Any:
    """Return an engine that failed while it ran, with a restart planned in 5 s."""
    owner = await gate.product(idle_sleep_s=0)
    live = await gate.engine(owner)
    gate.run_loops()
    gate.spawn(gate.recovery.watch_forever())
    await settle()
    gate.backend.crash(live.engine.engine_id)
    await settle()
    assert live.engine.status is Status.FAILED
    return live


@pytest.mark.parametrize("jump_s", JUMPS)
async def test_a_planned_restart_comes_when_it_would_have_come(gate: Any, jump_s: float) -> None:
    """Not early, and not ten years late: the wait is monotonic."""
    live = await failed(gate)
    gate.clock.jump_wall(jump_s)
    await gate.clock.advance(4.5)
    assert live.engine.status is Status.FAILED
    await gate.clock.advance(1.5)
    assert live.engine.status is Status.RUNNING


@pytest.mark.parametrize("jump_s", JUMPS)
async def test_a_restart_planned_before_a_crash_waits_no_longer_than_any_backoff(
    gate: Any, jump_s: float
) -> None:
    """The journal has wall times only; what they say is bounded by the configuration."""
    live = await failed(gate)
    engine_id = live.engine.engine_id
    gate.clock.jump_wall(jump_s)
    again = await gate.crash_and_restart()
    again.run_loops()
    await settle()
    await again.clock.advance(again.config.restart.backoff_max_s + 1)
    assert again.registry.engines[engine_id].engine.status is Status.RUNNING
    await again.close()


@pytest.mark.parametrize("jump_s", JUMPS)
async def test_leases_windows_and_numbers_do_not_see_it(gate: Any, jump_s: float) -> None:
    """A lease is as long as before, entries keep their order, no duration is negative."""
    owner = await gate.product(idle_sleep_s=100, rate_limit_rpm=2)
    live = await gate.engine(owner)
    gate.run_loops()
    await settle()
    for _ in range(10):
        gate.clock.jump_wall(jump_s)
        await gate.clock.advance(1)
    assert live.running
    assert live.lease_left_s(gate.clock.now()) == pytest.approx(90, abs=1)
    await gate.lifecycle.stop(live, actor="acme")
    await gate.lifecycle.start(live, version=None, actor="acme")
    entries = list(gate.registry.trail.recent)
    assert [entry.id for entry in entries] == sorted(entry.id for entry in entries)
    assert all(entry.duration_ms is None or entry.duration_ms >= 0 for entry in entries)


async def test_a_clock_that_steps_every_second_changes_nothing(gate: Any) -> None:
    """Back and forth all the time: a quiet engine sleeps when its lease ends."""
    owner = await gate.product(idle_sleep_s=20)
    live = await gate.engine(owner)
    gate.run_loops()
    await settle()
    for number in range(19):
        gate.clock.jump_wall(HOUR_S if number % 2 else -HOUR_S)
        await gate.clock.advance(1)
    assert live.running
    for number in range(3):
        gate.clock.jump_wall(HOUR_S if number % 2 else -HOUR_S)
        await gate.clock.advance(1)
    assert live.engine.status is Status.SLEEPING
