"""Who is connected to a container's port, and for how long in silence.

The table of connections is the container's own: asked of the kernel inside its network
namespace (root), or read in the container's /proc (anybody on the host). Clients on the
host come through Docker's proxy, and seem to come from the network's gateway; who they
are, and how long they are quiet, show the proxy's own connections on the host. Where
nothing tells how long, a connection counts as live.
"""

import ctypes
import os
import re
import struct
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from enginegate import sockets
from enginegate.backends.base import Connection
from enginegate.sockets import Established

_CLONE_NEWNET: Final = 0x40000000
_TABLE_ROW: Final = re.compile(
    r"^ *\d+: [0-9A-F]+:(?P<port>[0-9A-F]{4}) (?P<peer>[0-9A-F]+):(?P<peer_port>[0-9A-F]{4}) 01 ",
    re.MULTILINE,
)

Source = tuple[str, int]


def inside(*, pid: int, container_id: str, port: int) -> list[Established]:
    """Return the connections to a port in a container. Blocks for some milliseconds.

    Raises:
        OSError: from here neither the kernel nor /proc tells.
    """
    process = Path(f"/proc/{pid}")
    _check(process, container_id)
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="setns") as visitor:  # it ends in there
            found = visitor.submit(_visit, process / "ns/net", port).result()
    except OSError:
        found = sockets.from_proc(port, process / "net")
    _check(process, container_id)  # the same all the while
    return found


def on_host(port: int) -> list[Established]:
    """Return the clients of Docker's proxy, if it is here and has any."""
    try:
        return sockets.from_netlink(port)
    except OSError:
        return []


def connections(
    container: Sequence[Established],
    host: Sequence[Established],
    *,
    gateways: Collection[str],
    own: Collection[Source],
) -> list[Connection]:
    """Return what counts: not what the container says to itself, nor our own probes.

    Behind the gateway each client on the host has one connection of the proxy; what the
    proxy cannot explain is counted as the container sees it.
    """
    outside = [one for one in container if not ip_address(one.address).is_loopback]
    direct = [one for one in outside if one.address not in gateways]
    proxied = [one for one in outside if one.address in gateways]
    unexplained = sorted(proxied, key=lambda one: one.quiet_s)[: max(len(proxied) - len(host), 0)]
    clients = host if proxied else ()
    return [
        Connection(quiet_s=one.quiet_s)
        for one in (*direct, *clients, *unexplained)
        if (one.address, one.port) not in own
    ]


def parse_table(table: str, port: int) -> Iterator[Established]:
    """Yield what the text of /proc/net/tcp and tcp6 says about a port."""
    for row in _TABLE_ROW.finditer(table):
        if int(row["port"], 16) == port:
            yield Established(_address(row["peer"]), int(row["peer_port"], 16), 0.0)


def _address(words: str) -> str:
    """Read 32-bit words of the machine's own byte order; IPv4 in IPv6 clothes is IPv4."""
    packed = b"".join(
        struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8)
    )
    address = ip_address(packed)
    return str(getattr(address, "ipv4_mapped", None) or address)


def _check(process: Path, container_id: str) -> None:
    """Refuse a pid that is another machine's, or was given to somebody else."""
    if container_id not in (process / "cgroup").read_text("utf-8", "replace"):
        raise ProcessLookupError(f"{process} is not the container's")


def _visit(namespace: Path, port: int) -> list[Established]:
    """Ask the kernel from within a network namespace; this thread must not be used again."""
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.open("rb") as entrance:
        if libc.setns(entrance.fileno(), _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    return sockets.from_netlink(port)
