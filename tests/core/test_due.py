"""Looking when something falls due, and not before."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest_asyncio

from enginegate.agenda import Agenda
from enginegate.due import look_when_due
from tests.fakes import ManualClock, settle

TICK_S = 0.1


class Diary:
    """An agenda whose loop writes down when it looked, and what was due."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.began = self.clock.now()
        self.agenda: Agenda[str] = Agenda()
        self.looks: list[tuple[float, list[str]]] = []
        self.at_look: Callable[[], None] = lambda: None

    def put(self, item: str, in_s: float) -> None:
        self.agenda.put(item, self.clock.now() + in_s)

    def look(self) -> None:
        now = self.clock.now()
        self.looks.append((round(now - self.began, 3), self.agenda.due(now)))
        self.at_look()


@pytest_asyncio.fixture
async def diary() -> AsyncIterator[Diary]:
    made = Diary()
    work = look_when_due(made.agenda, made.look, made.clock, tick_s=TICK_S)
    task = asyncio.create_task(work)
    await made.clock.advance(TICK_S)
    yield made
    task.cancel()
    await asyncio.wait([task])
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_with_nothing_planned_nothing_wakes_it(diary: Diary) -> None:
    """An idle server's loops cost nothing."""
    await diary.clock.advance(3600)
    assert diary.looks == []
    assert diary.clock.sleepers == 1


async def test_it_looks_at_the_time_and_not_before(diary: Diary) -> None:
    """One plan is one look, at its time."""
    diary.put("a", 5)
    await diary.clock.advance(4.99)
    assert diary.looks == []
    await diary.clock.advance(0.01)
    assert diary.looks == [(5.1, ["a"])]


async def test_an_earlier_plan_counts_and_a_later_one_does_not_wake(diary: Diary) -> None:
    """What comes in between has its own time, whenever it was planned."""
    diary.put("a", 50)
    await diary.clock.advance(10)
    diary.put("b", 5)
    diary.put("c", 7)
    await diary.clock.advance(6)
    assert diary.looks == [(15.1, ["b"])]
    await diary.clock.advance(100)
    assert [due for _, due in diary.looks] == [["b"], ["c"], ["a"]]


async def test_what_was_dropped_or_put_off_is_not_looked_for(diary: Diary) -> None:
    """Only the last plan for an item counts."""
    diary.put("a", 5)
    diary.put("b", 6)
    await diary.clock.advance(1)
    diary.agenda.drop("a")
    diary.put("b", 9)
    await diary.clock.advance(8.9)
    assert diary.looks == []
    await diary.clock.advance(0.1)
    assert diary.looks == [(10.1, ["b"])]


async def test_however_much_falls_due_it_looks_once_a_tick(diary: Diary) -> None:
    """Thousands that fall due in a row are a few looks; what is due at once waits a tick."""
    for number in range(100):
        diary.put(str(number), 1 + number / 100)
    diary.at_look = lambda: diary.put("now", 0) if len(diary.looks) < 12 else None
    await diary.clock.advance(10)
    assert 11 <= len(diary.looks) <= 13
    assert sum(len(due) for _, due in diary.looks) == 100 + 11


async def test_a_clock_that_wakes_too_early_is_waited_for(diary: Diary) -> None:
    """A loop's timer may come a part of its resolution before the time."""
    slept = diary.clock.sleep

    async def early(seconds: float) -> None:
        await slept(seconds * 0.9)

    diary.clock.sleep = early  # type: ignore[method-assign]
    diary.put("a", 5)
    await diary.clock.advance(4.99)
    assert diary.looks == []
    await diary.clock.advance(0.02)
    await settle()
    assert [due for _, due in diary.looks] == [["a"]]
