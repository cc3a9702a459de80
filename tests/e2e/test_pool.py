"""Engines booted in advance, with real processes: claimed once, never leaked, through kill -9."""

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from enginegate.cli.sandbox import free_ports
from tests.e2e.conftest import PATIENCE_S, Server, engine_processes, eventually

PORTS = 120
ROUNDS = 6


@pytest.fixture
def pooled(tmp_path: Path) -> Iterator[Server]:
    """A server with a pool of ten, filled."""
    first = free_ports(PORTS)
    server = Server(
        tmp_path,
        "[pool]\nsize = 10\n",
        ENGINEGATE_PORTS__MIN=str(first),
        ENGINEGATE_PORTS__MAX=str(first + PORTS - 1),
    )
    server.start()
    filled(server)
    yield server
    server.stop(signal.SIGKILL)
    for pid in engine_processes(tmp_path).values():
        os.killpg(pid, signal.SIGKILL)


def status(server: Server) -> dict[str, Any]:
    answer = httpx.get(f"{server.url}/status", headers={"X-Admin-Key": server.admin_key})
    found: dict[str, Any] = answer.json()
    return found


def filled(server: Server) -> dict[str, Any]:
    """Wait until the pool is full and nothing of it is at work."""

    def full() -> dict[str, Any] | None:
        seen = status(server)
        pool = seen["pool"]
        return seen if pool["ready"] == pool["size"] and not pool["booting"] else None

    found: dict[str, Any] = eventually(full, "the pool is full", seconds=2 * PATIENCE_S)
    return found


def agree(server: Server) -> None:
    """Every process and every data directory is a user's or the pool's."""
    expected = filled(server)["total"] + 10
    eventually(
        lambda: len(engine_processes(server.directory)) == expected, "no process is left over"
    )
    directories = [*(server.directory / "data" / "engines").iterdir()]
    assert len(directories) == expected


async def claim(server: Server, key: str, users: list[str]) -> dict[str, dict[str, Any]]:
    """Admit all of them at once; return the engines of those that were answered."""
    headers, found = {"X-Platform-Key": key}, {}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as http:

        async def admit(user: str) -> None:
            body = {"auto_provision": True}
            try:
                answer = (await http.post(f"/engines/{user}/admit", json=body)).json()
            except (httpx.HTTPError, ValueError):
                return  # the server died: it may have happened or not
            if answer.get("admitted"):
                found[user] = answer["engine"]

        await asyncio.gather(*map(admit, users))
    return found


def test_twenty_users_at_once_on_a_pool_of_ten(pooled: Server) -> None:
    """Each gets an engine of his own, ten of them at once; then the pool is full again."""
    key = pooled.cli.json("products", "register", "demo")["platform_api_key"]
    spares = set(engine_processes(pooled.directory))
    found = asyncio.run(claim(pooled, key, [f"user{n}" for n in range(20)]))
    ids = {engine["engine_id"] for engine in found.values()}
    assert (len(found), len(ids)) == (20, 20)
    assert spares <= ids, "whoever was booted was not booted again"
    assert len({engine["url"] for engine in found.values()}) == 20
    agree(pooled)


def test_no_kill_gives_a_spare_twice_or_leaks_one(pooled: Server) -> None:
    """Kill -9 in the middle of claims and of the refill that follows them, some rounds."""
    key = pooled.cli.json("products", "register", "demo")["platform_api_key"]
    dice, answered = random.Random(5), {}
    for number in range(ROUNDS):

        async def one_round(number: int = number) -> dict[str, dict[str, Any]]:
            claims = asyncio.create_task(
                claim(pooled, key, [f"user{number}-{n}" for n in range(5)])
            )
            await asyncio.sleep(dice.uniform(0.0, 0.3))
            pooled.process.send_signal(signal.SIGKILL)
            return await claims

        answered |= asyncio.run(one_round())
        pooled.process.wait(10)
        pooled.start()
    agree(pooled)
    headers = {"X-Platform-Key": key}
    with httpx.Client(base_url=pooled.url, headers=headers, timeout=30) as http:
        rows = http.get("/engines", params={"limit": 1000}).json()["engines"]
        assert len({row["engine_id"] for row in rows}) == len(rows)
        assert len({row["url"] for row in rows}) == len(rows)
        for user, engine in answered.items():
            row = http.get(f"/engines/{user}").json()
            same = ("engine_id", "url", "api_key", "status")
            assert [row[name] for name in same] == [engine[name] for name in same]
