"""The lane and the road: the same bytes in, the same bytes out, the same connection after."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from uvicorn.server import ServerState

from enginegate.edge import Doors, http_server, lane, versions
from enginegate.edge.connection import Connection
from enginegate.edge.lane import Lane
from tests.api.rig import Gate, opened
from tests.edge.rig import Served, limits
from tests.fakes import settle

KEY = b"@KEY@"  # stands for the platform key until the stream is sent
DATE = re.compile(rb"date: [^\r]*\r\n")


def admit(
    *headers: bytes, path: bytes = b"/engines/ann/admit", body: bytes = b"", **more: Any
) -> bytes:
    """Return an admit of ann, with the key and a length where there is a body."""
    method, version = more.get("method", b"POST"), more.get("version", b"HTTP/1.1")
    lines = [*more.get("hosts", [b"Host: x"]), *(headers or (b"X-Platform-Key: " + KEY,))]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"%b %b %b\r\n%b\r\n\r\n%b" % (method, path, version, b"\r\n".join(lines), body)


def keyed(*headers: bytes, **more: Any) -> bytes:
    return admit(b"X-Platform-Key: " + KEY, *headers, **more)


BODIES = [
    b"{}",
    b'{"touch":true}',
    b'{"touch":false}',
    b'{"auto_wake":true}',
    b'{"auto_provision":true}',
    b'{"wait_s":0}',
    b'{"verify":true}',
    b'{"touch":1}',
    b'{"no":1}',
    b'{"touch":true,"touch":true}',
    b"{",
    b"\xff",
    b"x" * 6000,
]
REQUESTS = [
    admit(),
    *(admit(body=body) for body in BODIES),
    admit(b"x-PLATFORM-key: " + KEY),
    admit(b"X-Platform-Key:" + KEY + b"   "),
    admit(b"X-Platform-Key: no"),
    admit(b"X-Platform-Key: "),
    admit(b"X-Platform-Key: no", b"X-Platform-Key: " + KEY),
    admit(b"X-Platform-Key: " + KEY, b"X-Platform-Key: no"),
    admit(b"Authorization: Bearer " + KEY),
    admit(b"X-Admin-Key: no"),
    keyed(b"Authorization: Bearer no", b"X-Admin-Key: no"),
    keyed(b"Connection: keep-alive"),
    keyed(b"connection: Keep-Alive"),
    keyed(b"Connection: close"),
    keyed(b"Connection: keep-alive, close"),
    keyed(b"Connection: x"),
    keyed(b"Connection: upgrade", b"Upgrade: h2c"),
    keyed(b"Upgrade: h2c"),
    keyed(b"Connection: upgrade", b"Upgrade: h2c", b"Content-Length: 0"),
    keyed(b"Connection: upgrade", b"Upgrade: h2c", body=b"{}"),
    keyed(b"Connection: upgrade", b"Upgrade: h2c", b"Transfer-Encoding: chunked")
    + b"2\r\n{}\r\n0\r\n\r\n",
    keyed(b"Expect: 100-continue", body=b"{}"),
    keyed(b"Expect: x"),
    keyed(version=b"HTTP/1.0"),
    keyed(b"Connection: keep-alive", version=b"HTTP/1.0"),
    keyed(b"Connection: keep-alive", version=b"HTTP/2.0"),
    keyed(version=b"HTTP/0.9"),
    keyed(method=b"HEAD"),
    keyed(method=b"GET"),
    keyed(method=b"PUT"),
    keyed(method=b"post"),
    keyed(hosts=[]),
    keyed(hosts=[], version=b"HTTP/1.0"),
    keyed(hosts=[b"Host: x", b"Host: x"]),
    keyed(hosts=[b"Host: x", b"hOST: y"]),
    keyed(hosts=[b"Host: x", b"Host: x"], version=b"HTTP/1.0"),
    keyed(hosts=[b"Host:"]),
    keyed(b"Content-Length: 0"),
    keyed(b"Content-Length: 2", b"Content-Length: 2") + b"{}",
    keyed(b"Content-Length: 2", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    keyed(b"Transfer-Encoding: chunked", b"Content-Length: 2") + b"0\r\n\r\n",
    keyed(b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    keyed(b"Transfer-Encoding: chunked") + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    keyed(b"Transfer-Encoding: chunked") + b"2;x=y\r\n{}\r\n0\r\nConnection: close\r\n\r\n",
    keyed(b"Transfer-Encoding: identity") + b"{}",
    keyed(b"X-Long: " + b"y" * 1000),
    keyed(b"X-Longer: " + b"y" * 3000),
    keyed(b"Bad Name: y"),
    keyed(b"Bad: \0"),
    keyed(b"Umlaut: \xe4"),
    keyed(path=b"/engines/bob/admit"),
    keyed(path=b"/engines/%61nn/admit"),
    keyed(path=b"/engines/ann%2fadmit"),
    keyed(path=b"/engines/a%00/admit"),
    keyed(path=b"/engines/ann/admit?x=1"),
    keyed(path=b"/engines/ann/admit?/admit"),
    keyed(path=b"/engines/ann?/admit"),
    keyed(path=b"/engines/ann#/admit"),
    keyed(path=b"/engines/ann;x/admit"),
    keyed(path=b"/engines//admit"),
    keyed(path=b"/engines/ann//admit"),
    keyed(path=b"/engines/../engines/ann/admit"),
    keyed(path=b"//engines/ann/admit"),
    keyed(path=b"/engines/ann/admit/"),
    keyed(path=b"/engines/admit"),
    keyed(path=b"/engines/\xc3\xa4/admit"),
    keyed(path=b"/engines/" + b"a" * 3000 + b"/admit"),
    keyed(path=b"/engines/a.b_c@d|e:f+g=h~i-j/admit"),
    keyed(path=b"http://x/engines/ann/admit"),
    keyed(path=b"/health", method=b"GET"),
    b"\r\n" + admit(),
    b"\0" + admit(),
    admit()[:-1],
    admit(body=b"{}")[:-1],
]
NEXT = admit(path=b"/health", method=b"GET")


class Pipe(asyncio.Transport):
    """A transport in memory; what is written is kept, a close is told on the next turn."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = bytearray()
        self.paused = False
        self.ended = ""
        protocol.connection_made(self)

    def write(self, data: Any) -> None:
        assert not self.ended
        self.written += data

    def write_eof(self) -> None:
        self.ended = self.ended or "half"

    def close(self) -> None:
        if self.ended != "closed":
            self.ended = "closed"
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self.ended == "closed"

    def is_reading(self) -> bool:
        return not self.paused

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Pair:
    """A gate behind both, each with doors of its own."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.warm = 0
        config = uvicorn.Config(
            gate.app,
            ws="none",
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,
            log_config=None,
        )
        loop = asyncio.get_running_loop()
        self.doors = [Doors(loop, limits(request_timeout_s=60.0)) for _ in range(2)]
        road, lane = self.doors
        self.kinds = [partial(Connection, doors=road), partial(Lane, doors=lane, warm=self._warm)]
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"today")]
        self.config = config

    def _warm(
        self, key: bytes, user_id: str, body: bytes, hashed: bytes | None = None
    ) -> bytes | None:
        answer = self.gate.services.admission.warm(key, user_id, body, hashed)
        self.warm += answer is not None
        return answer

    def filled(self, stream: bytes) -> bytes:
        """Return the stream with the key in it; to be done before it is cut."""
        return stream.replace(KEY, self.gate.key.encode())

    async def both(self, pieces: Iterable[bytes]) -> tuple[bytes, str]:
        """Send the same pieces to both; return what both answered."""
        pieces = [self.filled(piece) for piece in pieces]
        road, lane = [await self._send(which, pieces) for which in (0, 1)]
        assert lane == road, pieces
        return road[0], road[1]

    async def _send(self, which: int, pieces: list[bytes]) -> tuple[bytes, str, str, int]:
        protocol: Any = self.kinds[which](self.config, self.state, {})
        pipe = Pipe(protocol)
        for piece in pieces:
            for _ in range(100):
                if not pipe.paused:
                    break
                await settle()
            if pipe.ended != "closed" and not pipe.paused:
                protocol.data_received(piece)
            await asyncio.sleep(0)
        for _ in range(100):
            await settle()
            if not protocol._owed:
                break
        waiting = "".join(
            name
            for name in ("silent", "receiving", "idle", "stalled", "leaving")
            if protocol in getattr(self.doors[which], name)._since
        )
        found = bytes(pipe.written), pipe.ended, waiting, protocol._owed
        if pipe.ended != "closed":
            protocol.eof_received() or pipe.close()
            await settle()
            pipe.close()
        await settle()
        assert protocol not in self.doors[which].open
        return found


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with opened(tmp_path) as gate:
        await gate.engine("ann")
        await gate.engine("a.b_c@d|e:f+g=h~i-j")
        yield Pair(gate)


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
async def test_every_request_is_answered_the_same(pair: Pair, request_: bytes) -> None:
    """Alone, before another one, behind another one, and between two."""
    for stream in (request_, request_ + NEXT, admit() + request_, NEXT + request_ + admit()):
        await pair.both([stream])


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
async def test_the_same_bytes_again_are_answered_the_same(pair: Pair, request_: bytes) -> None:
    """Whether they are parsed or remembered, and whatever comes between."""
    await pair.both([admit(), request_, request_, admit(), request_ + NEXT, request_])


async def test_what_is_remembered_is_one_whole_request(pair: Pair) -> None:
    """Not half of one, not two, and none that went by the road or is long."""
    one, two = admit(), admit(body=b"{}")
    long = keyed(b"X-Long: " + b"y" * 1000)
    pieces = [one, one, two + one, one, long, one, two, one[:9], one[9:], NEXT, one]
    await pair.both([*pieces, *pieces])
    assert list(pair.doors[1].repeats) == [pair.filled(one), pair.filled(two)]
    assert pair.doors[0].repeats == {}


async def test_not_more_is_remembered_than_there_is_room_for(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is full, it begins anew; nobody sees a difference."""
    monkeypatch.setattr(lane, "REPEATS_MAX", 2)
    bodies = (b"{}", b'{"touch":true}', b'{"auto_wake":true}', b"{}", b"{}")
    await pair.both([admit(), *(admit(body=body) for body in bodies)])
    assert len(pair.doors[1].repeats) <= 2


