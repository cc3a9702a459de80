"""One HTTP request over a connection of its own: an `httpx` transport on asyncio and httptools.

Probes are most of what a large fleet costs the event loop, and each step of one keeps an
admit waiting. httpx's own transport takes seven times the processor time for a request
without pool, TLS, proxies and HTTP/2, so this one has none of them.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import httptools
import httpx

ANSWER_MAX_BYTES: Final = 65_536  # headers and body together, as they come

Connected = Callable[[tuple[str, int]], AbstractContextManager[None]]
"""Given the address and port that a connection comes from; entered while it is open."""


class OneShotTransport(httpx.AsyncBaseTransport):
    """Connects, asks, reads the answer to its end, and closes. Plain HTTP/1.1 only.

    The answer has no headers, and its body is as it came: probes ask for no encoding.
    An exchange has no time-out of its own: who asks sets a deadline, and a cancelled one
    closes its connection. Raises httpx.ConnectError, httpx.UnsupportedProtocol, and
    httpx.RemoteProtocolError for what is no answer, or a longer one than 64 KiB.
    """

    def __init__(self, *, connected: Connected) -> None:
        self._connected = connected

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        if url.scheme != "http":
            raise httpx.UnsupportedProtocol(f"{url.scheme!r} is not plain HTTP", request=request)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)  # to connect is a turn of its own: who waits comes first
        try:
            transport, answer = await loop.create_connection(
                lambda: _Answer(loop), url.host, url.port or 80
            )
        except OSError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        try:
            host, port, *_ = transport.get_extra_info("sockname")
            with self._connected((host, port)):
                transport.write(_encode(request))
                status, body = await answer.done
                await asyncio.sleep(0)  # what is done with an answer is not the turn that read it
                # Without its headers: httpx would unpack what is said to be packed, at any size.
                return httpx.Response(status, stream=httpx.ByteStream(body))
        except httpx.TransportError as error:
            error.request = request
            raise
        finally:
            transport.abort()


class _Answer(asyncio.Protocol):
    """What comes back on one connection; `done` has its status and body once it is whole."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.done: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self._size = 0
        self._body = b""
        self._names: set[bytes] = set()  # of headers
        self._to_the_end = False

    def connection_made(self, _: asyncio.BaseTransport) -> None:
        self._parser = httptools.HttpResponseParser(self)
        # Nothing follows an answer here, so what is loosely written cannot be taken for another.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_chunked_length=True,
            lenient_optional_cr_before_lf=True,
        )

    def data_received(self, data: bytes) -> None:
        room = ANSWER_MAX_BYTES - self._size  # so that it is no matter how TCP has cut it
        self._size += len(data)
        try:
            self._parser.feed_data(data[:room])
        except httptools.HttpParserUpgrade:
            self._fail("no HTTP answer: it switches protocols")
        except httptools.HttpParserError as error:
            self._fail(f"no HTTP answer: {error}")
        if self._size > ANSWER_MAX_BYTES:
            self._fail(f"more than {ANSWER_MAX_BYTES} bytes")

    def eof_received(self) -> None:
        if self._to_the_end:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._to_the_end and exc is None:
            self._finish()
        self._fail(f"the connection ended before the answer{f': {exc}' if exc else ''}")
        # The two know each other: left to the garbage collector, they would have it at work.
        del self._parser

    # What the parser tells

    def on_message_begin(self) -> None:
        self._body, self._to_the_end = b"", False
        self._names.clear()

    def on_header(self, name: bytes, _: bytes) -> None:
        self._names.add(name.lower())

    def on_headers_complete(self) -> None:
        """Find out how the body ends: by its length, by its last chunk, or with the connection."""
        self._to_the_end = not self._names & {b"content-length", b"transfer-encoding"}

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= httpx.codes.OK:  # what is below only announces it
            self._finish()

    # The end

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result((self._parser.get_status_code(), self._body))

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(httpx.RemoteProtocolError(why))
            self.done.exception()  # nobody may be waiting any more


def _encode(request: httpx.Request) -> bytes:
    lines: list[Any] = [b"%b %b HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%b: %b" % header for header in request.headers.raw]
    return b"\r\n".join([*lines, b"", request.content])
