"""The short road to an admit answers as the long one would, and leaves it the rest."""

import json
from typing import Any

import pytest

from enginegate.api.app import READY_MAX, REPEAT_BYTES_MAX, make_routes
from enginegate.api.app import Gate as AnyGate
from tests.api.rig import Gate, Wire


async def asked(gate: Gate, *, key: str, length: str = "2") -> tuple[int, int]:
    """Return an admit's status, and how often its body was asked for."""
    headers = {"X-Platform-Key": key, "Content-Length": length}
    call = Wire(gate.app, "POST", "/engines/ann/admit", headers, b"{}")
    times = 0

    async def receive() -> Any:
        nonlocal times
        times += 1
        return await call.receive()

    await gate.app(call.scope, receive, call.send)
    return call.sent.get_nowait()["status"], times


async def test_a_body_that_says_it_is_too_long_is_not_asked_for(gate: Gate) -> None:
    """A client that waits for `100 Continue` is told 413 instead."""
    await gate.engine()
    assert await asked(gate, key=gate.key, length="99999999999") == (413, 0)


async def test_what_is_remembered_of_a_path_holds_for_the_same_headers_alone(gate: Gate) -> None:
    """The next caller of a path is read anew, and a key that is gone opens nothing."""
    await gate.engine()
    product_id = gate.registry.by_slug["demo"].product.product_id
    for _ in range(2):
        assert await asked(gate, key=gate.key) == (200, 1)
        assert await asked(gate, key="x") == (401, 0)
        assert await asked(gate, key=gate.key, length="99999999999") == (413, 0)
    assert await asked(gate, key=gate.key) == (200, 1)
    await gate.admin("POST", f"/products/{product_id}/rotate-platform-key")
    assert await asked(gate, key=gate.key) == (401, 0)


async def test_a_server_may_use_its_list_of_headers_again(gate: Gate) -> None:
    """What is remembered is what the headers said then."""
    await gate.engine()
    call = Wire(gate.app, "POST", "/engines/ann/admit", {"X-Platform-Key": gate.key}, b"", b"")
    await gate.app(call.scope, call.receive, call.send)
    assert call.sent.get_nowait()["status"] == 200
    again = Wire(gate.app, "POST", "/engines/ann/admit", {}, b"")
    again.scope["headers"] = call.scope["headers"]
    again.scope["headers"][:] = [(b"x-platform-key", b"wrong")]
    await gate.app(again.scope, again.receive, again.send)
    assert again.sent.get_nowait()["status"] == 401


async def ask(app: AnyGate, path: str, **headers: str) -> None:
    call = Wire(app.serve, "POST", path, headers, b"")
    await app.serve(call.scope, call.receive, call.send)


async def test_what_is_remembered_is_bounded(gate: Gate) -> None:
    """So many paths and so much of each; strangers leave nothing behind."""
    app = AnyGate(gate.services, make_routes(gate.services))
    key = {"X-Platform-Key": gate.key}
    await ask(app, "/engines/ann/admit", **{"X-Platform-Key": "wrong"})
    await ask(app, "/engines/ann/admit", **key, X="x" * REPEAT_BYTES_MAX)
    await ask(app, "/engines/ann/admit", **key, **{f"X-{n}": "" for n in range(100)})
    await ask(app, f"/engines/{'a' * REPEAT_BYTES_MAX}/admit", **key)
    assert not app.repeats
    for number in range(READY_MAX + 10):
        await ask(app, f"/engines/u{number}/admit", **key)
    assert 0 < len(app.repeats) <= READY_MAX


async def test_an_escaped_slash_is_no_slash_here_either(gate: Gate) -> None:
    """`%2F` belongs to a name, whoever was admitted at the same path before."""
    await gate.engine()
    await gate.admit()
    for raw_path in (b"/engines/ann%2Fadmit", b"/engines%2fann/admit"):
        call = Wire(gate.app, "POST", "/engines/ann/admit", {"X-Platform-Key": gate.key}, b"")
        call.scope["raw_path"] = raw_path
        await gate.app(call.scope, call.receive, call.send)
        assert call.sent.get_nowait()["status"] in {404, 405}


async def test_a_length_of_any_number_of_digits_is_read(gate: Gate) -> None:
    """Python refuses to make a number of more than 4,300."""
    await gate.engine()
    assert await asked(gate, key=gate.key, length="0" * 5000 + "2") == (200, 1)
    assert await asked(gate, key="x", length="9" * 5000) == (401, 0)
    assert await asked(gate, key=gate.key, length="9" * 5000) == (413, 0)


