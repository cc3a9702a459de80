"""Many at once, and some who do not stay, over real HTTP against real engines."""

import asyncio
import socket
from typing import Any

import httpx

from tests.e2e.conftest import eventually

PROVISION = {"auto_provision": True}


async def at_once(server: Any, key: str, users: list[str]) -> list[httpx.Response]:
    headers = {"X-Platform-Key": key}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=server.url, headers=headers, timeout=60, limits=limits
    ) as http:
        return list(
            await asyncio.gather(
                *(http.post(f"/engines/{user}/admit", json=PROVISION) for user in users)
            )
        )


def test_sixty_admits_of_one_new_user_make_one_engine(own_server: Any) -> None:
    """All sixty get the same engine and key."""
    made = own_server.cli.json("products", "register", "demo")
    answers = asyncio.run(at_once(own_server, made["platform_api_key"], ["ann"] * 60))
    assert {answer.status_code for answer in answers} == {200}
    engines = [answer.json()["engine"] for answer in answers]
    assert len({(engine["engine_id"], engine["api_key"]) for engine in engines}) == 1
    assert len(list((own_server.directory / "data" / "run").iterdir())) == 1


def test_twelve_users_against_a_quota_of_three_make_three(own_server: Any) -> None:
    """Exactly three, the rest hear QUOTA_EXCEEDED."""
    made = own_server.cli.json("products", "register", "demo", "--max-engines", "3")
    users = [f"user{n}" for n in range(12)]
    answers = asyncio.run(at_once(own_server, made["platform_api_key"], users))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200] * 3 + [429] * 9
    refused = {a.json()["error"]["code"] for a in answers if a.status_code == 429}
    assert refused == {"QUOTA_EXCEEDED"}


def test_a_client_that_hangs_up_mid_boot_cancels_nothing(own_server: Any) -> None:
    """The engine comes all the same, and the log has no exception that nobody looked at."""
    made = own_server.cli.json("products", "register", "demo")
    key = made["platform_api_key"]
    url = httpx.URL(own_server.url)
    with socket.create_connection((url.host, url.port)) as client:
        client.sendall(
            b"POST /engines/ann/admit HTTP/1.1\r\nHost: x\r\nX-Platform-Key: "
            + key.encode()
            + b'\r\nContent-Length: 23\r\n\r\n{"auto_provision":true}'
        )
    with httpx.Client(headers={"X-Platform-Key": key}, timeout=30) as http:

        def running() -> bool:
            answer = http.get(f"{own_server.url}/engines/ann")
            return answer.status_code == 200 and answer.json()["status"] == "running"

        eventually(running, "the boot went on")
    assert own_server.stop() == 0
    assert "never retrieved" not in own_server.log
    assert "Traceback" not in own_server.log
    own_server.start()
