"""A bound on calls in flight, with priorities: who waits longest for the engine goes first.

The Docker daemon freezes and thaws about a hundred containers a second in all; more
than a few calls at once only queue inside it, where a wake cannot overtake a sleep.
So the queue is here.
"""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum


class Priority(IntEnum):
    """Who goes first when places are short; within one priority, who came first."""

    WAKE = 0
    PROVISION = 1
    RESTART = 2
    SLEEP = 3
    PROBE = 4


class Budget:
    """So many places; a free one goes to the most urgent waiter, then to the oldest."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[tuple[Priority, int, asyncio.Future[None]]] = []
        self._arrivals = itertools.count()

    @property
    def free(self) -> int:
        return self._free

    @asynccontextmanager
    async def place(self, priority: Priority) -> AsyncIterator[None]:
        """Hold one place; waits for it. A waiter who is cancelled takes nothing along."""
        await self._take(priority)
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, priority: Priority) -> None:
        if self._free:  # then nobody waits: a place is handed over before it counts as free
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._arrivals), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # our turn came in the same moment: pass it on
                self._give_back()
            raise

    def _give_back(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
