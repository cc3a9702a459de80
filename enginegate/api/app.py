"""The ASGI application: the hot path in front, the routes behind it.

An admit of a running engine is answered here from ready-made bytes, without a Request
and without routing. Whatever is not exactly that case goes on to the routes, with the
part of the body that was read already.
"""

import asyncio
import re
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enginegate.api import prepared, problems
from enginegate.api.auth import Doorkeeper
from enginegate.api.body import says_too_long
from enginegate.api.call import Endpoint
from enginegate.api.routes import TABLE
from enginegate.api.services import Services
from enginegate.errors import GateError, MethodNotAllowedError, PathNotFoundError
from enginegate.keys import digest

PREFIX, SUFFIX = "/engines/", "/admit"
BEGIN, END = len(PREFIX), -len(SUFFIX)
KEY, LENGTH = b"x-platform-key", b"content-length"
NOT_FOUND = 404
READY_MAX = 1024
"""Paths, keys and answers that are remembered: those that come again and again."""
REPEAT_BYTES_MAX, REPEAT_HEADERS_MAX = 1024, 32
"""Path and headers up to this are remembered: some 5 kB as objects."""
Repeat = tuple[list[tuple[bytes, bytes]], bytes, bytes, str]
"""What a path meant with these headers: the platform key, its digest, the user."""


def build(services: Services) -> ASGIApp:
    """Return the application that serves the whole API."""
    return Gate(services, make_routes(services)).serve  # a method: called without a look-up


def make_routes(services: Services) -> Starlette:
    """Return the ordinary road: every route of the table, errors as JSON."""
    doorkeeper = Doorkeeper(services.registry, services.secrets)
    app = Starlette(
        routes=[
            ExactRoute(one.path, Endpoint(one, services, doorkeeper), methods=[one.method])
            for one in TABLE
        ],
        exception_handlers={HTTPException: _not_routed, Exception: _broken},
    )
    app.router.redirect_slashes = False
    return app


class ExactRoute(Route):
    """A route whose end is the end: Starlette's pattern lets a line break follow."""

    def __init__(self, path: str, endpoint: Endpoint, *, methods: list[str]) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.identify = endpoint.identify
        self.path_regex = re.compile(self.path_regex.pattern.removesuffix("$") + r"\Z")


async def _not_routed(request: Request, error: Exception) -> Response:
    """Answer where no route fits: unknown path, or a known one with another method."""
    assert isinstance(error, HTTPException)
    told: GateError
    if error.status_code == NOT_FOUND:
        told = PathNotFoundError("There is nothing at this path; GET /docs lists what there is.")
        return problems.answer(told)
    routes = _of_path(request)
    try:
        routes[0].identify(request)  # a path is open to the same callers in all methods
    except GateError as refused:
        return problems.answer(refused)
    allowed = ", ".join(sorted({method for one in routes for method in one.methods or ()}))
    told = MethodNotAllowedError(f"This path takes {allowed}.")
    return problems.answer(told, allow=allowed)


def _of_path(request: Request) -> list[ExactRoute]:
    """Return the routes of this path: of a fixed one, not of the pattern that it fits too."""
    routes: list[ExactRoute] = request.app.routes
    path = next(one.path for one in routes if one.matches(request.scope)[0] is not Match.NONE)
    return [one for one in routes if one.path == path]


async def _broken(_: Request, error: Exception) -> Response:
    return problems.answer(error)


