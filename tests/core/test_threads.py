"""Threads for work that nobody waits for give way to the loop."""

import os

import pytest

from enginegate.threads import background_thread


def test_a_background_thread_is_batch_work_and_nobody_else_is() -> None:
    """When it wakes, it does not cut short a loop that answers admits."""
    before = os.sched_getscheduler(0)
    with background_thread("work") as thread:
        assert thread.submit(os.sched_getscheduler, 0).result() == os.SCHED_BATCH
        assert os.sched_getscheduler(0) == before != os.SCHED_BATCH


def test_it_works_where_it_may_not_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's profile may forbid the call: then the thread is one like all."""

    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    with background_thread("work") as thread:
        assert thread.submit(lambda: "done").result() == "done"
