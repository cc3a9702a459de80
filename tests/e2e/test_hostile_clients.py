"""Clients that are slow, many or endless, against the running server, while honest ones ask."""

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from enginegate.sockets import established
from tests.e2e.conftest import Server

log = logging.getLogger(__name__)

LONG = os.environ.get("ENGINEGATE_LONG") == "1"
SLOW_CLIENTS = 5000 if LONG else 300
TIMEOUT_S = 10.0 if LONG else 4.0
HONEST = 2000 if LONG else 500
GROWTH_MB_MAX = 100.0
NOISE_S = 0.005  # below this a p99 is the machine's own
HEADER_BLOCK_BYTES = 200_000_000
BODY_BYTES = 10_000_000_000
ATTACKERS = Path(__file__).with_name("slow_clients.py")


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("hostile"))
    server.cli.env["ENGINEGATE_SERVER__REQUEST_TIMEOUT_S"] = str(TIMEOUT_S)
    server.cli.env["ENGINEGATE_SERVER__MAX_CONNECTIONS"] = str(SLOW_CLIENTS + 100)
    server.start()
    key = server.cli.json("products", "register", "demo")["platform_api_key"]
    server.cli.env["ENGINEGATE_PLATFORM_KEY"] = key
    server.cli.run("engines", "admit", "ann", "--auto-provision")
    yield server
    server.close()


def request(server: Server, *headers: str, body: bytes = b"") -> bytes:
    lines = [
        "POST /engines/ann/admit HTTP/1.1",
        "Host: x",
        f"X-Platform-Key: {server.cli.env['ENGINEGATE_PLATFORM_KEY']}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def connect(server: Server) -> socket.socket:
    url = httpx.URL(server.url)
    return socket.create_connection((url.host, url.port), timeout=30)


def p99_s(server: Server, count: int) -> float:
    """Return the p99 of admits, one after the other on one connection."""
    sent = request(server)
    took = []
    with connect(server) as client:
        for _ in range(count):
            began = time.perf_counter()
            client.sendall(sent)
            answer = client.recv(65536)
            took.append(time.perf_counter() - began)
            assert answer.startswith(b"HTTP/1.1 200 ")
    return sorted(took)[-(count // 100) - 1]


def memory_mb(server: Server, what: str) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) / 1024


def sent_until_cut(client: socket.socket, piece: bytes, total: int) -> int:
    """Send as much as the server takes; return how much that was."""
    sent = 0
    try:
        while sent < total:
            sent += client.send(piece)
    except OSError:
        pass
    return sent


def told(client: socket.socket) -> bytes:
    """Return what the server said before it hung up."""
    said = b""
    try:
        while piece := client.recv(65536):
            said += piece
    except OSError:
        pass
    return said


def test_slow_clients_slow_nobody_down(gate: Server) -> None:
    """They are cut when their time is over; honest admits hardly notice, and memory is kept."""
    quiet = p99_s(gate, HONEST)
    before = memory_mb(gate, "VmRSS")
    port = str(httpx.URL(gate.url).port)
    with subprocess.Popen(
        [sys.executable, str(ATTACKERS), port, str(SLOW_CLIENTS)], stdout=subprocess.PIPE, text=True
    ) as attack:
        assert attack.stdout is not None
        assert attack.stdout.readline() == "connected\n"
        attacked = p99_s(gate, HONEST)
        fared: dict[str, Any] = json.loads(attack.stdout.readline())
    growth = memory_mb(gate, "VmHWM") - before
    log.info(
        "honest p99 %.2f ms quiet, %.2f ms attacked; grew by %.1f MB; %s",
        quiet * 1000,
        attacked * 1000,
        growth,
        fared,
    )
    assert sum(kind["cut"] for kind in fared.values()) == SLOW_CLIENTS
    assert fared["silent"]["told"] == [""]
    for kind in ("half", "trickle"):
        assert fared[kind]["told"] == ["HTTP/1.1 408 Request Timeout"]
    for kind in fared.values():
        assert kind["first_s"] > TIMEOUT_S * 0.9
        assert kind["last_s"] < TIMEOUT_S * 1.5
    assert attacked <= 2 * max(quiet, NOISE_S)
    assert growth < GROWTH_MB_MAX


def test_endless_headers_cost_no_memory(gate: Server) -> None:
    """A block of 200 MB, from several at once, is cut after the first bytes too many."""
    before = memory_mb(gate, "VmRSS")
    clients = [connect(gate) for _ in range(5)]
    for client in clients:
        client.sendall(request(gate)[:-2] + b"X-Long: ")
    for client in clients:
        sent = sent_until_cut(client, b"y" * 1_000_000, HEADER_BLOCK_BYTES)
        assert sent < HEADER_BLOCK_BYTES
        assert told(client).startswith(b"HTTP/1.1 431 ")
        client.close()
    assert memory_mb(gate, "VmHWM") - before < GROWTH_MB_MAX
    assert p99_s(gate, 100) < 1


@pytest.mark.parametrize("framing", ["Content-Length: 10000000000", "Transfer-Encoding: chunked"])
def test_an_endless_body_is_refused_unread(gate: Server, framing: str) -> None:
    """413 comes while the client is still sending, however the length is told."""
    before = memory_mb(gate, "VmRSS")
    chunk = b"y" * 50_000
    piece = b"c350\r\n" + chunk + b"\r\n" if "chunked" in framing else chunk
    with connect(gate) as client:
        client.sendall(request(gate, framing))
        client.sendall(piece * 2)
        assert told(client).startswith(b"HTTP/1.1 413 ")
    with connect(gate) as client:
        client.sendall(request(gate, framing))
        assert sent_until_cut(client, piece, BODY_BYTES) < 100_000_000
    assert memory_mb(gate, "VmHWM") - before < GROWTH_MB_MAX


def test_deep_json_is_refused(gate: Server) -> None:
    """A million levels are too long, as many as fit are no options of an admit."""
    for depth, status in ((1_000_000, 413), (60_000, 400)):
        with connect(gate) as client:
            client.sendall(request(gate, f"Content-Length: {depth}", "Connection: close"))
            sent_until_cut(client, b"[" * depth, depth)
            assert told(client).startswith(b"HTTP/1.1 %d " % status)


def test_who_takes_no_answer_is_cut_though_the_kernel_has_them_all(gate: Server) -> None:
    """Nothing waits in the server, so it is the kernel that must see that nobody reads."""
    url = httpx.URL(gate.url)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((url.host, url.port))
        client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        theirs, until = client.getsockname(), time.monotonic() + 3 * TIMEOUT_S
        while theirs in {(one.address, one.port) for one in established(url.port or 0)}:
            assert time.monotonic() < until, "it is kept"
            time.sleep(0.1)


def test_more_connections_than_there_may_be(gate: Server) -> None:
    """The oldest idle one goes, the newest is served."""
    most = SLOW_CLIENTS + 100
    clients = [connect(gate) for _ in range(most + 20)]
    try:
        clients[-1].sendall(request(gate))
        assert clients[-1].recv(65536).startswith(b"HTTP/1.1 200 ")
        assert clients[0].recv(100) == b""
    finally:
        for client in clients:
            client.close()