class Gate:
    """Tries the hot path, then the routes.

    Written out at length where a warm admit passes: what is called here is called on each.
    A client sends the same headers again and again; the last ones of each path are kept
    with their meaning, for to read them anew takes longer than all else here.
    """

    def __init__(self, services: Services, routes: ASGIApp) -> None:
        self._warm = services.admission.warm
        self._by_key = services.registry.by_key
        self._ordinary = routes
        self._body_max = services.config.server.max_body_bytes
        self._ready: dict[bytes, tuple[Message, Message]] = {}
        self._digests: dict[bytes, bytes] = {}
        self.repeats: dict[bytes, Repeat] = {}

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") != "POST":
            await self._routes(scope, receive, send)
            return
        repeat = self.repeats.get(scope.get("raw_path", b""))
        if repeat is None or repeat[0] != scope["headers"]:
            repeat = self._read(scope)
        # Who is not let in, or says too much, is refused without being asked for the body.
        if repeat is None or repeat[2] not in self._by_key:
            await self._routes(scope, receive, send)
            return
        message = await receive()
        body: bytes | None = message.get("body")
        if body is None or message.get("more_body"):
            message = await _whole(message, receive, limit=self._body_max)
            body = message.get("body")
        if body is not None and len(body) <= self._body_max:
            _, key, hashed, user = repeat
            answer = self._warm(key, user, body, hashed)
            if answer is not None:
                start, rest = self._ready.get(answer) or self._made_ready(answer)
                await send(start)
                await send(rest)
                return
        await self._routes(scope, _replay(message, receive), send)

    async def _routes(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await asyncio.sleep(0)  # to read it was a turn of its own: who waits comes first
            await self._ordinary(_with_slashes_kept(scope), receive, send)

    def _read(self, scope: Scope) -> Repeat | None:
        """Return who asks for what, None where it is not an admit that may be warm."""
        path: str = scope["path"]
        if not (path.endswith(SUFFIX) and path.startswith(PREFIX)) or _hides_slash(scope):
            return None
        key = length = None
        for name, value in scope["headers"]:
            if name == KEY:
                key = value if key is None else key
            elif name == LENGTH:
                length = value if length is None else length
        if key is None or (length is not None and says_too_long(length, self._body_max)):
            return None
        hashed = self._digests.get(key) or self._digest(key)
        # A copy: uvicorn's own class appends the trailers of a body to its list of headers.
        repeat = [*scope["headers"]], key, hashed, path[BEGIN:END]
        if hashed in self._by_key:
            self._remember(scope, repeat)
        return repeat

    def _remember(self, scope: Scope, repeat: Repeat) -> None:
        raw_path, headers = scope.get("raw_path"), repeat[0]
        if raw_path is None or len(headers) > REPEAT_HEADERS_MAX:
            return
        size = len(raw_path)
        for name, value in headers:
            size += len(name) + len(value)
        if size <= REPEAT_BYTES_MAX:
            if len(self.repeats) >= READY_MAX:
                self.repeats.clear()
            self.repeats[raw_path] = repeat

    def _digest(self, key: bytes) -> bytes:
        """Return a key's digest, and keep those of the keys that open something."""
        hashed = digest(key)
        if hashed in self._by_key:
            if len(self._digests) >= READY_MAX:
                self._digests.clear()
            self._digests[key] = hashed
        return hashed

    def _made_ready(self, answer: bytes) -> tuple[Message, Message]:
        """Return the messages that an answer is to a server, and keep those of the last few."""
        if len(self._ready) >= READY_MAX:
            self._ready.clear()
        ready = self._ready[answer] = prepared.messages(answer)
        return ready


def _with_slashes_kept(scope: Scope) -> Scope:
    """Return the request with `%2F` in its path left as it is.

    Decoded, it would divide the path; it belongs to a name, which is then refused for it.
    """
    if not _hides_slash(scope):
        return scope
    raw: bytes = scope["raw_path"]
    parts = (unquote(part.decode("latin-1")).replace("/", "%2F") for part in raw.split(b"/"))
    return {**scope, "path": "/".join(parts)}


def _hides_slash(scope: Scope) -> bool:
    raw: bytes = scope.get("raw_path") or b""
    return b"%2f" in raw.lower()


async def _whole(first: Message, receive: Receive, *, limit: int) -> Message:
    """Return a body that comes in pieces as one message, cut off once it is longer than that.

    Where the client goes meanwhile, it is the message that says so, which has no body.
    """
    message, body = first, b""
    while message["type"] == "http.request":
        body += message.get("body", b"")
        more = bool(message.get("more_body"))
        if not more or len(body) > limit:
            return {"type": "http.request", "body": body, "more_body": more}
        message = await receive()
    return message


def _replay(first: Message, receive: Receive) -> Receive:
    """Return a `receive` that begins with a message that was taken already."""
    taken: list[Message] = [first]

    async def again() -> Message:
        return taken.pop() if taken else await receive()

    return again


async def _lifespan(receive: Receive, send: Send) -> None:
    """Say yes to whoever asks; the server starts and stops everything itself."""
    while True:
        message: dict[str, Any] = dict(await receive())
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return
