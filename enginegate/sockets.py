"""Who is connected to an engine, as the kernel sees it.

Asks over netlink (`sock_diag`), one port at a time, and learns how long each
connection has been quiet; where that is not permitted it reads `/proc/net/tcp`,
which cannot tell: every connection counts as active then. All calls block, for well
under a millisecond with netlink and some milliseconds with thousands of sockets in
`/proc`.
"""

import errno
import socket
import struct
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from msgspec import Struct

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
INET_DIAG_INFO = 2
TCP_ESTABLISHED = 1
TIMEOUT_S = 1.0
BUFFER_BYTES = 65_536

NLMSGHDR = struct.Struct("=IHHII")
REQUEST = struct.Struct("=BBBxI")  # family, protocol, extensions, states
SOCKID = struct.Struct("!HH16s16sI8s")  # ports and addresses are big-endian
DIAG_MSG = struct.Struct("=BBBB48s20x")
ATTRIBUTE = struct.Struct("=HH")
QUIET_OFFSETS = (44, 52)  # tcpi_last_data_sent, tcpi_last_data_recv in struct tcp_info
INFO_MIN_BYTES = 56


class Established(Struct, frozen=True):
    """A connection to a local port: from where, and quiet for how long."""

    address: str
    port: int
    quiet_s: float


def established(port: int, *, ours: Collection[tuple[str, int]] = ()) -> list[Established]:
    """Return the connections whose local end is `port`, those from `ours` left out."""
    try:
        found = from_netlink(port)
    except OSError:
        found = from_proc(port)
    return [peer for peer in found if (peer.address, peer.port) not in ours]


def from_netlink(port: int) -> list[Established]:
    """Ask the kernel; raises `OSError` where it does not let us."""
    found: list[Established] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as link:
            link.settimeout(TIMEOUT_S)
            link.send(_request(family, port))
            found += [_peer(body) for body in _answers(link)]
    return found


def from_proc(port: int, net: Path = Path("/proc/net")) -> list[Established]:
    """Read the tables; `/proc/<pid>/net` shows the network of that process."""
    found: list[Established] = []
    for name in ("tcp", "tcp6"):
        try:
            lines = (net / name).read_text("ascii").splitlines()[1:]
        except FileNotFoundError:
            continue  # a kernel without IPv6
        rows = [line.split() for line in lines]
        found += [
            Established(*_from_hex(remote), 0.0)
            for _, local, remote, state, *_ in rows
            if int(state, 16) == TCP_ESTABLISHED and int(local.partition(":")[2], 16) == port
        ]
    return found


def _request(family: int, port: int) -> bytes:
    header = REQUEST.pack(
        family, socket.IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 1 << TCP_ESTABLISHED
    )
    body = header + SOCKID.pack(port, 0, b"", b"", 0, b"")
    flags = NLM_F_REQUEST | NLM_F_DUMP
    return NLMSGHDR.pack(NLMSGHDR.size + len(body), SOCK_DIAG_BY_FAMILY, flags, 1, 0) + body


def _answers(link: socket.socket) -> Iterator[bytes]:
    """Yield the bodies of the dump, until the kernel says that it is done."""
    while True:
        read = memoryview(link.recv(BUFFER_BYTES))
        while len(read) >= NLMSGHDR.size:
            length, kind, *_ = NLMSGHDR.unpack_from(read)
            body = bytes(read[NLMSGHDR.size : length])
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                code = -struct.unpack_from("=i", body)[0]
                raise OSError(code or errno.EPROTO, "sock_diag")
            yield body
            read = read[_aligned(length) :]


def _peer(body: bytes) -> Established:
    family, _, _, _, sockid = DIAG_MSG.unpack_from(body)
    _, port, _, address, *_ = SOCKID.unpack(sockid)
    raw = address[:4] if family == socket.AF_INET else address
    return Established(_plain(raw), port, _quiet_s(body[DIAG_MSG.size :]))


def _quiet_s(attributes: bytes) -> float:
    """Find the tcp_info; without one the connection counts as active."""
    at = 0
    while at + ATTRIBUTE.size <= len(attributes):
        length, kind = ATTRIBUTE.unpack_from(attributes, at)
        if length < ATTRIBUTE.size:
            break
        info = attributes[at + ATTRIBUTE.size : at + length]
        if kind == INET_DIAG_INFO and len(info) >= INFO_MIN_BYTES:
            return float(min(struct.unpack_from("=I", info, o)[0] for o in QUIET_OFFSETS)) / 1000
        at += _aligned(length)
    return 0.0


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _from_hex(pair: str) -> tuple[str, int]:
    """Read the address:port of /proc/net/tcp: 32-bit words in the byte order of the machine."""
    address, _, port = pair.partition(":")
    raw = bytes.fromhex(address)
    words = struct.unpack(f"={len(raw) // 4}I", raw)
    return _plain(struct.pack(f"!{len(words)}I", *words)), int(port, 16)


def _plain(raw: bytes) -> str:
    """Write an address; an IPv4 one in IPv6 clothes is written as IPv4."""
    address: IPv4Address | IPv6Address = ip_address(raw)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)
