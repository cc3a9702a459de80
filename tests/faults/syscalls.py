"""SIGKILL at every write, sync, rename, cut and removal that the real server makes.

`strace` runs the unmodified command and kills it at the k-th call of one kind, for every
kind and every k until a life goes through without one. Each life: a start on a directory
with a past, a product, an engine, a policy, new keys, a destroy, a stop. Afterwards a start
without strace must find everything that was answered, and `journal verify` nothing wrong.
"""

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from enginegate.backends.proc import processes
from enginegate.journal.inspect import verify
from tests.e2e.conftest import Server, eventually
from tests.faults.campaign import Run, UnableError, campaign, plain
from tests.faults.kills import Connection, Lane

CALLS = ("pwrite64", "fdatasync", "fsync", "fallocate", "rename", "unlink", "truncate")
STRACE = ("strace", "-f", "-q")
KILLED = "+++ killed by SIGKILL +++"
LANES = 2


def strace_works() -> bool:
    """Whether strace is here and may trace."""
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(
        [*STRACE, "-o", "/dev/null", "true"], check=False, capture_output=True, timeout=20
    )
    return done.returncode == 0


class Traced(Server):
    """A server that dies at its k-th call of a kind; k None: one that lives."""

    call, k = "", 0

    def start(self) -> None:
        if not self.k:
            super().start()
            return
        (self.directory / "trace").unlink(missing_ok=True)
        inject = f"inject={self.call}:signal=SIGKILL:when={self.k}"
        port = self.url.rpartition(":")[2]
        what = ["-o", str(self.directory / "trace"), "-e", f"trace={self.call}", "-e", inject]
        command = [*STRACE, *what, sys.executable, "-m", "enginegate", "serve"]
        with (self.directory / "out").open("wb") as out, (self.directory / "err").open("ab") as err:
            self.process = subprocess.Popen(
                [*command, "--port", port],
                cwd=self.directory,
                env=self.cli.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
            )


def _over(pid: int) -> bool:
    stat = next((one for one in processes() if one.pid == pid), None)
    return stat is None or stat.over


class Life:
    """A scripted life on one directory, again and again, with what was answered."""

    def __init__(self, directory: Path) -> None:
        self.server = Traced(directory)
        self.server.cli.env = plain(self.server.cli.env)
        self.lane = Lane(self.server, random.Random(1))
        self.killed = 0
        self.lives = 0

    def prepare(self) -> None:
        """Give the directory a past. Keys rotate live: a replaced engine would cost its grace."""
        with (self.server.directory / "config.toml").open("a") as config:
            config.write('[engine]\nrotate_mode = "live"\n')
        self.server.start()
        asyncio.run(self.lane.check())
        self.server.process.send_signal(signal.SIGKILL)
        self.server.process.wait(10)

    def die_at(self, call: str, k: int) -> bool:
        """Live until the k-th call of this kind; return whether it came to that."""
        self.lives += 1
        self.server.call, self.server.k = call, k
        self.server.start()
        eventually(self._up_or_dead, "it listens, or has been killed")
        pids = self._served()
        if pids:
            with suppress(OSError, EOFError):
                asyncio.run(self._script())
            self._stop()
        self._let_go()
        self.server.k = 0
        self._check()
        ends = (self.server.directory / "trace").read_text().splitlines()
        return not pids or any(KILLED in line and int(line.split()[0]) in pids for line in ends)

    def _up_or_dead(self) -> bool:
        said = (self.server.directory / "out").read_text()
        begun = (self.server.directory / "trace").exists()
        return said.endswith("\n") or (begun and not self._served())

    async def _script(self) -> None:
        with closing(Connection(self.server.url)) as connection:
            for number in range(2):
                for _ in range(3):
                    await self.lane._change_product(number)(connection)
            # No sleep: a process that strace holds does not stop on SIGSTOP.
            for verb in ("destroy", "admit", "rotate-key", "stop", "start", "destroy"):
                await self._verb(connection, verb)

    async def _verb(self, connection: Connection, verb: str) -> None:
        before = self.lane.users.pop("ann", None)
        state, key = await self.lane._verb(connection, "ann", verb)
        assert state is not None, f"{verb} was refused: {self.server.log[-2000:]}"
        self.lane.users["ann"] = (state, key or (before[1] if before else None))

    def _stop(self) -> None:
        """Stop the server itself: strace would not pass the signal on."""
        for pid in self._served():
            os.kill(pid, signal.SIGTERM)

    def _served(self) -> list[int]:
        """Return the process that strace began, as long as it lives."""
        pid = self.server.process.pid
        with suppress(OSError):
            told = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return [int(child) for child in told if not _over(int(child))]
        return []

    def _let_go(self) -> None:
        """Wait for the server's end; strace would go on with the engines, which it left behind."""
        eventually(lambda: not self._served(), "the server has ended")
        self.server.process.kill()
        self.server.process.wait(10)

    def _check(self) -> None:
        """After a kill at any point: the journal is whole, and a start finds what was answered."""
        told = verify(self.server.directory / "data")
        assert told.verdict in ("clean", "torn"), told
        self.server.start()
        self.lane.survivors = {}
        asyncio.run(self._look())
        self.server.process.send_signal(signal.SIGKILL)
        self.server.process.wait(10)

    async def _look(self) -> None:
        state, key = self.lane.users.get("ann", ("", None))
        with closing(Connection(self.server.url)) as connection:
            await self.lane._check_products(connection)
            status, row = await connection.ask("GET", "/engines/ann", x_platform_key=self.lane.key)
        if state == "gone":
            assert status == 404, row
        elif state:
            assert row.get("status") == state, (state, row)
            assert key in (None, row["api_key"]), "an answered key is lost"


def work(life: Life, calls: list[str], run: Run, broken: list[BaseException]) -> None:
    """Take one kind of call after the other, and die at each of its calls."""
    try:
        life.prepare()
        while calls and not broken:
            call, k = calls.pop(0), 1
            while not run.late and life.die_at(call, k):
                life.killed += 1
                k += run.every
    except BaseException as error:  # noqa: BLE001 - told by the thread that waits
        broken.append(error)
    finally:
        life.server.start()
        life.server.close()


@campaign("syscalls", "SIGKILL at every write, sync and rename of a life", ci=1, long=1)
def die_at_every_call(run: Run) -> str:
    """F2: all k of all kinds, or every so many-th; 0 violations. One round is all of them."""
    if not strace_works():
        raise UnableError("strace is not here, or may not trace")
    calls, broken, lives = list(CALLS), list[BaseException](), []
    with tempfile.TemporaryDirectory(prefix="enginegate-syscalls-") as place:
        for number in range(LANES):
            directory = Path(place) / str(number)
            directory.mkdir()
            lives.append(Life(directory))
        arguments: Any = [(life, calls, run, broken) for life in lives]
        threads = [threading.Thread(target=work, args=one) for one in arguments]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if broken:
        raise broken[0]
    killed = sum(life.killed for life in lives)
    assert not calls, f"the time was over before {', '.join(calls)}"
    run.advance(1)
    each = "each" if run.every == 1 else f"every {run.every}th"
    return f"{killed} kills, one at {each} of {', '.join(CALLS)}, 0 violations"
