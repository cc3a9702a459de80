"""Who is put to sleep, when, and who never."""

import asyncio
import itertools
from typing import Any

import pytest

from enginegate.admission import Admitted
from enginegate.backends.base import Connection, Usage
from enginegate.config import Config, Ports
from enginegate.errors import BackendUnavailableError
from enginegate.model import Policy
from tests.fakes import settle


async def test_a_quiet_engine_sleeps_at_the_end_of_its_lease(gate: Any, clock: Any) -> None:
    """Not before, and within a second after."""
    gate.run_loops()
    owner = await gate.product(idle_sleep_s=60)
    live = await gate.engine(owner)
    await clock.advance(59.8)
    assert live.running
    await clock.advance(1.2)
    assert (live.engine.status, live.engine.reason) == ("sleeping", "idle")


async def test_admits_and_touches_keep_it_awake_and_nothing_else_does(
    gate: Any, clock: Any
) -> None:
    """Dry admits and refused calls leave the lease alone."""
    gate.run_loops()
    owner = await gate.product(idle_sleep_s=60)
    live = await gate.engine(owner)
    await clock.advance(50)
    assert gate.warm() is not None
    await clock.advance(50)
    assert live.running
    await gate.admit(owner, touch=False)
    await clock.advance(11.2)
    assert live.engine.status == "sleeping"


async def test_zero_means_never(gate: Any, clock: Any) -> None:
    """idle_sleep_s 0 keeps an engine awake for ever."""
    gate.run_loops()
    owner = await gate.product(idle_sleep_s=0)
    live = await gate.engine(owner)
    await clock.advance(3600)
    assert live.running


async def test_a_changed_policy_counts_from_now(gate: Any, clock: Any) -> None:
    """Leases move when the policy does."""
    gate.run_loops()
    owner = await gate.product(idle_sleep_s=0)
    live = await gate.engine(owner)
    await gate.products.set_policy(owner.product.product_id, Policy(idle_sleep_s=10))
    await clock.advance(9)
    assert live.running
    await clock.advance(2.2)
    assert live.engine.status == "sleeping"


async def test_a_busy_engine_is_asked_again_and_sleeps_when_it_is_done(
    gate: Any, clock: Any
) -> None:
    """A veto moves the deadline by a part of the lease and leaves one audit entry."""
    gate.run_loops()
    owner = await gate.product(idle_sleep_s=20)
    live = await gate.engine(owner)
    fake = gate.backend.engine(live.engine.engine_id)
    fake.busy = True
    await clock.advance(50)
    assert live.running
    assert gate.actions().count("sleep_vetoed!") == 1
    assert live.vetoes[-1].kind == "busy"
    fake.busy, fake.connections = False, [Connection(1.0)]
    await clock.advance(10)
    assert live.vetoes[-1].kind == "connections"
    fake.connections = []
    await clock.advance(3)
    assert live.engine.status == "sleeping"


async def test_an_engine_that_does_not_answer_is_not_frozen(gate: Any, clock: Any) -> None:
    """Unhealthy is for the health loop to judge; unknown is no permission either."""
    owner = await gate.product()
    live = await gate.engine(owner)
    fake = gate.backend.engine(live.engine.engine_id)
    fake.healthy = False
    assert (await gate.lifecycle.quietness.veto(live, idle=True)).kind == "unanswered"
    assert await gate.lifecycle.quietness.veto(live, idle=False) is None
    fake.healthy = True
    fake.usage = Usage(cpu_s=0.0)  # of a backend that counts no bytes
    gate.backend.fail("connections")
    assert (await gate.lifecycle.quietness.veto(live, idle=True)).kind == "unknown"