async def test_what_is_remembered_is_asked_anew_each_time(pair: Pair) -> None:
    """It counts for the rate, and an engine or a key that is gone is gone."""
    await pair.gate.policy(rate_limit_rpm=5)
    found = (await pair._send(1, [pair.filled(admit())] * 7))[0]
    assert (found.count(b'"admitted":true'), found.count(b"RATE_LIMITED")) == (5, 2)
    await pair.gate.policy()
    again = [admit()] * 3
    await pair.both(again)
    assert len(pair.doors[1].repeats) == 1
    await pair.gate.post("/engines/ann/stop")
    assert (await pair.both(again))[0].count(b'"admitted":false') == 3
    for doors in pair.doors:
        doors.drain()
    await pair.both(again)


async def test_a_key_that_is_gone_opens_nothing_that_is_remembered(pair: Pair) -> None:
    """The same bytes are refused as soon as the key is rotated, on this connection, too."""
    with_old = pair.filled(admit())
    protocol: Any = pair.kinds[1](pair.config, pair.state, {})
    pipe = Pipe(protocol)
    for _ in range(3):
        protocol.data_received(with_old)
    assert with_old in pair.doors[1].repeats
    product_id = pair.gate.registry.by_slug["demo"].product.product_id
    rotated = await pair.gate.admin("POST", f"/products/{product_id}/rotate-platform-key")
    assert rotated.status_code == 200
    protocol.data_received(with_old)
    for _ in range(100):
        await settle()
    answers = bytes(pipe.written)
    assert (answers.count(b'"admitted":true'), answers.count(b"HTTP/1.1 401 ")) == (3, 1)