async def test_a_key_that_goes_while_the_body_comes_opens_nothing(gate: Gate) -> None:
    """Who is let in is decided when the request is whole."""
    await gate.engine()
    call = Wire(gate.app, "POST", "/engines/ann/admit", {"X-Platform-Key": gate.key}, b"{}")

    async def receive() -> Any:
        gate.services.registry.by_key.clear()
        return await call.receive()

    await gate.app(call.scope, receive, call.send)
    assert call.sent.get_nowait()["status"] == 401


async def both(gate: Gate, *, key: str, body: bytes, path: str = "/engines/ann/admit") -> Any:
    """Ask on both roads; return the one answer."""
    answers = []
    for app in (gate.app, make_routes(gate.services)):
        call = Wire(app, "POST", path, {"X-Platform-Key": key}, body)
        await app(call.scope, call.receive, call.send)
        start, end = call.sent.get_nowait(), call.sent.get_nowait()
        headers = sorted(start["headers"])
        answers.append((start["status"], headers, end["body"]))
    assert answers[0] == answers[1]
    return answers[0][0], json.loads(answers[0][2])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"touch": true}',
        b'{"touch": false}',
        b'{"auto_wake": true, "auto_provision": true}',
        b'{"wait_s": 0}',
        b'{"verify": true}',
        b'{"verify": 1}',
        b'{"unknown": 1}',
        b"{",
        b"[]",
        b"\xff",
        b'{"\xff": 1}',
        b'{"touch": true, "touch": true}',
    ],
)
async def test_both_roads_give_the_same_answer(gate: Gate, body: bytes) -> None:
    """Status, headers and bytes; whichever body a product sends."""
    await gate.engine()

    await both(gate, key=gate.key, body=body)


async def test_both_roads_refuse_the_same_callers(gate: Gate) -> None:
    """Wrong keys, users without engine, and states other than running."""
    await gate.engine()
    assert (await both(gate, key="x", body=b""))[0] == 401
    status, answer = await both(gate, key=gate.key, body=b"", path="/engines/bob/admit")
    assert (status, answer["reason"]) == (200, "engine_not_found")
    assert (await both(gate, key=gate.key, body=b"", path="/engines/a b/admit"))[0] == 400
    assert (await both(gate, key=gate.key, body=b"", path="/engines//admit"))[0] == 404
    assert (await both(gate, key=gate.key, body=b"", path="/engines/admit"))[0] == 405
    await gate.post("/engines/ann/stop")
    status, answer = await both(gate, key=gate.key, body=b"")
    assert answer["reason"] == "engine_stopped"


async def test_the_short_road_asks_neither_disk_nor_backend(gate: Gate) -> None:
    """What an admit of a running engine costs is a look-up."""
    await gate.engine()
    before = (len(gate.backend.calls), gate.journal.bytes_written)
    for _ in range(100):
        assert (await gate.admit()).json()["admitted"]

    assert (len(gate.backend.calls), gate.journal.bytes_written) == before


async def test_the_short_road_moves_the_lease(gate: Gate) -> None:
    """An admitted engine has its full lease before the answer goes out."""
    await gate.engine()
    await gate.clock.advance(500)
    await gate.admit()

    assert (await gate.get("/engines/ann/activity")).json()["lease_s"] == 900


async def test_the_answer_follows_every_change_of_the_engine(gate: Gate) -> None:
    """Ready-made bytes never outlive what they tell."""
    first = (await gate.admit(auto_provision=True)).json()
    await gate.admit()
    rotated = (await gate.post("/engines/ann/rotate-key")).json()
    assert (await gate.admit()).json()["engine"]["api_key"] == rotated["api_key"]
    await gate.policy(idle_sleep_s=60)
    assert (await gate.admit()).json()["lease_s"] == 60
    await gate.call("DELETE", "/engines/ann")
    assert (await gate.admit()).json()["reason"] == "engine_not_found"
    again = (await gate.admit(auto_provision=True)).json()
    assert again["engine"]["engine_id"] != first["engine"]["engine_id"]


async def test_a_deleted_product_is_let_in_nowhere(gate: Gate) -> None:
    """Its key stops at once, on the short road too."""
    await gate.engine()
    await gate.admit()
    product_id = gate.registry.by_slug["demo"].product.product_id
    await gate.admin("DELETE", f"/products/{product_id}")

    assert (await gate.admit()).status_code == 401


async def test_whoever_asks_about_the_lifespan_is_told_yes(gate: Gate) -> None:
    """Any ASGI server can run the application; starting and stopping is not its task."""
    call = Wire(gate.app, "GET", "/", {})
    call.scope["type"] = "lifespan"
    for message in ("lifespan.startup", "lifespan.shutdown"):
        call.incoming.put_nowait({"type": message})
    await call.app(call.scope, call.receive, call.send)

    sent = [call.sent.get_nowait()["type"] for _ in range(2)]
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
