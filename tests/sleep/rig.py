"""A real core on a real backend, in real time; only the journal is in memory."""

import asyncio
import base64
import os
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from enginegate.backends.docker import DockerBackend
from enginegate.backends.process import ProcessBackend
from enginegate.clock import SystemClock
from enginegate.config import Config, EngineSettings, Idle, Limits, Ports
from enginegate.probe import Probe
from enginegate.registry import LiveEngine
from tests.backends import image
from tests.docker.engine import remove_all
from tests.service.gate import Gate

FIRST_PORTS = range(20_000, 30_000, 200)


class Rig:
    """A gate with real engines; `pauses` counts the freezes of each."""

    def __init__(self, kind: str, folder: Path, idle: Idle) -> None:
        self.kind = kind
        self.probe = Probe()
        self.instance = f"sleep-{uuid.uuid4().hex[:12]}"
        first = random.choice(FIRST_PORTS)
        engine = EngineSettings(
            backend="docker" if kind == "docker" else "process",
            image=image.IMAGE if kind == "docker" else "",
            limits=Limits(memory="64m"),
        )
        self.config = Config(idle=idle, engine=engine, ports=Ports(min=first, max=first + 199))
        self.backend: Any = self._backend(folder)
        self.gate = Gate(
            config=self.config, clock=SystemClock(), backend=self.backend, probe=self.probe
        )
        self.pauses: Counter[str] = Counter()
        self.http = httpx.AsyncClient(trust_env=False, timeout=10)
        freeze = self.backend.pause

        async def pause(engine_id: str) -> None:
            self.pauses[engine_id] += 1
            await freeze(engine_id)

        self.backend.pause = pause

    def _backend(self, folder: Path) -> Any:
        if self.kind == "docker":
            return DockerBackend(
                instance=self.instance,
                network=self.instance,
                limits=self.config_limits,
                own_sources=lambda: self.probe.sources,
            )
        return ProcessBackend(
            data_dir=folder, instance=self.instance, own_sources=lambda: self.probe.sources
        )

    @property
    def config_limits(self) -> Limits:
        return self.config.engine.limits

    async def open(self) -> None:
        await self.backend.open()
        await self.gate.start()
        self.gate.run_loops()
        self.owner = await self.gate.product()

    async def close(self) -> None:
        engines = [*self.gate.registry.engines.values()]
        await asyncio.gather(
            *(self.gate.lifecycle.destroy(live, actor="acme") for live in engines),
            return_exceptions=True,
        )
        await self.gate.close()
        await self.http.aclose()
        await self.backend.close()
        await self.probe.close()
        if self.kind == "docker":
            await asyncio.to_thread(remove_all, f"enginegate.instance={self.instance}")

    async def admitted(self, user: str) -> LiveEngine:
        answer = await self.gate.admit(self.owner, user, auto_provision=True, auto_wake=True)
        return answer.live

    async def ready(self, user: str) -> None:
        """Have the user's engine run, whatever became of it before."""
        live = self.owner.engines.get(user)
        if live is not None and live.engine.status.value == "stopped":
            await self.gate.lifecycle.start(live, version=None, actor="acme")
        await self.admitted(user)

    async def presence(self, live: LiveEngine) -> str:
        return (await self.backend.inspect(live.engine.engine_id)).presence.value

    async def asleep(self, live: LiveEngine, *, within_s: float) -> bool:
        """Wait until the engine sleeps; whether it did in time."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            if live.engine.status.value == "sleeping":
                return True
            await asyncio.sleep(0.02)
        return False

    async def answers(self, live: LiveEngine, within_s: float = 1.0) -> bool:
        """Ask the engine itself; whether it answered in time."""
        try:
            async with asyncio.timeout(within_s):
                headers = {"x-engine-key": live.api_key, "connection": "close"}
                answer = await self.http.get(f"{live.url}/whoami", headers=headers)
        except (TimeoutError, httpx.HTTPError):
            return False
        return answer.status_code == httpx.codes.OK

    # What keeps an engine awake, each for some seconds

    async def stream(self, live: LiveEngine, seconds: float) -> None:
        """Read server-sent events of which `/health` says nothing."""
        url = f"{live.url}/stream?quiet=1&interval=0.5&seconds={seconds}"
        async with self.http.stream("GET", url, headers={"x-engine-key": live.api_key}) as answer:
            async for _ in answer.aiter_raw():
                pass

    async def websocket(self, live: LiveEngine, seconds: float) -> None:
        """Keep a websocket open, on which nothing is said."""
        host, port = live.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        nonce = base64.b64encode(os.urandom(16)).decode()
        lines = [
            "GET /socket?quiet=1 HTTP/1.1",
            f"host: {host}",
            "connection: Upgrade",
            "upgrade: websocket",
            "sec-websocket-version: 13",
            f"sec-websocket-key: {nonce}",
            f"x-engine-key: {live.api_key}",
            "",
            "",
        ]
        writer.write("\r\n".join(lines).encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        await asyncio.sleep(seconds)
        writer.close()
        await writer.wait_closed()

    async def job(self, live: LiveEngine, seconds: float) -> None:
        """Let it work without a connection, and say nothing of it."""
        url = f"{live.url}/work?quiet=1&seconds={seconds}"
        headers = {"x-engine-key": live.api_key, "connection": "close"}
        assert (await self.http.post(url, headers=headers)).status_code == httpx.codes.ACCEPTED
        await asyncio.sleep(seconds - 0.1)

    async def busy(self, live: LiveEngine, seconds: float) -> None:
        """Let it say that it is busy, and do nothing."""
        for word in (True, False):
            headers = {"x-engine-key": live.api_key, "connection": "close"}
            said = await self.http.post(f"{live.url}/control", json={"busy": word}, headers=headers)
            assert said.status_code == httpx.codes.OK
            await asyncio.sleep(seconds * word)


@asynccontextmanager
async def rig(kind: str, folder: Path, **idle: Any) -> AsyncIterator[Rig]:
    """Have a rig; all its engines are gone at the end."""
    made = Rig(kind, folder, Idle(**idle))
    try:
        await made.open()
        yield made
    finally:
        await made.close()
