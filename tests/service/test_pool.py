"""Engines booted in advance: claimed in no time, never twice, never leaked."""

import asyncio
from typing import Any

import pytest

from enginegate.config import Config, EngineSettings, Pool, Ports
from enginegate.errors import BackendError, QuotaExceededError, StorageUnavailableError
from enginegate.pool import RETRY_MAX_S, TRIES
from tests.fakes import settle


@pytest.fixture
async def gate(make_gate: Any) -> Any:
    """A gate with three spare engines, all of them ready."""
    gate = await make_gate(Config(pool=Pool(size=3)))
    gate.run_loops()
    await filled(gate)
    return gate


async def filled(gate: Any) -> None:
    """Give the pool the time it needs."""
    for _ in range(50):
        await gate.clock.advance(0.1)
        state = gate.pool.state()
        if state["ready"] == state["size"] and not state["booting"]:
            return
    raise AssertionError(state)


def known(gate: Any) -> set[str]:
    """Return every engine that has a row, a user's or a spare's."""
    return {*gate.registry.engines, *gate.registry.spares.rows}


async def test_the_pool_is_filled(gate: Any) -> None:
    """As many as configured are ready, two boot at a time, and nobody is told of them."""
    assert gate.pool.state() == {"size": 3, "ready": 3, "booting": 0, "stalled": False}
    assert gate.registry.engines == {}
    assert gate.actions() == []
    assert len(gate.registry.ports.leased) == 3


async def test_ports_held_by_strangers_are_passed_over_at_once(make_gate: Any, clock: Any) -> None:
    """They say nothing about the image, so the pool neither waits nor stalls over them."""
    gate = await make_gate(Config(pool=Pool(size=1)))
    gate.backend.world.taken_ports.update(range(9001, 9001 + 2 * TRIES))
    gate.run_loops()
    began = clock.now()
    await filled(gate)
    assert clock.now() - began < 2 * TRIES * 0.2
    assert gate.registry.ports.leased == {9001 + 2 * TRIES}
    assert len(known(gate)) == 1


async def test_a_provision_claims_a_spare(gate: Any) -> None:
    """Nothing is booted for it, the engine is the spare, and the pool fills up again."""
    owner = await gate.product()
    spare = gate.registry.spares.rows[gate.registry.spares.ready[0]]
    starts = gate.backend.count("start")
    answer = await gate.admit(owner, auto_provision=True)
    assert answer.action == "provisioned"
    assert answer.live.engine.engine_id == spare.engine_id
    assert answer.live.engine.key_hash == spare.key_hash
    assert answer.live.lease_s == gate.config.idle.sleep_after_s
    assert gate.backend.count("start") == starts
    assert gate.warm() is not None
    assert gate.actions() == ["policy_register", "provision"]
    await filled(gate)
    assert gate.backend.count("start") == starts + 1


async def test_two_users_at_once_get_two_engines(gate: Any) -> None:
    """A claim is decided in one turn; five users on a pool of three share none."""
    owner = await gate.product()
    users = [f"user{n}" for n in range(5)]
    await asyncio.gather(*(gate.admit(owner, user, auto_provision=True) for user in users))
    assert len({owner.engines[user].engine.engine_id for user in users}) == 5
    assert len({owner.engines[user].engine.port for user in users}) == 5


async def test_spares_count_against_no_quota(gate: Any) -> None:
    """The quota is that of users' engines, and holds for a claim as for a boot."""
    owner = await gate.product(max_engines=1)
    await gate.engine(owner)
    with pytest.raises(QuotaExceededError):
        await gate.engine(owner, "bob")
    assert gate.registry.counts([owner])["running"] == 1


async def test_another_version_bypasses_the_pool(make_gate: Any) -> None:
    """A spare is of the default version; who asks for another gets one of his own."""
    engine = EngineSettings(image="my-engine:1", allowed_images=["my-engine:2"])
    gate = await make_gate(Config(engine=engine, pool=Pool(size=1)))
    gate.run_loops()
    await filled(gate)
    owner, ready = await gate.product(), gate.registry.spares.ready
    live = await gate.lifecycle.provision(owner, "ann", version="my-engine:2", actor="acme")
    assert live.engine.engine_id not in ready
    assert gate.registry.spares.ready == ready


async def test_a_claim_that_cannot_be_recorded_leaves_the_spare(gate: Any) -> None:
    """No user, no row, and the spare is there for the next one."""
    owner = await gate.product()
    gate.journal.hold()
    asking = asyncio.ensure_future(gate.admit(owner, auto_provision=True))
    await settle()
    gate.journal.failing = True
    gate.journal.release()
    with pytest.raises(StorageUnavailableError):
        await asking
    assert len(gate.registry.spares.ready) == 3
    assert owner.size == 0
    gate.journal.status = "full"
    with pytest.raises(StorageUnavailableError):
        await gate.engine(owner)
    assert len(gate.registry.spares.ready) == 3


