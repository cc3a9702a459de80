"""All connections of a server: how many there may be, and how long each may take."""

import asyncio
from typing import Protocol

from msgspec import Struct

from enginegate.edge.waiting import WaitingList

PIECE_BYTES = 4096  # parsed at one time: bounds how many pipelined requests are taken up
KEEP_ALIVE_S = 75.0  # what load balancers use by default: theirs should be the shorter one
LINGER_S = 2.0  # how long a client that was refused may go on sending
STALL_S = 1.0  # a request that has been arriving for so long may have to give way


class Limits(Struct, frozen=True, kw_only=True):
    """What a client may do; times in seconds."""

    max_connections: int
    max_header_bytes: int
    max_body_bytes: int
    request_timeout_s: float


class Guest(Protocol):
    """A connection, as far as its limits are concerned."""

    def too_slow(self) -> None:
        """The request did not arrive in time."""

    def end(self) -> None:
        """Nobody has asked anything for long, or the place is needed: hang up."""

    def give_way(self) -> None:
        """The place is needed, while a request is arriving."""

    def cut(self) -> None:
        """Away with it: it takes no answer, or does not stop sending."""

    def last_answer(self) -> None:
        """The server is stopping: whatever is answered now is the last answer."""


class Doors:
    """Knows every connection and which of them are waited for.

    `silent` have said nothing since they connected, `receiving` are sending a request,
    `idle` have had their answer, `stalled` do not take it, `leaving` were refused. A
    connection that is in none of them is at work, and waits for us.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self.limits = limits
        self.piece_bytes = min(PIECE_BYTES, limits.max_header_bytes)
        self.draining = False
        self.open: set[Guest] = set()
        # The lane's, of all connections: what requests ask for, by their bytes.
        self.repeats: dict[bytes, tuple[bytes, bytes, str, bytes]] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        patience_s = limits.request_timeout_s
        self.silent = WaitingList[Guest](loop, patience_s, lambda one: one.end())
        self.receiving = WaitingList[Guest](loop, patience_s, lambda one: one.too_slow())
        self.idle = WaitingList[Guest](loop, KEEP_ALIVE_S, lambda one: one.end())
        self.stalled = WaitingList[Guest](loop, patience_s, lambda one: one.cut())
        self.leaving = WaitingList[Guest](loop, LINGER_S, lambda one: one.cut())

    def enter(self, guest: Guest) -> bool:
        """Take a new connection in, if need be in the place of another; False: no place.

        The one that has been waited for longest gives way. A request on its way counts
        only after `STALL_S`: before that it is not the client that makes us wait.
        """
        if len(self.open) >= self.limits.max_connections and not self._make_room():
            return False
        self.open.add(guest)
        self._empty.clear()
        return True

    def _make_room(self) -> bool:
        waits = [found for held in (self.silent, self.idle) if (found := held.longest())]
        quiet = max(waits, key=lambda found: found[1], default=None)
        stalled = self.receiving.longest()
        if stalled and stalled[1] >= STALL_S and (quiet is None or stalled[1] > quiet[1]):
            stalled[0].give_way()
        elif quiet is not None:
            quiet[0].end()
        return len(self.open) < self.limits.max_connections

    def leave(self, guest: Guest, *, lingering: bool) -> None:
        """Let a connection go that ends now; cut it if it does not end soon."""
        self.forget(guest)
        if not lingering:
            self.stalled.put(guest)
        elif len(self.leaving) < self.limits.max_connections:
            self.leaving.put(guest)
        else:
            guest.cut()

    def forget(self, guest: Guest) -> None:
        """Drop a connection that has ended."""
        self.open.discard(guest)
        if not self.open:
            self._empty.set()
        for held in (self.silent, self.receiving, self.idle, self.stalled, self.leaving):
            held.drop(guest)

    async def emptied(self) -> None:
        """Wait until there is no connection left."""
        await self._empty.wait()

    def drain(self) -> None:
        """From now on every answer is the last one of its connection."""
        if not self.draining:
            self.draining = True
            for guest in list(self.open):
                guest.last_answer()
