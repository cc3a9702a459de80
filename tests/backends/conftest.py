"""Backends of plain processes, for every test that wants a real engine."""

import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.backends.contract")

from enginegate.backends import proc  # noqa: E402 - the rewrite has to come first
from enginegate.backends.process import ProcessBackend  # noqa: E402 - as above
from tests.backends.contract import HttpHarness  # noqa: E402 - as above


class ProcessHarness(HttpHarness):
    """A backend on a folder of its own, whose processes are all ended at the end."""

    backend: ProcessBackend

    def __init__(self, folder: Path, **options: object) -> None:
        super().__init__()
        self.folder = folder
        self.options = options
        self.backend = self._made()

    def _made(self) -> ProcessBackend:
        return ProcessBackend(data_dir=self.folder, instance="test", **self.options)

    async def pid(self, engine_id: str) -> int:
        return int((await self.backend.inspect(engine_id)).life.split(".")[1])

    async def crash(self, engine_id: str) -> None:
        os.kill(await self.pid(engine_id), signal.SIGKILL)

    async def reopen(self, **options: object) -> None:
        await self.backend.close()
        self.options |= options
        self.backend = self._made()
        await self.backend.open()

    def processes(self) -> list[int]:
        """Return every process that bears the environment of an engine of ours."""
        root = f"{self.folder.resolve()}/"
        return [
            one.pid
            for one in proc.processes()
            if not one.over
            and proc.read_environ(one.pid).get("ENGINE_DATA_DIR", "").startswith(root)
        ]

    async def clean(self) -> None:
        """Destroy all, then kill what no backend knows of."""
        await self.reopen()
        for seen in await self.backend.list():
            await self.backend.destroy(seen.engine_id)
        await self.backend.close()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                with suppress(ChildProcessError):  # it was not started by this very process
                    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
                os.close(pidfd)


Make = Callable[..., Awaitable[ProcessHarness]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Make harnesses with options of their own."""
    made: list[ProcessHarness] = []
    numbers = itertools.count()

    async def one(**options: object) -> ProcessHarness:
        harness = ProcessHarness(tmp_path / f"data-{next(numbers)}", **options)
        made.append(harness)
        await harness.backend.open()
        return harness

    yield one
    for harness in made:
        await harness.clean()


@pytest.fixture
async def harness(make: Make) -> ProcessHarness:
    return await make()
