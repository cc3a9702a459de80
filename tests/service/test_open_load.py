"""The benchmarks' load at a fixed rate: what it says of a server is what users would feel."""

import asyncio
import subprocess
import time
from pathlib import Path

import pytest

from bench.http import open_load
from bench.http.servers import Target

pytestmark = pytest.mark.skipif(open_load.compiler() is None, reason=open_load.MISSING)
STALL_S = 0.3


class Server(asyncio.Protocol):
    """Answers at once, but for one stall of the whole loop; in two pieces, as servers may."""

    status = b"200 OK"
    stall_at = 0
    asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for _ in range(data.count(b"POST ")):
            type(self).asked += 1
            if self.asked == self.stall_at:
                time.sleep(STALL_S)  # it is the loop that must stand still
            self.transport.write(b"HTTP/1.1 %b\r\nContent-Length: 4\r\n\r\nok" % self.status)
            self.transport.write(b"ok")


async def _seen(directory: Path, server: type[Server], *, rate: float) -> open_load.Latency:
    loop = asyncio.get_running_loop()
    load = open_load.Load(directory)
    async with await loop.create_server(server, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        target = Target(name="one", url=f"http://127.0.0.1:{port}/engines/a/admit")
        return await asyncio.to_thread(load.run, target, rate=rate, seconds=1)


async def test_every_request_is_sent_at_its_time(tmp_path: Path) -> None:
    """A server at leisure is asked as often as was said, the warm-up included."""

    class Quick(Server):
        pass

    seen = await _seen(tmp_path, Quick, rate=1000)
    assert Quick.asked == 1000 * (1 + open_load.WARM_UP_S)
    assert seen.p50_ms < STALL_S * 1000 / 2


async def test_a_stall_counts_for_all_who_would_have_asked_meanwhile(tmp_path: Path) -> None:
    """A closed loop of 64 connections would see 64 late answers in 10,000; here it is 3,000."""

    class Stalling(Server):
        stall_at = 8000

    seen = await _seen(tmp_path, Stalling, rate=10_000)
    assert seen.p99_ms > STALL_S * 1000 / 2


async def test_a_refusal_is_no_answer(tmp_path: Path) -> None:
    """Latencies of a server that refuses say nothing."""

    class Refusing(Server):
        status = b"429 Too Many Requests"

    with pytest.raises(subprocess.CalledProcessError):
        await _seen(tmp_path, Refusing, rate=1000)
