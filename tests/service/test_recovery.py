"""After a crash: what was answered is there, what was begun is finished or undone."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from enginegate.backends.base import BackendEvent, EngineSpec, Presence
from enginegate.config import Config, EngineSettings
from enginegate.errors import BackendFailedError, BackendUnavailableError
from enginegate.facts import KeyRotationBegun
from enginegate.keys import digest_hex, new_engine_key
from enginegate.lifecycle.boot import DataGoneError
from enginegate.model import Status
from enginegate.registry import LiveEngine
from tests.fakes import settle

STEADY = {
    Status.RUNNING: Presence.RUNNING,
    Status.SLEEPING: Presence.PAUSED,
    Status.STOPPED: Presence.STOPPED,
}


def agree(gate: Any) -> bool:
    """Whether every row and what the backend has of it are of one mind."""
    for live in gate.registry.engines.values():
        fake = gate.backend.world.engines.get(live.engine.engine_id)
        if live.engine.status not in STEADY or live.engine.pending_key is not None:
            return False
        if fake is None or fake.presence is not STEADY[live.engine.status]:
            return False
        if fake.alive and fake.key_file[0] != live.engine.key_hash:
            return False
    return set(gate.backend.alive) <= set(gate.registry.engines)


async def test_surviving_engines_are_adopted_as_they_are(gate: Any) -> None:
    """Same life, same key, a full lease, and nothing was started."""
    owner = await gate.product(idle_sleep_s=100)
    live = await gate.engine(owner)
    again = await gate.crash_and_restart()
    adopted = again.registry.engines[live.engine.engine_id]
    assert (adopted.engine, adopted.api_key) == (live.engine, live.api_key)
    assert adopted.lease_left_s(again.clock.now()) == 100
    assert again.backend.count("start") == 0
    assert again.warm() is not None
    await again.close()


Verb = Callable[[Any, LiveEngine], Awaitable[object]]
VERBS: dict[str, tuple[str, Verb]] = {
    "stop": ("running", lambda g, e: g.lifecycle.stop(e, actor="a")),
    "start": ("stopped", lambda g, e: g.lifecycle.start(e, version=None, actor="a")),
    "sleep": ("running", lambda g, e: g.lifecycle.sleep(e, actor="a")),
    "wake": ("sleeping", lambda g, e: g.lifecycle.wake(e, actor="a")),
    "rotate": ("running", lambda g, e: g.lifecycle.rotate_key(e, actor="a")),
    "destroy": ("running", lambda g, e: g.lifecycle.destroy(e, actor="a")),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("verb", VERBS)
async def test_a_crash_at_any_backend_call_of_a_verb_is_put_right(
    make_gate: Any, clock: Any, verb: str, after: bool
) -> None:
    """Row and backend agree again, whichever call the crash came before or after."""
    state, act = VERBS[verb]
    for nth in range(1, 10):
        gate = await make_gate()
        live = await gate.engine(await gate.product())
        if state == "stopped":
            await gate.lifecycle.stop(live, actor="a")
        elif state == "sleeping":
            await gate.lifecycle.sleep(live, actor="a")
        gate.backend.die(nth=nth, after=after)
        doing = asyncio.ensure_future(act(gate, live))
        await settle()
        finished = doing.done() and doing.exception() is None
        doing.cancel()
        again = await gate.crash_and_restart()
        again.run_loops()
        await clock.advance(40)
        assert agree(again), (verb, nth, after, again.actions())
        await again.close()
        if finished:
            return
    raise AssertionError("the verb never came to its end")


async def test_a_provision_cut_in_half_goes_on(make_gate: Any, clock: Any) -> None:
    """The row is there, the boot is under way again, and it ends in `running`."""
    gate = await make_gate()
    gate.backend.boot_s = 10
    owner = await gate.product()
    booting = asyncio.create_task(gate.engine(owner))
    await settle()
    again = await gate.crash_and_restart()
    with pytest.raises(BaseException):  # noqa: B017, PT011 - its gate is dead
        await booting
    live = next(iter(again.registry.engines.values()))
    await clock.advance(11)
    assert live.running
    assert again.actions()[-1] == "provision"
    await again.close()


async def test_an_engine_that_died_meanwhile_is_failed_and_restarted(gate: Any, clock: Any) -> None:
    """No row says running without a process."""
    live = await gate.engine(await gate.product())
    gate.backend.crash(live.engine.engine_id, tell=False)
    again = await gate.crash_and_restart()
    row = again.registry.engines[live.engine.engine_id]
    assert row.engine.status == "failed"
    again.run_loops()
    await clock.advance(6)
    assert row.running
    await again.close()


async def test_plans_and_counts_survive(gate: Any, clock: Any) -> None:
    """A planned restart is still planned, for the time it was planned for."""
    live = await gate.engine(await gate.product())
    gate.backend.crash(live.engine.engine_id)
    await settle()
    await clock.advance(3)
    again = await gate.crash_and_restart()
    row = again.registry.engines[live.engine.engine_id]
    again.run_loops()
    await clock.advance(1.8)
    assert row.engine.status == "failed"
    await clock.advance(0.5)
    assert row.running
    await again.close()


async def test_a_backend_that_cannot_be_listed_concludes_nothing(gate: Any) -> None:
    """Rows stay as they are until somebody can say."""
    live = await gate.engine(await gate.product())
    gate.backend.fail("list")
    await gate.recovery.compare()
    assert live.running


async def test_engines_without_a_row_go_after_a_grace(gate: Any, clock: Any) -> None:
    """Seen twice and a minute old, their data untouched; too many at once are left alone."""
    await gate.engine(await gate.product())

    async def stray(name: str) -> None:
        await gate.backend.start(
            EngineSpec(engine_id=name, engine_version="x", port=9500, key_hashes=("00",))
        )
        gate.backend.world.engines[name].spec = EngineSpec(
            engine_id=name, engine_version="x", port=0, key_hashes=("00",)
        )

    await stray("stray")
    await gate.recovery.compare()
    assert "stray" in gate.backend.alive
    await clock.advance(61)
    gate.backend.fail("remove_orphan")
    await gate.recovery.compare()
    await settle()
    assert "stray" in gate.backend.alive
    await gate.recovery.compare()
    await settle()
    assert "stray" not in gate.backend.alive
    assert "stray" in gate.backend.world.volumes
    assert gate.actions()[-1] == "orphan_removed"
    for n in range(4):
        await stray(f"stray{n}")
    await gate.recovery.compare()
    await clock.advance(61)
    for _ in range(2):
        await gate.recovery.compare()
        await settle()
    assert len(gate.backend.alive) == 5
    assert gate.registry.meters.orphans == 4
    assert gate.actions()[-2:] == ["orphan_removed", "orphan_removed!"]


async def test_what_happened_behind_our_back_is_put_right(gate: Any) -> None:
    """Frozen while running: thawed; thawed while asleep: frozen; up while stopped: stopped.

    On a full disk only the thaw, which admits rely on and which needs no record.
    """
    owner = await gate.product()
    frozen, thawed, up = [await gate.engine(owner, user) for user in ("a", "b", "c")]
    await gate.lifecycle.sleep(thawed, actor="a")
    await gate.lifecycle.stop(up, actor="a")
    gate.backend.freeze_behind(frozen.engine.engine_id, tell=False)
    gate.backend.thaw_behind(thawed.engine.engine_id, tell=False)
    gate.backend.restart_behind(up.engine.engine_id, tell=False)
    await gate.recovery.compare()
    await settle()
    assert agree(gate)
    gate.backend.freeze_behind(frozen.engine.engine_id, tell=False)
    gate.backend.fail("unpause")
    await gate.recovery.compare()
    await settle()
    gate.backend.thaw_behind(thawed.engine.engine_id, tell=False)
    gate.journal.status = "full"
    await gate.recovery.compare()
    await settle()
    assert gate.backend.engine(frozen.engine.engine_id).presence is Presence.RUNNING
    assert not agree(gate)
    gate.journal.status = "ok"
    await gate.recovery.compare()
    await settle()
    assert agree(gate)
    assert gate.actions().count("recovered") == 4


async def test_an_event_that_speaks_against_the_row_is_looked_into_at_once(gate: Any) -> None:
    """No comparison has to come by; what our own verbs do is no surprise."""
    owner = await gate.product()
    frozen, thawed, up = [await gate.engine(owner, user) for user in ("a", "b", "c")]
    await gate.lifecycle.sleep(thawed, actor="a")
    await gate.lifecycle.stop(up, actor="a")
    await settle()
    assert gate.backend.count("inspect") == 0
    gate.backend.freeze_behind(frozen.engine.engine_id)
    gate.backend.thaw_behind(thawed.engine.engine_id)
    gate.backend.restart_behind(up.engine.engine_id)
    await settle()
    assert agree(gate)


async def test_lost_events_are_made_up_for_by_a_comparison(gate: Any) -> None:
    """Where the stream says that it has a gap, everything is compared."""
    live = await gate.engine(await gate.product())
    gate.run_loops()
    gate.backend.freeze_behind(live.engine.engine_id, tell=False)
    gate.backend.emit(BackendEvent(kind="resync"))
    await settle()
    assert agree(gate)


async def test_a_blind_watch_is_said_and_compares_more_often(gate: Any, clock: Any) -> None:
    """What happens while no events come is put right within ten seconds."""
    live = await gate.engine(await gate.product())
    gate.run_loops()
    gate.backend.emit(BackendEvent(kind="blind"))
    await settle()
    assert gate.health.blind
    await clock.advance(1)
    gate.backend.freeze_behind(live.engine.engine_id, tell=False)
    await clock.advance(10)
    assert agree(gate)
    gate.backend.emit(BackendEvent(kind="resync"))
    await settle()
    assert not gate.health.blind


@pytest.mark.parametrize("tell", [True, False])
async def test_the_backends_own_restart_is_a_crash_and_the_restart_at_once(
    gate: Any, clock: Any, tell: bool
) -> None:
    """Counted and audited, told or not; the new life is taken as it is, not restarted again."""
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.run_loops()
    gate.backend.crash(live.engine.engine_id, tell=tell)
    gate.backend.restart_behind(live.engine.engine_id, tell=tell)
    life = gate.backend.engine(live.engine.engine_id).life
    await clock.advance(0.5 if tell else 25)
    assert live.running
    assert gate.backend.engine(live.engine.engine_id).life == life
    assert (gate.backend.count("stop"), [s.kind for s in owner.tally.samples][1:]) == (
        0,
        ["crash", "restart"],
    )
    failed = next(one for one in gate.registry.trail.recent if one.action == "health_failed")
    assert failed.metadata["backend_restarts"] == 1


async def test_a_restart_by_other_hands_is_no_crash(gate: Any, clock: Any) -> None:
    """A life that the backend does not count as its own restart says nothing of the engine."""
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.run_loops()
    gate.backend.restart_behind(live.engine.engine_id, tell=False)
    gate.backend.engine(live.engine.engine_id).restarts = 0
    await clock.advance(26)
    assert live.running
    assert "crash" not in [sample.kind for sample in owner.tally.samples]
    assert gate.backend.count("stop") == 0


async def test_an_engine_that_sleeps_is_not_blamed_for_a_backend_that_is_away(gate: Any) -> None:
    """It sleeps as well as before; whoever wanted it is told, and the next wake works."""
    live = await gate.engine(await gate.product())
    await gate.lifecycle.sleep(live, actor="a")
    gate.backend.down = True
    with pytest.raises(BackendUnavailableError):
        await gate.lifecycle.wake(live, actor="a")
    assert live.engine.status == "sleeping"
    assert gate.actions()[-1] == "wake!"
    gate.backend.down = False
    await gate.lifecycle.wake(live, actor="a")
    assert live.running


async def test_an_event_and_a_dead_backend_conclude_nothing(gate: Any) -> None:
    """What an event hints at and nobody can confirm is left for later."""
    live = await gate.engine(await gate.product())
    gate.backend.down = True
    gate.backend.emit(BackendEvent(kind="removed", engine_id=live.engine.engine_id))
    gate.backend.emit(BackendEvent(kind="paused", engine_id="nobody"))
    await settle()
    assert live.running


async def test_a_sleeper_that_others_stopped_is_noted_once_and_wakes(gate: Any) -> None:
    """Asleep an engine may be frozen or stopped: it is adopted as found, until it is woken."""
    owner = await gate.product()
    live = await gate.engine(owner)
    await gate.lifecycle.sleep(live, actor="a")
    gate.backend.crash(live.engine.engine_id)
    await settle()
    for _ in range(2):
        await gate.recovery.compare()
        await settle()
    assert live.engine.status == "sleeping"
    assert gate.actions().count("adopt") == 1
    again = await gate.crash_and_restart()
    await again.recovery.compare()
    assert again.actions().count("adopt") == 1
    live = again.registry.engines[live.engine.engine_id]
    await again.lifecycle.wake(live, actor="a")
    await again.lifecycle.sleep(live, actor="a")
    await again.recovery.compare()
    again.backend.vanish(live.engine.engine_id)
    await settle()
    assert again.actions().count("adopt") == 2
    await again.close()


@pytest.mark.parametrize("status", ["running", "sleeping", "stopped"])
async def test_an_engine_off_its_network_is_brought_back_as_it_is(gate: Any, status: str) -> None:
    """Connected again in the same life, in every state that lasts."""
    live = await gate.engine(await gate.product())
    if status != "running":
        verb = {"sleeping": gate.lifecycle.sleep, "stopped": gate.lifecycle.stop}[status]
        await verb(live, actor="a")
    fake = gate.backend.engine(live.engine.engine_id)
    fake.connected = False
    before = (fake.life, fake.presence)
    await gate.recovery.compare()
    await settle()
    assert (fake.connected, fake.life, fake.presence) == (True, *before)
    assert gate.actions()[-1] == "recovered"


@pytest.mark.parametrize("tell", [True, False])
@pytest.mark.parametrize("status", ["running", "sleeping", "stopped"])
async def test_lost_data_are_told_and_never_replaced(
    gate: Any, clock: Any, status: str, tell: bool
) -> None:
    """The engine fails with the reason, no restart is tried, and no start makes empty ones."""
    gate.run_loops()
    live = await gate.engine(await gate.product())
    engine_id = live.engine.engine_id
    if status != "running":
        verb = {"sleeping": gate.lifecycle.sleep, "stopped": gate.lifecycle.stop}[status]
        await verb(live, actor="a")
    kept = gate.backend.world.volumes[engine_id]
    gate.backend.vanish(engine_id, tell=tell, with_data=True)
    await clock.advance(60)
    assert (live.engine.status, live.engine.restart_at_ms) == ("failed", None)
    assert "its data" in live.engine.reason
    with pytest.raises(DataGoneError, match="its data"):
        await gate.lifecycle.start(live, version=None, actor="a")
    await clock.advance(600)
    assert not gate.backend.world.engines
    gate.backend.world.volumes[engine_id] = kept
    await gate.lifecycle.start(live, version=None, actor="a")
    assert live.running


async def test_data_lost_while_a_restart_is_planned_end_the_restarts(gate: Any, clock: Any) -> None:
    """The next attempt finds out, and is the last one."""
    live = await gate.engine(await gate.product())
    gate.backend.crash(live.engine.engine_id)
    await settle()
    gate.backend.vanish(live.engine.engine_id, with_data=True)
    gate.run_loops()
    await clock.advance(600)
    assert (live.engine.status, live.engine.restart_attempts) == ("failed", 1)
    assert gate.actions()[-2:] == ["auto_restart_failed!", "auto_restart_gave_up!"]


async def test_a_given_up_engine_that_runs_is_stopped(gate: Any) -> None:
    """Docker must not bring back for ever what was given up."""
    live = await gate.engine(await gate.product())
    for _ in range(9):
        gate.backend.crash(live.engine.engine_id, tell=False)
        await gate.health.fail_if_gone(live)
        if live.engine.restart_at_ms is None:
            break
        await gate.lifecycle.begin_restart(live).join()
    gate.backend.restart_behind(live.engine.engine_id, tell=False)
    await gate.recovery.compare()
    await settle()
    assert not gate.backend.alive


async def test_an_overlap_of_keys_ends_after_a_restart_too(make_gate: Any, clock: Any) -> None:
    """The old key is dropped although another enginegate began the overlap; failures repeat."""
    config = Config(engine=EngineSettings(rotate_mode="live", key_overlap_s=60))
    gate = await make_gate(config)
    live = await gate.engine(await gate.product())
    await gate.lifecycle.rotate_key(live, actor="a")
    again = await gate.crash_and_restart()
    again.backend.fail("put_key")
    await clock.advance(61)
    await again.recovery.overlaps.end_due()
    fake = again.backend.engine(live.engine.engine_id)
    assert len(fake.key_file) == 2
    await clock.advance(31)
    await again.recovery.overlaps.end_due()
    assert len(fake.key_file) == 1
    await again.close()


async def test_logs_are_kept_bounded_all_the_time(gate: Any, clock: Any) -> None:
    """Every few seconds, and a round that failed does not end it."""
    live = await gate.engine(await gate.product())
    gate.run_loops()
    logs = gate.backend.world.logs[live.engine.engine_id]
    logs += ["line"] * 5000
    gate.backend.fail("trim_logs")
    await clock.advance(6)
    assert len(logs) > 5000
    await clock.advance(5)
    assert len(logs) == 1000


async def test_an_engine_that_never_came_up_has_no_data_to_lose(gate: Any) -> None:
    """Its boot failed before there was a volume; stopped on request, it stays stopped."""
    gate.backend.fail("start")
    owner = await gate.product()
    with pytest.raises(BackendFailedError):
        await gate.engine(owner)
    live = owner.engines["ann"]
    await gate.lifecycle.stop(live, actor="a")
    await gate.recovery.compare()
    await settle()
    assert live.engine.status == "stopped"
    await gate.lifecycle.start(live, version=None, actor="a")
    assert live.running


async def test_two_that_look_at_a_half_rotation_finish_it_once(make_gate: Any) -> None:
    """A comparison and a hint may meet at an engine whose new key could not be recorded."""
    gate = await make_gate(Config(engine=EngineSettings(rotate_mode="recreate")))
    live = await gate.engine(await gate.product())
    key, ids = new_engine_key(), gate.ground.ids(live)
    sealed = gate.ground.keyring.seal(live.engine.engine_id, key)
    begun = KeyRotationBegun(**ids, at_ms=1, sealed_key=sealed, key_hash=digest_hex(key))
    await gate.registry.commit(begun)
    fake = gate.backend.engine(live.engine.engine_id)
    fake.spec = replace(fake.spec, key_hashes=(digest_hex(key),))
    await asyncio.gather(gate.recovery.compare(), gate.recovery.compare())
    assert live.engine.key_hash == digest_hex(key)
    assert gate.actions().count("rotate_key") == 1
