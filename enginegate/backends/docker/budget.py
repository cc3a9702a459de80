"""A bound on calls in flight, with priorities: who waits longest for the engine goes first.

The Docker daemon freezes and thaws about a hundred containers a second in all; more
than a few calls at once only queue inside it, where a wake cannot overtake a sleep.
So the queue is here. And since a call may hang, the less urgent may not take every
place: each priority leaves one to those above it.

A long queue is not a dead daemon, either: as long as it answers anybody, who waits goes
on waiting, and a waiter's patience is counted from its last answer.
"""

import asyncio
import heapq
import itertools
import math
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
    """So many places; a free one goes to the most urgent waiter, then to the oldest.

    Calls of one priority and of those below it together hold at most one place fewer
    than the priority above may: of eight, probes have four and wakes all. So what hangs
    on one rung never keeps the rungs above from going.
    """

    def __init__(self, places: int) -> None:
        self._limits = [max(places - priority, 1) for priority in Priority]
        self._held = [0] * len(Priority)  # by calls of this priority or of a less urgent one
        self._waiting: list[tuple[Priority, int, asyncio.Future[None]]] = []
        self._arrivals = itertools.count()
        self.heard_at = -math.inf
        """When the daemon last answered a call, whatever it said (seconds of the loop's clock)."""

    @property
    def free(self) -> int:
        return self._limits[Priority.WAKE] - self._held[Priority.WAKE]

    @asynccontextmanager
    async def place(
        self, priority: Priority, *, patience_s: float = math.inf, until: float = math.inf
    ) -> AsyncIterator[float]:
        """Hold one place; waits for it. A waiter who is cancelled takes nothing along.

        Yields since when the caller has waited without anybody being answered: the call
        itself has what is left of its patience from then.

        Raises:
            TimeoutError: nobody was answered for `patience_s`, or it is `until`.
        """
        asked_at = _now()
        await self._take(priority, asked_at, patience_s, until)
        try:
            yield max(asked_at, self.heard_at)
        finally:
            self._give_back(priority)

    def heard(self) -> None:
        """Note that the daemon has answered a call."""
        self.heard_at = _now()

    def _admits(self, priority: Priority) -> bool:
        """Return whether a call may go now; if one may not, no less urgent one may."""
        return all(self._held[rung] < self._limits[rung] for rung in range(priority + 1))

    def _hold(self, priority: Priority, change: int) -> None:
        for rung in range(priority + 1):
            self._held[rung] += change

    async def _take(
        self, priority: Priority, asked_at: float, patience_s: float, until: float
    ) -> None:
        if self._admits(priority):  # then nobody as urgent waits
            self._hold(priority, 1)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._arrivals), turn))
        try:
            await self._come(turn, asked_at, patience_s, until)
        except BaseException:  # cleaned up, and raised again
            if not turn.cancel():  # our turn came in the same moment: pass it on
                self._give_back(priority)
            raise

    async def _come(
        self, turn: asyncio.Future[None], asked_at: float, patience_s: float, until: float
    ) -> None:
        while not turn.done():
            end = min(max(asked_at, self.heard_at) + patience_s, until)
            if _now() >= end:
                raise TimeoutError
            await asyncio.wait([turn], timeout=None if end == math.inf else end - _now())

    def _give_back(self, priority: Priority) -> None:
        self._hold(priority, -1)
        while self._waiting:
            first, _, turn = self._waiting[0]
            if not turn.done():
                if not self._admits(first):
                    return
                self._hold(first, 1)
                turn.set_result(None)
            heapq.heappop(self._waiting)


def _now() -> float:
    return asyncio.get_running_loop().time()
