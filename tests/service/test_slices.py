"""Long loops leave the event loop to others."""

import asyncio
from collections.abc import Iterator
from typing import Any

from enginegate.config import Config, Ports
from enginegate.slices import SLICE, sliced


async def test_others_have_a_turn_between_slices() -> None:
    """A walk over a large fleet does not keep an admit waiting for its end."""
    turns, walked = [], []

    async def admit() -> None:
        while len(walked) < 1_000:
            turns.append(len(walked))
            await asyncio.sleep(0)

    other = asyncio.create_task(admit())
    async for item in sliced(range(1_000), size=100):
        walked.append(item)  # noqa: PERF401 - the other one looks at it meanwhile
    await other
    assert walked == [*range(1_000)]
    assert turns == [*range(100, 1_000, 100)]


async def test_the_walk_is_over_the_items_of_its_beginning() -> None:
    """What comes or goes meanwhile does not break it."""
    items = {n: n for n in range(500)}
    seen = []
    async for item in sliced(items.values(), size=50):
        seen.append(item)
        items.pop(item)
        items[item + 1_000] = item
    assert seen == [*range(500)]


async def test_a_list_is_walked_without_a_copy_of_it() -> None:
    """To touch each of 100,000 items takes milliseconds by itself, in one turn."""

    class Parts(list[int]):
        def __iter__(self) -> Iterator[int]:
            raise AssertionError("copied whole")

    assert [item async for item in sliced(Parts(range(450)))] == [*range(450)]


async def test_a_fleet_is_walked_while_engines_come_and_go(make_gate: Any, clock: Any) -> None:
    """Whoever stays is met once, wherever others leave or join; nobody waits for its end."""
    gate = await make_gate(Config(ports=Ports(min=9001, max=10_999)))
    owner = await gate.product()
    lives = [await gate.engine(owner, f"user{number}") for number in range(2 * SLICE)]
    lives.sort(key=lambda live: live.engine.engine_id)  # made in one moment of this clock
    met, left = [], {lives[0], lives[SLICE - 1], lives[-1]}

    async def change() -> None:
        for live in left:
            await gate.lifecycle.destroy(live, actor="a")
        await clock.advance(1)
        await gate.engine(owner, "newcomer")

    async for live in gate.registry.walk():
        if not met:
            others = asyncio.create_task(change())
        if len(met) == SLICE - 1:
            await others
        met.append(live)
    stayed = [live for live in lives if live not in left]
    assert [live for live in met if live in stayed] == stayed
    assert met[-1].engine.user_id == "newcomer"
    assert len(met) == len({live.engine.engine_id for live in met})


async def test_who_runs_is_walked_without_a_look_at_the_rest(make_gate: Any) -> None:
    """A sweep of a few costs nothing by the many that are stopped; nobody has to wait for it."""
    gate = await make_gate(Config(ports=Ports(min=9001, max=10_999)))
    owner = await gate.product()
    lives = [await gate.engine(owner, f"user{number}") for number in range(2 * SLICE)]
    for live in lives[1:]:
        await gate.lifecycle.stop(live, actor="a")
    await gate.lifecycle.start(lives[-1], version=None, actor="a")
    turns = 0

    async def admits() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(admits())
    met = [live async for live in gate.registry.walk(running=True)]
    others.cancel()
    assert {live.engine.user_id for live in met} == {"user0", lives[-1].engine.user_id}
    assert turns <= 1, "between one product and the next, at most"
