"""What is due when, for thousands of engines with one look at the first. Pure.

A heap with lazy deletion: putting an item again replaces its time, so the heap holds
at most one valid entry per item and a look costs by what is due, not by the fleet.
"""

import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


def _nothing() -> None:
    """Nobody waits."""


class Agenda(Generic[Item]):
    """Items with a time each; times are monotonic seconds of the caller's clock.

    `on_earlier` is called when something is planned for before what was first until then.
    """

    def __init__(self) -> None:
        self.on_earlier: Callable[[], object] = _nothing
        self._heap: list[tuple[float, int, Item]] = []
        self._valid: dict[Item, int] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._valid)

    def __contains__(self, item: Item) -> bool:
        return item in self._valid

    def put(self, item: Item, at: float) -> None:
        """Plan the item, in place of an earlier plan for it."""
        first = not self._heap or at < self._heap[0][0]
        self._turn += 1
        self._valid[item] = self._turn
        heapq.heappush(self._heap, (at, self._turn, item))
        if first:
            self.on_earlier()

    def drop(self, item: Item) -> None:
        """Forget the item, planned or not."""
        self._valid.pop(item, None)

    def next_at(self) -> float | None:
        """Return when the first is due, None where nothing is planned."""
        while self._heap and self._valid.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[Item]:
        """Remove and return what is due, earliest first."""
        items = []
        while self._heap and self._heap[0][0] <= now:
            _, turn, item = heapq.heappop(self._heap)
            if self._valid.get(item) == turn:
                del self._valid[item]
                items.append(item)
        return items
