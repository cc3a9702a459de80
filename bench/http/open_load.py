"""A fixed rate of requests, whatever the server does: latency as users see it.

A closed loop waits for a slow answer and asks less meanwhile, so it hides the very
moments that matter (coordinated omission). Here each request has its time; its latency
counts from then, also while it waits for a connection.
"""

import select
import socket
import time
from collections import deque
from urllib.parse import urlsplit

from msgspec import Struct

from bench.http.servers import Target
from bench.measure import percentile

CONNECTIONS = 64
WARM_UP_S = 0.5
PATIENCE_S = 5.0
PIECE = 65_536
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
    load = _Load(target, rate=rate, seconds=seconds)
    try:
        return load.run()
    finally:
        load.close()


class _Connection:
    """One request at a time, on a socket of its own."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(0)
        self.due_at = 0.0
        self._read = b""
        self._length = 0  # of a whole answer: they are all alike

    def answered(self) -> bool:
        """Read on; whether the answer is whole."""
        piece = self.socket.recv(PIECE)
        assert piece, "a connection broke"
        if not self._read and len(piece) == self._length:
            return True
        self._read += piece
        head = self._read.find(END)
        if head < 0:
            return False
        at = self._read.lower().index(LENGTH, 0, head) + len(LENGTH)
        length = head + len(END) + int(self._read[at : self._read.index(b"\r", at)])
        if len(self._read) < length:
            return False
        self._read, self._length = b"", length
        return True


class _Load:
    """A loop that does nothing else: an event loop would take as long as what is measured."""

    def __init__(self, target: Target, *, rate: float, seconds: float) -> None:
        address = urlsplit(target.url)
        self.request = _request(target)
        self.rate = rate
        self.count = int(rate * (seconds + WARM_UP_S))
        self.waiting: deque[float] = deque()
        self.latencies: list[float] = []
        self.epoll = select.epoll()
        self.connections: dict[int, _Connection] = {}
        for _ in range(CONNECTIONS):
            one = _Connection((address.hostname or "", address.port or 0))
            self.connections[one.socket.fileno()] = one
            self.epoll.register(one.socket.fileno(), select.EPOLLIN)
        self.free = [*self.connections.values()]

    def close(self) -> None:
        self.epoll.close()
        for one in self.connections.values():
            one.socket.close()

    def run(self) -> Latency:
        """Spin rather than sleep: a timer of a millisecond would be all that is measured."""
        began = time.perf_counter()
        self.counts_from = began + WARM_UP_S
        asked = self.answered = 0
        until = began + self.count / self.rate + PATIENCE_S
        while self.answered < self.count and (now := time.perf_counter()) < until:
            due = min(int((now - began) * self.rate) + 1, self.count)
            self.waiting.extend(began + number / self.rate for number in range(asked, due))
            asked = max(asked, due)
            while self.waiting and self.free:
                self._ask(self.free.pop())
            self._take_answers()
        seen = sorted(self.latencies)
        return Latency(
            rate=self.rate,
            p50_ms=percentile(seen, 0.5),
            p99_ms=percentile(seen, 0.99),
            p999_ms=percentile(seen, 0.999),
            behind=self.count - self.answered,
        )

    def _ask(self, connection: _Connection) -> None:
        connection.due_at = self.waiting.popleft()
        connection.socket.send(self.request)

    def _take_answers(self) -> None:
        for number, _ in self.epoll.poll(0):
            connection = self.connections[number]
            if not connection.answered():
                continue
            self.answered += 1
            if connection.due_at >= self.counts_from:
                self.latencies.append((time.perf_counter() - connection.due_at) * 1000)
            if self.waiting:
                self._ask(connection)
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