@pytest.mark.parametrize("tell", [True, False])
async def test_a_spare_that_dies_is_replaced(gate: Any, tell: bool) -> None:
    """At once where the backend tells, else with the next look at those that wait."""
    dead = gate.registry.spares.ready[0]
    gate.backend.crash(dead, tell=tell)
    await gate.clock.advance(0.1 if tell else gate.config.health.interval_s)
    assert dead not in gate.registry.spares.ready
    await filled(gate)
    assert dead not in known(gate)
    assert set(gate.backend.world.engines) == known(gate)
    assert set(gate.backend.world.volumes) == known(gate)


async def test_spares_survive_a_crash_of_enginegate(gate: Any) -> None:
    """They are taken back as they are: same life, same key, nothing booted."""
    spares = dict(gate.registry.spares.rows)
    again = await gate.crash_and_restart()
    again.run_loops()
    await filled(again)
    assert again.registry.spares.rows == spares
    assert again.backend.count("start") == 0
    await again.close()


@pytest.mark.parametrize("operation", ["start", "destroy", "inspect"])
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("after", [False, True])
async def test_no_crash_during_refill_leaks(
    make_gate: Any, operation: str, nth: int, after: bool
) -> None:
    """Wherever enginegate dies, the next one has each spare once or removes it with its data."""
    gate = await make_gate(Config(pool=Pool(size=2)))
    gate.backend.fail("start", nth=2, error=BackendError("start", None, "told to fail"))
    gate.backend.die(operation, nth=nth, after=after)
    gate.run_loops()
    await gate.clock.advance(3)
    again = await gate.crash_and_restart()
    again.run_loops()
    await filled(again)
    await again.clock.advance(1)
    assert set(again.backend.world.engines) == known(again)
    assert set(again.backend.world.volumes) == known(again)
    assert again.registry.ports.leased == {
        spare.port for spare in again.registry.spares.rows.values()
    }
    await again.close()


async def test_a_crash_during_a_claim_gives_the_spare_once(gate: Any) -> None:
    """Durable, it is the user's; not durable, it is a spare; never both."""
    owner = await gate.product()
    claimed = gate.registry.spares.ready[0]
    gate.journal.hold()
    asking = asyncio.ensure_future(gate.admit(owner, auto_provision=True))
    await settle()
    again = await gate.crash_and_restart()
    asking.cancel()
    again.run_loops()
    await filled(again)
    assert claimed in again.registry.spares.rows
    assert again.registry.engines == {}
    await again.close()


async def test_a_broken_image_is_not_tried_for_ever(make_gate: Any) -> None:
    """After five boots that fail it says so and tries one now and then, until it is mended."""
    gate = await make_gate(Config(pool=Pool(size=3)))
    gate.backend.fail("start", times=None, error=BackendError("start", None, "broken"))
    gate.run_loops()
    await gate.clock.advance(20)
    assert gate.pool.state()["stalled"]
    tried = gate.backend.count("start")
    assert tried == TRIES
    await gate.clock.advance(10 * RETRY_MAX_S)
    assert gate.backend.count("start") <= tried + 10
    assert known(gate) == set()
    assert gate.registry.ports.leased == set()
    gate.backend._rules.clear()
    await gate.clock.advance(RETRY_MAX_S)
    await filled(gate)
    assert not gate.pool.state()["stalled"]


async def test_a_backend_that_is_away_stalls_nothing(make_gate: Any) -> None:
    """It says nothing about the image: the pool goes on when it is back."""
    gate = await make_gate(Config(pool=Pool(size=2)))
    gate.backend.down = True
    gate.run_loops()
    await gate.clock.advance(60)
    assert not gate.pool.state()["stalled"]
    gate.backend.down = False
    await gate.clock.advance(2)
    await filled(gate)
    assert set(gate.backend.world.engines) == known(gate)


async def test_a_smaller_pool_or_another_version_clears_what_is_too_much(make_gate: Any) -> None:
    """After a change of the configuration no spare of the old one is left."""
    gate = await make_gate(Config(pool=Pool(size=3)))
    gate.run_loops()
    await filled(gate)
    gate.config = Config(pool=Pool(size=1))
    again = await gate.crash_and_restart()
    again.run_loops()
    await filled(again)
    await again.clock.advance(1)
    assert len(known(again)) == len(again.backend.world.engines) == 1
    again.config = Config(pool=Pool(size=1), engine=EngineSettings(image="other:1"))
    last = await again.crash_and_restart()
    last.run_loops()
    await last.clock.advance(1)
    await filled(last)
    assert {spare.engine_version for spare in last.registry.spares.rows.values()} == {"other:1"}
    assert set(last.backend.world.engines) == known(last)
    await again.close()
    await last.close()


async def test_a_port_that_another_program_holds_is_passed_over(make_gate: Any) -> None:
    """The spare on it goes, and the next one has another."""
    gate = await make_gate(Config(pool=Pool(size=1), ports=Ports(min=9001, max=9002)))
    gate.backend.world.taken_ports.add(9001)
    gate.run_loops()
    await filled(gate)
    assert [spare.port for spare in gate.registry.spares.rows.values()] == [9002]
    assert gate.registry.ports.leased == {9002}


async def test_spares_are_no_orphans(gate: Any) -> None:
    """They have rows, so nobody removes them for having no user."""
    for _ in range(4):
        await gate.recovery.compare()
        await gate.clock.advance(60)
    assert gate.pool.state()["ready"] == 3
    assert "orphan_removed" not in gate.actions()
