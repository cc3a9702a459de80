"""A stop or a rotation that a crash cut in half is finished, also where nothing is restarted."""

import asyncio
from typing import Any

import msgspec
import pytest

from enginegate.backends.base import Presence
from enginegate.config import Config, EngineSettings, Restart
from enginegate.errors import BackendFailedError, BackendUnavailableError
from enginegate.facts import KeyRotationBegun
from enginegate.keys import digest_hex, new_engine_key
from tests.fakes import settle
from tests.service.gate import Gate

NO_RESTARTS = msgspec.structs.replace(Config(), restart=Restart(max_attempts=0))
RECREATE = msgspec.structs.replace(NO_RESTARTS, engine=EngineSettings(rotate_mode="recreate"))


def row_of(gate: Any) -> Any:
    [live] = gate.registry.engines.values()
    return live


async def put(gate: Any, live: Any, state: str) -> None:
    """Bring a running engine into the state."""
    if state == "sleeping":
        await gate.lifecycle.sleep(live, actor="acme")
    elif state == "stopped":
        await gate.lifecycle.stop(live, actor="acme")
    elif state == "failed":
        gate.backend.crash(live.engine.engine_id)
        await settle()
    assert live.engine.status == state


async def cut_stop(gate: Any, live: Any, *, after: bool) -> Any:
    """Begin a stop, and kill the gate before or after the backend has done it."""
    gate.backend.die("stop", after=after)
    stopping = asyncio.ensure_future(gate.lifecycle.stop(live, actor="acme"))
    await settle()
    stopping.cancel()
    return await gate.crash_and_restart()


async def stopping_for_ever(make_gate: Any) -> Any:
    """Return a gate in the middle of a stop that its backend does not answer."""
    gate = await make_gate(NO_RESTARTS)
    live = await gate.engine(await gate.product())
    gate.backend.hang("stop")
    stopping = asyncio.ensure_future(gate.lifecycle.stop(live, actor="acme"))
    await settle()
    stopping.cancel()
    return gate


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("state", ["running", "sleeping", "failed"])
async def test_a_stop_cut_in_half_is_finished_by_the_next_start(
    make_gate: Any, state: str, after: bool
) -> None:
    """Whether the engine was gone already or not; it is no crash, and nobody is restarted."""
    gate = await make_gate(NO_RESTARTS if state != "failed" else None)
    live = await gate.engine(await gate.product())
    await put(gate, live, state)
    again = await cut_stop(gate, live, after=after)
    row = row_of(again).engine
    assert (row.status, row.stopping, row.restart_at_ms) == ("stopped", False, None)
    assert again.backend.engine(row.engine_id).presence is Presence.STOPPED
    assert again.actions().count("stop") == 1
    assert not [one for one in again.actions() if one.endswith("!") and state != "failed"]
    await again.close()


async def test_a_cut_stop_waits_for_a_backend_that_can_be_asked(make_gate: Any, clock: Any) -> None:
    """It is taken up by a comparison, if the start could conclude nothing."""
    gate = await stopping_for_ever(make_gate)
    await gate.close()
    again = Gate(config=NO_RESTARTS, clock=clock, world=gate.backend.world, journal=gate.journal)
    again.backend.fail("list")
    await again.start()
    assert (row_of(again).engine.status, row_of(again).engine.stopping) == ("running", True)
    await again.recovery.compare()
    await settle()
    assert row_of(again).engine.status == "stopped"
    await again.close()


async def test_a_cut_stop_waits_for_a_journal_that_can_be_written(make_gate: Any) -> None:
    """Row and backend are of one mind, and yet there is something to finish."""
    gate = await stopping_for_ever(make_gate)
    gate.journal.status = "full"
    again = await gate.crash_and_restart()
    assert (row_of(again).engine.status, row_of(again).engine.stopping) == ("running", True)
    again.journal.status = "ok"
    await again.recovery.compare()
    await settle()
    assert row_of(again).engine.status == "stopped"
    await again.close()


