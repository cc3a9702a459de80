"""What a container has consumed, from the files of either kind of control groups."""

import os
import time
from pathlib import Path

import pytest

from enginegate.backends import proc
from enginegate.backends.base import Usage
from enginegate.backends.docker.consumption import read

BOX = "c" * 64
DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo
    lo:    1000      10    0    0    0     0          0         0     1000      10    0    0    0
  eth0:    2000      20    0    0    0     0          0         0      300       3    0    0    0
  eth1:       5       1    0    0    0     0          0         0        7       1    0    0    0
"""


def host(folder: Path, groups: str, files: dict[str, str]) -> dict[str, Path]:
    """Lay out a host's /proc and control groups; return where they are."""
    process = folder / "proc/7"
    (process / "net").mkdir(parents=True)
    (process / "net/dev").write_text(DEV)
    (process / "cgroup").write_text(groups)
    (process / "schedstat").write_text("200000000 300000000 17\n")
    (folder / "proc/8").mkdir()
    (folder / "proc/8/schedstat").write_text("250000000 0 3\n")
    for name, content in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return {"proc": folder / "proc", "cgroups": folder / "cgroup"}


def test_the_first_version_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    """Nanoseconds, under the name that the controllers are mounted by."""
    groups = f"9:name=systemd:/x\n4:cpu,cpuacct:/docker/{BOX}\n2:memory:/docker/{BOX}\n"
    files = {
        f"cpuacct/docker/{BOX}/cpuacct.usage": "2500000000\n",
        f"cpuacct/docker/{BOX}/tasks": "7\n8\n9\n",
    }
    seen = read(pid=7, container_id=BOX, **host(tmp_path, groups, files))
    assert seen == Usage(cpu_s=2.5, wanted_s=0.75, rx_bytes=2005, tx_bytes=307)


def test_the_second_version_has_one_tree(tmp_path: Path) -> None:
    """Microseconds, in a line of their own."""
    groups = f"0::/system.slice/docker-{BOX}.scope\n"
    files = {
        f"system.slice/docker-{BOX}.scope/cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
        f"system.slice/docker-{BOX}.scope/cgroup.threads": "7\n",
    }
    seen = read(pid=7, container_id=BOX, **host(tmp_path, groups, files))
    assert (seen.cpu_s, seen.wanted_s) == (1.5, 0.5)


def test_the_process_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """The number was given to another process, or is another machine's."""
    where = host(tmp_path, "0::/user.slice\n", {})
    with pytest.raises(OSError, match="not the container's"):
        read(pid=7, container_id=BOX, **where)


def test_what_cannot_be_seen_is_said(tmp_path: Path) -> None:
    """No such process here, no control groups here: then Docker is asked."""
    with pytest.raises(OSError, match="No such file"):
        read(pid=10, container_id=BOX, **host(tmp_path, f"0::/{BOX}\n", {}))
    with pytest.raises(OSError, match="No such file"):
        read(pid=7, container_id=BOX, proc=tmp_path / "proc", cgroups=tmp_path / "none")


def test_a_process_and_what_it_wanted_of_the_processor() -> None:
    """Work shows in both figures; the second also has the time spent waiting for a turn."""
    before_s, wanted_before_s = proc.consumed(os.getpid())
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    used_s, wanted_s = proc.consumed(os.getpid())
    assert used_s - before_s >= 0.08
    assert wanted_s - wanted_before_s >= 0.08


def test_a_process_that_is_gone_has_consumed_nothing() -> None:
    """It ended while we looked: no error."""
    assert proc.consumed(2**22 + 1) == (0, 0)


def test_the_memory_that_a_host_could_give_is_read_in_mebibytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`MemAvailable`; None where the kernel does not tell."""
    assert 0 < (proc.available_memory_mb() or 0) < 2**30
    monkeypatch.setattr(proc, "PROC", tmp_path)
    assert proc.available_memory_mb() is None
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:    2048000 kB\n")
    assert proc.available_memory_mb() == 2000
