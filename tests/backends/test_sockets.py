"""What the kernel says of connections to a port."""

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginegate import sockets


@pytest.fixture
def connection() -> Iterator[tuple[int, tuple[str, int]]]:
    """An established connection: the port it goes to, and where it comes from."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            served, _ = listener.accept()
            with served:
                yield port, client.getsockname()


def test_a_connection_is_counted_once(connection: tuple[int, tuple[str, int]]) -> None:
    """The engine's side counts, not the client's."""
    port, source = connection
    [found] = sockets.established(port)
    assert (found.address, found.port) == source
    assert 0 <= found.quiet_s < 5


async def test_a_closed_connection_is_gone() -> None:
    """Only established ones count."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            served, _ = listener.accept()
            served.close()
    async with asyncio.timeout(5):
        while sockets.established(port):
            await asyncio.sleep(0.01)


def test_our_own_probes_do_not_count(connection: tuple[int, tuple[str, int]]) -> None:
    """A connection from a source that we name is left out."""
    port, source = connection
    assert sockets.established(port, ours={source}) == []


def test_without_netlink_the_text_files_do(
    connection: tuple[int, tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fall-back sees the same connections, as if something had just moved."""
    port, source = connection

    def refused(_: int) -> list[sockets.Established]:
        raise PermissionError

    monkeypatch.setattr(sockets, "from_netlink", refused)
    [found] = sockets.established(port)
    assert ((found.address, found.port), found.quiet_s) == (source, 0.0)


def test_an_engine_on_ipv6_is_seen_under_its_callers_plain_address() -> None:
    """A caller over IPv4 of a server on both families is written as IPv4, by both readers."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port)) as client:
                served, _ = listener.accept()
                with served:
                    source = client.getsockname()[:2]
                    for read in (sockets.from_netlink, sockets.from_proc):
                        assert [(one.address, one.port) for one in read(port)] == [source]


async def test_quiet_is_since_anything_moved(connection: tuple[int, tuple[str, int]]) -> None:
    """It grows while nothing moves."""
    port, _ = connection
    async with asyncio.timeout(5):
        while sockets.established(port)[0].quiet_s < 0.05:
            await asyncio.sleep(0.01)


def test_many_connections_come_in_many_pieces() -> None:
    """An answer larger than one message is read to its end."""
    with socket.create_server(("127.0.0.1", 0), backlog=400) as listener:
        port = listener.getsockname()[1]
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
        served = [listener.accept()[0] for _ in clients]
        found = {(one.address, one.port) for one in sockets.from_netlink(port)}
        assert found == {client.getsockname() for client in clients}
        for one in [*clients, *served]:
            one.close()


def test_a_kernel_without_ipv6_has_one_table(tmp_path: Path) -> None:
    """What is not there holds no connections; other states and ports do not count."""
    rows = [
        "  sl  local_address rem_address   st",
        "   0: 0100007F:2329 0200007F:C350 01 x",
        "   1: 0100007F:2329 0300007F:C350 06 x",
        "   2: 0100007F:2330 0400007F:C350 01 x",
    ]
    (tmp_path / "tcp").write_text("\n".join(rows))
    address = "127.0.0.2" if sys.byteorder == "little" else "2.0.0.127"
    assert sockets.from_proc(9001, tmp_path) == [sockets.Established(address, 50000, 0.0)]


@pytest.mark.parametrize("code", [-errno.EPERM, 0])
def test_a_refusal_of_the_kernel_is_an_error(code: int) -> None:
    """Never an empty answer, which would mean that nobody is connected."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        header = sockets.NLMSGHDR.pack(20, sockets.NLMSG_ERROR, 0, 1, 0)
        theirs.send(header + struct.pack("=i", code))
        with pytest.raises(OSError, match="sock_diag"):
            list(sockets._answers(ours))


@pytest.mark.parametrize(
    "attributes",
    [
        b"",
        struct.pack("=HH", 0, 0),
        struct.pack("=HH", 8, 9) + b"1234",
        struct.pack("=HH", 8, sockets.INET_DIAG_INFO) + b"old!",
    ],
)
def test_a_kernel_that_does_not_say_leaves_the_connection_active(attributes: bytes) -> None:
    """Without a usable tcp_info nothing is quiet."""
    assert sockets._quiet_s(attributes) == 0.0
