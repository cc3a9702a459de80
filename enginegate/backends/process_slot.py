"""One engine's place in the process backend, and waiting that keeps its word."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from enginegate.backends.process_files import Record
from enginegate.backends.process_life import Life
from enginegate.errors import NotRunningError


class Slot:
    """What is known of one engine; `turn` lets one change at a time happen to it.

    `swept` is False while processes of an earlier life may be left over.
    """

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.users = 0
        self.record: Record | None = None
        self.life: Life | None = None
        self.swept = True

    def living(self) -> Life | None:
        return self.life if self.life is not None and not self.life.has_ended() else None


def required(slot: Slot, operation: str, engine_id: str) -> Life:
    """Return the engine's living process; NotRunningError where there is none."""
    life = slot.living()
    if life is None:
        raise NotRunningError(operation, engine_id, "the engine does not run")
    return life


async def within(seconds: float, event: asyncio.Event) -> bool:
    """Return whether the event came in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await the work to its end even when cancelled, and only then be cancelled.

    A process must not come up, nor files go away, after the call that wanted it is over.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
