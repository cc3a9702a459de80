"""The verbs: what each does, refuses and leaves behind."""

import asyncio
from typing import Any

import pytest

from enginegate.backends.base import Connection
from enginegate.config import Config, EngineSettings, Ports
from enginegate.errors import (
    BackendError,
    BackendFailedError,
    BackendUnavailableError,
    EngineAlreadyExistsError,
    EngineAlreadyRunningError,
    EngineBusyError,
    EngineNotFoundError,
    EngineNotRunningError,
    GateError,
    ImageUnavailableError,
    InternalError,
    PolicyDeniedError,
    PortExhaustionError,
    ProductNotFoundError,
    ProductSlugExistsError,
    ShuttingDownError,
    StorageUnavailableError,
)
from enginegate.facts import DestroyBegun, Destroyed
from enginegate.lifecycle import OvertakenError
from enginegate.model import Policy
from enginegate.policy import OLD_KEYS_MAX
from tests.fakes import settle

DOCKER_LIKE = Config(engine=EngineSettings(image="engine:1", allowed_images=("engine:2",)))


async def test_a_second_provision_is_refused_with_the_state(gate: Any) -> None:
    """ENGINE_ALREADY_EXISTS comes at once, also during the boot, and names the engine."""
    owner = await gate.product()
    hang = gate.backend.hang("start")
    first = asyncio.create_task(gate.engine(owner))
    await hang.reached.wait()
    with pytest.raises(EngineAlreadyExistsError) as error:
        await gate.engine(owner)
    assert error.value.fields["status"] == "provisioning"
    hang.release()
    assert error.value.fields["engine_id"] == (await first).engine.engine_id


