"""One GET that asks an engine how it is. Trusts nothing of what comes back.

An engine may be hostile: redirects are not followed, proxies of the environment not
used, long answers not read to their end, and the time-out is a deadline for the whole
exchange, so that a trickling answer cannot hold a probe.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Collection, Iterator
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self

import httpx
import msgspec
from msgspec import Struct

from enginegate.oneshot import OneShotTransport

DETAIL_MAX = 200
FORGET_SOURCE_AFTER_S = 1.0
REQUESTS_KEPT = 4096  # 1.4 kB each; a larger fleet's are made anew

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

    None is kept: an engine that serves one at a time would have no place for anybody else.
    `sources` holds the (address, port) pairs that probes connect from right now, so
    that whoever counts an engine's connections can leave ours out.
    """

    def __init__(
        self, *, require_status_ok: bool = True, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._require_status_ok = require_status_ok
        self._sources: set[tuple[str, int]] = set()
        # A transport without a client: no redirects, proxies, cookies or time-outs to turn off.
        self._transport = transport or OneShotTransport(connected=self._connects)

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
        """Close the transport. May be called twice."""
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
        answer = await self._transport.handle_async_request(_request(url))
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        # As it came, which is what was asked for; what else httpx could do costs five times that.
        return answer.status_code, b"".join([part async for part in answer.stream])

    @contextlib.contextmanager
    def _connects(self, source: tuple[str, int]) -> Iterator[None]:
        """Have the connection known as ours until the kernel, too, has seen its end."""
        self._sources.add(source)
        try:
            yield
        finally:
            loop = asyncio.get_running_loop()
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


@functools.lru_cache(maxsize=REQUESTS_KEPT)
def _request(url: str) -> httpx.Request:
    """Return the same one for each probe of an engine: to make it is half of what a probe costs."""
    return httpx.Request("GET", url, headers=_HEADERS)


def _busy(said: dict[str, object]) -> bool:
    requests = said.get("active_requests")
    return said.get("busy") is True or (isinstance(requests, int | float) and requests > 0)
