"""An event loop with real sockets whose time jumps: where nothing can happen, no time is spent.

For clients and servers in one process. While nothing is ready and no thread is at work, the
next timer is due at once; so a time-out of thirty seconds costs nothing, and is exact.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

THREAD_POLL_S = 0.001


class JumpingLoop(asyncio.SelectorEventLoop):
    """Its clock is the machine's, and all it has jumped over."""

    def __init__(self) -> None:
        self.jumped_s = 0.0
        self.threads = 0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return super().time() + self.jumped_s

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        self.threads += 1
        done = super().run_in_executor(executor, func, *args)
        done.add_done_callback(self._thread_is_done)
        return done

    def _thread_is_done(self, _: object) -> None:
        self.threads -= 1


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        while not ready and self._loop.threads and (timeout is None or timeout > 0):
            ready = super().select(THREAD_POLL_S)
        if not ready and timeout is None:
            return super().select(None)
        if not ready and timeout:
            self._loop.jumped_s += timeout
        return ready


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it on a loop of its own."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work)


class LoopClock:
    """The clock of the loop that runs, for the parts that are given one."""

    def __init__(self, wall_ms: int = 1_750_000_000_000) -> None:
        self._wall_ms = wall_ms - round(self.now() * 1000)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_ms(self) -> int:
        return self._wall_ms + round(self.now() * 1000)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
