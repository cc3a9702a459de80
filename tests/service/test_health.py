"""Probes, crashes, automatic restarts, and when to leave engines alone."""

import asyncio
from typing import Any

import msgspec
import pytest

from enginegate.admission import Refused
from enginegate.backends.base import BackendEvent
from enginegate.config import Config, EngineSettings, Health, Restart
from enginegate.registry import LiveEngine
from tests.fakes import settle

QUICK = Config(
    health=Health(interval_s=10, max_failures=3),
    restart=Restart(backoff_base_s=5, backoff_max_s=40, max_attempts=3),
)


async def test_a_crash_is_noticed_at_once_and_the_engine_comes_back(
    make_gate: Any, clock: Any
) -> None:
    """No probe is needed: failed in the same moment, running after backoff and boot."""
    gate = await make_gate(QUICK)
    gate.run_loops()
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.backend.crash(live.engine.engine_id, exit_code=3)
    await settle()
    assert live.engine.status == "failed"
    failed = next(e for e in gate.registry.trail.recent if e.action == "health_failed")
    assert (failed.metadata["reason"], failed.metadata["exit_code"]) == ("exited", 3)
    await clock.advance(5.2)
    assert live.running
    assert gate.actions()[-2:] == ["auto_restart_start", "auto_restart_success"]


async def test_an_unhealthy_engine_is_restarted_until_the_gate_gives_up(
    make_gate: Any, clock: Any
) -> None:
    """health_failed, every attempt, gave_up, engine_unhealthy; then a start revives it."""
    gate = await make_gate(QUICK)
    gate.run_loops()
    owner = await gate.product()
    live = await gate.engine(owner)
    fake = gate.backend.engine(live.engine.engine_id)
    fake.healthy = False
    await clock.advance(600)
    assert gate.actions() == [
        "policy_register",
        "provision",
        "health_check!",
        "health_failed!",
        *["auto_restart_start", "auto_restart_failed!"] * 3,
        "auto_restart_gave_up!",
    ]
    assert await gate.admit(owner) == Refused("engine_unhealthy")
    assert not fake.alive
    fake.healthy = True
    await gate.lifecycle.start(live, version=None, actor="acme")
    assert (live.running, live.engine.restart_attempts) == (True, 0)


@pytest.mark.parametrize(
    ("verbs", "left"),
    [(("stop",), "stopped"), (("stop", "start"), "running"), (("destroy",), "gone")],
)
async def test_a_failed_probe_is_void_once_somebody_acted(
    make_gate: Any,
    clock: Any,
    caplog: pytest.LogCaptureFixture,
    verbs: tuple[str, ...],
    left: str,
) -> None:
    """A sweep judges at its end: whoever was stopped, or began another life, is not failed."""
    gate = await make_gate(Config(health=Health(interval_s=10, timeout_s=5, max_failures=1)))
    owner = await gate.product()
    sick, slow = await gate.engine(owner, "sick"), await gate.engine(owner, "slow")
    gate.backend.engine(sick.engine.engine_id).healthy = False
    gate.backend.engine(slow.engine.engine_id).probe_delay_s = 4
    gate.spawn(gate.health.sweep())
    await settle()
    gate.backend.engine(sick.engine.engine_id).healthy = True
    for verb in verbs:
        more = {"version": None} if verb == "start" else {}
        await getattr(gate.lifecycle, verb)(sick, actor="acme", **more)
    await clock.advance(6)
    assert ("gone" if sick.gone else sick.engine.status) == left
    assert gate.actions()[-1] == verbs[-1]
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


async def test_a_start_of_an_engine_that_failed_alive_begins_another_life(
    make_gate: Any, clock: Any
) -> None:
    """It hangs, and nobody waits for its restart: the operator's start ends the old process too."""
    gate = await make_gate(QUICK)
    live = await gate.engine(await gate.product())
    fake = gate.backend.engine(live.engine.engine_id)
    fake.healthy, life = False, live.life
    for _ in range(3):
        await gate.health.sweep()
    assert (live.engine.status, fake.alive) == ("failed", True)
    fake.healthy = True
    starting = gate.spawn(gate.lifecycle.start(live, version=None, actor="acme"))
    await clock.advance(1)
    await starting
    assert live.running
    assert live.life != life
    assert gate.backend.count("stop") == 1


