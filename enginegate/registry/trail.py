"""The audit trail for readers: the newest entries in memory, older ones from the journal."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from msgspec import Struct

from enginegate.audit import Entry, entry
from enginegate.facts import AnyFact
from enginegate.slices import sliced

RECENT_MAX = 10_000
QUEUE_MAX = 1_000  # entries a slow subscriber may lag behind before it is let go

History = Callable[[int | None, Collection[str]], Iterator[tuple[int, AnyFact]]]
"""Facts of the journal, newest first, with numbers below the given one.

Those that do not name all of the given products, users and engines may be left out.
"""

Oldest = Callable[[], int]
"""Number that no fact of the journal is below; 0 where that is not known."""


class Query(Struct, frozen=True, kw_only=True):
    """What to look for; None = anything. `before` is the id that a page ended with."""

    product_id: str | None = None
    user_id: str | None = None
    engine_id: str | None = None
    action: str | None = None
    actor: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    before: int | None = None
    limit: int = 100

    def matches(self, found: Entry) -> bool:
        return (
            (self.product_id is None or found.product_id == self.product_id)
            and (self.user_id is None or found.user_id == self.user_id)
            and (self.engine_id is None or found.engine_id == self.engine_id)
            and (self.action is None or found.action == self.action)
            and (self.actor is None or found.actor == self.actor)
            and (self.since_ms is None or found.at_ms >= self.since_ms)
            and (self.until_ms is None or found.at_ms <= self.until_ms)
            and (self.before is None or found.id < self.before)
        )


class Subscription:
    """Entries as they happen, for one product or (None) for all. Ends when too slow."""

    def __init__(self, product_id: str | None) -> None:
        self.product_id = product_id
        self.entries: asyncio.Queue[Entry | None] = asyncio.Queue(QUEUE_MAX + 1)

    def offer(self, found: Entry) -> bool:
        """Queue the entry; False when the reader lags too far behind and was let go."""
        if self.product_id is not None and found.product_id != self.product_id:
            return True
        if self.entries.qsize() >= QUEUE_MAX:
            self.end()
            return False
        self.entries.put_nowait(found)
        return True

    def end(self) -> None:
        """Tell the reader that nothing more will come."""
        if not self.entries.full():
            self.entries.put_nowait(None)


class Trail:
    """Recent entries, and whoever listens to new ones.

    Unless it is empty, `recent` has every entry of a number from `_complete_from` on.
    """

    def __init__(self) -> None:
        self.recent: deque[Entry] = deque(maxlen=RECENT_MAX)
        self.history: History = lambda _before, _naming: iter(())
        self.oldest: Oldest = lambda: 0
        self._complete_from = 0
        # One at a time: readers of old entries wait for each other, not the rest for them.
        self._thread = ThreadPoolExecutor(1, "history")
        self._subscriptions: set[Subscription] = set()

    def add(self, number: int, fact: AnyFact, *, tell: bool = True) -> None:
        found = entry(number, fact)
        if found is None:
            return
        if not self.recent:
            self._complete_from = number
        elif len(self.recent) == RECENT_MAX:
            self._complete_from = self.recent[0].id + 1
        self.recent.append(found)
        if tell:
            self._subscriptions = {s for s in self._subscriptions if s.offer(found)}

    def subscribe(self, product_id: str | None) -> Subscription:
        subscription = Subscription(product_id)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    def end_all(self) -> None:
        """Let every listener go; for shutdown."""
        for subscription in self._subscriptions:
            subscription.end()
        self._subscriptions.clear()

    async def search(self, query: Query) -> tuple[list[Entry], int | None]:
        """Return the newest matching entries and, if there are more, the id to go on from."""
        wanted = query.limit + 1
        before = self._complete_from if self.recent else None  # as of the walk's beginning
        found = []
        async for candidate in sliced(reversed(self.recent)):
            if query.matches(candidate):
                found.append(candidate)
                if len(found) == wanted:
                    break
        if len(found) < wanted and (before is None or self.oldest() < before):
            older = partial(self._older, query, before, wanted - len(found))
            found += await asyncio.get_running_loop().run_in_executor(self._thread, older)
        more = len(found) == wanted
        page = found[: query.limit]
        return page, page[-1].id if more and page else None

    def _older(self, query: Query, before: int | None, wanted: int) -> list[Entry]:
        if query.before is not None and (before is None or query.before < before):
            before = query.before
        found: list[Entry] = []
        ids = (query.product_id, query.user_id, query.engine_id)
        naming = [one for one in ids if one is not None]
        for number, fact in self.history(before, naming):
            if query.since_ms is not None and fact.at_ms < query.since_ms:
                break
            candidate = entry(number, fact)
            if candidate is not None and query.matches(candidate):
                found.append(candidate)
                if len(found) == wanted:
                    break
        return found