async def test_a_stop_that_fails_leaves_no_intent(make_gate: Any) -> None:
    """The engine is what it was, the trail says why, and no later start stops it."""
    gate = await make_gate(NO_RESTARTS)
    live = await gate.engine(await gate.product())
    gate.backend.fail("stop")
    with pytest.raises(BackendFailedError):
        await gate.lifecycle.stop(live, actor="acme")
    assert (live.engine.status, live.engine.stopping) == ("running", False)
    entry = gate.registry.trail.recent[-1]
    assert (entry.action, entry.outcome, entry.actor) == ("stop", "failed", "acme")
    assert entry.metadata["reason"]
    again = await gate.crash_and_restart()
    assert row_of(again).running
    await again.close()


async def test_a_stop_that_is_never_answered_is_told_and_forgotten(make_gate: Any) -> None:
    """Nothing is known of how it ended, and no later start goes on with it."""
    gate = await make_gate(NO_RESTARTS)
    live = await gate.engine(await gate.product())
    gate.backend.fail("stop", error=TimeoutError())
    with pytest.raises(BackendUnavailableError):
        await gate.lifecycle.stop(live, actor="acme")
    assert (live.engine.status, live.engine.stopping) == ("running", False)
    assert gate.actions()[-1] == "stop!"


@pytest.mark.parametrize("nth", range(1, 6))
@pytest.mark.parametrize("after", [False, True])
async def test_a_rotation_by_restart_that_was_cut_needs_no_restart(
    make_gate: Any, clock: Any, nth: int, after: bool
) -> None:
    """The engine that it had stopped is started again, with the key that is in force."""
    gate = await make_gate(RECREATE)
    live = await gate.engine(await gate.product())
    gate.backend.die(nth=nth, after=after)
    rotating = asyncio.ensure_future(gate.lifecycle.rotate_key(live, actor="acme"))
    await settle()
    rotating.cancel()
    again = await gate.crash_and_restart()
    again.run_loops()
    await clock.advance(40)
    row = row_of(again)
    assert (row.engine.status, row.engine.pending_key) == ("running", None)
    fake = again.backend.engine(row.engine.engine_id)
    assert fake.presence is Presence.RUNNING
    assert fake.key_file[0] == row.engine.key_hash
    assert again.warm() is not None
    await again.close()


@pytest.mark.parametrize("state", ["sleeping", "stopped", "failed"])
@pytest.mark.parametrize("mode", ["recreate", "live"])
@pytest.mark.parametrize("swapped", [False, True])
async def test_a_rotation_is_finished_wherever_the_engine_is_by_then(
    make_gate: Any, state: str, mode: str, swapped: bool
) -> None:
    """Its end could not be written, and the engine ran no more when the next look came."""
    config = msgspec.structs.replace(NO_RESTARTS, engine=EngineSettings(rotate_mode=mode))
    gate = await make_gate(config)
    live = await gate.engine(await gate.product())
    fake = gate.backend.engine(live.engine.engine_id)
    before, key = live.engine.key_hash, new_engine_key()
    sealed = gate.ground.keyring.seal(live.engine.engine_id, key)
    ids = gate.ground.ids(live)
    begun = KeyRotationBegun(**ids, at_ms=1, sealed_key=sealed, key_hash=digest_hex(key))
    await gate.registry.commit(begun)
    if swapped:
        fake.key_file = (digest_hex(key), before)
        fake.spec = msgspec.structs.replace(fake.spec, key_hashes=(digest_hex(key), before))
    await put(gate, live, state)
    await gate.recovery.compare()
    await settle()
    took = swapped and mode == "recreate" and state == "sleeping"
    expected = digest_hex(key) if took else before
    assert (live.engine.status, live.engine.pending_key) == (state, None)
    assert live.engine.key_hash == expected
    await gate.lifecycle.start(live, version=None, actor="acme")
    await gate.recovery.compare()
    await settle()
    assert live.running
    assert gate.backend.engine(live.engine.engine_id).key_file[0] == expected