async def test_the_count_of_attempts_starts_anew_after_a_time_of_health(
    make_gate: Any, clock: Any
) -> None:
    """Two crashes close together count up; after backoff_max_s of health it is one again."""
    gate = await make_gate(QUICK)
    gate.run_loops()
    owner = await gate.product()
    live = await gate.engine(owner)
    for expected in (1, 2):
        gate.backend.crash(live.engine.engine_id)
        await clock.advance(15)
        assert (live.running, live.engine.restart_attempts) == (True, expected)
    await clock.advance(41)
    gate.backend.crash(live.engine.engine_id)
    await clock.advance(15)
    assert live.engine.restart_attempts == 1


async def test_one_bad_probe_is_a_flip_not_a_failure(make_gate: Any, clock: Any) -> None:
    """health_check entries mark ok to failing and back, nothing else."""
    gate = await make_gate(QUICK)
    gate.run_loops()
    owner = await gate.product()
    live = await gate.engine(owner)
    fake = gate.backend.engine(live.engine.engine_id)
    fake.healthy = False
    await clock.advance(10)
    fake.healthy = True
    await clock.advance(30)
    assert gate.actions()[2:] == ["health_check!", "health_check"]
    assert live.healthy_at_ms is not None


async def test_a_backend_that_is_down_is_not_the_engines_fault(make_gate: Any, clock: Any) -> None:
    """Failed probes do not count while nobody can say how the engines are."""
    gate = await make_gate(QUICK)
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.backend.engine(live.engine.engine_id).healthy = False
    gate.backend.down = True
    for _ in range(5):
        await gate.health.sweep()
    assert (live.running, gate.health.backend_ok) == (True, False)
    gate.backend.down = False
    await gate.health.sweep()
    assert (live.running, live.probe_failures) == (True, 1)


async def test_a_shared_outage_restarts_nobody(make_gate: Any) -> None:
    """More than max(5, 20 %) failing in one sweep: suspended, audited, nobody failed."""
    gate = await make_gate(QUICK)
    owner = await gate.product()
    lives = [await gate.engine(owner, f"user{n}") for n in range(6)]
    for live in lives:
        gate.backend.engine(live.engine.engine_id).healthy = False
    for _ in range(3):
        await gate.health.sweep()
    await settle()
    assert all(live.running for live in lives)
    assert gate.actions()[-1] == "restarts_suspended"
    gate.backend.engine(lives[0].engine.engine_id).healthy = True
    await gate.health.sweep()
    assert all(live.running for live in lives), "who is slower to come out of it is not blamed"
    for _ in range(2):
        await gate.health.sweep()
    assert [live.engine.status for live in lives] == ["running", *["failed"] * 5]


async def test_a_probe_of_an_earlier_life_is_dropped(gate: Any, clock: Any) -> None:
    """A result that comes after a stop and start says nothing about the new life."""
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.backend.engine(live.engine.engine_id).probe_delay_s = 20
    sweeping = asyncio.create_task(gate.health.sweep())
    await settle()
    gate.backend.engine(live.engine.engine_id).probe_delay_s = 0
    await gate.lifecycle.stop(live, actor="acme")
    await gate.lifecycle.start(live, version=None, actor="acme")
    await clock.advance(11)
    await sweeping
    assert live.probe_failures == 0


async def test_an_event_that_is_not_true_changes_nothing(gate: Any) -> None:
    """Events are hints: the backend is asked before an engine is failed."""
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.backend.emit(BackendEvent(kind="exited", engine_id=live.engine.engine_id))
    gate.backend.emit(BackendEvent(kind="exited", engine_id="nobody"))
    await settle()
    assert live.running
    gate.backend.fail("inspect")
    gate.backend.emit(BackendEvent(kind="exited", engine_id=live.engine.engine_id))
    await settle()
    assert live.running


async def test_an_exit_during_the_boot_ends_the_wait(gate: Any, clock: Any) -> None:
    """Nobody waits for the boot time-out of an engine that is gone."""
    gate.backend.boot_s = 30
    owner = await gate.product()
    booting = asyncio.create_task(gate.engine(owner))
    await settle()
    await clock.advance(1)
    gate.backend.crash(owner.engines["ann"].engine.engine_id)
    await clock.advance(1)
    assert booting.done()
    assert owner.engines["ann"].engine.status == "failed"
    assert booting.exception() is not None