async def test_an_admit_during_the_freeze_reverses_it(gate: Any, clock: Any) -> None:
    """The caller is admitted, the engine thawed, and no sleep is recorded."""
    gate.run_loops()
    owner = await gate.product(idle_sleep_s=10)
    live = await gate.engine(owner)
    hang = gate.backend.hang("pause")
    await clock.advance(10.5)
    await hang.reached.wait()
    assert gate.warm() is None
    caller = asyncio.create_task(gate.admit(owner))
    await settle()
    hang.release()
    assert isinstance(await caller, Admitted)
    assert live.running
    assert gate.backend.engine(live.engine.engine_id).presence == "running"
    assert "sleep" not in gate.actions()
    await clock.advance(11)
    assert live.engine.status == "sleeping"


async def test_an_admit_between_the_probe_and_the_freeze_keeps_it_awake(
    gate: Any, clock: Any
) -> None:
    """The lease is looked at again right before the freeze."""
    gate.run_loops()
    owner = await gate.product(idle_sleep_s=10)
    live = await gate.engine(owner)
    hang = gate.backend.hang("connections")
    await clock.advance(10.5)
    await hang.reached.wait()
    assert gate.warm() is not None
    hang.release()
    await settle()
    assert live.running
    assert gate.backend.count("pause") == 0


async def test_a_freeze_that_fails_is_tried_again_later(gate: Any, clock: Any) -> None:
    """The engine stays in service meanwhile."""
    gate.run_loops()
    owner = await gate.product(idle_sleep_s=10)
    live = await gate.engine(owner)
    gate.backend.fail("pause")
    await clock.advance(10.5)
    assert live.running
    await clock.advance(2)
    assert live.engine.status == "sleeping"


async def test_engines_at_work_or_without_a_journal_are_looked_at_later(
    gate: Any, clock: Any
) -> None:
    """Nothing is frozen that could not be recorded."""
    gate.run_loops()
    owner = await gate.product(idle_sleep_s=10)
    live = await gate.engine(owner)
    gate.journal.status = "full"
    await clock.advance(15)
    assert live.running
    gate.journal.status = "ok"
    await clock.advance(2.0)  # the next look, and a second's look at what it uses
    assert live.engine.status == "sleeping"


async def test_an_admit_while_the_sleep_goes_to_the_disk_wakes_it_again(
    gate: Any, clock: Any
) -> None:
    """The engine is frozen already; the caller is admitted all the same, without auto_wake."""
    owner = await gate.product(idle_sleep_s=10)
    live = await gate.engine(owner)
    gate.spawn(gate.idle.run_forever())
    gate.journal.hold()
    await clock.advance(10.5)
    assert gate.backend.engine(live.engine.engine_id).presence == "paused"
    caller = asyncio.create_task(gate.admit(owner))
    await settle()
    gate.journal.release()
    assert isinstance(await caller, Admitted)
    assert gate.actions()[-2:] == ["sleep", "wake"]
    assert gate.backend.engine(live.engine.engine_id).presence == "running"


async def test_three_hundred_fall_due_at_once_while_some_do_not_answer(
    make_gate: Any, clock: Any
) -> None:
    """Every quiet one sleeps within the second; those who do not answer hold up only each other."""
    gate = await make_gate(Config(ports=Ports(min=9001, max=9999)))
    gate.run_loops()
    owner = await gate.product(idle_sleep_s=10)
    lives = [await gate.engine(owner, f"user-{number}") for number in range(303)]
    for live in lives[::101]:
        gate.backend.engine(live.engine.engine_id).probe_delay_s = 3600
    gate.backend.delay("pause", 0.013, times=None)  # what Docker takes for a freeze
    await clock.advance(11)
    awake = [live for live in lives if live.running]
    assert awake == lives[::101]
    await clock.advance(20)
    assert {live.vetoes[-1].kind for live in awake} == {"unanswered"}
    assert gate.actions().count("sleep_vetoed!") == 3


async def test_one_that_is_slow_to_answer_sleeps_all_the_same(gate: Any, clock: Any) -> None:
    """It is asked again with the patience of the health probe."""
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=100))
    gate.backend.engine(live.engine.engine_id).probe_delay_s = 4
    await clock.advance(105)
    assert live.engine.status == "sleeping"


