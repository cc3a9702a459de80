"""Reading /proc: what the kernel says of processes. Nothing here changes anything.

A process that ended while we looked is `None` or left out, never an error.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
STOPPED = "T"
RUNNING = "R"
GONE = frozenset("ZX")


class Stat(Struct, frozen=True):
    """The fields of /proc/<pid>/stat that matter; `start_ticks` tells reused pids apart."""

    pid: int
    state: str
    ppid: int
    pgrp: int
    session: int
    cpu_ticks: int
    start_ticks: int

    @property
    def leads_session(self) -> bool:
        return self.session == self.pid

    @property
    def over(self) -> bool:
        return self.state in GONE


def read_stat(pid: int) -> Stat | None:
    """Return what the kernel knows of the process, zombies included."""
    try:
        text = (PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # The name stands in brackets and may hold anything; fields count from its end.
    state, *rest = text[text.rindex(")") + 2 :].split()
    number = [int(field) for field in rest[:19]]
    return Stat(
        pid=pid,
        state=state,
        ppid=number[0],
        pgrp=number[1],
        session=number[2],
        cpu_ticks=sum(number[10:14]),  # own time, and that of children waited for
        start_ticks=number[18],
    )


def read_environ(pid: int) -> dict[str, str]:
    """Return the environment it was started with; empty where we may not look."""
    try:
        data = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in os.fsdecode(data).split("\0") if entry)
    return {name: value for name, _, value in pairs}


def consumed(pid: int) -> tuple[float, float]:
    """Return the CPU time of a process and its family, and what they wanted of it (s)."""
    found = family(pid)
    threads = [thread for one in found for thread in _threads(one.pid)]
    return sum(one.cpu_ticks for one in found) / TICKS_PER_S, wanted_s(threads)


def wanted_s(threads: Iterable[Path]) -> float:
    """Return for how long these threads have run or waited for a processor.

    `threads` are their directories in /proc; the kernel's fields are nanoseconds
    (`schedstat`: on the processor, waiting for it).
    """
    total_ns = 0
    for thread in threads:
        with suppress(OSError, ValueError):  # it ended meanwhile
            ran, waited, _ = (thread / "schedstat").read_text("ascii").split()
            total_ns += int(ran) + int(waited)
    return total_ns / 1e9


def _threads(pid: int) -> list[Path]:
    """Return the directories of a process's threads; none if it has ended."""
    try:
        return [*(PROC / str(pid) / "task").iterdir()]
    except OSError:
        return []


def available_memory_mb() -> int | None:
    """Return what this machine could give to programs without swapping; None if not told."""
    try:
        lines = (PROC / "meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else int(kib) // 1024


def boot_id() -> str:
    """Return what names this boot of the machine; start times compare within one alone."""
    return (PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()


def processes() -> Iterator[Stat]:
    """Yield every process there is."""
    for path in PROC.iterdir():
        if path.name.isdigit() and (stat := read_stat(int(path.name))) is not None:
            yield stat


def session(leader: int) -> list[Stat]:
    """Return the living processes of a session."""
    return [stat for stat in processes() if stat.session == leader and not stat.over]


def family(pid: int) -> list[Stat]:
    """Return the process and its descendants in the same session, without a walk over all."""
    first = read_stat(pid)
    found: list[Stat] = []
    waiting = [] if first is None else [first]
    while waiting:
        one = waiting.pop()
        found.append(one)
        children = (read_stat(child) for child in _children(one.pid))
        waiting += [c for c in children if c is not None and c.session == pid]
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in (PROC / str(pid) / "task").iterdir():
            found += map(int, (task / "children").read_text("ascii").split())
    return found
