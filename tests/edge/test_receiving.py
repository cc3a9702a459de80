"""What a client may send, and how long it may take."""

import asyncio

import pytest

from enginegate.edge import connection, doors
from enginegate.edge.apart import announced
from tests.edge.rig import BODY_BYTES, HEADER_BYTES, TIMEOUT_S, Served, get

OK = 200
POST = b"POST /a HTTP/1.1\r\nHost: x\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def head_of(size: int) -> bytes:
    """Return a request whose line and headers have exactly so many bytes."""
    empty = len(get("/", "X: "))
    return get("/", f"X: {'y' * (size - empty)}")


async def test_a_silent_connection_is_closed_without_a_word(served: Served) -> None:
    """Nothing arrived, so there is nothing to answer."""
    client = await served.client()
    began = asyncio.get_running_loop().time()
    assert await client.rest() == b""
    took = asyncio.get_running_loop().time() - began
    assert TIMEOUT_S * 0.9 <= took < TIMEOUT_S * 4


@pytest.mark.parametrize(
    "part",
    [
        b"G",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Half: ",
        get("/")[:-1],
        POST + b"Content-Length: 9\r\n\r\nhalf",
    ],
    ids=["a letter", "half a head", "all but the last byte", "half a body"],
)
async def test_half_a_request_is_answered_408(served: Served, part: bytes) -> None:
    """When the time to receive it is over, whichever part is missing."""
    client = await served.client()
    await client.send(part)
    assert (await client.answer())[0] == 408
    assert await client.rest() == b""


async def test_one_byte_now_and_then_does_not_buy_time(served: Served) -> None:
    """The time counts from the first byte to the last of the head."""
    client = await served.client()
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not client.reader._buffer and loop.time() < began + 10 * TIMEOUT_S:  # type: ignore[attr-defined]
        client.writer.write(b"G")
        await asyncio.sleep(TIMEOUT_S / 10)
    assert loop.time() - began < TIMEOUT_S * 3


async def test_head_and_body_have_the_time_each(served: Served) -> None:
    """What is under way in time is served, however slow it all is."""
    client = await served.client()
    await asyncio.sleep(TIMEOUT_S * 0.7)
    await client.send(POST + b"Content-Length: 2\r\n\r\n")
    await asyncio.sleep(TIMEOUT_S * 0.7)
    assert (await client.ask(b"hi"))[2] == b"POST /a 2"


async def test_an_idle_connection_is_kept(served: Served) -> None:
    """Between requests the keep-alive time counts, not the time to receive one."""
    client = await served.client()
    assert (await client.ask(get("/")))[0] == OK
    await asyncio.sleep(TIMEOUT_S * 2)
    assert await client.is_open()


