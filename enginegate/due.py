"""Loops over an agenda that rest until something falls due, so that an idle server rests too."""

import asyncio
from collections.abc import Callable
from typing import Any

from enginegate.agenda import Agenda
from enginegate.clock import Clock

LEAST_S = 0.001  # the resolution of the loop's clock: to wait for less would be to spin


async def look_when_due(
    agenda: Agenda[Any], look: Callable[[], None], clock: Clock, *, tick_s: float
) -> None:
    """Call `look` whenever something is due, at most once in `tick_s`. Never returns.

    What is planned meanwhile for an earlier time counts. An agenda has one such loop.
    """
    earlier = asyncio.Event()
    agenda.on_earlier = earlier.set
    while True:
        await clock.sleep(tick_s)
        while (at := agenda.next_at()) is None or at > clock.now():
            earlier.clear()
            await _until(at, earlier, clock)
        look()


async def _until(at: float | None, earlier: asyncio.Event, clock: Clock) -> None:
    """Wait for the time, or for a plan that comes before it."""
    if at is None:
        await earlier.wait()
        return
    waits = (
        asyncio.create_task(earlier.wait()),
        asyncio.create_task(clock.sleep(max(at - clock.now(), LEAST_S))),
    )
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
