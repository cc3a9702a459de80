"""What other hands can do to a container, in every state of its engine: all is put right.

Two servers stand the same test at the same time: one hears Docker's events, the other
is hung up on whenever it asks for them, and has only its own comparing to go by.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from enginegate.backends.docker.container import container_name
from tests.docker.engine import SOCKET
from tests.docker.gate import DockerGate, admit, audit, call, row, volume_name
from tests.docker.wire import Wire

pytestmark = pytest.mark.docker

RIGHT_WITHIN_S = 35.0
POLL_S = 0.2

ACTIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "kill": (("kill", "{container}"),),
    "stop": (("stop", "-t", "5", "{container}"),),
    "rm": (("rm", "-f", "{container}"),),
    "pause": (("pause", "{container}"),),
    "unpause": (("unpause", "{container}"),),
    "disconnect": (("network", "disconnect", "{network}", "{container}"),),
    "start": (("start", "{container}"),),
    "lose": (("rm", "-f", "{container}"), ("volume", "rm", "{volume}")),
}

IMPOSSIBLE = {
    ("unpause", "running"): "Docker refuses: it is not paused",
    ("pause", "sleeping"): "Docker refuses: it is paused already",
    ("kill", "stopped"): "Docker refuses: it does not run",
    ("pause", "stopped"): "Docker refuses: it does not run",
    ("unpause", "stopped"): "Docker refuses: it is not paused",
    ("start", "running"): "Docker does nothing: it runs",
    ("start", "sleeping"): "Docker refuses: it is paused, not stopped",
}


@dataclass(frozen=True, kw_only=True)
class Right:
    """The right end: state of row and container, lives of the volume, and what the trail says.

    `docker` is what `docker inspect` says, empty where there is no container.
    """

    status: str
    docker: str
    boots: int | None
    audited: tuple[str, ...] = ()


BACK = ("health_failed", "auto_restart_success")
LOST = ("health_failed", "auto_restart_gave_up")

ROWS: dict[tuple[str, str], Right] = {
    ("kill", "running"): Right(status="running", docker="running", boots=2, audited=BACK),
    ("stop", "running"): Right(status="running", docker="running", boots=2, audited=BACK),
    ("rm", "running"): Right(status="running", docker="running", boots=2, audited=BACK),
    ("pause", "running"): Right(
        status="running", docker="running", boots=1, audited=("recovered",)
    ),
    ("disconnect", "running"): Right(
        status="running", docker="running", boots=1, audited=("recovered",)
    ),
    ("lose", "running"): Right(
        status="failed",
        docker="",
        boots=None,
        audited=LOST,
    ),
    # Asleep an engine is frozen or stopped: it stays as it was found until it is woken.
    ("kill", "sleeping"): Right(status="sleeping", docker="exited", boots=2, audited=("adopt",)),
    ("stop", "sleeping"): Right(status="sleeping", docker="exited", boots=2, audited=("adopt",)),
    ("rm", "sleeping"): Right(status="sleeping", docker="", boots=2, audited=("adopt",)),
    ("unpause", "sleeping"): Right(
        status="sleeping", docker="paused", boots=1, audited=("recovered",)
    ),
    ("disconnect", "sleeping"): Right(
        status="sleeping", docker="paused", boots=1, audited=("recovered",)
    ),
    ("lose", "sleeping"): Right(status="failed", docker="", boots=None, audited=LOST),
    ("stop", "stopped"): Right(status="stopped", docker="exited", boots=2),
    ("rm", "stopped"): Right(status="stopped", docker="", boots=2),
    ("disconnect", "stopped"): Right(
        status="stopped", docker="exited", boots=2, audited=("recovered",)
    ),
    ("start", "stopped"): Right(status="stopped", docker="exited", boots=3, audited=("recovered",)),
    ("lose", "stopped"): Right(status="failed", docker="", boots=None, audited=LOST),
}


def test_the_table_is_complete() -> None:
    """Every action meets every state, or is named as impossible with the reason."""
    every = {(action, state) for action in ACTIONS for state in ("running", "sleeping", "stopped")}
    assert ROWS.keys() | IMPOSSIBLE.keys() == every
    assert not ROWS.keys() & IMPOSSIBLE.keys()


class Row:
    """One engine of the table, from its making to the check at the end."""

    def __init__(self, gate: DockerGate, http: httpx.AsyncClient, action: str, state: str) -> None:
        self.gate, self.http = gate, http
        self.action, self.state = action, state
        self.right = ROWS[action, state]
        self.user = f"{action}-{state}"
        self.engine: dict[str, Any] = {}

    async def prepare(self) -> None:
        self.engine = (await admit(self.http, self.user))["engine"]
        if self.state != "running":
            await call(self.http, self.user, {"sleeping": "sleep", "stopped": "stop"}[self.state])

    async def act(self) -> None:
        """Do it behind enginegate's back."""
        names = {
            "container": container_name(self.engine["engine_id"]),
            "network": self.gate.network,
            "volume": volume_name(self.engine["engine_id"]),
        }
        for words in ACTIONS[self.action]:
            await self.gate.ask_docker(*(word.format(**names) for word in words))

    async def as_found(self) -> str:
        """Return what differs from the right end, empty when nothing does."""
        now = await row(self.http, self.user)
        if now["status"] != self.right.status:
            return f"the row is {now['status']}"
        entries = await audit(self.http, self.user)
        missing = [one for one in self.right.audited if one not in [e["action"] for e in entries]]
        if missing:
            return f"the audit trail lacks {missing}"
        found = await self.container_status()
        if found != self.right.docker:
            return f"the container is {found or 'absent'}"
        if self.right.status == "running" and not await self.boots(now["url"]):
            return "the engine does not answer"
        return ""

    async def container_status(self) -> str:
        name = f"name=^/{container_name(self.engine['engine_id'])}$"
        return await self.gate.ask_docker("ps", "-a", "--filter", name, "--format", "{{.State}}")

    async def boots(self, url: str) -> int | None:
        """Return how many lives the engine's volume has seen, None if it does not answer."""
        try:
            answer = await self.http.get(f"{url}/health", timeout=2)
        except httpx.TransportError:
            return None
        return int(answer.json()["boots"])

    async def until_right(self) -> float:
        """Wait until all is right; return after how many seconds it was."""
        began = time.monotonic()
        while wrong := await self.as_found():
            waited_s = time.monotonic() - began
            assert waited_s < RIGHT_WITHIN_S, f"{self.user}: {wrong} after {waited_s:.0f} s"
            await asyncio.sleep(POLL_S)
        return time.monotonic() - began

    async def check_service(self) -> None:
        """Whoever comes now gets the engine on its own data, or hears that they are lost."""
        if self.right.boots is None:
            await self._check_loss()
            return
        if self.right.status == "stopped":
            await call(self.http, self.user, "start")
        engine = (await admit(self.http, self.user, auto_provision=False))["engine"]
        assert await self.boots(engine["url"]) == self.right.boots, self.user

    async def _check_loss(self) -> None:
        """A lost volume is not replaced by an empty one: not by us, and not on request."""
        answer = await self.http.post(f"/engines/{self.user}/start", json={})
        assert answer.status_code == 502, answer.text
        assert volume_name(self.engine["engine_id"]) in answer.json()["error"]["message"]
        assert volume_name(self.engine["engine_id"]) not in self.gate.volumes()
        gone = await self.http.delete(f"/engines/{self.user}")
        assert gone.status_code == 200, gone.text


