"""A disk that is full or failing, seen from the verbs: nothing half done stays in sight."""

from typing import Any, get_args

import pytest
from msgspec.structs import replace

from enginegate.backends.base import Presence
from enginegate.errors import JournalError, NoRoomError, StorageUnavailableError
from enginegate.facts import AnyFact, Provisioned
from enginegate.keys import Keyring, KeyUnsealError, new_master_key
from enginegate.model import Engine, PendingKey, SnapshotRecord, Status
from enginegate.ports import PortMap
from enginegate.registry import Registry, open_keys
from enginegate.registry.registry import _Writable
from enginegate.registry.unsealing import AT_ONCE
from tests.fakes import ManualClock, settle
from tests.service.gate import MASTER_KEY, Gate


def presence(gate: Any, live: Any) -> Presence:
    return gate.backend.engine(live.engine.engine_id).presence


async def test_an_engine_that_finds_no_room_was_never_there(gate: Any) -> None:
    """Its files do not fit: 503 rather than a failed row, no port kept, and the journal is told."""
    owner = await gate.product()
    gate.backend.fail("start", error=NoRoomError("start", "e", "no space left on device"))
    with pytest.raises(StorageUnavailableError, match="disk is full"):
        await gate.engine(owner)
    assert gate.journal.status == "full"
    assert owner.engines == owner.promised == gate.backend.alive == {}
    assert gate.registry.ports.leased_count == 0
    gate.journal.status = "ok"
    assert (await gate.engine(owner)).running


async def test_an_undo_that_cannot_be_written_is_left_to_the_next_start(gate: Any) -> None:
    """The journal fails in the middle of a boot: the row stays, and a restart settles it."""
    owner = await gate.product()
    hang = gate.backend.hang("start")
    gate.spawn(gate.engine(owner))
    await settle()
    gate.journal.failing = True
    hang.release()
    await settle()
    assert gate.journal.status == "failed"
    assert owner.engines["ann"].engine.status is Status.PROVISIONING
    gate.journal.failing, gate.journal.status = False, "ok"
    again = await gate.crash_and_restart()
    assert again.registry.products[owner.product.product_id].engines["ann"].running
    await again.close()


async def test_a_sleep_that_cannot_be_written_is_undone(gate: Any) -> None:
    """Its row says running and admits go on, so the engine must not stay frozen."""
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.journal.failing = True
    with pytest.raises(StorageUnavailableError):
        await gate.lifecycle.sleep(live, actor="acme")
    assert presence(gate, live) is Presence.RUNNING
    assert gate.warm() is not None
    gate.backend.fail("unpause")
    gate.journal.status = "ok"
    with pytest.raises(StorageUnavailableError):
        await gate.lifecycle.sleep(live, actor="acme")
    assert presence(gate, live) is Presence.PAUSED
    await gate.recovery.compare()
    await settle()
    assert presence(gate, live) is Presence.RUNNING


async def test_what_was_done_before_the_disk_was_full_is_written(gate: Any) -> None:
    """Outcomes may use the reserve: a boot that was under way ends as running."""
    owner = await gate.product()
    hang = gate.backend.hang("start")
    boot = gate.spawn(gate.engine(owner))
    await settle()
    gate.journal.status = "full"
    hang.release()
    await settle()
    assert (await boot).running


async def test_no_verb_is_begun_on_a_disk_that_a_look_finds_full(gate: Any) -> None:
    """The look comes before the backend is touched; stop and destroy work all the same."""
    owner = await gate.product()
    live = await gate.engine(owner)
    calls = gate.backend.count("start")
    gate.registry.out_of_room("a test")
    with pytest.raises(StorageUnavailableError):
        await gate.engine(owner, "bob")
    with pytest.raises(StorageUnavailableError):
        await gate.lifecycle.rotate_key(live, actor="acme")
    assert gate.backend.count("start") == calls
    await gate.lifecycle.stop(live, actor="acme")
    await gate.lifecycle.destroy(live, actor="acme")
    assert owner.engines == {}