async def test_an_engine_whose_key_does_not_open_is_told_what_helps(pair: Pair) -> None:
    """A connection outlives it, and to rotate the key helps without a word from the old one."""
    [live] = [one for one in pair.gate.registry.engines.values() if one.engine.user_id == "ann"]
    live.engine, live.answer = replace(live.engine, sealed_key="gcm1.AAAA"), None
    live.change_key()
    found = (await pair.both([admit(), admit(), NEXT]))[0]
    assert found.count(b"HTTP/1.1 500 ") == found.count(b"rotate it, or destroy the engine") == 2
    assert (await pair.gate.post("/engines/ann/rotate-key")).status_code == 200
    assert (await pair.both([admit(), admit()]))[0].count(b'"admitted":true') == 2


async def test_a_server_that_stops_remembers_nothing(pair: Pair) -> None:
    """The last answer of a connection says so, whatever it was asked before."""
    pipes = []
    for kind, doors in zip(pair.kinds, pair.doors, strict=True):
        protocol: Any = kind(pair.config, pair.state, {})
        pipes.append(Pipe(protocol))
        for turn in range(4):
            if turn == 3:
                doors.drain()
            protocol.data_received(pair.filled(admit()))
            for _ in range(100):
                await settle()
    road, lane_ = (bytes(pipe.written) for pipe in pipes)
    assert lane_ == road
    assert (road.count(b'"admitted":true'), road.count(b"connection: close")) == (4, 1)


