"""The Docker Engine as typed calls.

Every call has a place in the budget and a deadline. The wait for the place counts in it only
while the Engine answers nobody.
Nothing but our own names and ids gets into a path. `None` and `False` mean that the Engine
itself said "there is none". Two clients keep pulls away from control calls; each event
stream has one of its own.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import aiohttp
from aiodocker import Docker, DockerError

from enginegate.backends.base import Usage
from enginegate.backends.docker.answers import (
    Exec,
    ExecState,
    Image,
    Listed,
    Network,
    Stats,
    Volumes,
)
from enginegate.backends.docker.asking import (
    Ask,
    NeverSentError,
    RefusedError,
    absent_is_done,
    decoded,
    is_answer,
    not_asked,
    translated,
)
from enginegate.backends.docker.budget import Budget, Priority
from enginegate.backends.docker.guard import (
    check_body,
    checked_container,
    checked_exec,
    checked_image,
    checked_network,
    checked_volume,
)
from enginegate.backends.docker.sending import pulled, sent, spoken
from enginegate.errors import BackendError

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
        """Ask past the budget: a long queue is not a dead Engine, nor is one that is late.

        While others have their answers it is there, whatever became of ours.
        """
        ask = Ask("ping", None, Priority.PROBE)
        began = asyncio.get_running_loop().time()
        try:
            with translated(ask):
                async with asyncio.timeout(_PING_S):
                    await sent(_opened(self._control, ask), "GET", "/_ping", versioned=False)
        except BackendError:
            return self.budget.heard_at >= began
        return True

    async def inspect(self, ask: Ask, name: str) -> bytes | None:
        return await self._look(ask, at(name, "json"))

    async def listing(self, ask: Ask, *labels: str) -> list[Listed]:
        """Return every container with these labels, running or not."""
        filters = json.dumps({"label": labels})
        raw = await self._read(ask, "/containers/json", {"all": "true", "filters": filters})
        return decoded(ask, raw, list[Listed])

    async def create(self, ask: Ask, name: str, body: dict[str, Any]) -> None:
        check_body(body)
        named = {"name": checked_container(name)}
        await self._call(ask, _ACT_S, "POST", "/containers/create", params=named, body=body)

    async def start(self, ask: Ask, container_id: str) -> None:
        await self._do(ask, _ACT_S, "POST", at(container_id, "start"))

    async def pause(self, ask: Ask, container_id: str) -> None:
        await self._do(ask, _ASK_S, "POST", at(container_id, "pause"))

    async def unpause(self, ask: Ask, container_id: str) -> None:
        await self._do(ask, _ASK_S, "POST", at(container_id, "unpause"))

    async def stop(self, ask: Ask, container_id: str, grace_s: int) -> None:
        """Stop it. Keeps no place while the engine takes its time."""
        path = at(container_id, "stop")
        with translated(ask):
            async with self._stops, _deadline(ask, grace_s + _STOP_EXTRA_S):
                await sent(_opened(self._control, ask), "POST", path, {"t": str(grace_s)})

    async def remove(self, ask: Ask, container_id: str) -> None:
        """Kill and remove it with its anonymous volumes; returns when it is gone."""
        path = f"/containers/{checked_container(container_id)}"
        try:
            await self._do(ask, _ACT_S, "DELETE", path, params={"force": "true", "v": "true"})
        except RefusedError as refusal:
            if refusal.status != HTTPStatus.CONFLICT:  # its removal is in progress
                raise
            with absent_is_done():
                await self._call(
                    ask, _ACT_S, "POST", at(container_id, "wait"), params={"condition": "removed"}
                )

    async def put(self, ask: Ask, container_id: str, path: str, archive: bytes) -> None:
        """Unpack a tar archive into a container, running or not."""
        path_of = at(container_id, "archive")
        await self._do(ask, _ASK_S, "PUT", path_of, params={"path": path}, body=archive)

    async def run(
        self, ask: Ask, container_id: str, command: Sequence[str]
    ) -> tuple[int | None, str]:
        """Run a command in a running container, as its own user; return exit code and output."""
        wanted = {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True}
        answer = await self._call(ask, _ASK_S, "POST", at(container_id, "exec"), body=wanted)
        here = f"/exec/{checked_exec(decoded(ask, answer, Exec).id)}"
        said = await self._call(
            ask, _ASK_S, "POST", f"{here}/start", body={"Detach": False, "Tty": False}
        )
        ended = decoded(ask, await self._read(ask, f"{here}/json"), ExecState)
        return ended.exit_code, spoken(said)

    async def logs(self, ask: Ask, container_id: str, lines: int) -> str:
        path = at(container_id, "logs")
        wanted = {"stdout": "true", "stderr": "true", "tail": str(lines)}
        return spoken(await self._look(ask, path, wanted) or b"")

    async def usage(self, ask: Ask, container_id: str) -> Usage | None:
        """Return what it has used, None if it is gone. Keeps no place: it may take a second."""
        path = at(container_id, "stats")
        once = {"stream": "false", "one-shot": "true"}  # else it takes two
        try:
            with translated(ask):
                docker = _opened(self._control, ask)
                async with _deadline(ask, _ASK_S), self._slow:
                    raw = await sent(docker, "GET", path, once)
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
        answer = await self._look(ask, f"/images/{checked_image(image)}/json")
        if answer is None:
            return None
        found = decoded(ask, answer, Image)
        return (found.config and found.config.user) or ""

    @asynccontextmanager
    async def pulling(self) -> AsyncIterator[None]:
        """Hold one of the places for pulls, which are few."""
        async with self._pulls:
            yield

    async def pull(self, ask: Ask, image: str) -> None:
        """Pull an image; the log tells now and then how far it is."""
        checked_image(image)
        loop = asyncio.get_running_loop()
        told_at = loop.time()
        log.info("pulling %s", image)
        with translated(ask):
            async with asyncio.timeout(_PULL_S):
                async for said in pulled(_opened(self._puller, ask), image):
                    if loop.time() >= told_at + _TOLD_EVERY_S:
                        told_at = loop.time()
                        log.info("pulling %s: %s %s %s", image, said.id, said.status, said.progress)
        log.info("pulled %s", image)

    async def networks(self, ask: Ask, name: str) -> list[Network]:
        """Return the networks of that name: none, one, or more by mishap."""
        filters = json.dumps({"name": [name]})  # finds all names that contain it
        raw = await self._read(ask, "/networks", {"filters": filters})
        return [found for found in decoded(ask, raw, list[Network]) if found.name == name]

    async def create_network(self, ask: Ask, body: dict[str, Any]) -> None:
        await self._call(ask, _ACT_S, "POST", "/networks/create", body=body)

    async def remove_network(self, ask: Ask, network_id: str) -> None:
        with absent_is_done():
            await self._do(ask, _ACT_S, "DELETE", f"/networks/{checked_network(network_id)}")

    async def connect(self, ask: Ask, network: str, container_id: str) -> None:
        """Attach a container to a network again."""
        path = f"/networks/{checked_network(network)}/connect"
        await self._do(
            ask, _ACT_S, "POST", path, body={"Container": checked_container(container_id)}
        )

    async def volume_exists(self, ask: Ask, name: str) -> bool:
        """Return whether the volume is there; it is absent when two answers say so."""
        if await self._look(ask, f"/volumes/{checked_volume(name)}") is not None:
            return True
        filters = json.dumps({"name": [name]})
        raw = await self._read(ask, "/volumes", {"filters": filters})
        if any(found.name == name for found in decoded(ask, raw, Volumes).volumes or ()):
            raise not_asked(ask, f"volume {name} is listed, but not found")
        return False

    async def create_volume(self, ask: Ask, name: str, labels: Mapping[str, str]) -> None:
        """Make a volume; one that is there already is left alone."""
        body = {"Name": checked_volume(name), "Labels": dict(labels)}
        await self._call(ask, _ACT_S, "POST", "/volumes/create", body=body)

    async def remove_volume(self, ask: Ask, name: str) -> None:
        await self._do(ask, _ACT_S, "DELETE", f"/volumes/{checked_volume(name)}")

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

    async def _look(
        self, ask: Ask, path: str, params: Mapping[str, str] | None = None
    ) -> bytes | None:
        """Read one thing; None when the Engine says that there is no such thing."""
        try:
            return await self._read(ask, path, params)
        except RefusedError as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def _read(self, ask: Ask, path: str, params: Mapping[str, str] | None = None) -> bytes:
        """Read; an Engine that fails at reading has told nothing."""
        try:
            return await self._call(ask, _ASK_S, "GET", path, params=params)
        except RefusedError as refusal:
            if refusal.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            raise not_asked(ask, refusal.detail) from refusal

    async def _do(
        self,
        ask: Ask,
        timeout_s: float,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
    ) -> None:
        """Make a call whose answer has nothing to say; if it says something, who knows what."""
        if await self._call(ask, timeout_s, method, path, params=params, body=body):
            raise not_asked(ask, "an answer where none was expected")

    async def _call(
        self,
        ask: Ask,
        timeout_s: float,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
    ) -> bytes:
        with translated(ask):
            place = self.budget.place(ask.priority, patience_s=timeout_s, until=ask.until)
            async with place as since, asyncio.timeout_at(min(since + timeout_s, ask.until)):
                try:
                    answer = await sent(_opened(self._control, ask), method, path, params, body)
                except DockerError as error:
                    if is_answer(error):
                        self.budget.heard()
                    raise
                self.budget.heard()
                return answer


def at(name: str, what: str) -> str:
    """Return the path of something about a container."""
    return f"/containers/{checked_container(name)}/{what}"


def _opened(client: Docker | None, ask: Ask) -> Docker:
    if client is None:
        raise NeverSentError(ask.operation, ask.engine_id, "not connected", unavailable=True)
    return client


def _deadline(ask: Ask, timeout_s: float) -> asyncio.Timeout:
    """Return the deadline of a call: its own or its verb's."""
    return asyncio.timeout_at(min(asyncio.get_running_loop().time() + timeout_s, ask.until))
