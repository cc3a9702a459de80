"""The audit trail as it happens: nothing missed, nothing of others, and an end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from enginegate.api import events
from enginegate.registry import trail
from tests.api.rig import ADMIN, Gate, Wire, code


@asynccontextmanager
async def listening(gate: Gate, **headers: str) -> AsyncIterator[Wire]:
    """Open a stream, and hang up at the end."""
    call = Wire(gate.app, "GET", "/events", headers, b"")
    task = gate.spawn(gate.app(call.scope, call.receive, call.send))  # type: ignore[arg-type]
    assert await call.chunk() == events.ALIVE
    try:
        yield call
    finally:
        call.leave()
        await asyncio.wait([task])


def product(gate: Gate) -> dict[str, str]:
    return {"X-Platform-Key": gate.key}


async def entry(call: Wire) -> dict[str, Any]:
    """Return the next entry, after a look at how it was sent."""
    head, kind, data, *rest = (await call.chunk()).decode().split("\n")
    assert rest == ["", ""]
    assert kind == "event: audit"
    found: dict[str, Any] = json.loads(data.removeprefix("data: "))
    assert head == f"id: {found['id']}"
    return found


async def test_entries_come_as_they_happen(gate: Gate) -> None:
    """Each is the entry that `/audit` shows, under its id."""
    async with listening(gate, **product(gate)) as call:
        await gate.engine()
        await gate.post("/engines/ann/stop")
        seen = [await entry(call), await entry(call)]

    assert seen == (await gate.get("/audit?limit=2")).json()["entries"][::-1]
    assert [one["action"] for one in seen] == ["provision", "stop"]


async def test_it_is_announced_as_a_stream(gate: Gate) -> None:
    """Browsers and proxies have to know what it is."""
    call = Wire(gate.app, "GET", "/events", product(gate), b"")
    gate.spawn(gate.app(call.scope, call.receive, call.send))  # type: ignore[arg-type]
    headers = dict((await call.sent.get())["headers"])

    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-store"
    call.leave()


async def test_a_product_hears_of_itself_alone(gate: Gate) -> None:
    """The operator hears of everybody."""
    other = await gate.product("other")
    async with listening(gate, **product(gate)) as mine, listening(gate, **ADMIN) as whole:
        theirs = await gate.engine(key=other["platform_api_key"])
        own = await gate.engine()

        assert (await entry(mine))["engine_id"] == own["engine_id"]
        assert (await entry(whole))["engine_id"] == theirs["engine_id"]
        assert (await entry(whole))["engine_id"] == own["engine_id"]


async def test_a_reader_that_comes_back_gets_what_it_missed(gate: Gate) -> None:
    """In order, without a gap and without anything twice."""
    await gate.engine()
    last = (await gate.audit())[0]["id"]
    await gate.post("/engines/ann/stop")
    await gate.post("/engines/ann/start")
    async with listening(gate, **product(gate), **{"Last-Event-ID": str(last)}) as call:
        await gate.post("/engines/ann/sleep")
        seen = [(await entry(call))["action"] for _ in range(3)]

    assert seen == ["stop", "start", "sleep"]


async def test_what_was_missed_may_lie_beyond_memory(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older entries come from the journal, page by page."""
    monkeypatch.setattr(events, "PAGE", 2)
    for _ in range(5):
        await gate.policy()
    gate.registry.trail.recent.clear()
    async with listening(gate, **product(gate), **{"Last-Event-ID": "0"}) as call:
        seen = [(await entry(call))["id"] for _ in range(6)]

    assert seen == sorted(seen)


async def test_an_id_from_the_future_hides_nothing(gate: Gate) -> None:
    """A reader of another journal is told what happens all the same."""
    async with listening(gate, **product(gate), **{"Last-Event-ID": "999999"}) as call:
        await gate.engine()

        assert (await entry(call))["action"] == "provision"


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 19, "²"])
async def test_a_wrong_id_is_refused(gate: Gate, last: str) -> None:
    """Resuming at a wrong place would look like a gap."""
    call = Wire(gate.app, "GET", "/events", product(gate) | {"Last-Event-ID": last}, b"")

    assert (await call.run())[0] == 400


async def test_a_quiet_stream_says_now_and_then_that_it_lives(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment keeps connections open that a proxy would close."""
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.001)
    async with listening(gate, **product(gate)) as call:
        assert [await call.chunk() for _ in range(3)] == [events.ALIVE] * 3


async def test_a_stream_ends_at_shutdown(gate: Gate) -> None:
    """An open stream does not hold up a stop, and no new one begins."""
    async with listening(gate, **product(gate)) as call:
        gate.services.phase.name = "stopping"
        gate.registry.trail.end_all()
        assert await call.chunk() == b""

    answer = await gate.get("/events")
    assert (answer.status_code, code(answer)) == (503, "SHUTTING_DOWN")


async def test_a_reader_that_lags_is_let_go(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes back with `Last-Event-ID` instead of filling our memory."""
    monkeypatch.setattr(trail, "QUEUE_MAX", 2)
    async with listening(gate, **product(gate)) as call:
        for _ in range(4):
            gate.registry.note("recovered", product=gate.registry.by_slug["demo"].product)
        await gate.registry.flushed()
        seen = [await call.chunk() for _ in range(3)]

    assert seen[-1] == b""


async def test_a_key_that_stops_ends_the_stream(gate: Gate) -> None:
    """A rotated key reads nothing more, not even on an old connection."""
    product_id = gate.registry.by_slug["demo"].product.product_id
    async with listening(gate, **product(gate)) as call:
        await gate.admin("POST", f"/products/{product_id}/rotate-platform-key")
        assert await call.chunk() == b""


async def test_a_reader_that_leaves_is_forgotten(gate: Gate) -> None:
    """Nothing is kept for who does not listen."""
    async with listening(gate, **product(gate)):
        assert len(gate.registry.trail._subscriptions) == 1

    assert not gate.registry.trail._subscriptions


async def test_head_of_the_stream_ends(gate: Gate) -> None:
    """Asking for headers alone opens no stream."""
    answer: httpx.Response = await gate.client.head("/events", headers=product(gate))

    assert answer.status_code == 200
    assert not gate.registry.trail._subscriptions
