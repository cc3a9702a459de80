"""strace, which makes system calls of the unmodified program fail, or kills it at one."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import eventually

_CALL = re.compile(r"^\d+\s+(?P<name>\w+)\(\d+<(?P<path>[^>]*)>(?P<rest>.*)$")


class Call(NamedTuple):
    """A system call on a file that was begun: its name, the file, whether it was made to fail."""

    name: str
    path: str
    injected: bool


def strace() -> str:
    """Return where strace is; skip, with a word, where there is none."""
    found = shutil.which("strace")
    if found is None:
        if os.environ.get("ENGINEGATE_REQUIRE_FAULTS"):
            pytest.fail("strace is not installed")
        pytest.skip("needs strace")
    return found


@contextmanager
def traced(pid: int, log: Path, *options: str) -> Iterator[None]:
    """Trace a running process and all its threads into `log`, injecting as the options say."""
    command = [strace(), "-f", "-y", "-qq", "-o", str(log), *options, "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            eventually(lambda: tracer.poll() is not None or _attached(pid), "strace is attached")
            if tracer.poll() is not None:
                assert tracer.stderr is not None
                pytest.skip(f"strace may not trace here: {tracer.stderr.read().strip()}")
            yield
        finally:
            tracer.terminate()


def _attached(pid: int) -> bool:
    tasks = Path("/proc", str(pid), "task").iterdir()
    return all("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks)


def calls(log: Path) -> list[Call]:
    """Return the calls on files that the log has, in order."""
    lines = log.read_text(errors="replace").splitlines()
    return [
        Call(match["name"], match["path"], "(INJECTED)" in match["rest"])
        for match in map(_CALL.match, lines)
        if match
    ]
