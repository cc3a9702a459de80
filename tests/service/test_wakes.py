"""Many sleepers woken at once: who goes first where the backend does only so much at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from enginegate.backends.docker.budget import Budget, Priority
from enginegate.config import Config
from enginegate.lifecycle.fair import FairPlaces
from enginegate.lifecycle.starting import WAKES_AT_ONCE
from tests.fakes import FakeBackend, settle
from tests.service.gate import Gate

PLACES = 8
PRIORITIES = {
    "unpause": Priority.WAKE,
    "start": Priority.PROVISION,
    "stop": Priority.RESTART,
    "pause": Priority.SLEEP,
}


class BudgetedBackend(FakeBackend):
    """Does so many things at a time, each for 13 ms, and notes their order, as Docker would."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.budget = Budget(PLACES)
        self.order: list[tuple[str, str | None]] = []

    @asynccontextmanager
    async def _call(self, operation: str, engine_id: str | None = None) -> AsyncIterator[None]:
        async with self.budget.place(PRIORITIES.get(operation, Priority.PROBE)):
            self.order.append((operation, engine_id))
            if operation in PRIORITIES:
                await self.clock.sleep(0.013)
            async with super()._call(operation, engine_id):
                yield


@pytest.fixture
async def gate(clock: Any) -> Any:
    gate = Gate(config=Config(), clock=clock, backend=BudgetedBackend(clock=clock))
    await gate.start()
    yield gate
    await gate.close()


async def fleet(gate: Any, slug: str, users: int) -> Any:
    """Return a product whose engines all sleep."""
    owner = await gate.product(slug)
    made = asyncio.gather(*(gate.engine(owner, f"{slug}-{number}") for number in range(users)))
    await gate.clock.advance(users)
    sleeps = asyncio.gather(
        *(gate.lifecycle.sleep(live, actor=slug, force=True) for live in await made)
    )
    await gate.clock.advance(users)
    assert all(await sleeps)
    return owner


def woken(gate: Any) -> list[str]:
    """Return whose engines were thawed, in order, by the first letter of the product."""
    names = {engine_id: live.engine.user_id for engine_id, live in gate.registry.engines.items()}
    return [names[engine_id][0] for what, engine_id in gate.backend.order if what == "unpause"]


async def test_products_take_turns_and_users_keep_their_order(gate: Any, clock: Any) -> None:
    """Sixty of one product do not make the three of another wait for them."""
    big, small = await fleet(gate, "big", 60), await fleet(gate, "small", 3)
    wakes = [gate.admit(big, f"big-{number}", auto_wake=True) for number in range(60)]
    many = asyncio.gather(*wakes)
    await settle()
    few = asyncio.gather(
        *(gate.admit(small, f"small-{number}", auto_wake=True) for number in range(3))
    )
    await clock.advance(5)
    assert all(answer.action == "woke" for answer in (*await many, *await few))
    order = woken(gate)
    last_small = len(order) - 1 - order[::-1].index("s")
    assert last_small <= WAKES_AT_ONCE + 2 * 3
    ids = [engine_id for what, engine_id in gate.backend.order if what == "unpause"]
    users = [gate.registry.engines[one].engine.user_id for one in ids]
    assert [one for one in users if one[0] == "b"] == [f"big-{number}" for number in range(60)]


async def test_a_wake_overtakes_everything_else(gate: Any, clock: Any) -> None:
    """Fifty sleeps are queued; the wake that comes last is the next that is done."""
    await fleet(gate, "big", 51)
    lives = list(gate.registry.engines.values())
    wakes = asyncio.gather(*(gate.lifecycle.wake(live, actor="big") for live in lives[1:]))
    await clock.advance(5)
    await wakes
    gate.backend.order.clear()
    sleeps = asyncio.gather(
        *(gate.lifecycle.sleep(live, actor="big", force=True) for live in lives[1:])
    )
    await settle()
    waking = asyncio.create_task(gate.lifecycle.wake(lives[0], actor="big"))
    await clock.advance(5)
    await waking
    assert all(await sleeps)
    place = gate.backend.order.index(("unpause", lives[0].engine.engine_id))
    assert place <= PLACES + 1


async def test_a_caller_who_leaves_the_queue_takes_no_place_along() -> None:
    """Cancelled before its turn, or in the very moment of it: the next one gets it."""
    places = FairPlaces(1)
    went: list[str] = []

    async def go(name: str) -> None:
        async with places.place(name):
            went.append(name)
            await asyncio.sleep(0)

    async with places.place("first"):
        tasks = [asyncio.create_task(go(name)) for name in ("ann", "bob", "cid")]
        await settle()
        tasks[0].cancel()
        await settle()
    tasks[1].cancel()  # its turn came when the place was left
    await asyncio.gather(*tasks, return_exceptions=True)
    assert went == ["cid"]
    async with asyncio.timeout(1), places.place("last"):
        pass
