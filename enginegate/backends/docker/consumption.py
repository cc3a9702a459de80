"""What a container has consumed, read from the host's kernel instead of asked of Docker.

Docker's own figures are collected once in a second, and asking for them takes as long.
The kernel's are of this very moment and cost a file or two.
"""

from pathlib import Path
from typing import Final

from enginegate.backends.base import Usage
from enginegate.backends.proc import wanted_s

_CGROUPS: Final = Path("/sys/fs/cgroup")
_PROC: Final = Path("/proc")
_NS: Final = 1e9
_US: Final = 1e6
_LOOPBACK: Final = "lo"


def read(*, pid: int, container_id: str, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> Usage:
    """Return CPU time and bytes of the container whose first process this is. Blocks shortly.

    Raises:
        OSError: the host's /proc or its cgroups are not to be seen from here.
    """
    process = proc / str(pid)
    groups = (process / "cgroup").read_text("utf-8", "replace")
    if container_id not in groups:
        raise ProcessLookupError(f"{process} is not the container's")
    rx_bytes, tx_bytes = _moved((process / "net/dev").read_text("ascii"))
    group, names = _group(groups, cgroups)
    threads = (group / names).read_text("ascii").split()
    return Usage(
        cpu_s=_cpu_s(group),
        wanted_s=wanted_s(proc / thread for thread in threads),
        rx_bytes=rx_bytes,
        tx_bytes=tx_bytes,
    )


def _group(groups: str, cgroups: Path) -> tuple[Path, str]:
    """Return its control group, and which file there names the threads.

    Lines are number:controllers:path; version 2 has one tree without controllers.
    """
    places: dict[str, str] = {}
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        places |= dict.fromkeys(controllers.split(","), path.lstrip("/"))
    if "cpuacct" in places:
        return cgroups / "cpuacct" / places["cpuacct"], "tasks"
    return cgroups / places[""], "cgroup.threads"


def _cpu_s(group: Path) -> float:
    if (group / "cpuacct.usage").exists():
        return int((group / "cpuacct.usage").read_text("ascii")) / _NS
    stat = (group / "cpu.stat").read_text("ascii")
    used = next(line.split()[1] for line in stat.splitlines() if line.startswith("usage_usec "))
    return int(used) / _US


def _moved(table: str) -> tuple[int, int]:
    """Add up the interfaces of /proc/net/dev, but for the loopback."""
    rows = (line.partition(":") for line in table.splitlines()[2:])
    counts = [row.split() for name, _, row in rows if name.strip() != _LOOPBACK]
    return sum(int(row[0]) for row in counts), sum(int(row[8]) for row in counts)
