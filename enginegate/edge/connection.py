"""One connection: uvicorn's HTTP protocol with bounds, and with a proper end.

uvicorn parses, runs the application and keeps the order of answers. Here it is held to
the limits: time to receive a request, bytes of head and body, and no further request
parsed than can be answered. Whatever is refused gets an answer in its turn, after those
that the client asked for before.
"""

import asyncio
import logging
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from enginegate.edge import refusals
from enginegate.edge.apart import announced, body_parser, has_body
from enginegate.edge.doors import Doors
from enginegate.edge.flow import Flow
from enginegate.edge.line import Line
from enginegate.edge.refusals import Refusal
from enginegate.edge.waiting import WaitingList

log = logging.getLogger(__name__)

DISCARD_BYTES = 4 * 1024 * 1024  # taken from a client that goes on after a refusal
STOPS = (httptools.HttpParserError, httptools.HttpParserUpgrade)  # what the parser raises
VERSIONS = ("1.1", "1.0")
REQUEST_LINE_EXTRA = len("  HTTP/1.1\r\n\r\n")
HEADER_EXTRA = len(": \r\n")


class Refused(Exception):  # noqa: N818 - no error of ours
    """Raised within the parser, which turns it into an error of its own."""


class Connection(HttpToolsProtocol):
    """A `Guest` of the doors.

    `_owed` requests have been understood and are not answered yet. `_in_message`: a
    request has begun and is not complete; `_in_body`: its head is. `_unseen` bytes have
    come since the parser last had something to tell. `_deaf`: nothing more is parsed;
    `_unread`: although the client may be sending. `_kept`: the client wants to keep the
    connection after its newest request. `_held` came in, and waits for earlier requests.
    `_apart`: the body that comes next takes a parser of its own.
    """

    # Slots: what is looked at for each request shall not be looked up in a large dict.
    __slots__ = (
        "_apart",
        "_body_bytes",
        "_deaf",
        "_discarded",
        "_fault",
        "_held",
        "_in_body",
        "_in_message",
        "_in_pieces",
        "_kept",
        "_last_words",
        "_messages",
        "_owed",
        "_running",
        "_unread",
        "_unseen",
        "_waiting",
        "_waiting_for",
        "doors",
    )

    transport: Line  # type: ignore[mutable-override]  # asyncio's, with a proper end

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        doors: Doors,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.doors = doors
        self._waiting: WaitingList[Any] | None = None
        self._waiting_for = 0
        self._messages = 0
        self._in_message = False
        self._in_body = False
        self._in_pieces = False
        self._apart = False
        self._unseen = 0
        self._body_bytes = 0
        self._owed = 0
        self._running: RequestResponseCycle | None = None
        self._deaf = False
        self._unread = False
        self._kept = True
        self._held = b""
        self._fault: Refusal | None = None
        self._last_words: Refusal | None = None
        self._discarded = 0

    # What asyncio tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        line = Line(transport, linger=self._may_be_sending, leave=self._leaves)
        super().connection_made(line)
        self.flow = Flow(line, self.pipeline, self.go_on)
        if self.doors.enter(self):
            self._wait_in(self.doors.silent)
            return
        self._reject(refusals.TOO_MANY)

    def connection_lost(self, exc: Exception | None) -> None:
        self.doors.forget(self)
        self._disown(self._running)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._discard(len(data))
        elif self._held:
            self._held += data
        else:
            self._unset_keepalive_if_required()
            self._take(data)
            self._settle()

    def eof_received(self) -> bool | None:  # type: ignore[override]  # asyncio takes both
        """Let a client that has said all it wanted to have the answer to it."""
        running = self._running
        if self._deaf or self._in_message or running is None or running.response_started:
            return None
        self._deaf = True
        self.cycle.keep_alive = False
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self.doors.stalled.put(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self.doors.stalled.drop(self)

    # Reading

    def _take(self, data: bytes) -> None:
        """Parse what has come, as far as it can be worked on now."""
        piece_bytes = self.doors.piece_bytes
        if len(data) <= piece_bytes:
            self._feed(data)
            return
        view = memoryview(data)
        for begin in range(0, len(data), piece_bytes):
            if self._deaf:
                self._discard(len(data) - begin)
                return
            if self.flow.read_paused:
                self._held = bytes(view[begin:])
                return
            self._feed(view[begin : begin + piece_bytes])

    def _feed(self, piece: bytes | memoryview) -> None:
        self._unseen += len(piece)
        try:
            self.parser.feed_data(piece)
        except STOPS as stop:
            self._stopped(stop, piece)
        self._fed()

    def _stopped(self, stop: Exception, piece: bytes | memoryview) -> None:
        """Refuse what the parser did not take; an upgrade is answered by not being one."""
        if self._apart:
            self._apart = False
            self.parser = body_parser(self.headers, self)
            self._feed(piece[stop.args[0] :])
        elif isinstance(stop, httptools.HttpParserError):
            log.debug("refused: %s", self._fault.status if self._fault else stop)
            self._refuse(self._fault or refusals.MALFORMED)

    def _fed(self) -> None:
        """See how far the request has come."""
        if self._unseen > self.doors.limits.max_header_bytes:
            self._refuse(refusals.HEADERS_TOO_LARGE)
        elif self._in_message and not self._in_body:
            self._in_pieces = True

    def go_on(self) -> None:
        """Read on: first what was held back, then what the kernel has."""
        if self._held:
            self.loop.call_soon(self._take_held)
        else:
            self.transport.resume_reading()
            self._settle()

    def _take_held(self) -> None:
        data, self._held = self._held, b""
        if self.transport.is_closing() or not data:
            return
        self._take(data)
        if not self.flow.read_paused:
            self.transport.resume_reading()
        self._settle()

    def _discard(self, size: int) -> None:
        """Throw away what nobody will look at; there is an end to that too."""
        self._discarded += size
        if self._discarded > DISCARD_BYTES:
            self.cut()

    # What the parser tells

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._messages += 1
        self._in_message = True
        self._body_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # trailers are no headers: a proxy may not have looked at them
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._check_head()
        before, kept = self.cycle, self._kept
        super().on_headers_complete()
        self._in_body = True
        self._in_pieces = False
        self._unseen = 0
        upgrade = self.parser.should_upgrade()
        if upgrade or announced(self.headers) > self.doors.limits.max_body_bytes:
            self.cycle.keep_alive = False  # what follows will not be parsed
        self._apart = upgrade and has_body(self.headers)
        self._kept = self.cycle.keep_alive
        self._owed += 1
        if self._owed == 1:
            self._running = self.cycle
        if self.doors.draining:
            if self._owed > 1 and not before.response_started:
                before.keep_alive = kept
            self.cycle.keep_alive = False

    def on_chunk_header(self) -> None:
        self._unseen = 0

    def on_body(self, body: bytes) -> None:
        self._unseen = 0
        self._body_bytes += len(body)
        if self._body_bytes > self.doors.limits.max_body_bytes and self.cycle.response_complete:
            self._deaf = self._unread = True  # answered long ago, and does not stop
            self.transport.close()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._apart:
            return
        self._unseen = 0
        self._in_message = self._in_body = False
        super().on_message_complete()
        self._deaf = self._deaf or not self._kept

    def _check_head(self) -> None:
        """Refuse what other readers of the same bytes may understand differently."""
        if self._in_pieces and self._head_bytes() > self.doors.limits.max_header_bytes:
            self._fault = refusals.HEADERS_TOO_LARGE
            raise Refused
        version = self.parser.get_http_version()
        if version == "1.0":
            self.expect_100_continue = False  # it would take that for the answer
        names = [name for name, _ in self.headers]
        codings = []
        if b"transfer-encoding" in names:
            codings = [
                value.lower() for name, value in self.headers if name == b"transfer-encoding"
            ]
        if version not in VERSIONS or (codings and (version, codings) != ("1.1", [b"chunked"])):
            raise Refused
        hosts = names.count(b"host")
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            self._fault = refusals.NO_HOST
            raise Refused

    def _head_bytes(self) -> int:
        line = len(self.parser.get_method()) + len(self.url) + REQUEST_LINE_EXTRA
        return line + sum(len(name) + len(value) + HEADER_EXTRA for name, value in self.headers)

    # Answers

    def on_response_complete(self) -> None:
        self._owed -= 1
        self._running = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if self._owed == 0 and not self.transport.is_closing():
            if self._last_words is not None:
                self._say(self._last_words)
            elif self.cycle.waiting_for_100_continue and self._in_body:
                self.transport.close()  # the body may come or not: what comes next is not known
            elif self.doors.draining and not self._in_message:
                self.transport.close()
        self._settle()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer a request that goes no further, in its turn; then hang up."""
        if self._deaf:
            return
        self._deaf = self._unread = True
        cycle = self.cycle if self._in_body else None
        if cycle is not None and cycle.response_started:
            self.transport.close()
        elif cycle is not None and cycle is not self._running:
            self.pipeline.popleft()
            self._owed -= 1
            self._last_words = refusal
        elif cycle is not None or self._owed == 0:
            self._disown(cycle)
            self._say(refusal)
        else:
            self._last_words = refusal

    def _reject(self, refusal: Refusal) -> None:
        self._deaf = self._unread = True
        self._say(refusal)

    def _say(self, refusal: Refusal) -> None:
        self.transport.write(refusal.encode(self.server_state.default_headers))
        self.transport.close()

    def _disown(self, cycle: RequestResponseCycle | None) -> None:
        """Tell the application that nobody waits for this answer any more."""
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    # What is waited for

    def _settle(self) -> None:
        """Wait for the client if it is its turn, and for as long as what it does may take."""
        if self.transport.is_closing():
            return
        if self._in_message:
            earlier = not self._in_body and self._owed  # its answer is what the client waits for
            blocked = earlier or self.flow.read_paused
            self._wait_in(None if blocked else self.doors.receiving)
        elif self._owed or self._deaf:
            self._wait_in(None)
        elif self._messages:
            self._wait_in(self.doors.idle)

    def _wait_in(self, waiting: "WaitingList[Any] | None") -> None:
        """Be in this list, anew if another part of a request is waited for."""
        what = 2 * self._messages + self._in_body
        if waiting is self._waiting and what == self._waiting_for:
            return
        if self._waiting is not None and self._waiting is not waiting:
            self._waiting.drop(self)
        self._waiting, self._waiting_for = waiting, what
        if waiting is not None:
            waiting.put(self)

    def _may_be_sending(self) -> bool:
        return self._in_message or self._unread

    def _leaves(self) -> None:
        self._waiting = None
        self._deaf = True
        lingering = not self.transport.raw.is_closing()
        self.doors.leave(self, lingering=lingering)
        if lingering:
            self._held = b""
            self.transport.resume_reading()

    # What the doors ask for

    def too_slow(self) -> None:
        self._refuse(refusals.TOO_SLOW)

    def give_way(self) -> None:
        self._refuse(refusals.TOO_MANY)

    def end(self) -> None:
        self.transport.close()

    def cut(self) -> None:
        self.transport.abort()

    def last_answer(self) -> None:
        if self._owed and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        if self._owed == 0:
            self.transport.close()
        else:
            self.last_answer()