async def test_restarts_wait_for_a_journal_that_can_be_written(make_gate: Any, clock: Any) -> None:
    """A full disk postpones the attempt; it is made when there is room."""
    gate = await make_gate(QUICK)
    gate.run_loops()
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.backend.crash(live.engine.engine_id)
    await settle()
    gate.journal.status = "full"
    await clock.advance(20)
    assert live.engine.status == "failed"
    gate.journal.status = "ok"
    await clock.advance(2)
    assert live.running


async def test_nobody_is_sent_to_an_engine_whose_end_cannot_be_written(
    make_gate: Any, clock: Any
) -> None:
    """Its row says that it runs until there is room; then it is failed, and restarted."""
    gate = await make_gate(QUICK)
    gate.run_loops()
    owner = await gate.product()
    live, well = await gate.engine(owner), await gate.engine(owner, "well")
    assert gate.warm() is not None
    gate.journal.status = "full"
    gate.backend.crash(live.engine.engine_id)
    await settle()
    assert live.running
    assert gate.warm() is None
    assert await gate.admit(owner) == Refused("engine_restarting", 1.0)
    assert gate.warm("well") is not None
    assert well.running
    gate.journal.status = "ok"
    await gate.recovery.compare()
    assert live.engine.status == "failed"
    await clock.advance(7)
    assert gate.warm() is not None


@pytest.mark.parametrize("restarted", [False, True])
async def test_nobody_is_sent_there_either_if_no_event_told_of_the_end(
    make_gate: Any, restarted: bool
) -> None:
    """A comparison finds it dead, or the next start does, on a disk that is full."""
    gate = await make_gate(QUICK)
    live = await gate.engine(await gate.product())
    gate.journal.status = "full"
    gate.backend.crash(live.engine.engine_id, tell=False)
    if restarted:
        gate = await gate.crash_and_restart()
    await gate.recovery.compare()
    [owner] = gate.registry.products.values()
    assert gate.warm() is None
    assert await gate.admit(owner) == Refused("engine_restarting", 1.0)
    await gate.close()


async def test_nobody_is_sent_to_one_that_is_gone_with_its_data(make_gate: Any) -> None:
    """That cannot be written either, and is as true."""
    gate = await make_gate(QUICK)
    live = await gate.engine(await gate.product())
    gate.journal.status = "full"
    gate.backend.vanish(live.engine.engine_id, tell=False, with_data=True)
    await gate.recovery.compare()
    assert gate.warm() is None


async def hung_in_its_sleep(make_gate: Any, clock: Any) -> tuple[Any, LiveEngine]:
    """Return a gate that patiently asks an engine, on its way to sleep, that does not answer."""
    gate = await make_gate(QUICK)
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=20))
    gate.backend.engine(live.engine.engine_id).probe_delay_s = 60
    while live.operation is None or live.operation.verb != "sleep":
        await clock.advance(0.05)
    await clock.advance(1.5)  # the brief try is over
    assert live.operation
    assert not live.operation.holds
    return gate, live


async def test_an_end_is_noticed_at_once_beside_a_try_to_put_it_to_sleep(
    make_gate: Any, clock: Any
) -> None:
    """The try lets admits through, so it must not keep the news from them."""
    gate, live = await hung_in_its_sleep(make_gate, clock)
    gate.backend.crash(live.engine.engine_id)
    await settle()
    assert gate.warm() is None
    await clock.advance(15)
    assert "health_failed!" in gate.actions()


async def test_an_end_is_noticed_at_once_beside_a_live_rotation(make_gate: Any) -> None:
    """The new key counts as another life, and that one is over, too."""
    gate = await make_gate(
        msgspec.structs.replace(QUICK, engine=EngineSettings(rotate_mode="live"))
    )
    live = await gate.engine(await gate.product())
    hang = gate.backend.hang("put_key")
    rotating = asyncio.create_task(gate.lifecycle.rotate_key(live, actor="acme"))
    await hang.reached.wait()
    gate.backend.crash(live.engine.engine_id)
    await settle()
    hang.release()
    await rotating
    await settle()
    assert live.engine.status == "failed"


