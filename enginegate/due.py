"""Loops over an agenda that rest until something falls due, so that an idle server rests too."""

import asyncio
from collections.abc import Callable
from typing import Any

from enginegate.agenda import Agenda
from enginegate.clock import Clock

LEAST_S = 0.001  # the resolution of the loop's clock: to wait for less would be to spin
MOST_S = 86_400.0


async def look_when_due(
    agenda: Agenda[Any], look: Callable[[], None], clock: Clock, *, tick_s: float
) -> None:
    """Call `look` whenever something is due, at most once in `tick_s`. Never returns.

    What is planned meanwhile for an earlier time counts. An agenda has one such loop.
    """
    while True:
        await clock.sleep(tick_s)
        while (wait_s := _wait_s(agenda, clock)) > 0:
            await _rest(agenda, clock, max(wait_s, LEAST_S))
        look()


def _wait_s(agenda: Agenda[Any], clock: Clock) -> float:
    at = agenda.next_at()
    return MOST_S if at is None else at - clock.now()


async def _rest(agenda: Agenda[Any], clock: Clock, wait_s: float) -> None:
    """Wait so long, or until something is planned that comes before."""
    sleeper = asyncio.create_task(clock.sleep(wait_s))
    agenda.on_earlier = sleeper.cancel
    try:
        await asyncio.wait([sleeper])
    finally:
        sleeper.cancel()
