"""One GET says how an engine is, and nothing an engine answers can hurt the one who asks."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import respx

from enginegate.probe import Probe

URL = "http://127.0.0.1:9999/health"


@pytest.fixture
async def probe() -> AsyncIterator[Probe]:
    async with Probe() as made:
        yield made


@asynccontextmanager
async def answered(*, require_status_ok: bool = True, **answer: Any) -> AsyncIterator[Probe]:
    """A probe whose engine's answer is written by the test."""
    router = respx.MockRouter()
    router.get(URL).mock(**answer)
    transport = httpx.MockTransport(router.async_handler)
    async with Probe(require_status_ok=require_status_ok, transport=transport) as made:
        yield made


@pytest.mark.parametrize(
    ("status", "body", "ok", "busy"),
    [
        (200, '{"status":"ok"}', True, False),
        (200, '{"status":"ok","busy":true}', True, True),
        (200, '{"status":"ok","active_requests":2}', True, True),
        (200, '{"status":"ok","active_requests":0}', True, False),
        (200, '{"status":"starting"}', False, False),
        (200, "[]", False, False),
        (200, "not json", False, False),
        (503, '{"status":"ok"}', False, False),
        (301, '{"status":"ok"}', False, False),
    ],
)
async def test_only_a_200_that_says_ok_is_healthy(
    status: int, body: str, ok: bool, busy: bool
) -> None:
    """Anything else is a failed probe; redirects are not followed."""
    async with answered(return_value=httpx.Response(status, text=body)) as probe:
        health = await probe.check(URL, timeout_s=1)
    assert (health.ok, health.busy) == (ok, busy)


async def test_any_200_will_do_where_the_operator_says_so() -> None:
    """health.require_status_ok = false."""
    up = httpx.Response(200, text="up")
    async with answered(require_status_ok=False, return_value=up) as probe:
        assert (await probe.check(URL, timeout_s=1)).ok


async def test_a_refused_connection_is_a_failed_probe() -> None:
    """It never raises."""
    async with answered(side_effect=httpx.ConnectError("refused")) as probe:
        health = await probe.check(URL, timeout_s=1)
    assert not health.ok
    assert health.detail


@asynccontextmanager
async def hostile(*chunks: bytes, again: bytes = b"") -> AsyncIterator[str]:
    """An engine that sends what it likes and never ends."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for chunk in chunks:
                writer.write(chunk)
            while again:
                writer.write(again)
                await writer.drain()
                await asyncio.sleep(0.01)
            await asyncio.sleep(30)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/health"
    server.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("chunks", "again"),
    [
        ((), b""),
        ((b"garbage\r\n\r\n",), b""),
        ((HEAD + b"Transfer-Encoding: chunked\r\n\r\n",), b"1\r\n \r\n"),
        ((HEAD + b"Transfer-Encoding: chunked\r\n\r\n",), b"8000\r\n" + b" " * 0x8000 + b"\r\n"),
        ((HEAD,), b"X: y\r\n"),
    ],
)
async def test_a_hostile_engine_costs_the_time_out_at_most(
    probe: Probe, chunks: tuple[bytes, ...], again: bytes
) -> None:
    """Silence, garbage, trickling and endless bodies all end in time."""
    async with hostile(*chunks, again=again) as url:
        began = time.monotonic()
        health = await probe.check(url, timeout_s=0.3)
        assert not health.ok
        assert time.monotonic() - began < 2