async def test_nobody_waits_for_a_failure_to_have_its_turn(make_gate: Any, clock: Any) -> None:
    """An engine that hangs on its way to sleep holds up neither an admit nor a sweep."""
    gate, live = await hung_in_its_sleep(make_gate, clock)
    live.probe_failures = QUICK.health.max_failures
    verified = [asyncio.create_task(gate.health.verify(live, 1.0)) for _ in range(3)]
    await clock.advance(1.1)
    assert all(one.done() for one in verified)
    assert live.running
    waiting = [one for one in gate.tasks if one.get_name() == "fail in turn" and not one.done()]
    assert len(waiting) == 1
    await clock.advance(15)
    assert gate.actions().count("health_failed!") == 1


async def test_one_that_others_started_again_meanwhile_is_admitted(
    make_gate: Any, clock: Any
) -> None:
    """Docker does so by itself; what is written of it waits for room."""
    gate = await make_gate(QUICK)
    gate.run_loops()
    live = await gate.engine(await gate.product())
    gate.journal.status = "full"
    gate.backend.crash(live.engine.engine_id)
    await settle()
    assert gate.warm() is None
    gate.backend.restart_behind(live.engine.engine_id, tell=False)
    await gate.recovery.compare()
    assert gate.warm() is not None


async def test_a_restart_that_could_not_even_be_recorded_is_tried_again(
    make_gate: Any, clock: Any
) -> None:
    """A disk that is full for a moment costs a second, not the plan."""
    gate = await make_gate(QUICK)
    live = await gate.engine(await gate.product())
    gate.backend.crash(live.engine.engine_id)
    await settle()
    await clock.advance(6)
    gate.health.begin_due_restarts()
    gate.journal.status = "full"
    await settle()
    assert live.engine.status == "failed"
    gate.journal.status = "ok"
    await clock.advance(1)
    gate.health.begin_due_restarts()
    await clock.advance(1)
    assert live.running


async def test_a_stop_cancels_a_planned_restart(make_gate: Any, clock: Any) -> None:
    """A stopped engine stays stopped."""
    gate = await make_gate(QUICK)
    gate.run_loops()
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.backend.crash(live.engine.engine_id)
    await settle()
    await gate.lifecycle.stop(live, actor="acme")
    await clock.advance(100)
    assert live.engine.status == "stopped"


async def test_a_backend_that_is_away_costs_no_attempts(make_gate: Any, clock: Any) -> None:
    """Attempts that could not even be made are not the engine's."""
    gate = await make_gate(QUICK)
    gate.run_loops()
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.backend.crash(live.engine.engine_id)
    await settle()
    gate.backend.down = True
    await clock.advance(300)
    gate.backend.down = False
    await clock.advance(60)
    assert live.running


async def test_the_probes_of_a_sweep_are_spread(make_gate: Any, clock: Any) -> None:
    """Over half of the interval, and each engine once in an interval."""
    gate = await make_gate(QUICK)
    owner = await gate.product()
    for number in range(50):
        await gate.engine(owner, f"user-{number}")
    gate.spawn(gate.health.sweep_forever())
    gate.probe.checks.clear()
    counts = []
    for _ in range(80):
        await clock.advance(0.25)
        counts.append(len(gate.probe.checks))
        gate.probe.checks.clear()
    assert sum(counts[:40]) == sum(counts[40:]) == 50
    assert max(counts) <= 4
    assert counts[:19] == [0] * 19


async def test_one_that_stops_before_its_turn_in_a_sweep_is_not_probed(
    make_gate: Any, clock: Any
) -> None:
    """What a probe would find of it is known already."""
    gate = await make_gate(QUICK)
    owner = await gate.product()
    for user in ("ann", "bob"):
        await gate.engine(owner, user)
        await clock.advance(0.001)  # the older one has its turn first
    gate.spawn(gate.health.sweep_forever())
    gate.probe.checks.clear()
    await clock.advance(5.1)
    await gate.lifecycle.stop(owner.engines["bob"], actor="acme")
    await clock.advance(4.9)
    assert len(gate.probe.checks) == 1
