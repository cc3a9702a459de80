"""What the kernel says of connections to a port."""

import asyncio
import socket
from collections.abc import Iterator

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
