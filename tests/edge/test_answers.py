"""In which order answers go out, and what becomes of a connection afterwards."""

import asyncio

import pytest

from enginegate.edge import doors
from tests.edge.rig import Served, get

OK = 200


async def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    """Whatever each of them takes."""
    client = await served.client()
    await client.send(get("/wait") + get("/b") + get("/c"))
    await served.at_work()
    served.go_on.set()
    assert [(await client.answer())[2] for _ in range(3)] == [
        b"GET /wait 0",
        b"GET /b 0",
        b"GET /c 0",
    ]


async def test_garbage_behind_a_request_is_refused_in_its_turn(served: Served) -> None:
    """The first answer belongs to the first request."""
    client = await served.client()
    await client.send(get("/wait") + get("/b") + b"\0garbage")
    await served.at_work()
    served.go_on.set()
    assert [(await client.answer())[0] for _ in range(3)] == [OK, OK, 400]
    assert await client.rest() == b""


async def test_a_queued_request_that_turns_bad_is_not_run(served: Served) -> None:
    """Its body breaks off in nonsense while an earlier one is at work."""
    client = await served.client()
    bad = b"POST /bad HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    await client.send(get("/wait") + bad)
    await served.at_work()
    served.go_on.set()
    assert [(await client.answer())[0] for _ in range(2)] == [OK, 400]
    assert served.calls == ["/wait"]


async def test_only_so_many_pipelined_requests_are_taken_up(served: Served) -> None:
    """The rest waits in the client's own memory until answers have gone out."""
    client = await served.client()
    client.writer.write(get("/wait") + get("/") * 20_000)
    await served.at_work()
    (guest,) = served.server.doors.open
    assert len(guest.pipeline) < 1000  # type: ignore[attr-defined]
    served.go_on.set()
    for _ in range(20_001):
        assert (await client.answer())[0] == OK


async def test_an_answer_lets_no_more_in_than_went_out(served: Served) -> None:
    """A client that reads and asks without end costs no more memory than one that waits."""
    client = await served.client()
    client.writer.write(get("/") * 20_000)
    most = 0
    for _ in range(20_000):
        assert (await client.answer())[0] == OK
        (guest,) = served.server.doors.open
        most = max(most, len(guest.pipeline))  # type: ignore[attr-defined]
    assert 0 < most < 500


