"""The Docker Engine as typed calls; with `asking`, all that knows aiodocker.

Every call has a place in the budget and a deadline, in which the wait for the place counts.
Nothing but our own names and ids gets into a path. `None` and `False` mean that the Engine
itself said "there is none". Two clients keep pulls away from control calls; each event
stream has one of its own.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final, TypeVar

import aiohttp
import msgspec
from aiodocker import Docker, DockerError
from aiodocker.containers import DockerContainer
from aiodocker.networks import DockerNetwork
from aiodocker.volumes import DockerVolume

from enginegate.backends.base import Usage
from enginegate.backends.docker.answers import ExecState, Image, Listed, Network, Stats, Volumes
from enginegate.backends.docker.asking import (
    Ask,
    NeverSentError,
    RefusedError,
    absent_is_done,
    decoded,
    not_asked,
    translated,
)
from enginegate.backends.docker.budget import Budget, Priority
from enginegate.backends.docker.guard import (
    check_body,
    checked_container,
    checked_image,
    checked_network,
    checked_volume,
)
from enginegate.errors import BackendError

T = TypeVar("T")

log = logging.getLogger(__name__)

IN_FLIGHT: Final = 8  # more only queue inside the daemon
_STOPS_IN_FLIGHT: Final = 32  # a stop waits for an engine, not for the daemon
_SLOW_IN_FLIGHT: Final = 4
_PULLS_IN_FLIGHT: Final = 2
_PING_S: Final = 2.0
_ASK_S: Final = 10.0
_ACT_S: Final = 30.0
_STOP_EXTRA_S: Final = 15.0
_PULL_S: Final = 600.0
_TOLD_EVERY_S: Final = 5.0
_OUTPUT_MAX: Final = 1 << 20


class Daemon:
    """Calls to one Docker Engine. Knows nothing of engines but whom to name in errors."""

    def __init__(self, docker_host: str) -> None:
        self._docker_host = docker_host
        self._control: Docker | None = None
        self._puller: Docker | None = None
        self.budget = Budget(IN_FLIGHT)
        self._stops = asyncio.Semaphore(_STOPS_IN_FLIGHT)
        self._slow = asyncio.Semaphore(_SLOW_IN_FLIGHT)
        self._pulls = asyncio.Semaphore(_PULLS_IN_FLIGHT)

    def open(self) -> None:
        """Make the clients; they connect when they are used."""
        self._control = self._control or Docker(self._docker_host)
        self._puller = self._puller or Docker(self._docker_host)

    async def close(self) -> None:
        clients = (self._puller, self._control)
        self._control = self._puller = None
        for client in clients:
            if client is not None:
                await client.close()

    async def ping(self) -> bool:
        """Ask past the budget: a long queue is not a dead Engine."""
        ask = Ask("ping", None, Priority.PROBE)
        try:
            with translated(ask):
                async with asyncio.timeout(_PING_S):
                    await _get(_opened(self._control, ask), "/_ping")
        except BackendError:
            return False
        return True

    async def inspect(self, ask: Ask, name: str) -> object | None:
        checked_container(name)
        return await self._look(ask, lambda docker: docker.containers.container(name).show())

    async def listing(self, ask: Ask, *labels: str) -> list[Listed]:
        """Return every container with these labels, running or not."""
        filters = json.dumps({"label": labels})
        path = "/containers/json"
        raw = await self._read(
            ask, lambda docker: _get_versioned(docker, path, {"all": "true", "filters": filters})
        )
        return decoded(ask, raw, list[Listed])

    async def create(self, ask: Ask, name: str, body: dict[str, Any]) -> None:
        checked_container(name)
        check_body(body)
        await self._call(ask, _ACT_S, lambda docker: docker.containers.create(body, name=name))

    async def start(self, ask: Ask, container_id: str) -> None:
        await self._act(ask, _ACT_S, container_id, DockerContainer.start)

    async def pause(self, ask: Ask, container_id: str) -> None:
        await self._act(ask, _ASK_S, container_id, DockerContainer.pause)

    async def unpause(self, ask: Ask, container_id: str) -> None:
        await self._act(ask, _ASK_S, container_id, DockerContainer.unpause)

    async def stop(self, ask: Ask, container_id: str, grace_s: int) -> None:
        """Stop it. Keeps no place while the engine takes its time."""
        checked_container(container_id)
        with translated(ask):
            container = _opened(self._control, ask).containers.container(container_id)
            async with _deadline(ask, grace_s + _STOP_EXTRA_S), self._stops:
                await container.stop(t=grace_s)

    async def remove(self, ask: Ask, container_id: str) -> None:
        """Kill and remove it with its anonymous volumes; returns when it is gone."""

        def delete(container: DockerContainer) -> Awaitable[None]:
            return container.delete(force=True, v=True)

        def gone(container: DockerContainer) -> Awaitable[object]:
            return container.wait(condition="removed")

        try:
            await self._act(ask, _ACT_S, container_id, delete)
        except RefusedError as refusal:
            if refusal.status != HTTPStatus.CONFLICT:  # its removal is in progress
                raise
            with absent_is_done():
                await self._act(ask, _ACT_S, container_id, gone)

    async def put(self, ask: Ask, container_id: str, path: str, archive: bytes) -> None:
        """Unpack a tar archive into a container, running or not."""

        def put_archive(container: DockerContainer) -> Awaitable[object]:
            done: Awaitable[object] = container.put_archive(path, archive)  # type: ignore[no-untyped-call]
            return done

        await self._act(ask, _ASK_S, container_id, put_archive)

    async def run(
        self, ask: Ask, container_id: str, command: Sequence[str]
    ) -> tuple[int | None, str]:
        """Run a command in a running container, as its own user; return exit code and output."""
        output = bytearray()

        async def run(container: DockerContainer) -> object:
            process = await container.exec(command)
            async with process.start(detach=False) as stream:
                while (said := await stream.read_out()) is not None:
                    output.extend(said.data[: _OUTPUT_MAX - len(output)])
            return await process.inspect()

        answer = await self._act(ask, _ASK_S, container_id, run)
        with translated(ask):
            code = msgspec.convert(answer, ExecState).exit_code
        return code, output.decode(errors="replace")

    async def logs(self, ask: Ask, container_id: str, lines: int) -> str:
        pieces = await self._look(
            ask,
            lambda docker: docker.containers.container(container_id).log(
                stdout=True, stderr=True, tail=lines
            ),
        )
        return "".join(pieces or ())

    async def usage(self, ask: Ask, container_id: str) -> Usage | None:
        """Return what it has used, None if it is gone. Keeps no place: it may take a second."""
        path = f"/containers/{checked_container(container_id)}/stats"
        once = {"stream": "false", "one-shot": "true"}  # else it takes two
        try:
            with translated(ask):
                docker = _opened(self._control, ask)
                async with _deadline(ask, _ASK_S), self._slow:
                    raw = await _get_versioned(docker, path, once)
        except RefusedError as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        stats = decoded(ask, raw, Stats)
        interfaces = (stats.networks or {}).values()
        return Usage(
            cpu_s=stats.cpu_stats.cpu_usage.total_usage / 1e9,
            rx_bytes=sum(interface.rx_bytes for interface in interfaces),
            tx_bytes=sum(interface.tx_bytes for interface in interfaces),
        )

    async def image_user(self, ask: Ask, image: str) -> str | None:
        """Return the user an image runs as ("" is root), or None if it is not there."""
        checked_image(image)
        answer = await self._look(ask, lambda docker: docker.images.inspect(image))
        if answer is None:
            return None
        with translated(ask):
            found = msgspec.convert(answer, Image)
        return (found.config and found.config.user) or ""

    @asynccontextmanager
    async def pulling(self) -> AsyncIterator[None]:
        """Hold one of the places for pulls, which are few."""
        async with self._pulls:
            yield

    async def pull(self, ask: Ask, image: str) -> None:
        """Pull an image; the log tells now and then how far it is."""
        loop = asyncio.get_running_loop()
        told_at = loop.time()
        checked_image(image)
        log.info("pulling %s", image)
        with translated(ask):
            async with asyncio.timeout(_PULL_S):
                async for said in _opened(self._puller, ask).images.pull(image, stream=True):
                    if loop.time() >= told_at + _TOLD_EVERY_S:
                        told_at = loop.time()
                        layer, status = said.get("id", ""), said.get("status", "")
                        log.info("pulling %s: %s %s %s", image, layer, status, _progress(said))
        log.info("pulled %s", image)

    async def networks(self, ask: Ask, name: str) -> list[Network]:
        """Return the networks of that name: none, one, or more by mishap."""
        filters = json.dumps({"name": [name]})  # finds all names that contain it
        raw = await self._read(
            ask, lambda docker: _get_versioned(docker, "/networks", {"filters": filters})
        )
        return [found for found in decoded(ask, raw, list[Network]) if found.name == name]

    async def create_network(self, ask: Ask, body: dict[str, Any]) -> None:
        await self._call(ask, _ACT_S, lambda docker: docker.networks.create(body))

    async def remove_network(self, ask: Ask, network_id: str) -> None:
        def remove(docker: Docker) -> Awaitable[object]:
            network = DockerNetwork(docker, network_id)  # type: ignore[no-untyped-call]
            return network.delete()

        with absent_is_done():
            await self._call(ask, _ACT_S, remove)

    async def connect(self, ask: Ask, network: str, container_id: str) -> None:
        """Attach a container to a network again."""

        def connect(docker: Docker) -> Awaitable[object]:
            net = DockerNetwork(docker, checked_network(network))  # type: ignore[no-untyped-call]
            return net.connect({"Container": checked_container(container_id)})

        await self._call(ask, _ACT_S, connect)

    async def volume_exists(self, ask: Ask, name: str) -> bool:
        """Return whether the volume is there; it is absent when two answers say so."""
        path = f"/volumes/{checked_volume(name)}"
        if await self._look(ask, lambda docker: _get_versioned(docker, path)) is not None:
            return True
        filters = json.dumps({"name": [name]})
        raw = await self._read(
            ask, lambda docker: _get_versioned(docker, "/volumes", {"filters": filters})
        )
        if any(found.name == name for found in decoded(ask, raw, Volumes).volumes or ()):
            raise not_asked(ask, f"volume {name} is listed, but not found")
        return False

    async def create_volume(self, ask: Ask, name: str, labels: Mapping[str, str]) -> None:
        """Make a volume; one that is there already is left alone."""
        body = {"Name": checked_volume(name), "Labels": dict(labels)}

        def create(docker: Docker) -> Awaitable[object]:
            made: Awaitable[object] = docker.volumes.create(body)  # type: ignore[no-untyped-call]
            return made

        await self._call(ask, _ACT_S, create)

    async def remove_volume(self, ask: Ask, name: str) -> None:
        def remove(docker: Docker) -> Awaitable[object]:
            volume = DockerVolume(docker, checked_volume(name))  # type: ignore[no-untyped-call]
            done: Awaitable[object] = volume.delete()  # type: ignore[no-untyped-call]
            return done

        await self._call(ask, _ACT_S, remove)

    @asynccontextmanager
    async def events(
        self, ask: Ask, params: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open an event stream of JSON lines on a client of its own, without a read time-out."""
        with translated(ask):
            async with Docker(self._docker_host) as docker:
                async with asyncio.timeout(_ASK_S):
                    await docker.version()
                    response = await docker.session.get(
                        f"{docker.docker_host}/{docker.api_version}/events",
                        params=params,
                        timeout=aiohttp.ClientTimeout(total=None, sock_read=None),
                    )
                try:
                    if response.status != HTTPStatus.OK:
                        raise DockerError(response.status, "no event stream")
                    yield response
                finally:
                    response.close()

    async def _look(self, ask: Ask, call: Callable[[Docker], Awaitable[T]]) -> T | None:
        """Read one thing; None when the Engine says that there is no such thing."""
        try:
            return await self._read(ask, call)
        except RefusedError as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def _read(self, ask: Ask, call: Callable[[Docker], Awaitable[T]]) -> T:
        """Read; an Engine that fails at reading has told nothing."""
        try:
            return await self._call(ask, _ASK_S, call)
        except RefusedError as refusal:
            if refusal.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            raise BackendError(
                ask.operation, ask.engine_id, refusal.detail, unavailable=True
            ) from refusal

    async def _act(
        self,
        ask: Ask,
        timeout_s: float,
        container_id: str,
        act: Callable[[DockerContainer], Awaitable[T]],
    ) -> T:
        checked_container(container_id)
        return await self._call(
            ask, timeout_s, lambda docker: act(docker.containers.container(container_id))
        )

    async def _call(self, ask: Ask, timeout_s: float, call: Callable[[Docker], Awaitable[T]]) -> T:
        with translated(ask):
            async with _deadline(ask, timeout_s), self.budget.place(ask.priority):
                return await call(_opened(self._control, ask))


def _opened(client: Docker | None, ask: Ask) -> Docker:
    if client is None:
        raise NeverSentError(ask.operation, ask.engine_id, "not connected", unavailable=True)
    return client


def _deadline(ask: Ask, timeout_s: float) -> asyncio.Timeout:
    """Return the deadline of a call, and of its wait for a place: its own or its verb's."""
    return asyncio.timeout_at(min(asyncio.get_running_loop().time() + timeout_s, ask.until))


def _progress(said: Mapping[str, Any]) -> str:
    return str(said.get("progress", "")).partition("]")[2].strip()


async def _get_versioned(
    docker: Docker, path: str, params: Mapping[str, str] | None = None
) -> bytes:
    """Get what aiodocker has no typed call for, on its session and negotiated version."""
    if docker.api_version == "auto":
        await docker.version()
    return await _get(docker, f"/{docker.api_version}{path}", params)


async def _get(docker: Docker, path: str, params: Mapping[str, str] | None = None) -> bytes:
    async with docker.session.get(docker.docker_host + path, params=params) as response:
        body = await response.read()
    if response.status >= HTTPStatus.BAD_REQUEST:
        raise DockerError(response.status, body.decode(errors="replace"))
    return body
