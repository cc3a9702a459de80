"""The answer to a warm admit as it is sent: headers and body, made when the engine changed.

One string serves both roads: the lane puts status line and date before it, the
application takes it apart again.
"""

from starlette.types import Message

from enginegate.api import problems
from enginegate.api.wire import encode_admit
from enginegate.keys import KeyUnsealError
from enginegate.registry import LiveEngine

OK = 200
END_OF_HEAD = b"\r\n\r\n"
STATUS_LINE = b"HTTP/1.1 200 OK\r\n"


def prepare(live: LiveEngine, lease_s: float) -> bytes | None:
    """Return headers and body of the answer to an admit of a running engine.

    None where its key does not open: that is told on the long road.
    """
    try:
        body = encode_admit(live, lease_s)
    except KeyUnsealError:
        return None
    lines = [b"%b: %b" % header for header in _headers(len(body))]
    return b"\r\n".join(lines) + END_OF_HEAD + body


def messages(prepared: bytes) -> tuple[Message, Message]:
    """Return the two ASGI messages that send a prepared answer."""
    body = prepared[prepared.index(END_OF_HEAD) + len(END_OF_HEAD) :]
    return (
        {"type": "http.response.start", "status": OK, "headers": _headers(len(body))},
        {"type": "http.response.body", "body": body},
    )


def _headers(length: int) -> list[tuple[bytes, bytes]]:
    headers = {
        "content-type": "application/json",
        "content-length": str(length),
        **problems.SAFE_HEADERS,
    }
    return [(name.encode(), value.encode()) for name, value in headers.items()]
