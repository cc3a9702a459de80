"""One GET that asks an engine how it is. Trusts nothing of what comes back.

An engine may be hostile: redirects are not followed, proxies of the environment not
used, the body is cut off, and the time-out is a deadline for the whole exchange,
so that a trickling answer cannot hold a probe.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Collection
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec
from msgspec import Struct

BODY_MAX_BYTES = 65_536
DETAIL_MAX = 200
FORGET_SOURCE_AFTER_S = 1.0
CONNECTIONS_MAX = 1_000

_HEADERS: Final = httpx.Headers(
    {"accept": "application/json", "accept-encoding": "identity", "connection": "close"}
)


class Health(Struct, frozen=True, kw_only=True):
    """The answer of one probe. `detail` says what is wrong; it is empty when all is well."""

    ok: bool
    busy: bool = False
    detail: str = ""
    took_ms: float = 0.0


class _UnfitError(Exception):
    """The answer is not that of a healthy engine."""


class Probe:
    """Probes engines over connections of its own, one per probe.

    `sources` holds the (address, port) pairs that probes connect from right now, so
    that whoever counts an engine's connections can leave ours out.
    """

    def __init__(self, *, require_status_ok: bool = True) -> None:
        self._require_status_ok = require_status_ok
        self._sources: set[tuple[str, int]] = set()
        # A transport without a client: no redirects, proxies, cookies or time-outs to turn off,
        # and a fifth of the processor time less. No connection is kept: an engine that serves
        # one at a time would have no place for anybody else.
        self._transport = httpx.AsyncHTTPTransport(
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # plain HTTP: no authorities to load
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=0),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the client. May be called twice."""
        await self._transport.aclose()

    @property
    def sources(self) -> Collection[tuple[str, int]]:
        return self._sources

    async def check(self, url: str, *, timeout_s: float) -> Health:
        """GET exactly this URL and judge the answer; raises nothing but cancellation."""
        began = time.monotonic()
        ok, busy, detail = False, False, ""
        try:
            async with asyncio.timeout(timeout_s):
                ok, busy = True, self._judge(*await self._fetch(url))
        except TimeoutError:
            ok, detail = False, f"no answer within {timeout_s:g} s"
        except _UnfitError as fault:
            ok, detail = False, str(fault)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as fault:
            ok, detail = False, f"{type(fault).__name__}: {fault}"[:DETAIL_MAX]
        took_ms = (time.monotonic() - began) * 1000
        return Health(ok=ok, busy=busy, detail=detail, took_ms=took_ms)

    async def _fetch(self, url: str) -> tuple[int, bytes]:
        mine: list[tuple[str, int]] = []

        async def trace(event: str, info: dict[str, Any]) -> None:
            if event == "connection.connect_tcp.complete":
                source = _source(info["return_value"])
                mine.append(source)
                self._sources.add(source)

        request = httpx.Request("GET", url, headers=_HEADERS, extensions={"trace": trace})
        try:
            answer = await self._transport.handle_async_request(request)
            try:
                return answer.status_code, await _body(answer)
            finally:
                await answer.aclose()
        finally:
            self._forget_soon(mine)

    def _forget_soon(self, sources: list[tuple[str, int]]) -> None:
        # The kernel may see the connection for a moment longer than we do.
        loop = asyncio.get_running_loop()
        for source in sources:
            loop.call_later(FORGET_SOURCE_AFTER_S, self._sources.discard, source)

    def _judge(self, status: int, body: bytes) -> bool:
        """Return whether the engine says that it is busy."""
        if status != HTTPStatus.OK:
            raise _UnfitError(f"status {status}")
        said: object = None
        with contextlib.suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            said = msgspec.json.decode(body)
        if self._require_status_ok and not (isinstance(said, dict) and said.get("status") == "ok"):
            raise _UnfitError('200 without "status": "ok"')
        return isinstance(said, dict) and _busy(said)


def _busy(said: dict[str, object]) -> bool:
    requests = said.get("active_requests")
    return said.get("busy") is True or (isinstance(requests, int | float) and requests > 0)


def _source(stream: Any) -> tuple[str, int]:
    address = stream.get_extra_info("client_addr")
    return str(address[0]), int(address[1])


async def _body(answer: httpx.Response) -> bytes:
    """Read the body; more than allowed is as bad as a wrong one."""
    body = b""
    async for piece in answer.aiter_raw(BODY_MAX_BYTES):
        body += piece
        if len(body) > BODY_MAX_BYTES:
            raise _UnfitError(f"more than {BODY_MAX_BYTES} bytes of body")
    return body
