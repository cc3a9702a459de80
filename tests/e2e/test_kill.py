"""kill -9 of the server in the middle of everything: nothing that was answered is lost."""

import asyncio
import random
import signal
import time
from typing import Any

import httpx

from tests.e2e.conftest import engine_processes, eventually

ROUNDS = 20
CLIENTS = 8
SETTLED_WITHIN_S = 5.0
VERBS = ("admit", "stop", "start", "sleep", "rotate-key", "destroy")


async def call(http: httpx.AsyncClient, user: str, verb: str) -> tuple[str | None, str | None]:
    """Do the verb; return the state and the key that an answered change promises."""
    path = f"/engines/{user}"
    if verb == "destroy":
        answer = await http.delete(path)
        return ("gone" if answer.status_code in (200, 404) else None), None
    body = {"auto_provision": True, "auto_wake": True} if verb == "admit" else {}
    answer = await http.post(f"{path}/{verb}", json=body)
    told = answer.json()
    if answer.status_code != 200 or told.get("admitted") is False:
        return None, None
    if verb == "admit":
        return "running", told["engine"]["api_key"]
    if verb == "rotate-key":
        return "running", told["api_key"]
    return told["status"], None


async def client(http: httpx.AsyncClient, user: str, seed: int, known: dict[str, Any]) -> None:
    """Call verb after verb until the server dies; remember the last answer, forget on doubt."""
    dice = random.Random(seed)
    while True:
        verb = dice.choice(VERBS)
        before = known.pop(user, None)
        try:
            state, key = await call(http, user, verb)
        except (httpx.HTTPError, ValueError):
            return  # unknown: it may have happened or not
        if state is not None:
            key = key or (before[1] if before and state != "gone" else None)
            known[user] = (state, key)
        elif before is not None:
            known[user] = before  # refused: nothing changed


async def one_round(server: Any, key: str, number: int, known: dict[str, Any]) -> None:
    headers = {"X-Platform-Key": key}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30) as http:
        clients = [
            asyncio.create_task(client(http, f"user{n}", number * 100 + n, known))
            for n in range(CLIENTS)
        ]
        await asyncio.sleep(random.Random(number).uniform(0.05, 0.6))
        server.process.send_signal(signal.SIGKILL)
        await asyncio.gather(*clients)


async def agreed(http: httpx.AsyncClient, server: Any) -> dict[str, int]:
    """Return the processes once rows and processes agree; a stop that was cut is being finished."""
    until = time.monotonic() + SETTLED_WITHIN_S
    while True:
        rows = (await http.get("/engines", params={"limit": 1000})).json()["engines"]
        now = engine_processes(server.directory)
        assert set(now) <= {row["engine_id"] for row in rows}, "an engine process without a row"
        # A sleeper may be frozen or stopped.
        without = [r for r in rows if r["status"] == "running" and r["engine_id"] not in now]
        if not without:
            return now
        assert time.monotonic() < until, f"{without} without a process"
        await asyncio.sleep(0.02)


async def check(server: Any, key: str, known: dict[str, Any], before: dict[str, int]) -> None:
    headers = {"X-Platform-Key": key}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30) as http:
        for user, (state, engine_key) in known.items():
            answer = await http.get(f"/engines/{user}")
            if state == "gone":
                assert answer.status_code == 404, (user, answer.text)
                continue
            engine = answer.json()
            assert engine.get("status") == state, (user, state, engine)
            assert engine_key in (None, engine["api_key"])
        now = await agreed(http, server)
        for user, (state, _) in known.items():
            if state == "running":
                engine = (await http.get(f"/engines/{user}")).json()
                pid = before.get(engine["engine_id"])
                assert now[engine["engine_id"]] == pid, "restarted"
                probed = await http.get(
                    f"{engine['url']}/whoami", headers={"X-Engine-Key": engine["api_key"]}
                )
                assert probed.status_code == 200


def test_twenty_kills_under_mixed_verbs_lose_nothing(own_server: Any) -> None:
    """Answered changes are there, running engines were not restarted, rows and processes agree."""
    made = own_server.cli.json("products", "register", "demo", "--name", "Demo")
    key, known = made["platform_api_key"], {}
    for number in range(ROUNDS):
        asyncio.run(one_round(own_server, key, number, known))
        own_server.process.wait(10)
        survivors = engine_processes(own_server.directory)
        own_server.start()
        asyncio.run(check(own_server, key, known, survivors))


def test_a_terminated_server_leaves_its_engines_and_finds_them_again(own_server: Any) -> None:
    """SIGTERM ends with code 0; the next server adopts the engine as it is."""
    made = own_server.cli.json("products", "register", "demo", "--name", "Demo")
    headers = {"X-Platform-Key": made["platform_api_key"]}
    with httpx.Client(headers=headers, timeout=30) as http:
        body = {"auto_provision": True}
        first = http.post(f"{own_server.url}/engines/ann/admit", json=body).json()
        before = engine_processes(own_server.directory)
        assert own_server.stop() == 0
        assert engine_processes(own_server.directory) == before
        own_server.start()
        again = http.post(f"{own_server.url}/engines/ann/admit", json=body).json()
        assert again["engine"]["api_key"] == first["engine"]["api_key"]
        assert again["action"] == "none"
        assert engine_processes(own_server.directory) == before


def test_the_log_of_an_engine_is_bounded_while_the_server_runs(own_server: Any) -> None:
    """An engine that writes without end does not fill the disk."""
    made = own_server.cli.json("products", "register", "demo", "--name", "Demo")
    headers = {"X-Platform-Key": made["platform_api_key"]}
    body = {"auto_provision": True}
    httpx.post(f"{own_server.url}/engines/ann/admit", json=body, headers=headers, timeout=30)
    [log] = (own_server.directory / "data" / "logs").glob("*.log")
    with log.open("ab") as file:
        file.write(b"a line\n" * 1_000_000)
    eventually(lambda: log.stat().st_size < 1 << 20, "the log is cut")
