"""A fixed rate of requests, whatever the server does: latency as users see it.

A closed loop waits for a slow answer and asks less meanwhile, so it hides the very
moments that matter (coordinated omission). Here each request has its time; its latency
counts from then, also while it waits for a connection.
"""

import asyncio
import time
from collections import deque
from typing import Any
from urllib.parse import urlsplit

import uvloop
from msgspec import Struct

from bench.http.servers import Target
from bench.measure import percentile

CONNECTIONS = 64
WARM_UP_S = 0.5
END = b"\r\n\r\n"
LENGTH = b"content-length: "


class Latency(Struct, frozen=True, kw_only=True):
    """What requests at a fixed rate saw; `behind` is how many were never answered."""

    rate: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    behind: int


def run(target: Target, *, rate: float, seconds: float) -> Latency:
    """Ask `rate` times a second and return the latencies, those of the warm-up left out."""
    return uvloop.run(_Load(target, rate=rate, seconds=seconds).run())


class _Connection(asyncio.Protocol):
    def __init__(self, load: "_Load") -> None:
        self.load = load
        self.asked_at = 0.0
        self.read = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.load.free.append(self)

    def ask(self, due_at: float) -> None:
        self.asked_at = due_at
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        self.read += data
        head = self.read.find(END)
        if head < 0:
            return
        at = self.read.lower().index(LENGTH, 0, head) + len(LENGTH)
        length = int(self.read[at : self.read.index(b"\r", at)])
        if len(self.read) >= head + len(END) + length:
            self.read = b""
            self.load.answered(self)

    def connection_lost(self, error: Exception | None) -> None:
        assert self.load.over, f"a connection broke: {error}"


class _Load:
    def __init__(self, target: Target, *, rate: float, seconds: float) -> None:
        self.address = urlsplit(target.url)
        self.request = _request(target)
        self.rate = rate
        self.count = int(rate * (seconds + WARM_UP_S))
        self.free: list[_Connection] = []
        self.waiting: deque[float] = deque()
        self.latencies: list[float] = []
        self.over = False

    async def run(self) -> Latency:
        loop = asyncio.get_running_loop()
        host, port = self.address.hostname or "", self.address.port or 0
        for _ in range(CONNECTIONS):
            await loop.create_connection(lambda: _Connection(self), host, port)
        await self._ask_all()
        await self._drain()
        self.over = True
        for connection in self.free:
            connection.transport.close()
        seen = sorted(self.latencies)
        return Latency(
            rate=self.rate,
            p50_ms=percentile(seen, 0.5),
            p99_ms=percentile(seen, 0.99),
            p999_ms=percentile(seen, 0.999),
            behind=self.count - self._answered,
        )

    async def _ask_all(self) -> None:
        """Spin rather than sleep: a timer of a millisecond would be all that is measured."""
        self._answered = 0
        began = time.perf_counter()
        self.counts_from = began + WARM_UP_S
        asked = 0
        while asked < self.count:
            due = min(int((time.perf_counter() - began) * self.rate) + 1, self.count)
            for number in range(asked, due):
                self.waiting.append(began + number / self.rate)
            asked = max(asked, due)
            while self.waiting and self.free:
                self.free.pop().ask(self.waiting.popleft())
            await asyncio.sleep(0)

    async def _drain(self) -> None:
        deadline = time.perf_counter() + 5
        while self._answered < self.count and time.perf_counter() < deadline:
            while self.waiting and self.free:
                self.free.pop().ask(self.waiting.popleft())
            await asyncio.sleep(0)

    def answered(self, connection: _Connection) -> None:
        now = time.perf_counter()
        self._answered += 1
        if connection.asked_at >= self.counts_from:
            self.latencies.append((now - connection.asked_at) * 1000)
        if self.waiting:
            connection.ask(self.waiting.popleft())
        else:
            self.free.append(connection)


def _request(target: Target) -> bytes:
    address = urlsplit(target.url)
    lines = [
        f"{target.method} {address.path} HTTP/1.1",
        f"Host: {address.netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(target.body)}",
        *target.headers,
    ]
    return "\r\n".join([*lines, "", target.body]).encode()