@pytest.mark.parametrize("hosts", [[], [b"Host: x", b"host: y"]])
async def test_an_admit_without_its_one_host_is_refused(pair: Pair, hosts: list[bytes]) -> None:
    """Also behind one that was answered, and the second time; HTTP/1.0 may leave it out."""
    bad = keyed(hosts=hosts)
    for pieces, admitted in (([bad, bad], 0), ([admit(), bad], 1), ([admit() + bad], 1)):
        answer, ended = await pair.both(pieces)
        assert (answer.count(b'"admitted":true'), answer.count(b"HTTP/1.1 400 ")) == (admitted, 1)
        assert ended == "half"  # as after every refusal
    old = keyed(hosts=[], version=b"HTTP/1.0")
    assert b'"admitted":true' in (await pair.both([old]))[0]


async def test_the_lane_is_taken(pair: Pair) -> None:
    """What is compared here is not the road with itself."""
    await pair.both([admit(), admit(body=b"{}"), keyed(b"Connection: keep-alive")])
    assert pair.warm == 3


@pytest.mark.parametrize(
    "request_",
    [
        admit(),
        admit(body=b'{"wait_s":0}'),
        keyed(b"Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\nX: y\r\n\r\n",
        keyed(b"Expect: 100-continue", body=b"{}"),
        keyed(path=b"/engines/%61nn/admit"),
        keyed(b"Connection: close"),
        keyed(b"Content-Length: 1", b"Content-Length: 2"),
    ],
    ids=["plain", "body", "chunked", "expect", "escaped", "close", "smuggled"],
)
async def test_it_does_not_matter_where_a_request_is_cut(pair: Pair, request_: bytes) -> None:
    """At every byte, and at all of them."""
    request_ = pair.filled(request_)
    whole = await pair.both([request_ + NEXT])
    for at in range(1, len(request_)):
        assert await pair.both([request_[:at], request_[at:] + NEXT]) == whole
    stream = request_ + NEXT
    assert await pair.both([stream[n : n + 1] for n in range(len(stream))]) == whole


async def test_many_in_one_piece_are_answered_in_order(pair: Pair) -> None:
    """Whichever of them go by the lane."""
    answer, _ = await pair.both([(admit() + NEXT + admit(body=b"{}") * 3) * 20])
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 100


async def test_any_stream_cut_anywhere_is_answered_the_same(pair: Pair) -> None:
    """Whatever is put together, and however it arrives."""
    loop = asyncio.get_running_loop()
    requests = [pair.filled(request_) for request_ in REQUESTS]
    streams = st.lists(st.sampled_from(requests), min_size=1, max_size=4).map(b"".join)
    found: list[list[bytes]] = []

    @settings(
        max_examples=200,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        stream = data.draw(streams)
        cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(stream) - 1)), max_size=5)))
        edges = [0, *cuts, len(stream)]
        found.append([stream[a:b] for a, b in pairwise(edges)])

    await loop.run_in_executor(None, collect)
    for pieces in found:
        await pair.both(pieces)


async def test_while_stopping_the_lane_is_closed(pair: Pair) -> None:
    """Answers then say that they are the last, which ready-made ones do not."""
    for doors in pair.doors:
        doors.drain()
    answer, ended = await pair.both([admit() + admit()])
    assert (answer.count(b"connection: close"), ended) == (1, "closed")
    assert pair.warm == 0


async def test_refusals_are_the_same_too(pair: Pair) -> None:
    """Over the rate, asleep, stopped and gone."""
    await pair.gate.policy(rate_limit_rpm=0)
    assert b"RATE_LIMITED" in (await pair.both([admit()]))[0]
    await pair.gate.policy()
    for verb in ("sleep", "stop"):
        await pair.gate.post(f"/engines/ann/{verb}")
        assert b'"admitted":false' in (await pair.both([admit()]))[0]
    await pair.gate.call("DELETE", "/engines/ann")
    assert b"engine_not_found" in (await pair.both([admit()]))[0]


def test_versions_are_told_apart() -> None:
    """Those that were tested, and all others."""
    assert [
        versions.is_tested(one) for one in ("0.52.4", "0.53.0", "0.54.1", "0.55.0", "1.54")
    ] == [
        False,
        True,
        True,
        False,
        False,
    ]


async def test_an_untested_uvicorn_serves_by_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without lane and limits, and a warning says so."""
    monkeypatch.setattr(http_server.versions, "is_tested", lambda _: False)
    async with Served() as served:
        client = await served.client()
        assert await client.is_open()
        assert served.server.doors.open == set()
    assert "is not a tested version" in caplog.text
