"""Long loops leave the event loop to others."""

import asyncio

from enginegate.slices import sliced


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
