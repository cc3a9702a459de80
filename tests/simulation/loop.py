"""An event loop in which nothing is left to chance but the seed: time is a number, order is dice.

When nothing can run, time jumps to the next timer. What is ready at the same moment runs in
a random order, as it would if it came from different places. Work for threads runs on the
loop, some simulated time later, in the order of each pool: a thread's work is one step.
"""

import asyncio
import heapq
import random
from asyncio import events
from collections.abc import Callable
from typing import Any

from tests.fakes import SimulatedCrash

THREAD_S = 0.004  # the most a hand-over to or from a thread takes
TURNS_MAX = 2_000_000
CLOSES_MAX = 5


class SimulatedLoop(asyncio.BaseEventLoop):
    """A loop for one life of a simulated process; `die` ends it as `kill -9` does."""

    def __init__(self, dice: random.Random, *, start_s: float, shuffle: bool = True) -> None:
        super().__init__()
        self.dice = dice
        self.dead = False
        self.turns = 0
        self.slow_s = THREAD_S
        self.faults: list[dict[str, Any]] = []
        self._shuffle = shuffle
        self._now = start_s
        self._pools: dict[int, float] = {}
        self.set_exception_handler(lambda _, context: self.faults.append(context))

    def time(self) -> float:
        return self._now

    def die(self) -> None:
        """Run nothing any more, not even what is ready."""
        self.dead = True
        self.stop()

    def advance(self, seconds: float) -> None:
        """Live on for so long, or until death."""
        if not self.dead:
            self.call_later(seconds, self.stop)
            self.run_forever()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """Do a thread's work later, in its turn, and tell of it later still."""
        done = self.create_future()
        begin = max(self._now + self._pause(), self._pools.get(id(executor), 0.0))
        end = begin + self._pause()
        if executor is not None:
            self._pools[id(executor)] = end

        def work() -> None:
            try:
                result, error = func(*args), None
            except SimulatedCrash:
                return  # the process is dead; nobody is told
            except Exception as failed:  # noqa: BLE001 - as a thread pool does, whatever it is
                result, error = None, failed
            self.call_at(max(end, self._now), _settle, done, result, error)

        self.call_at(begin, work)
        return done

    def _pause(self) -> float:
        return self.dice.random() * self.slow_s

    def _run_once(self) -> None:
        self.turns += 1
        assert self.turns < TURNS_MAX, "the simulated process runs in circles"
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False
        if not self._ready and self._scheduled:
            self._now = max(self._now, self._scheduled[0]._when)
        while self._scheduled and self._scheduled[0]._when <= self._now:
            timer = heapq.heappop(self._scheduled)
            timer._scheduled = False
            self._ready.append(timer)
        ready = list(self._ready)
        self._ready.clear()
        if self._shuffle and len(ready) > 1:
            self.dice.shuffle(ready)
        for handle in ready:
            if self.dead:
                return
            if not handle._cancelled:
                handle._run()

    def _write_to_self(self) -> None:
        """Nothing to wake: there is no selector."""

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        """A dead process finishes no generator."""

    def bury(self) -> None:
        """Let go of everything a dead process still had at work, silently."""
        self.set_exception_handler(lambda _, __: None)
        events._set_running_loop(self)
        try:
            for task in asyncio.all_tasks(self):
                task._log_destroy_pending = False
                _end(task.get_coro())
        finally:
            events._set_running_loop(None)
        self._ready.clear()
        self._scheduled.clear()
        self.close()


def _settle(done: "asyncio.Future[Any]", result: object, error: Exception | None) -> None:
    if done.cancelled():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


def _end(coroutine: Any) -> None:
    """Close a coroutine; one that waits for others while it ends is told again."""
    for _ in range(CLOSES_MAX):
        try:
            coroutine.close()
        except BaseException:  # noqa: BLE001 - what the dead say on their way is not heard
            continue
        return
