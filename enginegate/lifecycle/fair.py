"""Places that are few, shared fairly: between groups in turn, within a group in order.

A product with a hundred users to wake must not make the one user of another wait for
all of them.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairPlaces:
    """So many places; a free one goes to the next group's oldest waiter."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the next group first

    @asynccontextmanager
    async def place(self, group: str) -> AsyncIterator[None]:
        """Hold one place; waits for it. A waiter who is cancelled takes nothing along."""
        await self._take(group)
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, group: str) -> None:
        if self._free:  # then nobody waits: a place is handed over before it counts as free
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(group, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # our turn came in the same moment: pass it on
                self._give_back()
            raise

    def _give_back(self) -> None:
        while self._waiting:
            group, waiters = next(iter(self._waiting.items()))
            turn = waiters.popleft()
            del self._waiting[group]
            if waiters:
                self._waiting[group] = waiters  # to the end of the round
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