@pytest.fixture
async def gates(tiny_image: str, tmp_path: Path) -> AsyncIterator[tuple[DockerGate, DockerGate]]:
    """Two servers: one that hears Docker's events, one that does not."""
    blind = Wire(tmp_path / "blind.sock", SOCKET, events=False)
    made = []
    for name, host in (("hears", None), ("blind", blind.url)):
        (tmp_path / name).mkdir()
        made.append(DockerGate(tmp_path / name, host=host))
    try:
        await each(made, lambda gate: asyncio.to_thread(gate.start))
        yield made[0], made[1]
        assert blind.requests[_events(blind)] > 1, "it never asked again for the events"
    finally:
        await each(made, lambda gate: asyncio.to_thread(gate.close))
        blind.close()


def _events(wire: Wire) -> tuple[str, str]:
    return next(asked for asked in wire.requests if asked[1].endswith("/events"))


async def each(things: list[Any], do: Callable[[Any], Awaitable[Any]]) -> list[Any]:
    return list(await asyncio.gather(*map(do, things)))


async def test_whatever_is_done_behind_our_back_is_put_right(
    gates: tuple[DockerGate, DockerGate], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every possible row of the table ends in the right state within 35 s, events or not."""
    async with gates[0].http() as hearing, gates[1].http() as blind:
        rows = [
            Row(gate, http, *which)
            for gate, http in zip(gates, (hearing, blind), strict=True)
            for which in ROWS
        ]
        await each(rows, lambda one: one.prepare())
        await each(rows, lambda one: one.act())
        ends = await asyncio.gather(*(one.until_right() for one in rows), return_exceptions=True)
        wrong = [
            f"{one.gate.directory.name} {end}"
            for one, end in zip(rows, ends, strict=True)
            if isinstance(end, BaseException)
        ]
        with capsys.disabled():
            report(rows, ends)
        assert wrong == []
        await each(rows, lambda one: one.check_service())


def report(rows: list[Row], ends: list[Any]) -> None:
    print()
    for one, end in zip(rows, ends, strict=True):
        took = f"{end:5.1f} s" if isinstance(end, float) else f"WRONG: {end}"
        print(f"  {one.gate.directory.name:6} {one.action:10} x {one.state:8} {took}")
