"""The lane: the admit of a running engine answered where it is parsed.

No task, no scope, no request object: when `POST /engines/{user_id}/admit` has arrived as
a whole and nothing else is owed on the connection, the admission is asked, and its
ready-made answer goes straight to the socket. Everything else takes the road: the
events that the parser told are told again to uvicorn, in their order, as if nothing
had happened.

A product asks for the same user in the same bytes again and again. What a whole request
means is remembered by its bytes, so that only the first one is parsed; whether it is
answered is asked anew each time.
"""

import asyncio
from enum import Enum
from typing import Any, Final, Protocol

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from enginegate.api.prepared import STATUS_LINE
from enginegate.edge import refusals
from enginegate.edge.connection import STOPS, Connection
from enginegate.edge.doors import Doors
from enginegate.keys import digest

PREFIX: Final = b"/engines/"
SUFFIX: Final = b"/admit"
BEGIN: Final = len(PREFIX)
END: Final = -len(SUFFIX)
KEY: Final = b"x-platform-key"
HOST: Final = b"host"
KEEP_ALIVE: Final = b"keep-alive"
# Headers that say how a request is to be read or answered; what has one takes the road.
TELLING: Final = frozenset({b"connection", b"expect", b"transfer-encoding", b"upgrade"})

NAMES_MAX: Final = 256
REPEATS_MAX: Final = 4096
REPEAT_BYTES_MAX: Final = 1024


class Warm(Protocol):
    """Asks for a warm admit: key, user and body in; headers and body of the answer out, or None.

    `hashed` is the key's digest where it is known; what it opens is looked up each time.
    """

    def __call__(
        self, key: bytes, user_id: str, body: bytes, hashed: bytes | None = None
    ) -> bytes | None: ...


class Meaning(Enum):
    """What a header is to the lane."""

    NONE = "none"
    KEY = "key"
    HOST = "host"
    TELLING = "telling"


NONE, TELLS, NAMES_HOST = Meaning.NONE, Meaning.TELLING, Meaning.HOST
_meanings: dict[bytes, Meaning] = {}


def _meaning(name: bytes) -> Meaning:
    """Return what a header means however it is written; remembers the usual ways."""
    lower = name.lower()
    meaning = Meaning.KEY if lower == KEY else Meaning.NONE
    if lower == HOST:
        meaning = Meaning.HOST
    elif lower in TELLING:
        meaning = Meaning.TELLING
    if len(_meanings) < NAMES_MAX:
        _meanings[name] = meaning
    return meaning


class Lane(Connection):
    """A connection with the lane open.

    `_on_road`: the events of this request have gone to uvicorn. `_key` is set between
    head and end of a request that is in the lane. `_free`: the last thing that happened
    is an answer by the lane, so nothing is owed, held or half there. `_usual` are the
    headers of an earlier request that had nothing special, with its key.

    Written out at length where a request passes, for each call here is made on each
    admit; what is rare is left to `Connection`.
    """

    __slots__ = (
        "_begin",
        "_body",
        "_free",
        "_headers_of",
        "_idle",
        "_key",
        "_last_key",
        "_on_road",
        "_piece_bytes",
        "_repeats",
        "_told",
        "_user",
        "_usual",
        "_usual_key",
        "_warm",
    )

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
        self._piece_bytes = doors.piece_bytes
        self._idle = doors.idle
        self._repeats = doors.repeats
        self._on_road = False
        self._free = False
        self._told: list[tuple[bytes, bytes]] = []
        self._usual: list[tuple[bytes, bytes]] | None = None
        self._usual_key = b""
        self._key: bytes | None = None
        self._last_key = b""
        self._user = ""
        self._body = b""
        self._headers_of: Any = None
        self._begin = b""

    def data_received(self, data: bytes) -> None:
        plain = self._free and len(data) <= self._piece_bytes and not self._deaf
        if not plain:
            super().data_received(data)
            return
        if (repeat := self._repeats.get(data)) and self._answered(*repeat):
            return
        messages = self._messages
        self._unseen += len(data)
        try:
            self.parser.feed_data(data)
        except STOPS as stop:
            self._stopped(stop, data)
        if self._free and self._unseen == 0 and self._waiting is self._idle:
            self._idle.again(self)
            if self._messages == messages + 1 and len(data) <= REPEAT_BYTES_MAX:
                self._remember(data)
        else:
            self._fed()
            self._settle()

    def _answered(self, key: bytes, hashed: bytes, user: str, body: bytes) -> bool:
        """Answer what was asked before in the same bytes, if it can be answered now."""
        if self.doors.draining or self.flow.write_paused or self._waiting is not self._idle:
            return False
        answer = self._warm(key, user, body, hashed)
        if answer is None:
            return False
        self._messages += 1
        if self.server_state.default_headers is not self._headers_of:
            self._new_begin()
        self.transport.raw.write(self._begin + answer)
        self._idle.again(self)
        return True

    def _remember(self, data: bytes) -> None:
        """Keep what these bytes mean: one whole request that the lane has answered."""
        if len(self._repeats) >= REPEATS_MAX:
            self._repeats.clear()
        key = self._last_key
        self._repeats[data] = (key, digest(key), self._user, self._body)

    def _fed(self) -> None:
        if self._free and self._unseen == 0:
            return
        super()._fed()
        if self._key is not None:  # the rest of its body is not here yet
            try:
                self._leave_lane()
            except (httptools.HttpParserError, UnicodeDecodeError):
                self._refuse(refusals.MALFORMED)

    # What the parser tells

    def on_message_begin(self) -> None:
        self._messages += 1
        self._in_message = True
        self._on_road = self._free = False
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
                self._last_key, self._key = self._key, None
                self._in_message = False
                self._free = True
                self._unseen = 0
                if self.server_state.default_headers is not self._headers_of:
                    self._new_begin()
                self.transport.raw.write(self._begin + answer)
                return
            self._leave_lane()
        super().on_message_complete()

    # In the lane

    def _fitting_key(self) -> bytes | None:
        """Return the platform key, None where this is not a plain admit on a free connection."""
        parser = self.parser
        if (
            self._owed
            or self._in_pieces
            or self._deaf
            or self.doors.draining
            or self.flow.write_paused
            or parser.get_method() != b"POST"
            or not parser.should_keep_alive()
        ):
            return None
        if self._told == self._usual:  # a client sends the same headers again and again
            return self._usual_key
        return self._key_among(self._told)

    def _key_among(self, told: list[tuple[bytes, bytes]]) -> bytes | None:
        """Return the key among headers with one host and none that says how to read or answer."""
        key, plain, hosts = None, True, 0
        for name, value in told:
            meaning = _meanings.get(name) or _meaning(name)
            if meaning is NONE:
                continue
            if meaning is NAMES_HOST:
                hosts += 1
            elif meaning is TELLS:
                plain = False
                if not self._is_keep_alive(name, value):
                    return None
            elif key is None:
                key = value
        if hosts != 1:
            return None
        if plain and key is not None:
            self._usual, self._usual_key = told, key
        return key

    def _is_keep_alive(self, name: bytes, value: bytes) -> bool:
        """Return whether a header asks for no more than what HTTP/1.1 does anyway."""
        plain = name.lower() == b"connection" and value.lower() == KEEP_ALIVE
        return plain and self.parser.get_http_version() == "1.1"

    def _new_begin(self) -> None:
        """Make anew what every answer begins with: the date has changed."""
        headers = self._headers_of = self.server_state.default_headers
        lines = [b"%b: %b\r\n" % header for header in headers]
        self._begin = b"".join((STATUS_LINE, *lines))

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
