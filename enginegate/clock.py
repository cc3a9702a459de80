"""Time as a parameter: the one clock that runs the server, and what tests replace.

Waiting uses `now` (monotonic seconds), display and the journal use `wall_ms`
(milliseconds since the Unix epoch). The two are never mixed: a wall clock that
jumps moves no deadline.
"""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Return monotonic seconds."""
        ...

    def wall_ms(self) -> int:
        """Return milliseconds since the Unix epoch."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The clock of the machine."""

    now = staticmethod(time.monotonic)  # called on every admit: no step in between

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
