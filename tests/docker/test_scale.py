"""Many engines on one host: all made, all asleep, a crowd woken, all gone again."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.docker.engine import docker, left_of
from tests.docker.gate import DockerGate, admit, call
from tests.docker.size import LONG

pytestmark = pytest.mark.docker

ENGINES = 300 if LONG else 30
WOKEN = 50 if LONG else 15
AT_ONCE = 16  # calls that the test itself has under way while it makes and destroys


@pytest.fixture
async def gate(tiny_image: str, tmp_path: Path) -> AsyncIterator[DockerGate]:
    settings = {"ENGINE__LIMITS__MEMORY": "16m", "ENGINE__WAKE_TIMEOUT_S": "30"}
    gate = DockerGate(tmp_path, settings=settings)
    await asyncio.to_thread(gate.start)
    yield gate
    await asyncio.to_thread(gate.close)


async def all_of(
    things: Iterable[str], do: Callable[[str], Awaitable[Any]], *, at_once: int = AT_ONCE
) -> list[float]:
    """Do it for each; return how long each took, in seconds."""
    places = asyncio.Semaphore(at_once)

    async def one(thing: str) -> float:
        async with places:
            began = time.monotonic()
            await do(thing)
            return time.monotonic() - began

    return list(await asyncio.gather(*map(one, things)))


async def states(gate: DockerGate) -> dict[str, int]:
    """Count the containers of this instance by state."""
    label = f"label={gate.label}"
    listed = await gate.ask_docker("ps", "-a", "--filter", label, "--format", "{{.State}}")
    found = listed.split()
    return {state: found.count(state) for state in set(found)}


async def test_a_fleet_is_made_put_to_sleep_woken_and_removed(
    gate: DockerGate, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every engine gets through its whole life, and nothing of any is left in Docker."""
    users = [f"user{n}" for n in range(ENGINES)]
    said = []

    async def step(name: str, doing: Awaitable[Any]) -> Any:
        began = time.monotonic()
        result = await doing
        said.append(f"{name} {time.monotonic() - began:.1f} s")
        return result

    async with gate.http() as http:
        await step(f"{ENGINES} provisioned", all_of(users, lambda user: admit(http, user)))
        assert await states(gate) == {"running": ENGINES}
        rows = (await http.get("/engines", params={"limit": 1000})).json()["engines"]
        assert len({row["url"] for row in rows}) == ENGINES

        await step("all asleep", all_of(users, lambda user: call(http, user, "sleep")))
        assert await states(gate) == {"paused": ENGINES}

        crowd = users[:WOKEN]
        took_s = await step(
            f"{WOKEN} woken at once",
            all_of(crowd, lambda user: admit(http, user), at_once=WOKEN),
        )
        said.append(f"the last one after {max(took_s):.2f} s")
        assert await states(gate) == {"paused": ENGINES - WOKEN, "running": WOKEN}

        await step("health sweep", swept(http, crowd))

        label = gate.label
        await step("all destroyed", all_of(users, lambda user: destroy(http, user)))
    assert left_of(label) == []
    assert published(rows) == []
    with capsys.disabled():
        print(f"\n  {', '.join(said)}")


async def swept(http: httpx.AsyncClient, users: list[str]) -> None:
    """Ask every one whether it is well, as a sweep does; nobody is found sick."""

    async def verify(user: str) -> None:
        told = await admit(http, user, verify=True, auto_wake=False, auto_provision=False)
        assert told["admitted"], told

    await all_of(users, verify, at_once=len(users))
    status = (await http.get("/status")).json()
    assert (status["by_status"]["running"], status["unhealthy_count"]) == (len(users), 0)


async def destroy(http: httpx.AsyncClient, user: str) -> None:
    answer = await http.delete(f"/engines/{user}")
    assert answer.status_code == 200, answer.text


def published(rows: list[dict[str, Any]]) -> list[str]:
    """Return the ports of these engines that Docker still publishes."""
    ports = {row["url"].rpartition(":")[2] for row in rows}
    shown = docker("ps", "-a", "--format", "{{.Ports}}")
    return [port for port in ports if f":{port}->" in shown]