async def test_one_that_hangs_is_failed_however_short_its_lease(gate: Any, clock: Any) -> None:
    """Tries to put it to sleep are at work nearly all the time; probes count beside them."""
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=3))
    fake = gate.backend.engine(live.engine.engine_id)
    fake.probe_delay_s = 3600
    await clock.advance(140)
    assert "health_failed!" in gate.actions()
    fake.probe_delay_s = 0
    await clock.advance(30)
    assert gate.actions()[-1] in ("auto_restart_success", "sleep")


@pytest.mark.parametrize("looked_at", ["usage", "connections"])
async def test_one_that_has_gone_is_failed_by_the_try_to_put_it_to_sleep(
    gate: Any, clock: Any, looked_at: str
) -> None:
    """The news of its end was lost; whoever finds it dead tells, and waits for no comparison."""
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=6))
    hang = gate.backend.hang(looked_at)
    await clock.advance(6.5)
    await hang.reached.wait()
    gate.backend.crash(live.engine.engine_id, tell=False)
    hang.release()
    await clock.advance(2)
    assert live.engine.status == "failed"


@pytest.mark.parametrize("lease_s", [2, 5, 30])
async def test_one_that_others_froze_is_thawed_however_short_its_lease(
    gate: Any, clock: Any, lease_s: float
) -> None:
    """Whoever asks it for its sleep and hears nothing looks why, and does not wait its time-out."""
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=lease_s))
    gate.backend.engine(live.engine.engine_id).connections = [Connection(1.0)]
    await clock.advance(21)  # the comparison is due soon, and finds a sleep at work
    gate.backend.engine(live.engine.engine_id).connections = []
    gate.backend.freeze_behind(live.engine.engine_id, tell=False)
    await clock.advance(12)
    assert "recovered" in gate.actions()
    assert gate.backend.count("start") == 1


async def test_a_restart_does_not_put_everybody_to_sleep_at_once(gate: Any, clock: Any) -> None:
    """Full leases that began together end together; the sleeps are spread over a part of them."""
    owner = await gate.product(idle_sleep_s=100)
    for number in range(50):
        await gate.engine(owner, f"user-{number}")
    again = await gate.crash_and_restart()
    again.run_loops()
    lives = again.registry.engines.values()
    await clock.advance(99.9)
    assert all(live.running for live in lives)
    slept = []
    for _ in range(11):
        slept.append(sum(not live.running for live in lives))
        await clock.advance(0.55)
    assert slept[-1] == 50
    assert (
        max(b - a for a, b in itertools.pairwise(slept)) < 25
    )  # of 50, where 6 are to be expected
    await again.close()


@pytest.mark.parametrize("jump_s", [-3600, 3600])
async def test_a_wall_clock_that_jumps_moves_no_lease(gate: Any, clock: Any, jump_s: float) -> None:
    """An hour forth or back: the engine sleeps when its lease ends, as if nothing had been."""
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=60))
    await clock.advance(30)
    clock.jump_wall(jump_s)
    await clock.advance(29.8)
    assert live.running
    await clock.advance(1.2)
    assert live.engine.status == "sleeping"


async def test_the_sleep_says_for_how_long_nobody_had_come(gate: Any, clock: Any) -> None:
    """Vetoes move the deadline, but they are no use of the engine."""
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=20))
    await clock.advance(15)
    gate.warm()
    fake = gate.backend.engine(live.engine.engine_id)
    fake.busy = True
    await clock.advance(40)
    fake.busy = False
    await clock.advance(3)
    entry = gate.registry.trail.recent[-1]
    assert entry.action == "sleep"
    assert 40 <= entry.metadata["unused_s"] <= 43


async def test_a_sleep_on_request_is_not_refused_as_busy_where_nobody_knows(gate: Any) -> None:
    """With the backend away the answer is that it is away; the engine is left as it is."""
    live = await gate.engine(await gate.product())
    gate.backend.down = True
    with pytest.raises(BackendUnavailableError):
        await gate.lifecycle.sleep(live, actor="a")
    assert live.running
