"""Many at once, and some who do not stay, over real HTTP against real engines."""

import asyncio
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.conftest import Server, engine_processes, eventually, serving

PROVISION = {"auto_provision": True}


async def at_once(key: str, server: Server, users: list[str]) -> list[httpx.Response]:
    """Admit all users in the same moment, each over a connection of its own."""
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


def test_sixty_admits_of_one_new_user_make_one_engine(server: Server) -> None:
    """One engine, one process, and sixty answers that differ in nothing but the wait."""
    with server.product("sixty") as http:
        before = engine_processes(server.directory)
        answers = asyncio.run(at_once(http.headers["X-Platform-Key"], server, ["ann"] * 60))
        assert {answer.status_code for answer in answers} == {200}
        bodies: list[dict[str, Any]] = [answer.json() for answer in answers]
        assert all(body.pop("waited_ms") >= 0 for body in bodies)
        assert bodies == [bodies[0]] * 60
        assert (bodies[0]["admitted"], bodies[0]["action"]) == (True, "provisioned")
        made = engine_processes(server.directory).keys() - before.keys()
        assert made == {bodies[0]["engine"]["engine_id"]}
        assert http.get("/engines").json()["total"] == 1
        assert http.get("/metrics").json()["total_provisions"] == 1
        http.delete("/engines/ann")


def test_twelve_users_against_a_quota_of_three_make_three(server: Server) -> None:
    """Exactly three engines and processes; the rest hear QUOTA_EXCEEDED with the limit."""
    with server.product("twelve", max_engines=3) as http:
        before = engine_processes(server.directory)
        users = [f"user{n}" for n in range(12)]
        answers = asyncio.run(at_once(http.headers["X-Platform-Key"], server, users))
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 9
        errors = [answer.json()["error"] for answer in answers if answer.status_code == 429]
        assert {(error["code"], error["limit"]) for error in errors} == {("QUOTA_EXCEEDED", 3)}
        rows = http.get("/engines").json()
        assert rows["total"] == 3
        made = engine_processes(server.directory).keys() - before.keys()
        assert made == {row["engine_id"] for row in rows["engines"]}
        for row in rows["engines"]:
            http.delete(f"/engines/{row['user_id']}")


SLOW = "[engine]\nenv = {SAMPLE_BOOT_DELAY_S = '0.7'}\n"
CALLS = (
    ("/engines/ann/admit", '{"auto_provision":true}'),
    ("/engines/provision", '{"user_id":"bob"}'),
)


def test_clients_that_hang_up_mid_boot_cancel_nothing(tmp_path: Path) -> None:
    """The engines come all the same, and the log has no exception that nobody looked at."""
    with serving(tmp_path, SLOW) as server, server.product("leavers") as http:
        key, url = http.headers["X-Platform-Key"], httpx.URL(server.url)

        def states() -> list[str]:
            return [row["status"] for row in http.get("/engines").json()["engines"]]

        with ExitStack() as leaving:
            for road, body in CALLS:
                client = socket.create_connection((url.host, url.port or 80))
                leaving.enter_context(client).sendall(
                    f"POST {road} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
                    f"X-Platform-Key: {key}\r\n\r\n{body}".encode()
                )
            eventually(lambda: states() == ["provisioning"] * 2, "both boot")
        eventually(lambda: states() == ["running"] * 2, "the boots went on")
        assert server.stop() == 0
        assert "never retrieved" not in server.log
        assert "Traceback" not in server.log
        server.start()