@pytest.mark.parametrize("verb", ["stop", "destroy"])
async def test_no_engine_is_stopped_when_not_even_the_outcome_can_be_written(
    gate: Any, verb: str
) -> None:
    """With the reserve gone, the refusal comes before the engine is touched."""
    live = await gate.engine(await gate.product())
    gate.journal.status, gate.journal.reserve = "full", False
    with pytest.raises(StorageUnavailableError):
        await getattr(gate.lifecycle, verb)(live, actor="acme")
    assert presence(gate, live) is Presence.RUNNING
    assert gate.warm() is not None


def test_without_a_journal_everything_is_writable() -> None:
    """A replay asks nobody."""
    nobody = _Writable()
    nobody.out_of_room("a test")
    assert nobody.status == nobody.check() == "ok"


# Another master key


def registry(keyring: Keyring) -> Registry:
    return Registry(
        ports=PortMap(9001, 9999),
        keyring=keyring,
        clock=ManualClock(),
        url_of=lambda _: "",
        sleep_after_s=900,
    )


async def test_a_ring_of_two_keys_seals_all_anew_with_the_first(gate: Gate) -> None:
    """Rows, keys under way and the facts after them open with the new key alone."""
    owner = await gate.product()
    live = await gate.engine(owner)
    await gate.lifecycle.rotate_key(live, actor="acme")
    new = new_master_key()
    ring, alone = Keyring([new, MASTER_KEY]), Keyring([new])
    pending = PendingKey(gate.ground.keyring.seal(live.engine.engine_id, "sk-eg-next"), "hash")
    rows = [
        replace(row, pending_key=pending) if isinstance(row, Engine) else row
        for row in gate.registry.snapshot()
    ]

    after, replayed = registry(alone), registry(alone)
    after.load(rows, [], sealer=ring.resealer)
    replayed.load([], gate.journal.facts, sealer=ring.resealer)
    for fleet in (after, replayed):
        assert fleet.engines[live.engine.engine_id].api_key == live.api_key
    kept = after.engines[live.engine.engine_id].engine.pending_key
    assert kept is not None
    assert alone.open(live.engine.engine_id, kept.sealed_key) == "sk-eg-next"
    assert alone.resealer is None


def test_what_holds_a_sealed_key_is_known_to_the_resealing() -> None:
    """A field of that kind anywhere else in a fact or record would keep its old key."""
    kinds = [*get_args(AnyFact), *get_args(SnapshotRecord)]
    for kind in kinds:
        names = {name for name in kind.__struct_fields__ if "sealed" in name or "pending" in name}
        assert names <= {"sealed_key", "pending_key"}
        assert not names or "engine_id" in kind.__struct_fields__
    assert PendingKey.__struct_fields__ == ("sealed_key", "key_hash")


async def test_a_key_that_nothing_opens_refuses_the_resealing(gate: Gate) -> None:
    """Whole files whose keys do not open are refused in words, as a matter of configuration."""
    await gate.engine(await gate.product())
    stranger = Keyring([new_master_key(), new_master_key()])
    with pytest.raises(JournalError, match="opens with none of the master keys") as caught:
        registry(stranger).load([], gate.journal.facts, sealer=stranger.resealer)
    assert caught.value.exit_code == 78


async def test_a_key_that_nothing_opens_is_told_and_costs_no_other_engine(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """Its file was edited: its admits are refused until the key is rotated, all others go on."""
    owner = await gate.product()
    bad = await gate.engine(owner, "bad")
    others = [await gate.engine(owner, f"user{number}") for number in range(AT_ONCE)]
    stranger = Keyring([new_master_key()])
    gate.journal.facts = [
        (number, replace(fact, sealed_key=stranger.seal(fact.engine_id, "sk-eg-strange")))
        if isinstance(fact, Provisioned) and fact.user_id == "bad"
        else (number, fact)
        for number, fact in gate.journal.facts
    ]

    again = await gate.crash_and_restart()
    opening = again.spawn(open_keys(again.registry))
    await again.clock.advance(1)
    assert await opening == 1
    assert f"engine {bad.engine.engine_id} opens with none" in caplog.text
    after = again.registry.engines
    assert after[others[-1].engine.engine_id].api_key == others[-1].api_key
    live = after[bad.engine.engine_id]
    assert again.warm("bad") is None
    assert again.warm("user0") is not None
    with pytest.raises(KeyUnsealError):
        _ = live.api_key
    assert await again.lifecycle.rotate_key(live, actor="acme") == live.api_key
    assert again.warm("bad") is not None
    await again.close()
