"""A replayed fleet is the living fleet, whatever happened."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginegate.config import Config, Ports
from enginegate.errors import GateError, JournalError
from enginegate.facts import Booted, Noted
from enginegate.model import Policy, SnapshotRecord, Status
from tests.fakes import ManualClock, settle
from tests.service.gate import Gate

USERS = st.sampled_from(["ann", "bob", "cid"])
STEP = st.one_of(
    st.tuples(st.just("admit"), USERS),
    st.tuples(st.just("stop"), USERS),
    st.tuples(st.just("start"), USERS),
    st.tuples(st.just("sleep"), USERS),
    st.tuples(st.just("rotate"), USERS),
    st.tuples(st.just("destroy"), USERS),
    st.tuples(st.just("crash"), USERS),
    st.tuples(st.just("advance"), st.sampled_from(["1", "30"])),
    st.tuples(st.just("policy"), st.sampled_from(["1", "3"])),
    st.tuples(st.just("fail"), st.sampled_from(["start", "stop", "pause", "destroy", "unpause"])),
    st.tuples(st.just("hold"), st.sampled_from(["9001", "9002"])),
)


def state_of(gate: Gate) -> dict[str, Any]:
    """Return everything durable, by what it is about."""
    return {_name(record): record for record in gate.registry.snapshot()}


def _name(record: SnapshotRecord) -> str:
    return f"{type(record).__name__} {getattr(record, 'engine_id', record.product_id)}"


async def do(gate: Gate, owner: Any, step: tuple[str, str]) -> None:
    verb, what = step
    live = owner.engines.get(what)
    if verb == "advance":
        await gate.clock.advance(float(what))
    elif verb == "policy":
        policy = Policy(max_engines=int(what))
        await gate.products.set_policy(owner.product.product_id, policy)
    elif verb == "fail":
        gate.backend.fail(what)
    elif verb == "hold":
        gate.backend.world.taken_ports ^= {int(what)}
    elif verb == "admit":
        await gate.admit(owner, what, auto_provision=True, auto_wake=True, wait_s=0)
    elif live is None:
        return
    elif verb == "crash" and live.engine.engine_id in gate.backend.alive:
        gate.backend.crash(live.engine.engine_id)
    elif verb == "start":
        await gate.lifecycle.start(live, version=None, actor="acme")
    elif verb == "rotate":
        await gate.lifecycle.rotate_key(live, actor="acme")
    elif verb in ("stop", "sleep", "destroy"):
        await getattr(gate.lifecycle, verb)(live, actor="acme")
    await settle()


def counted(gate: Gate) -> list[tuple[list[str], dict[str, int]]]:
    """Return each product's list and its counts of states, after comparing them with its rows."""
    found = []
    for product in gate.registry.products.values():
        rows = sorted(
            (live.engine for live in product.engines.values()),
            key=lambda row: (row.created_at_ms, row.engine_id),
        )
        listed = [live.engine for live in product.roster.engines]
        running = [live.engine for live in product.roster.running]
        states = [row.status.value for row in rows]
        counts = gate.registry.counts([product])
        assert listed == rows
        assert running == [row for row in rows if row.status is Status.RUNNING]
        assert counts == {state: states.count(state) for state in counts}
        found.append(([row.engine_id for row in listed], counts))
    return found


async def live_through(steps: list[tuple[str, str]]) -> None:
    clock = ManualClock()
    gate = Gate(config=Config(ports=Ports(min=9001, max=9004)), clock=clock)
    await gate.start()
    gate.run_loops()
    owner = await gate.product(max_engines=3)
    for step in steps:
        doing = asyncio.ensure_future(do(gate, owner, step))
        for _ in range(200):
            await settle()
            if doing.done():
                break
            await clock.advance(1)
        if error := doing.exception():
            assert isinstance(error, GateError), error
        assert gate.registry.ports.leased == {
            live.engine.port for live in gate.registry.engines.values()
        }
        assert len(owner.engines) <= 3
        counted(gate)
    await clock.advance(1)
    replayed = Gate(config=gate.config, clock=clock, journal=gate.journal)
    from_snapshot = Gate(config=gate.config, clock=clock, snapshot=gate.registry.snapshot())
    gate.journal.apply = gate.registry.apply
    assert state_of(replayed) == state_of(gate) == state_of(from_snapshot)
    assert counted(replayed) == counted(gate) == counted(from_snapshot)
    assert replayed.registry.ports.leased == gate.registry.ports.leased
    await gate.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(STEP, max_size=15))
def test_replayed_state_is_live_state_and_ports_are_those_of_living_engines(
    steps: list[tuple[str, str]],
) -> None:
    """For any sequence of verbs, crashes and failures; also from a snapshot."""
    asyncio.run(live_through(steps))


async def test_a_fact_that_cannot_follow_stops_the_replay(gate: Any) -> None:
    """An edited journal is refused with the number of the fact and the state it met."""
    fact = Booted(at_ms=1, engine_id="e", product_id="p", user_id="u", via="start")
    with pytest.raises(JournalError, match=r"fact 7: .*no engine"):
        gate.registry.load([], [(7, fact)])


async def test_notes_are_lost_not_raised_when_the_disk_is_full(gate: Any) -> None:
    """Nobody waits for a note, so nobody hears that it could not be written."""
    gate.journal.status = "full"
    gate.registry.note("recovered")
    gate.journal.status, gate.journal.failing = "ok", True
    gate.registry.note("recovered")
    await settle()
    assert not any(isinstance(fact, Noted) for _, fact in gate.journal.facts)