async def test_an_answer_instead_of_continue_is_the_last(served: Served) -> None:
    """Whether the body still comes is the client's choice, so nothing behind it can be read."""
    client = await served.client()
    await client.send(
        b"POST /unread HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    )
    assert (await client.answer())[0] == OK
    assert await client.rest() == b""


async def test_a_body_that_was_asked_for_keeps_the_connection(served: Served) -> None:
    """`Expect: 100-continue`, and the body after the server's word."""
    client = await served.client()
    await client.send(
        b"POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    )
    assert (await client.answer())[0] == 100
    assert (await client.ask(b"{}"))[2] == b"POST /a 2"
    assert await client.is_open()


async def test_an_old_client_is_not_told_to_continue(served: Served) -> None:
    """HTTP/1.0 knows no answer before the answer (RFC 9110, 10.1.1)."""
    client = await served.client()
    await client.send(b"POST /a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}")
    status, _, body = await client.answer()
    assert (status, body) == (OK, b"POST /a 2")


async def test_a_client_that_has_said_all_still_gets_its_answer(served: Served) -> None:
    """It closed its own side only."""
    client = await served.client()
    await client.send(get("/wait"))
    client.writer.write_eof()
    await served.at_work()
    served.go_on.set()
    status, headers, _ = await client.answer()
    assert (status, headers["connection"]) == (OK, "close")
    assert await client.rest() == b""


async def test_a_client_that_leaves_ends_its_stream(served: Served) -> None:
    """Also where it had asked for more behind it."""
    client = await served.client()
    await client.send(get("/stream") + get("/never"))
    await served.at_work()
    client.writer.transport.abort()
    async with asyncio.timeout(5):
        while not served.left:
            await asyncio.sleep(0.01)
    assert served.left == ["/stream"]


async def test_who_does_not_take_the_answer_is_cut(served: Served) -> None:
    """It is not kept in memory for longer than a request may take."""
    client = await served.client()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(get("/large"))
    async with asyncio.timeout(5):
        while served.server.doors.open or not served.calls:
            await asyncio.sleep(0.01)


async def test_one_too_many_takes_the_place_of_the_longest_idle() -> None:
    """The others are left in peace."""
    async with Served(max_connections=3) as served:
        clients = [await served.client() for _ in range(3)]
        for client in clients:
            assert await client.is_open()
        assert await clients[0].is_open()  # so the second is the longest idle one
        newest = await served.client()
        assert await newest.is_open()
        assert await clients[1].rest() == b""
        assert await clients[0].is_open()
        assert await clients[2].is_open()


async def test_who_connected_and_said_nothing_is_idle() -> None:
    """It gives way to one that has something to ask."""
    async with Served(max_connections=2, request_timeout_s=5) as served:
        silent, other = await served.client(), await served.client()
        assert await other.is_open()
        newest = await served.client()
        assert await newest.is_open()
        assert await other.is_open()
        assert await silent.rest() == b""


async def test_with_all_at_work_a_new_connection_is_refused() -> None:
    """503 and close; who is served is not disturbed."""
    async with Served(max_connections=2, request_timeout_s=5) as served:
        working = await served.client()
        await working.send(get("/wait"))
        sending = await served.client()
        await sending.send(b"GET /half HTTP/1.1\r\nHost: x\r\n")
        await served.at_work()
        newest = await served.client()
        status, headers, _ = await newest.answer()
        assert (status, headers["connection"]) == (503, "close")
        assert await newest.rest() == b""
        assert (await sending.ask(b"\r\n"))[0] == OK
        served.go_on.set()
        assert (await working.answer())[0] == OK


async def test_a_request_that_takes_its_time_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow clients together cannot keep the others out until their time is over."""
    monkeypatch.setattr(doors, "STALL_S", 0.05)
    async with Served(max_connections=2, request_timeout_s=5) as served:
        slow = [await served.client() for _ in range(2)]
        for client in slow:
            await client.send(b"GET / HTTP/1.1\r\n")
        await asyncio.sleep(0.1)
        newest = await served.client()
        assert await newest.is_open()
        assert (await slow[0].answer())[0] == 503


async def test_places_are_free_again_when_connections_end() -> None:
    """However they end."""
    async with Served(max_connections=2) as served:
        for _ in range(10):
            client = await served.client()
            assert await client.is_open()
            client.writer.close()
            other = await served.client()
            assert (await other.ask(b"\0"))[0] == 400


async def test_stopping_answers_what_was_asked(served: Served) -> None:
    """In flight and pipelined, in order; the last one says that it is the last."""
    client = await served.client()
    await client.send(get("/wait") + get("/b"))
    await served.at_work()
    served.server.stop()
    await client.send(get("/c"))
    served.go_on.set()
    answers = [await client.answer() for _ in range(3)]
    assert [body for _, _, body in answers] == [b"GET /wait 0", b"GET /b 0", b"GET /c 0"]
    assert [headers.get("connection") for _, headers, _ in answers] == [None, None, "close"]
    assert await client.rest() == b""


async def test_stopping_lets_an_idle_client_ask_once_more(served: Served) -> None:
    """It may be sending at this very moment; the answer tells it to go elsewhere."""
    asking, idle = await served.client(), await served.client()
    assert await asking.is_open()
    assert await idle.is_open()
    served.server.stop()
    status, headers, _ = await asking.ask(get("/"))
    assert (status, headers["connection"]) == (OK, "close")
    assert await idle.rest() == b""


async def test_stopping_accepts_nobody_from_that_moment_on(served: Served) -> None:
    """Without a successor on the same socket, a new client is refused by the kernel."""
    served.server.stop()
    await asyncio.sleep(0.01)
    with pytest.raises(ConnectionRefusedError):
        await served.client()


async def test_stopping_does_not_wait_where_nobody_is_connected() -> None:
    """The time for last requests is for those who are there."""
    async with Served() as served:
        served.server.stop()
        async with asyncio.timeout(0.8):
            await served.serving
