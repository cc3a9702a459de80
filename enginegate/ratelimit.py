"""How many calls in the last minute, exactly. Pure: the caller brings the time.

Every admitted call of the last 60 s is kept by its time, so there are no buckets to
be wrong at their borders. Memory goes by the calls in the window: eight bytes each, but
for the newest 128, which are Python's own integers; time is constant on average: each
call enters once and leaves once.
"""

import math
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Final

NS_PER_S = 1_000_000_000
WINDOW_NS = 60 * NS_PER_S
CHUNK: Final = 128  # calls in one piece, which is given back as a whole
NEVER: Final = 2**63 - 1  # the oldest call of an empty window


class SlidingWindow:
    """The calls of the last 60 s. A call made at t has left it at exactly t + 60 s.

    Times are monotonic nanoseconds and never go back between calls. The limit comes
    with each question, so a changed limit keeps the calls that are already in.

    The calls lie in chunks, oldest first; all chunks but the last are full, and the first
    `_gone` calls of the first one have left. The last is a list, packed into machine
    integers when it is full: to append to an array takes a microsecond longer, for the
    `array` module's code is in no cache when the next request comes.
    """

    __slots__ = ("_chunks", "_count", "_gone", "_last", "_oldest")

    def __init__(self) -> None:
        self._last: list[int] = []
        self._chunks: deque[Sequence[int]] = deque([self._last])
        self._gone = 0
        self._count = 0
        self._oldest = NEVER

    def wait_ns(self, now_ns: int, limit: int) -> int | None:
        """Return 0 if a call may be made now, else the exact wait until one may.

        None means never: the limit is 0. Asking counts nothing; `add` does.
        """
        gone_ns = now_ns - WINDOW_NS
        if self._oldest <= gone_ns:
            self._forget(gone_ns)
        over = self._count - limit
        if over < 0:
            return 0
        return self._call(over) - gone_ns if limit else None

    def take(self, now_ns: int, limit: int) -> bool:
        """Count a call if it may be made now; return whether it may."""
        if self._oldest <= now_ns - WINDOW_NS:
            self._forget(now_ns - WINDOW_NS)
        last = self._last
        if self._count >= limit:
            return False
        if self._count == 0 or len(last) == CHUNK:
            self.add(now_ns)
        else:
            last.append(now_ns)
            self._count += 1
        return True

    def add(self, now_ns: int) -> None:
        """Count a call that goes on."""
        if self._count == 0:
            self._oldest = now_ns
        last = self._last
        if len(last) == CHUNK:
            self._chunks[-1] = array("q", last)
            last = self._last = []
            self._chunks.append(last)
        last.append(now_ns)
        self._count += 1

    def idle(self, now_ns: int) -> bool:
        """Return whether no call is left in the window, so that it can be dropped."""
        return self._count == 0 or self._last[-1] <= now_ns - WINDOW_NS

    def _call(self, number: int) -> int:
        """Return the time of a call by its place, the oldest being 0."""
        chunk, place = divmod(self._gone + number, CHUNK)
        return self._chunks[chunk][place]

    def _forget(self, gone_ns: int) -> None:
        """Let go of the calls up to a time."""
        count, gone, first = self._count, self._gone, self._chunks[0]
        while count and first[gone] <= gone_ns:
            count -= 1
            gone += 1
            if gone == CHUNK:
                first, gone = self._next_chunk(), 0
        self._count, self._gone = count, gone
        self._oldest = first[gone] if count else NEVER

    def _next_chunk(self) -> Sequence[int]:
        """Give the first chunk back; return the one that is the first now."""
        self._chunks.popleft()
        if not self._chunks:
            self._last = []
            self._chunks.append(self._last)
        return self._chunks[0]


def retry_after(wait_ns: int) -> tuple[float, int]:
    """Return the wait in seconds, exact and as the whole seconds of `Retry-After`.

    Both are rounded up, never down: who waits that long has waited long enough.
    """
    seconds = wait_ns / NS_PER_S
    numerator, denominator = seconds.as_integer_ratio()
    if numerator * NS_PER_S < wait_ns * denominator:
        seconds = math.nextafter(seconds, math.inf)
    return seconds, max(1, -(-wait_ns // NS_PER_S))