async def test_simultaneous_provisions_of_one_user_make_one(gate: Any) -> None:
    """One works, the others hear that it exists."""
    owner = await gate.product()
    ends = await asyncio.gather(*(gate.engine(owner) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(end, EngineAlreadyExistsError) for end in ends) == 4


async def test_versions_are_those_the_operator_allows(make_gate: Any) -> None:
    """Anything else is POLICY_DENIED before anything is made."""
    gate = await make_gate(DOCKER_LIKE)
    owner = await gate.product()
    with pytest.raises(PolicyDeniedError):
        await gate.lifecycle.provision(owner, "ann", version="evil:1", actor="acme")
    live = await gate.lifecycle.provision(owner, "ann", version="engine:2", actor="acme")
    assert live.engine.engine_version == "engine:2"


async def test_an_upgrade_is_a_start_of_a_stopped_engine(make_gate: Any) -> None:
    """Another version on the same data; a running engine must be stopped first."""
    gate = await make_gate(DOCKER_LIKE)
    owner = await gate.product()
    live = await gate.engine(owner)
    with pytest.raises(EngineAlreadyRunningError):
        await gate.lifecycle.start(live, version="engine:2", actor="acme")
    await gate.lifecycle.sleep(live, actor="acme")
    with pytest.raises(EngineAlreadyRunningError):
        await gate.lifecycle.start(live, version="engine:2", actor="acme")
    await gate.lifecycle.stop(live, actor="acme")
    await gate.lifecycle.start(live, version="engine:2", actor="acme")
    assert gate.backend.engine(live.engine.engine_id).spec.engine_version == "engine:2"


async def test_an_engine_that_is_half_made_keeps_its_version(make_gate: Any) -> None:
    """Nobody knows yet how far the old version got; started as it is, it comes up."""
    gate = await make_gate(DOCKER_LIKE)
    owner = await gate.product()
    hang = gate.backend.hang("start")
    gate.spawn(gate.engine(owner))
    await settle()
    gate.journal.failing = True  # so that the failed boot cannot be undone
    hang.release()
    await settle()
    gate.journal.failing, gate.journal.status = False, "ok"
    live = owner.engines["ann"]
    with pytest.raises(EngineNotRunningError) as error:
        await gate.lifecycle.start(live, version="engine:2", actor="acme")
    assert error.value.fields["status"] == live.engine.status == "provisioning"
    await gate.lifecycle.start(live, version=None, actor="acme")
    assert live.running
    assert live.engine.engine_version == "engine:1"


async def test_start_brings_back_from_every_resting_state(gate: Any) -> None:
    """stopped, sleeping and failed engines start; a running one says so."""
    owner = await gate.product()
    live = await gate.engine(owner)
    await gate.lifecycle.stop(live, actor="acme")
    await gate.lifecycle.start(live, version=None, actor="acme")
    await gate.lifecycle.sleep(live, actor="acme")
    await gate.lifecycle.start(live, version=None, actor="acme")
    assert live.running
    with pytest.raises(EngineAlreadyRunningError):
        await gate.lifecycle.start(live, version=None, actor="acme")
    assert gate.actions()[-4:] == ["stop", "start", "sleep", "start"]


async def test_a_start_that_fails_leaves_a_failed_engine(gate: Any) -> None:
    """The audit trail has the failed start, and a restart is planned."""
    owner = await gate.product()
    live = await gate.engine(owner)
    await gate.lifecycle.stop(live, actor="acme")
    gate.backend.fail("start")
    with pytest.raises(BackendFailedError):
        await gate.lifecycle.start(live, version=None, actor="acme")
    assert (live.engine.status, gate.actions()[-1]) == ("failed", "start!")


async def test_stopping_twice_is_refused(gate: Any) -> None:
    """ENGINE_NOT_RUNNING names the state."""
    owner = await gate.product()
    live = await gate.engine(owner)
    await gate.lifecycle.stop(live, actor="acme")
    with pytest.raises(EngineNotRunningError) as error:
        await gate.lifecycle.stop(live, actor="acme")
    assert error.value.fields == {"status": "stopped"}


async def test_two_callers_of_one_verb_share_the_work(gate: Any) -> None:
    """Both are told that it is done, and it is done once."""
    owner = await gate.product()
    live = await gate.engine(owner)
    await asyncio.gather(*(gate.lifecycle.stop(live, actor="acme") for _ in range(3)))
    assert gate.backend.count("stop") == 1
    await gate.lifecycle.start(live, version=None, actor="acme")
    keys = await asyncio.gather(*(gate.lifecycle.rotate_key(live, actor="a") for _ in range(3)))
    assert len(set(keys)) == 1


async def test_a_conflicting_verb_waits_its_turn(gate: Any) -> None:
    """stop, then start: the start finds a stopped engine."""
    owner = await gate.product()
    live = await gate.engine(owner)
    hang = gate.backend.hang("stop")
    stopping = asyncio.create_task(gate.lifecycle.stop(live, actor="acme"))
    await hang.reached.wait()
    starting = asyncio.create_task(gate.lifecycle.start(live, version=None, actor="acme"))
    await settle()
    hang.release()
    await asyncio.gather(stopping, starting)
    assert live.running


async def test_a_verb_that_waited_for_a_destroy_finds_nothing(gate: Any) -> None:
    """ENGINE_NOT_FOUND, not an accident."""
    owner = await gate.product()
    live = await gate.engine(owner)
    hang = gate.backend.hang("destroy")
    going = asyncio.create_task(gate.lifecycle.destroy(live, actor="acme"))
    await hang.reached.wait()
    late = asyncio.create_task(gate.lifecycle.stop(live, actor="acme"))
    await settle()
    hang.release()
    await going
    with pytest.raises(EngineNotFoundError):
        await late


async def test_destroy_takes_everything_and_frees_the_port(gate: Any) -> None:
    """Engine, data, row and port are gone, and the user may have a new one."""
    owner = await gate.product()
    live = await gate.engine(owner)
    port = live.engine.port
    await gate.lifecycle.destroy(live, actor="acme")
    assert (gate.registry.engines, gate.backend.world.volumes) == ({}, {})
    assert (await gate.engine(owner)).engine.port == port


async def test_a_destroy_that_fails_stays_destroying_and_is_tried_again(gate: Any) -> None:
    """The caller hears of it, the periodic comparison finishes it."""
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.backend.fail("destroy")
    with pytest.raises(BackendFailedError):
        await gate.lifecycle.destroy(live, actor="acme")
    assert live.engine.status == "destroying"
    await gate.recovery.compare()
    await settle()
    assert live.gone


async def test_a_port_held_by_a_stranger_is_left_to_it(gate: Any) -> None:
    """The engine moves to the next free port and the url follows."""
    owner = await gate.product()
    gate.backend.world.taken_ports.add(9001)
    live = await gate.engine(owner)
    assert (live.engine.port, live.url) == (9002, "http://127.0.0.1:9002")
    assert gate.registry.ports.leased == {9002}


async def test_a_busy_engine_is_not_put_to_sleep(gate: Any) -> None:
    """Its own word and open connections refuse; force overrides; stale connections do not count."""
    owner = await gate.product()
    live = await gate.engine(owner)
    fake = gate.backend.engine(live.engine.engine_id)
    fake.busy = True
    with pytest.raises(EngineBusyError):
        await gate.lifecycle.sleep(live, actor="acme")
    fake.busy = False
    fake.connections = [Connection(5.0)]
    with pytest.raises(EngineBusyError):
        await gate.lifecycle.sleep(live, actor="acme")
    fake.connections = [Connection(901.0)]
    assert await gate.lifecycle.sleep(live, actor="acme")
    await gate.lifecycle.start(live, version=None, actor="acme")
    fake.busy = True
    assert await gate.lifecycle.sleep(live, actor="acme", force=True)
    with pytest.raises(EngineNotRunningError):
        await gate.lifecycle.sleep(live, actor="acme")


async def test_a_freeze_that_fails_is_told_and_audited(gate: Any) -> None:
    """The engine stays running and admissible."""
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.backend.fail("pause")
    with pytest.raises(BackendFailedError):
        await gate.lifecycle.sleep(live, actor="acme")
    await settle()
    assert gate.actions()[-1] == "sleep!"
    assert gate.warm() is not None


async def test_a_rotation_that_fails_keeps_the_old_key(gate: Any) -> None:
    """The old engine comes back with its old key; the caller hears of the failure."""
    owner = await gate.product()
    live = await gate.engine(owner)
    key = live.api_key
    gate.backend.fail("start")
    with pytest.raises(BackendFailedError):
        await gate.lifecycle.rotate_key(live, actor="acme")
    assert (live.api_key, live.running, live.engine.pending_key) == (key, True, None)
    assert gate.actions()[-1] == "rotate_key!"


async def test_a_rotation_that_cannot_come_back_fails_the_engine(gate: Any) -> None:
    """If even the old one does not start, the engine is failed and will be restarted."""
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.backend.fail("start", times=2)
    with pytest.raises(BackendFailedError):
        await gate.lifecycle.rotate_key(live, actor="acme")
    assert live.engine.status == "failed"


async def test_a_live_rotation_overlaps_and_then_drops_the_old_key(
    make_gate: Any, clock: Any
) -> None:
    """Both hashes are in the file, the engine is not restarted, then only the new one stays."""
    gate = await make_gate(Config(engine=EngineSettings(rotate_mode="live", key_overlap_s=60)))
    owner = await gate.product()
    live = await gate.engine(owner)
    old = live.engine.key_hash
    await gate.lifecycle.rotate_key(live, actor="acme")
    fake = gate.backend.engine(live.engine.engine_id)
    assert fake.key_file == (live.engine.key_hash, old)
    assert fake.life == 1
    await clock.advance(61)
    await gate.recovery.overlaps.end_due()
    assert fake.key_file == (live.engine.key_hash,)


async def test_each_of_several_old_keys_has_its_whole_overlap(make_gate: Any, clock: Any) -> None:
    """A rotation soon after another one, or one that fails, cuts nobody off before time."""
    gate = await make_gate(Config(engine=EngineSettings(rotate_mode="live", key_overlap_s=60)))
    live = await gate.engine(await gate.product())
    keys = [live.engine.key_hash]
    for _ in range(2):
        await gate.lifecycle.rotate_key(live, actor="acme")
        keys.insert(0, live.engine.key_hash)
        await clock.advance(20)
    gate.backend.fail("put_key")
    with pytest.raises(BackendFailedError):
        await gate.lifecycle.rotate_key(live, actor="acme")
    await gate.recovery.overlaps.end_due()
    fake = gate.backend.engine(live.engine.engine_id)
    assert fake.key_file == tuple(keys)
    await clock.advance(21)
    await gate.recovery.overlaps.end_due()
    assert fake.key_file == tuple(keys[:2])
    await clock.advance(20)
    await gate.recovery.overlaps.end_due()
    assert fake.key_file == tuple(keys[:1])


async def test_a_loop_of_rotations_keeps_a_bounded_number_of_old_keys(make_gate: Any) -> None:
    """Row and file of one engine do not grow with the calls of one caller."""
    gate = await make_gate(Config(engine=EngineSettings(rotate_mode="live", key_overlap_s=60)))
    live = await gate.engine(await gate.product())
    for _ in range(2 * OLD_KEYS_MAX):
        await gate.lifecycle.rotate_key(live, actor="acme")
    assert len(live.engine.older_keys) == OLD_KEYS_MAX - 1
    assert len(gate.backend.engine(live.engine.engine_id).key_file) <= OLD_KEYS_MAX + 2


async def test_a_live_rotation_that_fails_puts_the_old_key_back(make_gate: Any) -> None:
    """The old key stays the one in force."""
    gate = await make_gate(Config(engine=EngineSettings(rotate_mode="live")))
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.backend.fail("put_key")
    with pytest.raises(BackendFailedError):
        await gate.lifecycle.rotate_key(live, actor="acme")
    assert gate.backend.engine(live.engine.engine_id).key_file == (live.engine.key_hash,)


async def test_a_new_key_that_nobody_was_told_does_not_stay_in_the_file(
    make_gate: Any, clock: Any
) -> None:
    """Its write was not answered, and the one that was to undo it failed: a later one does."""
    gate = await make_gate(Config(engine=EngineSettings(rotate_mode="live")))
    live = await gate.engine(await gate.product())
    gate.backend.fail("put_key", after=True)
    gate.backend.fail("put_key", nth=2, times=2)
    with pytest.raises(BackendFailedError):
        await gate.lifecycle.rotate_key(live, actor="acme")
    fake = gate.backend.engine(live.engine.engine_id)
    assert len(fake.key_file) == 2
    await gate.lifecycle.sleep(live, actor="acme", force=True)  # whatever happens to it meanwhile
    for _ in range(3):
        await clock.advance(30)
        await gate.recovery.overlaps.end_due()
    assert fake.key_file == (live.engine.key_hash,)


async def test_an_overlap_that_ends_during_a_rotation_waits_for_its_end(
    make_gate: Any, clock: Any
) -> None:
    """Both write the same file: the key that the caller is about to get stays in it."""
    gate = await make_gate(Config(engine=EngineSettings(rotate_mode="live", key_overlap_s=60)))
    live = await gate.engine(await gate.product())
    await gate.lifecycle.rotate_key(live, actor="acme")
    fake = gate.backend.engine(live.engine.engine_id)
    await clock.advance(61)
    written = gate.backend.hang("put_key", after=True)
    rotation = asyncio.create_task(gate.lifecycle.rotate_key(live, actor="acme"))
    await settle()
    await gate.recovery.overlaps.end_due()
    written.release()
    await rotation
    assert fake.key_file[0] == live.engine.key_hash


async def test_an_end_that_is_written_late_does_not_undo_the_rotation_after_it(
    make_gate: Any, clock: Any
) -> None:
    """The backend may do one after the other what it was asked in another order."""
    gate = await make_gate(Config(engine=EngineSettings(rotate_mode="live", key_overlap_s=60)))
    live = await gate.engine(await gate.product())
    await gate.lifecycle.rotate_key(live, actor="acme")
    await clock.advance(61)
    late = gate.backend.hang("put_key")
    ending = asyncio.create_task(gate.recovery.overlaps.end_due())
    await settle()
    await gate.lifecycle.rotate_key(live, actor="acme")
    late.release()
    await ending
    await clock.advance(2)
    await gate.recovery.overlaps.end_due()
    assert gate.backend.engine(live.engine.engine_id).key_file[0] == live.engine.key_hash


async def test_a_rotation_by_restart_ends_the_overlaps_of_live_ones(make_gate: Any) -> None:
    """What was configured then does not keep an old key in the file for ever."""
    live_mode = Config(engine=EngineSettings(rotate_mode="live", key_overlap_s=60))
    gate = await make_gate(live_mode)
    live = await gate.engine(await gate.product())
    await gate.lifecycle.rotate_key(live, actor="acme")
    again = await gate.crash_and_restart(Config(engine=EngineSettings(rotate_mode="recreate")))
    live = again.registry.engines[live.engine.engine_id]
    await again.lifecycle.rotate_key(live, actor="acme")
    fake = again.backend.engine(live.engine.engine_id)
    assert fake.spec.key_hashes == (live.engine.key_hash,)
    await again.close()


async def test_only_running_engines_rotate(gate: Any) -> None:
    """ENGINE_NOT_RUNNING for the rest."""
    owner = await gate.product()
    live = await gate.engine(owner)
    await gate.lifecycle.stop(live, actor="acme")
    with pytest.raises(EngineNotRunningError):
        await gate.lifecycle.rotate_key(live, actor="acme")


async def test_a_provision_leaves_nothing_where_the_backend_is_away(gate: Any) -> None:
    """Nothing was changed: no row, no port, no quota; the next one finds a free way."""
    owner = await gate.product(max_engines=1)
    gate.backend.down = True
    for _ in range(2):
        with pytest.raises(BackendUnavailableError):
            await gate.engine(owner)
        with pytest.raises(BackendUnavailableError):
            await gate.admit(owner, "bob", auto_provision=True)
    assert (owner.size, gate.registry.ports.leased) == (0, set())
    gate.backend.down = False
    assert (await gate.engine(owner)).running


async def test_a_provision_leaves_nothing_where_strangers_hold_the_last_ports(
    make_gate: Any,
) -> None:
    """PORT_EXHAUSTION is the same refusal, whoever holds the ports."""
    gate = await make_gate(Config(ports=Ports(min=9001, max=9003)))
    owner = await gate.product(max_engines=1)
    gate.backend.world.taken_ports |= {9001, 9002, 9003}
    with pytest.raises(PortExhaustionError):
        await gate.engine(owner)
    assert (owner.size, gate.registry.ports.leased) == (0, set())
    assert gate.backend.world.volumes == {}
    gate.backend.world.taken_ports.clear()
    assert (await gate.engine(owner)).running


async def test_an_unreachable_backend_is_said_and_an_image_is_named(gate: Any) -> None:
    """BACKEND_UNAVAILABLE where nobody answered; the missing image by name."""
    owner = await gate.product()
    gate.backend.fail("start", error=BackendError("start", "", "x", unavailable=True))
    with pytest.raises(BackendUnavailableError):
        await gate.engine(owner)
    gate.backend.fail("start", error=ImageUnavailableError("start", "", "engine:9"))
    with pytest.raises(BackendFailedError, match="engine:9"):
        await gate.engine(owner, "bob")


async def test_a_bug_in_one_operation_is_an_internal_error(gate: Any) -> None:
    """The caller gets a reference, the gate lives on."""
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.backend.fail("stop", error=ValueError("a bug"))
    with pytest.raises(InternalError) as error:
        await gate.lifecycle.stop(live, actor="acme")
    assert error.value.fields["reference"] in error.value.message
    await gate.lifecycle.stop(live, actor="acme")


async def test_a_closed_gate_takes_no_new_work_and_hands_over_the_rest(
    gate: Any, clock: Any
) -> None:
    """SHUTTING_DOWN for new changes and for those that did not finish in the grace."""
    gate.backend.boot_s = 1000
    owner = await gate.product()
    waiter = asyncio.create_task(gate.engine(owner))
    await settle()
    await gate.operations.close(0.01)
    with pytest.raises(ShuttingDownError):
        await waiter
    with pytest.raises(ShuttingDownError):
        await gate.engine(owner, "bob")
    with pytest.raises(ShuttingDownError):
        await gate.products.register("late", "Late", Policy())


async def test_an_operation_cancelled_before_its_first_step_is_settled(gate: Any) -> None:
    """A destroy may come in the same loop turn; nobody is left waiting."""
    owner = await gate.product()
    live = await gate.engine(owner)
    stopping = gate.operations.begin(live, "stop", lambda _: asyncio.sleep(0), actor="acme")
    stopping.overtake()
    with pytest.raises(EngineNotFoundError):
        await stopping.join()
    assert live.operation is None


async def test_a_journal_that_fails_leaves_nothing_reserved(gate: Any) -> None:
    """User, port and slug are free again, and the caller hears STORAGE_UNAVAILABLE."""
    owner = await gate.product()
    gate.journal.failing = True
    with pytest.raises(StorageUnavailableError):
        await gate.engine(owner)
    assert (owner.size, gate.registry.ports.leased_count) == (0, 0)
    gate.journal.failing, gate.journal.status = False, "ok"
    await gate.engine(owner)
    gate.journal.failing = True
    with pytest.raises(StorageUnavailableError):
        await gate.products.register("other", "Other", Policy())
    assert not gate.registry.slug_taken("other")


async def test_nobody_is_refused_for_a_product_that_never_came_to_be(gate: Any) -> None:
    """A registration on its way to the disk is waited for; if it fails, its slug is free."""
    gate.journal.hold()
    first = asyncio.create_task(gate.product("acme"))
    await settle()
    second = asyncio.create_task(gate.product("acme"))
    await settle()
    assert not second.done()
    gate.journal.failing = True
    gate.journal.release()
    for registration in (first, second):
        with pytest.raises(StorageUnavailableError):
            await registration


@pytest.mark.parametrize("whole", [False, True])
async def test_a_destroy_waits_for_the_fact_of_what_it_overtook(gate: Any, whole: bool) -> None:
    """An undone provision has its removal on the way to the disk; it is not begun twice."""
    live = await gate.engine(await gate.product())
    gate.journal.hold()
    ids = gate.ground.ids(live)
    gate.registry.record(DestroyBegun(**ids, at_ms=1))
    if whole:
        gate.registry.record(Destroyed(**ids, at_ms=1))
    destroy = asyncio.create_task(gate.lifecycle.destroy(live, actor="acme"))
    await settle()
    gate.journal.release()
    gate.journal.held = None
    assert await destroy == live.engine.engine_id
    assert not gate.registry.engines


async def test_who_waited_for_a_provision_that_was_undone_hears_that_nothing_is_there(
    gate: Any,
) -> None:
    """The row goes with its first boot; a verb that waited its turn ends as well."""
    live = await gate.engine(await gate.product())
    boot = gate.operations.operation("provision", actor="acme", params=None, holds=True)
    live.operation = boot
    sleep = asyncio.create_task(gate.lifecycle.sleep(live, actor="acme"))
    await settle()
    live.gone = True
    boot.done.set_exception(PortExhaustionError("no port"))
    await settle()
    assert sleep.done()
    assert isinstance(sleep.exception(), EngineNotFoundError)


async def test_a_slug_is_taken_once(gate: Any) -> None:
    """Also by two registrations in one turn."""
    ends = await asyncio.gather(
        gate.products.register("acme", "A", Policy()),
        gate.products.register("acme", "B", Policy()),
        return_exceptions=True,
    )
    assert isinstance(ends[1], ProductSlugExistsError)


async def test_a_rotated_platform_key_overlaps_for_as_long_as_asked(gate: Any, clock: Any) -> None:
    """The old key works until the overlap ends, the new one at once."""
    owner = await gate.product()
    old = gate.key
    new = (await gate.products.rotate_key(owner.product.product_id, overlap_s=10)).encode()
    assert gate.product_by_key(old) is gate.product_by_key(new) is owner
    await clock.advance(11)
    assert gate.product_by_key(old) is None
    third = (await gate.products.rotate_key(owner.product.product_id, overlap_s=0)).encode()
    assert gate.product_by_key(new) is None
    assert gate.product_by_key(third) is owner


async def test_every_replaced_platform_key_has_its_whole_overlap(
    make_gate: Any, clock: Any
) -> None:
    """Whoever repeats a rotation whose answer was lost does not cut off the key in use."""
    gate = await make_gate(Config())
    owner = await gate.product()
    product_id = owner.product.product_id
    keys = [gate.key]
    for overlap_s in (60, 600, 30):
        key = await gate.products.rotate_key(product_id, overlap_s=overlap_s)
        keys.append(key.encode())

    def working(where: Any) -> list[bool]:
        return [where.product_by_key(key) is not None for key in keys]

    assert working(gate) == [True] * 4
    again = await gate.crash_and_restart()
    assert working(again) == [True] * 4
    await clock.advance(31)
    assert working(again) == [True, True, False, True]
    await clock.advance(30)
    assert working(again) == [False, True, False, True]
    keys.append((await again.products.rotate_key(product_id, overlap_s=0)).encode())
    assert working(again) == [False] * 4 + [True]
    await again.close()


async def test_replaced_platform_keys_are_only_so_many(gate: Any) -> None:
    """A loop of rotations makes no row grow without end; the latest are the ones that work."""
    owner = await gate.product()
    keys = [gate.key]
    for _ in range(OLD_KEYS_MAX + 4):
        key = await gate.products.rotate_key(owner.product.product_id, overlap_s=600)
        keys.append(key.encode())
    working = [gate.product_by_key(key) is owner for key in keys]
    assert working == [False] * 4 + [True] * (OLD_KEYS_MAX + 1)


async def test_a_deletion_that_a_crash_cut_in_half_goes_on_before_anybody_is_answered(
    gate: Any,
) -> None:
    """Not with the first comparison, half a minute later, as if it had been forgotten."""
    owner = await gate.product()
    await gate.engine(owner)
    hang = gate.backend.hang("destroy")
    gate.spawn(gate.products.delete(owner.product.product_id))
    await settle()
    assert owner.product.deleting
    again = await gate.crash_and_restart()
    hang.release()
    await settle()
    assert again.registry.products == {}
    assert again.backend.world.engines == {}
    await again.close()


async def test_deleting_a_product_takes_its_engines_along(gate: Any) -> None:
    """Its key stops at once, both callers get the count, the slug is free again."""
    owner = await gate.product()
    for user in ("ann", "bob"):
        await gate.engine(owner, user)
    product_id = owner.product.product_id
    counts = await asyncio.gather(*(gate.products.delete(product_id) for _ in range(2)))
    assert counts == [2, 2]
    assert gate.product_by_key(gate.key) is None
    assert gate.backend.world.engines == {}
    with pytest.raises(ProductNotFoundError):
        await gate.products.set_policy(product_id, Policy())
    await gate.product()
    assert gate.registry.retired.total_destroys == 2


async def test_a_deletion_that_meets_a_failing_backend_is_finished_later(gate: Any) -> None:
    """The caller hears of it; the comparison goes on with it."""
    owner = await gate.product()
    await gate.engine(owner)
    gate.backend.fail("destroy")
    with pytest.raises(GateError):
        await gate.products.delete(owner.product.product_id)
    assert owner.product.deleting
    with pytest.raises(PolicyDeniedError):
        await gate.engine(owner, "bob")
    with pytest.raises(ProductNotFoundError):
        await gate.products.rotate_key(owner.product.product_id, overlap_s=0)
    await gate.recovery.compare()
    await settle()
    assert gate.registry.products == {}


async def test_an_engine_off_its_network_is_brought_back_while_it_wakes(gate: Any) -> None:
    """Whoever waits for it to answer notices what keeps it from answering."""
    live = await gate.engine(await gate.product())
    await gate.lifecycle.sleep(live, actor="a")
    gate.backend.engine(live.engine.engine_id).connected = False
    waking = asyncio.create_task(gate.lifecycle.wake(live, actor="a"))
    await gate.clock.advance(5)
    await waking
    assert live.running
    assert gate.backend.engine(live.engine.engine_id).connected


@pytest.mark.parametrize("status", ["sleeping", "stopped"])
async def test_a_backend_that_is_away_changes_no_state(gate: Any, status: str) -> None:
    """A wake or start that could not be asked for fails for its caller, not for the engine."""
    live = await gate.engine(await gate.product())
    verb = {"sleeping": gate.lifecycle.sleep, "stopped": gate.lifecycle.stop}[status]
    await verb(live, actor="a")
    gate.backend.down = True
    with pytest.raises(BackendUnavailableError):
        await gate.lifecycle.start(live, version=None, actor="a")
    assert live.engine.status == status
    assert gate.actions()[-1] == "start!"
    gate.backend.down = False
    await gate.lifecycle.start(live, version=None, actor="a")
    assert live.running


@pytest.mark.parametrize("turns", range(8))
async def test_nobody_gets_in_between_a_destroy_and_what_it_overtakes(
    gate: Any, turns: int
) -> None:
    """A sleep that is on its way to the disk ends there, before another verb looks at the row."""
    live = await gate.engine(await gate.product())
    gate.journal.hold()
    sleeping = asyncio.create_task(gate.lifecycle.sleep(live, actor="acme", force=True))
    await settle()
    destroying = asyncio.create_task(gate.lifecycle.destroy(live, actor="acme"))
    for _ in range(turns):
        await asyncio.sleep(0)
    rotating = asyncio.create_task(gate.lifecycle.rotate_key(live, actor="acme"))
    await settle()
    gate.journal.release()
    ended = await asyncio.gather(sleeping, destroying, rotating, return_exceptions=True)
    assert ended[1] == live.engine.engine_id
    assert type(ended[2]) in (EngineNotFoundError, EngineNotRunningError, OvertakenError)
