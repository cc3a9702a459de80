"""Threads for work that nobody waits for."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress


def background_thread(name: str) -> ThreadPoolExecutor:
    """Return a thread that gives way to the event loop.

    It is scheduled as batch work (sched(7), SCHED_BATCH): with the share of a processor that
    it always had, but when it wakes it does not cut short whoever is at work. A lower
    priority would be wrong: it holds the interpreter now and then, and the loop would wait
    for a thread that waits for strangers.
    """
    return ThreadPoolExecutor(1, name, initializer=_give_way)


def _give_way() -> None:
    with suppress(OSError):  # a container's profile may forbid it, and it is a nicety
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # 0: this thread alone
