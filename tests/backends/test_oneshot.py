"""One request, one connection: every way in which an answer can come, and every way it cannot."""

import asyncio
import gc
import gzip
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import httpx
import pytest

from enginegate.oneshot import ANSWER_MAX_BYTES, OneShotTransport

OK = b"HTTP/1.1 200 OK\r\n"
OPEN: list[tuple[str, int]] = []


@contextmanager
def noted(source: tuple[str, int]) -> Iterator[None]:
    OPEN.append(source)
    try:
        yield
    finally:
        OPEN.remove(source)


@asynccontextmanager
async def server(*pieces: bytes, ends: bool = True) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Answer each connection in these pieces; yield the URL, and what was asked."""
    asked: list[bytes] = []
    at_work: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at_work.add(asyncio.current_task())
        with suppress(ConnectionError):
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if not ends:
                await reader.read()
        with suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/health?a=b", asked
        await asyncio.gather(*filter(None, at_work))


async def get(url: str) -> httpx.Response:
    transport = OneShotTransport(connected=noted)
    async with asyncio.timeout(5):
        return await transport.handle_async_request(httpx.Request("GET", url))


@pytest.mark.parametrize(
    ("pieces", "status", "body"),
    [
        ((OK + b"Content-Length: 2\r\n\r\nok",), 200, b"ok"),
        ((OK, b"Content-Length: 2\r\n", b"\r\n", b"o", b"k"), 200, b"ok"),
        ((OK + b"Content-Length: 0\r\n\r\n",), 200, b""),
        (
            (OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\no\r\n", b"1\r\nk\r\n0\r\n\r\n"),
            200,
            b"ok",
        ),
        ((b"HTTP/1.1 503 Not yet\r\nContent-Length: 4\r\n\r\nwait",), 503, b"wait"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", OK + b"Content-Length: 2\r\n\r\nok"), 200, b"ok"),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), 204, b""),
        ((b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",), 200, b"ok"),
        ((OK + b"X: folded\r\n header\r\nContent-Length: 2\r\n\r\nok",), 200, b"ok"),
        (
            (OK + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",),
            200,
            b"ok",
        ),
        ((b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",), 200, b"ok"),
    ],
)
async def test_an_answer_is_whole_when_it_says_so(
    pieces: tuple[bytes, ...], status: int, body: bytes
) -> None:
    """Nobody waits for the other side to hang up, and the connection is closed by then."""
    async with server(*pieces, ends=False) as (url, _):
        answer = await get(url)
        assert (answer.status_code, await answer.aread()) == (status, body)
        assert OPEN == []


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_answer_without_a_length_ends_with_its_connection(version: bytes) -> None:
    """As simple servers answer."""
    async with server(b"HTTP/" + version + b" 200 OK\r\n\r\no", b"k") as (url, _):
        assert await (await get(url)).aread() == b"ok"


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (OK,),
        (OK + b"Content-Length: 3\r\n\r\nok",),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",),
        (b"SSH-2.0-OpenSSH\r\n",),
        (OK + b"Content-Length: x\r\n\r\n",),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",),
        (OK + b"X: " + b"y" * ANSWER_MAX_BYTES + b"\r\n",),
        (OK + b"Content-Length: 9999999\r\n\r\n", *[b"x" * 8192] * 9),
    ],
)
async def test_what_is_no_whole_answer_is_an_error(pieces: tuple[bytes, ...]) -> None:
    """A part of one must not pass for it; neither may it be without end."""
    async with server(*pieces) as (url, _):
        with pytest.raises(httpx.RemoteProtocolError):
            await get(url)
        assert OPEN == []


@pytest.mark.parametrize("piece_bytes", [8192, 10_000_000])
async def test_what_is_too_long_is_so_however_it_is_cut(piece_bytes: int) -> None:
    """An engine must not be well in one probe and ill in the next."""
    head = OK + b"Content-Length: %d\r\n\r\n"
    for body_bytes, fits in ((ANSWER_MAX_BYTES - 100, True), (ANSWER_MAX_BYTES, False)):
        whole = head % body_bytes + b"x" * body_bytes + b"and what nobody waits for" * 1000
        pieces = [whole[at : at + piece_bytes] for at in range(0, len(whole), piece_bytes)]
        async with server(*pieces) as (url, _):
            if fits:
                assert len(await (await get(url)).aread()) == body_bytes
                continue
            with pytest.raises(httpx.RemoteProtocolError, match="more than"):
                await get(url)


async def test_what_is_packed_stays_packed() -> None:
    """A few bytes that unpack to a gigabyte cost a probe nothing; it had asked for none."""
    packed = gzip.compress(gzip.compress(bytes(50_000_000)))
    assert len(packed) < ANSWER_MAX_BYTES
    head = b"Content-Encoding: gzip, gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    async with server(OK + head + packed) as (url, _):
        answer = await get(url)
    assert await answer.aread() == packed


async def test_a_server_that_switches_protocols_gives_no_answer() -> None:
    """It is told in words, not as a place in what was read."""
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    async with server(head) as (url, _):
        with pytest.raises(httpx.RemoteProtocolError, match="switches protocols"):
            await get(url)


async def test_it_asks_what_it_was_told_to_ask() -> None:
    """The path with its query, and the headers with `Host`."""
    async with server(OK + b"Content-Length: 0\r\n\r\n") as (url, asked):
        await get(url)
        assert asked[0].startswith(b"GET /health?a=b HTTP/1.1\r\n")
        assert f"host: {httpx.URL(url).netloc.decode()}".encode() in asked[0].lower()


async def test_nobody_there_and_no_plain_http_are_told() -> None:
    """As httpx's own transport would tell it."""
    async with server() as (url, _):
        pass
    with pytest.raises(httpx.ConnectError):
        await get(url)
    with pytest.raises(httpx.UnsupportedProtocol):
        await get(url.replace("http:", "https:"))


async def test_whoever_stops_waiting_closes_the_connection() -> None:
    """A deadline that passes leaves nothing behind."""
    async with server(OK, ends=False) as (url, asked):
        waiting = asyncio.create_task(get(url))
        while not (asked and OPEN):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert OPEN == []


async def test_an_exchange_leaves_nothing_to_the_garbage_collector() -> None:
    """A sweep has hundreds of them, and a collection holds up every admit that comes meanwhile."""
    gc.disable()
    try:
        async with server(OK + b"Content-Length: 2\r\n\r\nok") as (url, _):
            answer = weakref.ref(await get(url))
            async with asyncio.timeout(5):
                while answer() is not None:
                    await asyncio.sleep(0)
    finally:
        gc.enable()