async def test_an_idle_connection_is_closed_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word, after the keep-alive time."""
    monkeypatch.setattr(doors, "KEEP_ALIVE_S", 0.1)
    async with Served() as served:
        client = await served.client()
        assert (await client.ask(get("/")))[0] == OK
        assert await client.rest() == b""


async def test_the_second_request_has_its_own_time(served: Served) -> None:
    """It counts from its own first byte."""
    client = await served.client()
    assert (await client.ask(get("/")))[0] == OK
    await asyncio.sleep(TIMEOUT_S * 2)
    await client.send(b"GET / HT")
    assert (await client.answer())[0] == 408


async def test_while_an_answer_is_owed_nobody_is_too_slow(served: Served) -> None:
    """The client waits for us: half a request behind the first one starts no clock."""
    client = await served.client()
    await client.send(get("/wait") + b"GET /two HTTP/1.1\r\nHost: x\r\n")
    await served.at_work()
    await asyncio.sleep(TIMEOUT_S * 2)
    served.go_on.set()
    assert (await client.answer())[2] == b"GET /wait 0"
    assert (await client.ask(b"\r\n"))[2] == b"GET /two 0"


async def test_the_application_hears_that_a_body_will_not_come(served: Served) -> None:
    """Nobody waits for the rest of a body that was given up."""
    client = await served.client()
    await client.send(POST + b"Content-Length: 9\r\n\r\nhalf")
    await client.rest()
    assert served.left == ["/a"]


async def test_a_body_that_nobody_needed_is_waited_for_no_longer(served: Served) -> None:
    """The answer went out before the body came; it is not answered twice."""
    client = await served.client()
    status, _, _ = await client.ask(
        b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"
    )
    assert status == OK
    assert await client.rest() == b""


async def test_a_head_may_be_as_long_as_the_limit(served: Served) -> None:
    """To the byte, in one piece and in many."""
    head = head_of(HEADER_BYTES)
    client = await served.client()
    assert (await client.ask(head))[0] == OK
    for byte in head[:-1]:
        client.writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert (await client.ask(head[-1:]))[0] == OK


@pytest.mark.parametrize("pieces", [1, 2, 7])
async def test_one_byte_more_is_too_long(served: Served, pieces: int) -> None:
    """In however many pieces it comes."""
    head = head_of(HEADER_BYTES + 1)
    step = -(-len(head) // pieces)
    client = await served.client()
    for begin in range(0, len(head), step):
        client.writer.write(head[begin : begin + step])
        await asyncio.sleep(0.01)
    assert (await client.answer())[0] == 431
    assert await client.rest() == b""
    assert served.calls == []


ENDLESS = [
    b"GET /" + b"a" * 100_000,
    b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000,
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000,
    b"GET / HTTP/1.1\r\n" + b"X" * 100_000,
    b"GET / HTTP/1.1\r\nX:" + b" " * 100_000,
    b"\r\n" * 10_000,
    CHUNKED + b"0\r\nX: " + b"a" * 100_000,
    CHUNKED + b"1;" + b"a" * 100_000,
]


async def test_what_has_no_end_is_cut_as_it_arrives(served: Served) -> None:
    """The answer does not wait for an end that never comes."""
    for begin in ENDLESS:
        client = await served.client()
        client.writer.write(begin)
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 431 "), begin[:60]


async def test_pipelined_requests_are_not_counted_together(served: Served) -> None:
    """A thousand short heads are a thousand short heads."""
    client = await served.client()
    await client.send(get("/") * 1000)
    for _ in range(1000):
        assert (await client.answer())[0] == OK


async def test_trailers_are_no_headers(served: Served) -> None:
    """What a proxy in front may not have looked at never becomes a header."""
    seen: list[object] = []
    inner = served.server.config.loaded_app

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        await inner(scope, receive, send)
        seen.append(scope["headers"])

    served.server.config.loaded_app = app
    client = await served.client()
    sent = CHUNKED + b"2\r\nhi\r\n0\r\nX-Platform-Key: k\r\n\r\n"
    assert (await client.ask(sent))[2] == b"POST /a 2"
    assert seen == [[(b"host", b"x"), (b"transfer-encoding", b"chunked")]]


async def test_a_refused_client_is_read_on_although_reading_was_held_up(served: Served) -> None:
    """So it has its answer, can send on for a little, and is cut as soon as that is too much."""
    client = await served.client()
    client.writer.write(
        b"POST /short HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 200_000
    )
    assert (await client.answer())[0] == 413
    assert await client.rest() == b""

    async def go_on() -> None:
        for _ in range(1000):
            await client.send(b"x" * 100_000)

    async with asyncio.timeout(doors.LINGER_S / 2):
        with pytest.raises(ConnectionError):
            await go_on()


async def test_a_body_that_goes_on_after_the_answer_has_an_end(served: Served) -> None:
    """More than the largest body is not read for somebody who was answered already."""
    client = await served.client()
    size = str(BODY_BYTES * 100).encode()
    client.writer.write(
        b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: " + size + b"\r\n\r\n"
    )
    assert (await client.answer())[0] == OK
    client.writer.write(b"x" * BODY_BYTES * 50)
    assert await client.rest() == b""


async def test_a_client_that_goes_on_after_a_refusal_is_cut(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is thrown away is bounded, too."""
    monkeypatch.setattr(connection, "DISCARD_BYTES", 100_000)
    client = await served.client()

    async def go_on() -> None:
        for _ in range(10_000):
            await client.send(b"\0" * 100_000)

    with pytest.raises(ConnectionError):
        await go_on()


async def not_refused(served: Served, cases: list[bytes]) -> list[bytes]:
    """Return the cases that are not answered by 400 and the end, or let the next one through."""
    through = []
    for case in cases:
        client = await served.client()
        status, headers, _ = await client.ask(case + get("/next"))
        if (status, headers.get("connection"), await client.rest()) != (400, "close", b""):
            through.append(case)
        if "/next" in served.calls:
            through.append(case)
            served.calls.clear()
    return through


NO_REQUESTS = [
    b"\0\0\0\0",
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    b"get / HTTP/1.1\r\n\r\n",
    b"GET /\r\n\r\n",
    b"GET / HTTP/0.9\r\n\r\n",
    b"GET / HTTP/1.2\r\n\r\n",
    b"GET / HTTP/2.0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\n\n",
    b"CONNECT x:1 HTTP/1.1\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\n\r\n",
    get("/", "A : b"),
    get("/", "A: b", " c"),
    get("/", "A: b\0"),
    get("/", "A: b\nC: d"),
    get("/", "A: b\rC: d"),
    get("/", "B\xe4r: b"),
    POST + b"Content-Length: -1\r\n\r\n",
    POST + b"Content-Length: x\r\n\r\n",
    POST + b"Content-Length: \r\n\r\n",
    POST + b"Content-Length: 99999999999999999999\r\n\r\n",
    CHUNKED + b"x\r\n",
    CHUNKED + b"-1\r\n",
    CHUNKED + b"2\r\nhiho",
    CHUNKED + b"ffffffffffffffffff\r\n",
]


