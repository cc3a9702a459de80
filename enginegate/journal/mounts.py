"""The file system that a journal lies on, and what speaks against it."""

import os
from pathlib import Path

_VOLATILE = frozenset({"tmpfs", "ramfs"})
_REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "overlay", "aufs"}
)


def filesystem_warnings(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> list[str]:
    """Return what speaks against keeping a journal on this file system."""
    device = os.stat(directory).st_dev  # noqa: PTH116 - one stat, the path may be anything
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return []
    kind = ""
    for line in lines:
        left, _, right = line.partition(" - ")
        if left.split()[2:3] == [wanted]:
            kind = right.split()[0]
    if kind in _VOLATILE:
        return [f"{directory} is on {kind}: everything in it is gone after a reboot"]
    if kind in _REMOTE or kind.startswith("fuse"):
        return [f"{directory} is on {kind}: locks and syncs cannot be relied on there"]
    return []
