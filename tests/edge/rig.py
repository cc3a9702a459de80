"""A server of the edge and raw clients of it."""

import asyncio
import socket
from types import TracebackType
from typing import Any, Self

from starlette.types import Receive, Scope, Send

from enginegate.edge import HttpServer, Limits

PATIENCE_S = 5.0  # of real time, before a test that waits for something gives up
TIMEOUT_S = 0.25  # to receive a request
HEADER_BYTES = 2048
BODY_BYTES = 5000


def limits(**some: Any) -> Limits:
    given: dict[str, Any] = {
        "max_connections": 50,
        "max_header_bytes": HEADER_BYTES,
        "max_body_bytes": BODY_BYTES,
        "request_timeout_s": TIMEOUT_S,
    }
    return Limits(**given | some)


class Client:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return the next answer: status, headers, body."""
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(first.split()[1]), headers, body

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        await self.send(data)
        return await self.answer()

    async def rest(self) -> bytes:
        """Return what still comes until the server hangs up."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()

    async def is_open(self) -> bool:
        """Return whether another request would be answered."""
        try:
            return (await self.ask(get("/open")))[0] == 200
        except (asyncio.IncompleteReadError, OSError):
            return False


def get(path: str, *headers: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in ("Host: x", *headers))
    return f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()


class Served:
    """A server whose application can be held up; use as a context."""

    def __init__(self, *, grace_s: float = 2.0, **some: Any) -> None:
        self.limits = limits(**some)
        self.grace_s = grace_s
        self.calls: list[str] = []
        self.left: list[str] = []
        self.drained = False
        self.go_on = asyncio.Event()
        self.entered = asyncio.Event()
        self.clients: list[Client] = []

    async def __aenter__(self) -> Self:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.started = asyncio.Event()
        self.server = HttpServer(
            self.app,
            self.limits,
            warm=None,
            grace_s=self.grace_s,
            on_started=self.started.set,
            on_drained=self._drained,
        )
        self.serving = asyncio.create_task(self.server.serve(sockets=[listener]))
        await self.started.wait()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.go_on.set()
        for client in self.clients:
            client.writer.close()
        self.server.stop()
        async with asyncio.timeout(PATIENCE_S):
            await self.serving
        assert self.drained

    def _drained(self) -> None:
        self.drained = True

    async def at_work(self) -> None:
        """Wait until the application is in a request that it does not end by itself."""
        async with asyncio.timeout(PATIENCE_S):
            await self.entered.wait()

    async def client(self) -> Client:
        made = Client(*await asyncio.open_connection(*self.address))
        self.clients.append(made)
        return made

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with method, path and length of the body.

        Paths that begin with /wait wait to be told to go on, /unread is answered before
        the body is looked at, /short takes no long body, /large is more than any socket
        takes at once, /stream never ends by itself.
        """
        path: str = scope["path"]
        self.calls.append(path)
        if path == "/stream":
            await self.stream(receive, send)
            return
        if path == "/short":
            await self.refuse(receive, send)
            return
        size = 0
        if path != "/unread":
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.left.append(path)
                    return
                size += len(message["body"])
                more = message["more_body"]
        if path.startswith("/wait"):
            self.entered.set()
            await self.go_on.wait()
        text = f"{scope['method']} {path} {size}".encode()
        body = b"x" * 50_000_000 if path == "/large" else text
        length = str(len(body)).encode()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", length)],
            }
        )
        await send({"type": "http.response.body", "body": body})

    async def refuse(self, receive: Receive, send: Send) -> None:
        """Answer a body as too long once it is, and have the connection closed."""
        size = 0
        while size <= BODY_BYTES:
            size += len((await receive())["body"])
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def stream(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        self.entered.set()
        await receive()
        self.left.append("/stream")
