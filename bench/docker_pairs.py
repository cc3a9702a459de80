"""Wake and provision beside the least that Docker itself takes for them, in interleaved pairs.

The raw side is what nobody can do without: unpause and one probe for a wake; volume,
create, start and the first good probe for a provision. Both sides use aiodocker and
aiohttp over kept connections, and take turns at going first. The raw containers bear
none of our labels and have the same limits, mounts and network as ours.
"""

import asyncio
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Any

import aiohttp
from aiodocker import Docker
from msgspec import Struct

from enginegate.backends.docker.container import ContainerSpec, create_body, volume_name
from enginegate.config import Limits

PROBE_EVERY_S = 0.002
PROBES_S = 30.0
CALL_S = 90.0


class Pair(Struct, frozen=True):
    """How long the same took through enginegate and by hand, in milliseconds."""

    ours_ms: float
    raw_ms: float


class Pairs(Struct, frozen=True):
    """What was measured, and its medians."""

    what: str
    pairs: list[Pair]

    @property
    def ours_p50_ms(self) -> float:
        return statistics.median(pair.ours_ms for pair in self.pairs)

    @property
    def raw_p50_ms(self) -> float:
        return statistics.median(pair.raw_ms for pair in self.pairs)

    @property
    def ratio(self) -> float:
        return self.ours_p50_ms / self.raw_p50_ms

    def __str__(self) -> str:
        return (
            f"{self.what}: p50 of {len(self.pairs)} pairs {self.ours_p50_ms:.1f} ms, "
            f"raw {self.raw_p50_ms:.1f} ms, ratio {self.ratio:.2f}, "
            f"{self.ours_p50_ms - self.raw_p50_ms:+.1f} ms"
        )


class Target(Struct, frozen=True, kw_only=True):
    """An enginegate with the docker backend, and what its containers are made from."""

    url: str
    platform_key: str
    image: str
    network: str
    memory: str
    raw_port: int


class Gate:
    """The product's side: enginegate over one kept connection."""

    def __init__(self, target: Target, http: aiohttp.ClientSession) -> None:
        self._target, self._http = target, http

    async def admit(self, user: str) -> str:
        """Admit a user, making or waking the engine; return its url."""
        answer = await self._call("POST", f"{user}/admit", auto_provision=True, auto_wake=True)
        return str(answer["engine"]["url"])

    async def sleep(self, user: str) -> None:
        await self._call("POST", f"{user}/sleep", force=True)

    async def destroy(self, user: str) -> None:
        await self._call("DELETE", user)

    async def _call(self, method: str, path: str, **body: object) -> Any:
        headers = {"X-Platform-Key": self._target.platform_key}
        url = f"{self._target.url}/engines/{path}"
        async with self._http.request(method, url, json=body, headers=headers) as answer:
            told = await answer.json()
        if answer.status != HTTPStatus.OK:
            raise RuntimeError(f"{method} {path}: {told}")
        return told


class Raw:
    """The same by hand, on a container without labels."""

    def __init__(self, target: Target, http: aiohttp.ClientSession, docker: Docker) -> None:
        self._http, self._docker = http, docker
        self._engine_id = str(uuid.uuid4())
        self._url = f"http://127.0.0.1:{target.raw_port}/health"
        body = create_body(
            ContainerSpec(
                engine_id=self._engine_id,
                instance="raw",
                image=target.image,
                port=target.raw_port,
                key_hash="0" * 64,
                container_port=8000,
                publish_address="127.0.0.1",
                network=target.network,
                limits=Limits(memory=target.memory),
            )
        )
        self._body = body | {"Labels": {}}

    async def provision(self) -> None:
        await self._docker.volumes.create({"Name": volume_name(self._engine_id)})  # type: ignore[no-untyped-call]
        self._container = await self._docker.containers.create(self._body)
        await self._container.start()
        async with asyncio.timeout(PROBES_S):
            while not await self._probe():  # noqa: ASYNC110 - Docker tells nobody of health
                await asyncio.sleep(PROBE_EVERY_S)

    async def pause(self) -> None:
        await self._container.pause()

    async def wake(self) -> None:
        await self._container.unpause()
        if not await self._probe():
            raise RuntimeError("the raw container does not answer after its unpause")

    async def destroy(self) -> None:
        await self._container.delete(force=True)
        volume = await self._docker.volumes.get(volume_name(self._engine_id))  # type: ignore[no-untyped-call]
        await volume.delete()

    async def _probe(self) -> bool:
        try:
            async with self._http.get(self._url) as answer:
                return answer.status == HTTPStatus.OK and bool(await answer.read())
        except aiohttp.ClientError:
            return False


async def wakes(target: Target, *, pairs: int) -> Pairs:
    """Wake a frozen engine by admit, and a frozen container by unpause and one probe."""
    async with _sides(target) as (gate, raw):
        user = f"wake-{uuid.uuid4().hex[:8]}"
        await gate.admit(user)  # the first one makes the network
        await raw.provision()
        try:
            found = []
            for number in range(-1, pairs):  # the first one warms both up
                await gate.sleep(user)
                await raw.pause()
                pair = await _pair(partial(gate.admit, user), raw.wake, turn=number)
                found += [pair] if number >= 0 else []
        finally:
            await asyncio.gather(gate.destroy(user), raw.destroy())
    return Pairs("wake by admit", found)


async def provisions(target: Target, *, pairs: int) -> Pairs:
    """Make an engine by admit, and a container by volume, create, start and first good probe."""
    async with _sides(target) as (gate, raw):
        found = []
        for number in range(-1, pairs):
            user = f"new-{uuid.uuid4().hex[:8]}"
            pair = await _pair(partial(gate.admit, user), raw.provision, turn=number)
            found += [pair] if number >= 0 else []
            await gate.destroy(user)
            await raw.destroy()
    return Pairs("provision by admit", found)


@asynccontextmanager
async def _sides(target: Target) -> AsyncIterator[tuple[Gate, Raw]]:
    timeout = aiohttp.ClientTimeout(total=CALL_S)
    async with aiohttp.ClientSession(timeout=timeout) as http, Docker() as docker:
        yield Gate(target, http), Raw(target, http, docker)


async def _pair(
    ours: Callable[[], Awaitable[object]], raw: Callable[[], Awaitable[object]], *, turn: int
) -> Pair:
    """Time both, one after the other; who goes first takes turns."""
    if turn % 2:
        return Pair(await _timed(ours), await _timed(raw))
    raw_ms = await _timed(raw)
    return Pair(await _timed(ours), raw_ms)


async def _timed(do: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await do()
    return (time.perf_counter() - began) * 1000
