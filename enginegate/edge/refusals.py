"""What is said to those whose request does not get as far as the application."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

Headers = Iterable[tuple[bytes, bytes]]


class Refusal:
    """An answer that ends a connection: plain text, so that it needs nothing of the API."""

    __slots__ = ("_head", "_tail", "status")

    def __init__(self, status: int, message: str) -> None:
        body = f"{message}\n".encode()
        self.status = status
        self._head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
        self._tail = (
            b"content-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
        )

    def encode(self, headers: Headers) -> bytes:
        """Return it as it is sent, with the headers that every answer has."""
        lines = [b"%b: %b\r\n" % header for header in headers]
        return b"".join((self._head, *lines, self._tail))


MALFORMED: Final = Refusal(400, "This is no HTTP/1.1 request.")
NO_HOST: Final = Refusal(400, "An HTTP/1.1 request has one Host header.")
TOO_SLOW: Final = Refusal(408, "The request did not arrive in time.")
HEADERS_TOO_LARGE: Final = Refusal(431, "The request line and headers are too long.")
TOO_MANY: Final = Refusal(503, "Too many connections; ask again in a moment.")
