"""kill -9 of enginegate as each call of each verb leaves for Docker: the next one takes it up."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.docker.engine import SOCKET
from tests.docker.gate import DockerGate, admit, call, volume_name
from tests.docker.wire import Wire

pytestmark = pytest.mark.docker

SETTLED_WITHIN_S = 35.0
POLL_S = 0.05

STEPS = (
    ("provision", "POST", "/volumes/create"),
    ("provision", "POST", "/containers/create"),
    ("provision", "PUT", "/archive"),
    ("provision", "POST", "/start"),
    ("stop", "POST", "/stop"),
    ("start", "PUT", "/archive"),
    ("start", "POST", "/start"),
    ("sleep", "POST", "/pause"),
    ("wake", "POST", "/unpause"),
    ("rotate-key", "POST", "/stop"),
    ("rotate-key", "DELETE", "/containers/"),
    ("rotate-key", "POST", "/containers/create"),
    ("rotate-key", "PUT", "/archive"),
    ("rotate-key", "POST", "/start"),
    ("destroy", "DELETE", "/containers/"),
    ("destroy", "DELETE", "/volumes/"),
)


@pytest.fixture
async def killable(tiny_image: str, tmp_path: Path) -> AsyncIterator[tuple[DockerGate, Wire]]:
    wire = Wire(tmp_path / "docker.sock", SOCKET)
    gate = DockerGate(tmp_path, host=wire.url)
    try:
        await asyncio.to_thread(gate.start)
        yield gate, wire
    finally:
        await asyncio.to_thread(gate.close)
        wire.close()


async def made_ready(http: httpx.AsyncClient, user: str, verb: str) -> None:
    if verb == "provision":
        return
    await admit(http, user)
    if verb == "start":
        await call(http, user, "stop")
    elif verb == "wake":
        await call(http, user, "sleep")


async def asked(http: httpx.AsyncClient, user: str, verb: str) -> None:
    """Ask for the verb; whoever was to answer is killed meanwhile."""
    try:
        if verb in ("provision", "wake"):
            await admit(http, user)
        elif verb == "destroy":
            await http.delete(f"/engines/{user}")
        else:
            await http.post(
                f"/engines/{user}/{verb}", json={"force": True} if verb == "sleep" else {}
            )
    except httpx.TransportError:
        return


async def settled(http: httpx.AsyncClient, user: str) -> dict[str, Any] | None:
    """Return the row once nothing is half done any more; None once it is gone."""
    async with asyncio.timeout(SETTLED_WITHIN_S):
        while True:
            answer = await http.get(f"/engines/{user}")
            if answer.status_code == 404:
                return None
            found: dict[str, Any] = answer.json()
            if found["status"] not in ("provisioning", "destroying", "failed"):
                return found
            await asyncio.sleep(POLL_S)


async def test_a_kill_at_each_step_of_each_verb_is_taken_up(
    killable: tuple[DockerGate, Wire],
) -> None:
    """Adopted, finished or undone; nothing double, nothing left; who ran is not restarted."""
    gate, wire = killable
    async with gate.http() as http:
        witness = (await admit(http, "witness"))["engine"]["engine_id"]
        began = gate.inspected(witness)["State"]["StartedAt"]
        for number, (verb, method, path) in enumerate(STEPS):
            user = f"user-{number}"
            await made_ready(http, user, verb)
            killed = wire.once(method, path, gate.process.kill)
            await asked(http, user, verb)
            assert await asyncio.to_thread(killed.wait, 30), (verb, path)
            await asyncio.to_thread(gate.process.wait, 30)
            await asyncio.to_thread(gate.start)
            row = await settled(http, user)
            if verb == "destroy":
                assert row is None
            else:
                engine = (await admitted(http, user))["engine"]
                assert engine["engine_id"] == (row or engine)["engine_id"]
            assert gate.inspected(witness)["State"]["StartedAt"] == began, (verb, path)
        rows = (await http.get("/engines", params={"limit": 1000})).json()["engines"]
        ids = {row["engine_id"] for row in rows}
        there = gate.docker("ps", "-aq", "--filter", f"label={gate.label}").split()
        assert len(there) == len(ids)
        assert gate.volumes() == {volume_name(engine_id) for engine_id in ids}


async def admitted(http: httpx.AsyncClient, user: str) -> dict[str, Any]:
    """Bring the engine into service from wherever the kill left it; a restart takes seconds."""
    async with asyncio.timeout(SETTLED_WITHIN_S):
        while True:
            row = (await http.get(f"/engines/{user}")).json()
            if row.get("status") == "stopped":
                await call(http, user, "start")
            told = await admit(http, user)
            if told["admitted"]:
                return told
            await asyncio.sleep(POLL_S)