async def test_what_is_no_request_is_answered_400(served: Served) -> None:
    """And the connection ends there: nobody knows where the next request would begin."""
    assert await not_refused(served, NO_REQUESTS) == []


TWO_ENDS = [
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    b"Content-Length: 5\r\nContent-Length: 6\r\n",
    b"Content-Length: 5\r\nContent-Length: 5\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: 0x5\r\n",
    b"Content-Length : 5\r\n",
    b"Content-Length: 5\r\n\tx: y\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: identity, chunked\r\n",
    b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b" Transfer-Encoding: chunked\r\n",
]


async def test_smuggling_is_refused(served: Served) -> None:
    """Where two readers could see two different ends of a body, there is no request."""
    heads = [head + framing for head in (POST, POST + UPGRADE) for framing in TWO_ENDS]
    cases = [head + b"\r\n0\r\n\r\n" for head in heads]
    assert await not_refused(served, cases) == []


NOT_ONE_HOST = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHostage: x\r\n\r\n",
    get("/", "Host: x"),
    get("/", "host: y"),
    get("/", "Host: x").replace(b"1.1", b"1.0"),
    b"GET http://x/ HTTP/1.1\r\n\r\n",
]


async def test_a_request_has_one_host(served: Served) -> None:
    """As RFC 9112 wants it: proxies may differ in which of two they go by."""
    assert await not_refused(served, NOT_ONE_HOST) == []


async def test_http_1_0_needs_no_host(served: Served) -> None:
    """It is older than that header; an empty one will do for the newer."""
    for request in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost:\r\n\r\n"):
        client = await served.client()
        assert (await client.ask(request))[0] == OK


async def test_http_1_0_has_no_chunks(served: Served) -> None:
    """A proxy that speaks 1.0 would not see where they end."""
    client = await served.client()
    sent = CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n"
    assert (await client.ask(sent))[0] == 400


async def test_an_upgrade_is_answered_as_if_not_asked_for(served: Served) -> None:
    """And it is the last answer, since what follows might be another protocol."""
    client = await served.client()
    status, headers, _ = await client.ask(get("/", "Connection: upgrade", "Upgrade: h2c"))
    assert (status, headers["connection"]) == (OK, "close")
    assert await client.rest() == b""


WITH_BODIES = [
    (b"Content-Length: 0\r\n\r\n", b"POST /a 0"),
    (b"Content-Length: 5\r\n\r\nhello", b"POST /a 5"),
    (b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"POST /a 2"),
]


@pytest.mark.parametrize(("rest", "told"), WITH_BODIES, ids=["empty", "length", "chunked"])
@pytest.mark.parametrize("step", [1, 1000])
async def test_a_body_may_come_with_an_upgrade(
    served: Served, rest: bytes, told: bytes, step: int
) -> None:
    """Java's client asks for HTTP/2 with every request; what follows the body is not read."""
    sent = POST + UPGRADE + rest
    client = await served.client()
    for begin in range(0, len(sent) - 1, step):
        client.writer.write(sent[begin : min(begin + step, len(sent) - 1)])
        await asyncio.sleep(0)
    client.writer.write(sent[-1:] + get("/smuggled"))
    status, headers, body = await client.answer()
    assert (status, headers["connection"], body) == (OK, "close", told)
    assert await client.rest() == b""
    assert served.calls == ["/a"]


async def test_who_is_answered_before_a_long_body_is_told_of_the_end(served: Served) -> None:
    """It will not be read to its end, so the next request would find a closed connection."""
    lengths = {BODY_BYTES: None, BODY_BYTES + 1: "close"}
    for length, said in lengths.items():
        client = await served.client()
        head = b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length
        status, headers, _ = await client.ask(head)
        assert (status, headers.get("connection")) == (OK, said)


def test_zeros_before_a_length_are_no_matter() -> None:
    """However many: Python by itself reads no number of more than 4,300 digits."""
    for value, said in ((b"0" * 5000 + b"7", 7), (b"0" * 5000, 0), (b"12", 12)):
        assert announced([(b"host", b"x"), (b"content-length", value)]) == said
    assert announced([(b"host", b"x")]) == 0
