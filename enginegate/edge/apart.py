"""The body of a request that asks for another protocol: read by a parser of its own.

`httptools` takes such a request to end with its head, and what follows for the other
protocol. Nobody else does who leaves the wish aside, as RFC 9110 (section 7.8) lets a
server do: proxies see a body there, and Java's client sends one.
"""

from typing import Protocol

import httptools

BEGIN = b"POST / HTTP/1.1\r\nConnection: close\r\n"  # so that it takes no second request


class Told(Protocol):
    """Who is told of the body."""

    def on_chunk_header(self) -> None: ...
    def on_body(self, body: bytes) -> None: ...
    def on_message_complete(self) -> None: ...


class _Body:
    """Passes on what is of the body, and nothing of the head."""

    def __init__(self, told: Told) -> None:
        self.on_chunk_header = told.on_chunk_header
        self.on_body = told.on_body
        self.on_message_complete = told.on_message_complete


def has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    """Return whether a body follows the head with these headers, which have been checked."""
    return announced(headers) > 0 or any(name == b"transfer-encoding" for name, _ in headers)


def announced(headers: list[tuple[bytes, bytes]]) -> int:
    """Return the bytes that `Content-Length` says, 0 without one.

    The parser has seen that it is a number below 2**64, but not how many zeros lead it:
    Python refuses to read one of more than 4,300 digits.
    """
    lengths = [value for name, value in headers if name == b"content-length"]
    return int(lengths[0].lstrip(b"0") or b"0") if lengths else 0


def body_parser(headers: list[tuple[bytes, bytes]], told: Told) -> httptools.HttpRequestParser:
    """Return what parses the body that follows the head with these headers."""
    framing = (b"transfer-encoding", b"content-length")
    lines = [b"%b: %b\r\n" % (name, value) for name, value in headers if name in framing]
    parser = httptools.HttpRequestParser(_Body(told))
    parser.feed_data(b"".join((BEGIN, *lines, b"\r\n")))
    return parser
