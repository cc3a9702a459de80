"""Connections that are waited for, the longest first, with one timer for all of them.

A timer for each connection would cost every request a timer that hardly ever fires.
All in one list have the same patience, so the order in which they came is the order
in which they are late.
"""

import asyncio
from collections.abc import Callable
from itertools import islice, takewhile
from typing import Generic, TypeVar

Waited = TypeVar("Waited")

LATE_MAX = 64  # at a time: a thousand that are late together must not hold up the others
TICK_S = 0.001  # the resolution of the loop's clock


class WaitingList(Generic[Waited]):
    """Who is waited for, for `patience_s` at most; then `late` is called, once."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        patience_s: float,
        late: Callable[[Waited], None],
    ) -> None:
        self.patience_s = patience_s
        self._loop = loop
        self._late = late
        self._since: dict[Waited, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._since)

    def put(self, one: Waited) -> None:
        """Wait for this one, from now on."""
        self._since.pop(one, None)  # the order is that of insertion
        now = self._since[one] = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_at(now + self.patience_s, self._look)

    def again(self, one: Waited) -> None:
        """Wait anew for one that is waited for."""
        del self._since[one]
        self._since[one] = self._loop.time()

    def drop(self, one: Waited) -> None:
        """Wait for it no longer, if it was waited for."""
        self._since.pop(one, None)

    def longest(self) -> tuple[Waited, float] | None:
        """Return who has been waited for the longest, and for how many seconds."""
        for one, since in self._since.items():
            return one, self._loop.time() - since
        return None

    def _look(self) -> None:
        """Call who is late, some at a time; look again when the next one will be."""
        over = self._loop.time() - self.patience_s + TICK_S
        late = [
            one
            for one, _ in islice(
                takewhile(lambda held: held[1] <= over, self._since.items()), LATE_MAX
            )
        ]
        for one in late:
            del self._since[one]
        self._timer = None
        for since in self._since.values():
            self._timer = self._loop.call_at(since + self.patience_s, self._look)
            break
        for one in late:
            self._late(one)
