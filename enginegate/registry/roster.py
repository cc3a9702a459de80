"""A product's engines in the order of its list, and how many there are of each state.

Kept while engines come, go and change, so that a page and a count cost by what they
show and not by the fleet.
"""

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from enginegate.model import Status
from enginegate.slices import SLICE

if TYPE_CHECKING:
    from enginegate.registry.fleet import LiveEngine


def _place(live: "LiveEngine") -> tuple[int, str]:
    return live.engine.created_at_ms, live.engine.engine_id


def _insert(engines: "list[LiveEngine]", live: "LiveEngine") -> None:
    if not engines or live.engine.created_at_ms > engines[-1].engine.created_at_ms:
        engines.append(live)  # as good as always: the newest, or a snapshot in order
    else:
        insort(engines, live, key=_place)


def _remove(engines: "list[LiveEngine]", live: "LiveEngine") -> None:
    place = bisect_left(engines, _place(live), key=_place)
    assert engines[place] is live
    del engines[place]


class Roster:
    """Told of every change by the index; never changed by anybody else.

    `running` are those of `engines` that run: a sweep is for them, and the rest may be many.
    """

    __slots__ = ("counts", "engines", "running")

    def __init__(self) -> None:
        self.engines: list[LiveEngine] = []
        self.running: list[LiveEngine] = []
        self.counts: dict[Status, int] = dict.fromkeys(Status, 0)

    def add(self, live: "LiveEngine") -> None:
        _insert(self.engines, live)
        self.counts[live.engine.status] += 1
        if live.running:
            _insert(self.running, live)

    def moved(self, live: "LiveEngine", before: Status) -> None:
        """Take it that an engine is in another state than `before`."""
        self.counts[before] -= 1
        self.counts[live.engine.status] += 1
        if before is Status.RUNNING:
            _remove(self.running, live)
        elif live.running:
            _insert(self.running, live)

    def remove(self, live: "LiveEngine") -> None:
        _remove(self.engines, live)
        self.counts[live.engine.status] -= 1
        if live.running:
            _remove(self.running, live)

    async def walk(self, *, running: bool = False) -> "AsyncIterator[LiveEngine]":
        """Yield the engines, oldest first, in short turns; who comes or goes moves nobody else.

        Never copies them all: to touch each of 100,000 takes milliseconds by itself.
        """
        engines, at = self.running if running else self.engines, 0
        while part := engines[at : at + SLICE]:
            for live in part:
                yield live
            if len(part) == SLICE:
                await asyncio.sleep(0)
            at = bisect_right(engines, _place(part[-1]), key=_place)

    async def page(
        self, status: Status | None, *, offset: int, limit: int
    ) -> "tuple[list[LiveEngine], int]":
        """Return some engines, oldest first, and how many there are of this state (None: all)."""
        if status is None:
            return self.engines[offset : offset + limit], len(self.engines)
        found: list[LiveEngine] = []
        async for live in self.walk():
            if live.engine.status is status and not live.gone:
                found.append(live)
                if len(found) == offset + limit:
                    break
        return found[offset:], self.counts[status]
