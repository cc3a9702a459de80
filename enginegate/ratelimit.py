"""How many calls in the last minute, exactly. Pure: the caller brings the time.

Every admitted call of the last 60 s is kept by its time, so there are no buckets to
be wrong at their borders. Memory goes by the calls in the window, time is constant
on average: each call enters once and leaves once.
"""

import math
from collections import deque

NS_PER_S = 1_000_000_000
WINDOW_NS = 60 * NS_PER_S


class SlidingWindow:
    """The calls of the last 60 s. A call made at t has left it at exactly t + 60 s.

    Times are monotonic nanoseconds and never go back between calls. The limit comes
    with each question, so a changed limit keeps the calls that are already in.
    """

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: deque[int] = deque()

    def wait_ns(self, now_ns: int, limit: int) -> int | None:
        """Return 0 if a call may be made now, else the exact wait until one may.

        None means never: the limit is 0. Asking counts nothing; `add` does.
        """
        calls = self._calls
        gone_ns = now_ns - WINDOW_NS
        while calls and calls[0] <= gone_ns:
            calls.popleft()
        over = len(calls) - limit
        if over < 0:
            return 0
        return calls[over] - gone_ns if limit else None

    def take(self, now_ns: int, limit: int) -> bool:
        """Count a call if it may be made now; return whether it may."""
        calls = self._calls
        gone_ns = now_ns - WINDOW_NS
        while calls and calls[0] <= gone_ns:
            calls.popleft()
        if len(calls) >= limit:
            return False
        calls.append(now_ns)
        return True

    def add(self, now_ns: int) -> None:
        """Count a call that goes on."""
        self._calls.append(now_ns)

    def idle(self, now_ns: int) -> bool:
        """Return whether no call is left in the window, so that it can be dropped."""
        return not self._calls or self._calls[-1] <= now_ns - WINDOW_NS


def retry_after(wait_ns: int) -> tuple[float, int]:
    """Return the wait in seconds, exact and as the whole seconds of `Retry-After`.

    Both are rounded up, never down: who waits that long has waited long enough.
    """
    seconds = wait_ns / NS_PER_S
    numerator, denominator = seconds.as_integer_ratio()
    if numerator * NS_PER_S < wait_ns * denominator:
        seconds = math.nextafter(seconds, math.inf)
    return seconds, max(1, -(-wait_ns // NS_PER_S))
