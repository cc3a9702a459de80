"""What is due when, for thousands of engines with one look a tick. Pure.

A heap with lazy deletion: putting an item again replaces its time, so the heap holds
at most one valid entry per item and a look costs by what is due, not by the fleet.
"""

import heapq
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Agenda(Generic[Item]):
    """Items with a time each; times are monotonic seconds of the caller's clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Item]] = []
        self._valid: dict[Item, int] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._valid)

    def put(self, item: Item, at: float) -> None:
        """Plan the item, in place of an earlier plan for it."""
        self._turn += 1
        self._valid[item] = self._turn
        heapq.heappush(self._heap, (at, self._turn, item))

    def drop(self, item: Item) -> None:
        """Forget the item, planned or not."""
        self._valid.pop(item, None)

    def due(self, now: float) -> list[Item]:
        """Remove and return what is due, earliest first."""
        items = []
        while self._heap and self._heap[0][0] <= now:
            _, turn, item = heapq.heappop(self._heap)
            if self._valid.get(item) == turn:
                del self._valid[item]
                items.append(item)
        return items
