"""Where a reader of the audit trail is served from: memory first, the journal for what is older."""

import asyncio
from collections.abc import Collection, Iterator

import pytest

from enginegate import facts as f
from enginegate.registry.trail import RECENT_MAX, Query, Trail


def note(number: int) -> f.AnyFact:
    return f.Noted(at_ms=number, action="recovered", user_id=f"user-{number}")


class OnDisk:
    """A journal with the facts of these numbers, and what was asked of it."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers
        self.asked: list[int | None] = []
        self.named: list[str] = []

    def history(
        self, before: int | None, naming: Collection[str]
    ) -> Iterator[tuple[int, f.AnyFact]]:
        self.asked.append(before)
        self.named += naming
        for number in reversed(self.numbers):
            if before is None or number < before:
                yield number, note(number)


def trail(disk: OnDisk, *, oldest: int, added: range) -> Trail:
    made = Trail()
    made.history, made.oldest = disk.history, lambda: oldest
    for number in added:
        made.add(number, note(number))
    return made


async def ids(trail: Trail, **query: object) -> list[int]:
    found, _ = await trail.search(Query(**query))
    return [entry.id for entry in found]


async def test_nothing_is_read_where_memory_has_it_all() -> None:
    """A young journal is not opened to find out that it has no more."""
    disk = OnDisk(1, 2, 3)
    young = trail(disk, oldest=1, added=range(1, 4))
    assert await ids(young) == [3, 2, 1]
    assert await ids(young, user_id="nobody") == []
    assert disk.asked == []


@pytest.mark.parametrize("oldest", [1, 0])
async def test_what_is_older_than_memory_comes_from_the_journal(oldest: int) -> None:
    """After a restart memory begins in the middle; also where the oldest number is not known."""
    disk = OnDisk(1, 2, 3, 4)
    restarted = trail(disk, oldest=oldest, added=range(3, 5))
    assert await ids(restarted) == [4, 3, 2, 1]
    assert await ids(restarted, limit=1) == [4]
    assert disk.asked == [3]


async def test_what_memory_let_go_of_comes_from_the_journal() -> None:
    """It keeps a bounded number of entries."""
    disk = OnDisk(*range(1, RECENT_MAX + 3))
    long = trail(disk, oldest=1, added=range(1, RECENT_MAX + 3))
    assert await ids(long, user_id="user-1") == [1]
    assert await ids(long, user_id="user-3") == [3]
    assert disk.asked == [3, 3]
    assert disk.named == ["user-1", "user-3"]


async def test_an_empty_memory_asks_the_journal() -> None:
    """Nothing has happened since the start, and much before it."""
    assert await ids(trail(OnDisk(1, 2), oldest=1, added=range(0))) == [2, 1]


async def test_what_happens_during_a_search_is_not_in_it_and_repeats_nothing() -> None:
    """Memory lets go of old entries while a search walks through it in turns."""
    disk = OnDisk(*range(1, RECENT_MAX + 1001))
    full = trail(disk, oldest=1, added=range(501, RECENT_MAX + 501))
    searching = asyncio.create_task(ids(full, limit=RECENT_MAX + 10))
    await asyncio.sleep(0)
    for number in range(RECENT_MAX + 501, RECENT_MAX + 1001):
        full.add(number, note(number))
    assert await searching == [*range(RECENT_MAX + 500, 490, -1)]
