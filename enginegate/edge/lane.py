"""The lane: the admit of a running engine answered where it is parsed.

No task, no scope, no request object: when `POST /engines/{user_id}/admit` has arrived as
a whole and nothing else is owed on the connection, the admission is asked, and its
ready-made answer goes straight to the socket. Everything else takes the road: the
events that the parser told are told again to uvicorn, in their order, as if nothing
had happened.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from enginegate.api.prepared import STATUS_LINE
from enginegate.edge import refusals
from enginegate.edge.connection import Connection
from enginegate.edge.doors import Doors

PREFIX: Final = b"/engines/"
SUFFIX: Final = b"/admit"
BEGIN: Final = len(PREFIX)
END: Final = -len(SUFFIX)
KEY: Final = b"x-platform-key"
KEEP_ALIVE: Final = b"keep-alive"
# Headers that say how a request is to be read or answered; what has one takes the road.
TELLING: Final = frozenset({b"connection", b"expect", b"transfer-encoding", b"upgrade"})

Warm = Callable[[bytes, str, bytes], bytes | None]
"""Asks for a warm admit: key, user and body in; headers and body of the answer out, or None."""


class Lane(Connection):
    """A connection with the lane open.

    `_on_road`: the events of this request have gone to uvicorn. `_key` is set between
    head and end of a request that is in the lane.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        doors: Doors,
        warm: Warm,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop, doors=doors)
        self._warm = warm
        self._on_road = False
        self._told: list[tuple[bytes, bytes]] = []
        self._key: bytes | None = None
        self._user = ""
        self._body = b""
        self._headers_of: Any = None
        self._begin = b""

    # What the parser tells

    def on_message_begin(self) -> None:
        self._messages += 1
        self._in_message = True
        self._on_road = False
        self._told = []
        self.url = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._on_road:
            super().on_header(name, value)
        else:
            self._told.append((name, value))

    def on_headers_complete(self) -> None:
        url = self.url
        if url.endswith(SUFFIX) and url.startswith(PREFIX):
            self._key = self._fitting_key()
            if self._key is not None:
                self._user = url[BEGIN:END].decode("latin-1")
                self._body = b""
                return
        self._to_road()

    def on_body(self, body: bytes) -> None:
        if self._key is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        if self._key is not None:
            answer = self._warm(self._key, self._user, self._body)
            if answer is not None:
                self._key = None
                self._in_message = False
                self._unseen = 0
                self._write(answer)
                return
            self._leave_lane()
        super().on_message_complete()

    def _feed(self, piece: bytes | memoryview) -> None:
        super()._feed(piece)
        if self._key is not None:  # the rest of its body is not here yet
            try:
                self._leave_lane()
            except (httptools.HttpParserError, UnicodeDecodeError):
                self._refuse(refusals.MALFORMED)

    # In the lane

    def _fitting_key(self) -> bytes | None:
        """Return the platform key, None where this is not a plain admit on a free connection."""
        parser = self.parser
        if (
            parser.get_method() != b"POST"
            or self._owed
            or self._in_pieces
            or self._deaf
            or self.doors.draining
            or self.flow.write_paused
            or not parser.should_keep_alive()
        ):
            return None
        key = None
        for told, value in self._told:
            name = told.lower()
            if name == KEY:
                key = value if key is None else key
            elif name in TELLING and not self._is_keep_alive(name, value):
                return None
        return key

    def _is_keep_alive(self, name: bytes, value: bytes) -> bool:
        """Return whether a header asks for no more than what HTTP/1.1 does anyway."""
        plain = name == b"connection" and value.lower() == KEEP_ALIVE
        return plain and self.parser.get_http_version() == "1.1"

    def _write(self, answer: bytes) -> None:
        headers = self.server_state.default_headers
        if headers is not self._headers_of:
            self._headers_of = headers
            lines = [b"%b: %b\r\n" % header for header in headers]
            self._begin = b"".join((STATUS_LINE, *lines))
        self.transport.raw.write(self._begin + answer)

    def _leave_lane(self) -> None:
        self._key = None
        self._to_road()
        if self._body:
            super().on_body(self._body)

    def _to_road(self) -> None:
        """Tell uvicorn all that was told since the request began."""
        self._on_road = True
        url, told = self.url, self._told
        super().on_message_begin()
        self.url = url
        for name, value in told:
            super().on_header(name, value)
        super().on_headers_complete()
