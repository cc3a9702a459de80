"""What is refused as a request: bodies that are too large, malformed or misunderstood."""

import pytest

from enginegate.config import Server
from tests.api.conftest import OpenGate
from tests.api.rig import Gate, Wire, code

PROVISION = "/engines/provision"
ADMIT = "/engines/ann/admit"


async def send(gate: Gate, path: str, content: bytes) -> tuple[int, str]:
    """Send exactly these bytes; return status and code (or nothing)."""
    answer = await gate.client.post(path, content=content, headers={"X-Platform-Key": gate.key})
    return answer.status_code, "" if answer.is_success else code(answer)


@pytest.mark.parametrize("path", [PROVISION, ADMIT, "/engines/ann/stop"])
@pytest.mark.parametrize(
    "content",
    [
        b" ",
        b"null",
        b"[]",
        b'"x"',
        b"1",
        b"{",
        b"{}{}",
        b"\xff",
        b'{"user_id": "\xff"}',
        b'{"touch": "\xff"}',
        b'{"user_id": NaN}',
        b'{"user_id": "\\ud800"}',
        b"\xef\xbb\xbf{}",
        b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"[" * 60000,
        b'{"unknown": 1}',
    ],
)
async def test_what_is_not_the_asked_object_is_refused(
    gate: Gate, path: str, content: bytes
) -> None:
    """Malformed JSON, wrong encodings and unknown fields are told apart from our faults."""
    await gate.engine()

    assert await send(gate, path, content) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"{}", "user_id"),
        (b'{"user_id": 1}', "user_id"),
        (b'{"user_id": "a", "user_id": "b"}', "user_id"),
        (b'{"user_id": "a", "colour": 1}', "colour"),
        (b'{"user_id": "a", "engine_version": 2}', "engine_version"),
    ],
)
async def test_the_message_names_the_field(gate: Gate, content: bytes, named: str) -> None:
    """Whoever wrote the request finds the place without asking us."""
    headers = {"X-Platform-Key": gate.key}
    answer = await gate.client.post(PROVISION, content=content, headers=headers)

    assert code(answer) == "INVALID_REQUEST"
    assert named in answer.json()["error"]["message"]
    assert not gate.backend.world.engines


async def test_a_body_up_to_the_limit_is_read_and_one_byte_more_is_not(
    open_gate: OpenGate,
) -> None:
    """The limit is exact, on both roads to an admit."""
    async with open_gate(server=Server(max_body_bytes=300)) as gate:
        await gate.engine()
        for path in (ADMIT, "/engines/ann/touch"):
            assert await send(gate, path, b"{}" + b" " * 298) == (200, "")
            assert await send(gate, path, b"{}" + b" " * 299) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_body_without_a_length_is_cut_off_at_the_limit(open_gate: OpenGate) -> None:
    """In chunks it is refused as soon as it is too long; the rest is not read."""
    async with open_gate(server=Server(max_body_bytes=300)) as gate:
        await gate.engine()
        for path in (ADMIT, PROVISION):
            chunks = [b" " * 200] * 5
            call = Wire(gate.app, "POST", path, {"X-Platform-Key": gate.key}, *chunks)
            assert (await call.run())[0] == 413
            assert call.received == 2


async def test_a_length_that_is_too_large_is_refused_before_reading(gate: Gate) -> None:
    """Who announces too much need not send it."""
    headers = {"X-Platform-Key": gate.key, "Content-Length": "99999999"}
    call = Wire(gate.app, "POST", PROVISION, headers)

    assert (await call.run())[0] == 413
    assert call.received == 0


async def test_a_length_may_have_any_number_of_zeros_before_it(gate: Gate) -> None:
    """More than Python reads of a number, on the short road and on the other."""
    await gate.engine()
    headers = {"X-Platform-Key": gate.key, "Content-Length": "0" * 5000 + "2"}
    for path in (ADMIT, PROVISION):
        answer = await Wire(gate.app, "POST", path, headers, b"{}").run()
        assert answer[0] < 500


async def test_a_body_may_come_in_pieces(gate: Gate) -> None:
    """However the network cuts it, the request is the same."""
    await gate.engine()
    for path, body in ((ADMIT, b'{"touch": true}'), ("/engines/ann/sleep", b'{"force": true}')):
        pieces = [bytes([byte]) for byte in body]
        call = Wire(gate.app, "POST", path, {"X-Platform-Key": gate.key}, *pieces)
        assert (await call.run())[0] == 200


async def test_a_client_that_leaves_while_sending_gets_no_answer(gate: Gate) -> None:
    """Nobody is left to be told, and nothing has happened."""
    for path in (ADMIT, PROVISION):
        call = Wire(gate.app, "POST", path, {"X-Platform-Key": gate.key}, b"{", b"")
        call.incoming.get_nowait()
        call.leave()
        call.incoming.get_nowait()
        assert await call.run() == (0, b"")
    assert not gate.backend.world.engines


async def test_pieces_of_an_admit_are_put_together_for_the_short_road(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the network cuts it, an admit of a running engine stays on the short road."""
    await gate.engine()
    monkeypatch.setattr(gate.services.admission, "admit", None)  # the long road is closed
    call = Wire(gate.app, "POST", ADMIT, {"X-Platform-Key": gate.key}, b"{", b"}", b"")

    assert (await call.run())[0] == 200
    assert call.received == 3


async def test_unknown_parameters_of_a_query_are_passed_over(gate: Gate) -> None:
    """A monitor that adds a cache-breaker is served."""
    assert (await gate.get("/engines?_=1")).status_code == 200


@pytest.mark.parametrize(
    "user_id", ["%20", "a%20b", ".a", "%C3%A4", "a%0A", "a" * 129, "%FF", "a%2Fb", "%2f", "a%252Fb"]
)
@pytest.mark.parametrize("rest", ["", "/admit", "/start", "/activity"])
async def test_a_wrong_user_id_in_the_path_is_refused(gate: Gate, user_id: str, rest: str) -> None:
    """It is decoded first, and then it is the same check as in a body."""
    method = "POST" if rest in {"/admit", "/start"} else "GET"
    answer = await gate.call(method, f"/engines/{user_id}{rest}")

    assert (answer.status_code, code(answer)) == (400, "INVALID_REQUEST")


async def test_an_encoded_slash_does_not_divide_other_paths(gate: Gate) -> None:
    """What is no user id is no path either, not another one."""
    answer = await gate.post("/engines%2Fprovision", {"user_id": "ann"})

    assert (answer.status_code, code(answer)) == (404, "NOT_FOUND")
