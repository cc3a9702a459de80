"""The Docker Engine as typed calls; the only module that knows aiodocker.

Every call has a place in the budget, a deadline, and one translation of errors:
`RefusedError` when the Engine said no, `BackendError` with `unavailable` when it could not be
asked. `None` and `False` mean that the Engine itself said "there is none".
Two clients keep pulls away from control calls; each event stream has one of its own.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any, Final, TypeVar

import aiohttp
import msgspec
from aiodocker import Docker, DockerError
from aiodocker.containers import DockerContainer
from aiodocker.networks import DockerNetwork
from msgspec import Struct

from enginegate.backends.base import Usage
from enginegate.backends.docker.answers import ExecState, Image, Listed, Network, Stats
from enginegate.backends.docker.budget import Budget, Priority
from enginegate.errors import BackendError

T = TypeVar("T")

IN_FLIGHT: Final = 8  # more only queue inside the daemon
_STOPS_IN_FLIGHT: Final = 32  # a stop waits for an engine, not for the daemon
_SLOW_IN_FLIGHT: Final = 4
_PULLS_IN_FLIGHT: Final = 2
_PING_S: Final = 2.0
_ASK_S: Final = 10.0
_ACT_S: Final = 30.0
_STOP_EXTRA_S: Final = 15.0
_PULL_S: Final = 600.0
_OUTPUT_MAX: Final = 1 << 20
_NOT_ASKED: Final = frozenset({502, 503, 504, 900})  # 900: aiodocker's "cannot connect"


class Ask(Struct, frozen=True):
    """On whose behalf the Engine is asked."""

    operation: str
    engine_id: str | None
    priority: Priority


class RefusedError(BackendError):
    """The Engine answered, and the answer is no."""

    def __init__(self, ask: Ask, status: int, detail: str) -> None:
        super().__init__(ask.operation, ask.engine_id, f"{detail} [{status}]")
        self.status = status


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
            with _translated(ask):
                async with asyncio.timeout(_PING_S):
                    await _get(_opened(self._control, ask), "/_ping")
        except BackendError:
            return False
        return True

    async def inspect(self, ask: Ask, name: str) -> object | None:
        return await self._look(ask, lambda docker: docker.containers.container(name).show())

    async def listing(self, ask: Ask, label: str) -> list[Listed]:
        filters = json.dumps({"label": [label]})
        path = "/containers/json"
        raw = await self._read(
            ask, lambda docker: _get_versioned(docker, path, {"all": "true", "filters": filters})
        )
        return _decoded(ask, raw, list[Listed])

    async def create(self, ask: Ask, name: str, body: dict[str, Any]) -> None:
        await self._call(ask, _ACT_S, lambda docker: docker.containers.create(body, name=name))

    async def start(self, ask: Ask, container_id: str) -> None:
        await self._act(ask, _ACT_S, container_id, DockerContainer.start)

    async def pause(self, ask: Ask, container_id: str) -> None:
        await self._act(ask, _ASK_S, container_id, DockerContainer.pause)

    async def unpause(self, ask: Ask, container_id: str) -> None:
        await self._act(ask, _ASK_S, container_id, DockerContainer.unpause)

    async def stop(self, ask: Ask, container_id: str, grace_s: int) -> None:
        """Stop it; one that is gone is stopped. Keeps no place while the engine takes its time."""
        with _absent_is_done(), _translated(ask):
            container = _opened(self._control, ask).containers.container(container_id)
            async with self._stops, asyncio.timeout(grace_s + _STOP_EXTRA_S):
                await container.stop(t=grace_s)

    async def remove(self, ask: Ask, container_id: str) -> None:
        """Kill and remove it with its anonymous volumes; returns when it is gone."""

        def delete(container: DockerContainer) -> Awaitable[None]:
            return container.delete(force=True, v=True)

        def gone(container: DockerContainer) -> Awaitable[object]:
            return container.wait(condition="removed")

        with _absent_is_done():
            try:
                await self._act(ask, _ACT_S, container_id, delete)
            except RefusedError as refusal:
                if refusal.status != HTTPStatus.CONFLICT:  # its removal is in progress
                    raise
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
        with _translated(ask):
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
        path = f"/containers/{container_id}/stats"
        once = {"stream": "false", "one-shot": "true"}  # else it takes two
        try:
            with _translated(ask):
                docker = _opened(self._control, ask)
                async with self._slow, asyncio.timeout(_ASK_S):
                    raw = await _get_versioned(docker, path, once)
        except RefusedError as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        stats = _decoded(ask, raw, Stats)
        interfaces = (stats.networks or {}).values()
        return Usage(
            cpu_s=stats.cpu_stats.cpu_usage.total_usage / 1e9,
            rx_bytes=sum(interface.rx_bytes for interface in interfaces),
            tx_bytes=sum(interface.tx_bytes for interface in interfaces),
        )

    async def image_user(self, ask: Ask, image: str) -> str | None:
        """Return the user an image runs as ("" is root), or None if it is not there."""
        answer = await self._look(ask, lambda docker: docker.images.inspect(image))
        if answer is None:
            return None
        with _translated(ask):
            found = msgspec.convert(answer, Image)
        return (found.config and found.config.user) or ""

    @asynccontextmanager
    async def pulling(self) -> AsyncIterator[None]:
        """Hold one of the places for pulls, which are few."""
        async with self._pulls:
            yield

    async def pull(self, ask: Ask, image: str) -> None:
        with _translated(ask):
            async with asyncio.timeout(_PULL_S):
                await _opened(self._puller, ask).images.pull(image)

    async def networks(self, ask: Ask, name: str) -> list[Network]:
        """Return the networks of that name: none, one, or more by mishap."""
        filters = json.dumps({"name": [name]})  # finds all names that contain it
        raw = await self._read(
            ask, lambda docker: _get_versioned(docker, "/networks", {"filters": filters})
        )
        return [found for found in _decoded(ask, raw, list[Network]) if found.name == name]

    async def create_network(self, ask: Ask, body: dict[str, Any]) -> None:
        await self._call(ask, _ACT_S, lambda docker: docker.networks.create(body))

    async def connect(self, ask: Ask, network: str, container_id: str) -> None:
        def connect(docker: Docker) -> Awaitable[object]:
            joined = DockerNetwork(docker, network)  # type: ignore[no-untyped-call]
            return joined.connect({"Container": container_id})

        await self._call(ask, _ACT_S, connect)

    async def remove_network(self, ask: Ask, network_id: str) -> None:
        def remove(docker: Docker) -> Awaitable[object]:
            network = DockerNetwork(docker, network_id)  # type: ignore[no-untyped-call]
            return network.delete()

        with _absent_is_done():
            await self._call(ask, _ACT_S, remove)

    async def volume_exists(self, ask: Ask, name: str) -> bool:
        path = f"/volumes/{name}"
        return await self._look(ask, lambda docker: _get_versioned(docker, path)) is not None

    async def create_volume(self, ask: Ask, name: str, labels: Mapping[str, str]) -> None:
        """Make a volume; one that is there already is left alone."""
        body = {"Name": name, "Labels": dict(labels)}

        def create(docker: Docker) -> Awaitable[object]:
            made: Awaitable[object] = docker.volumes.create(body)  # type: ignore[no-untyped-call]
            return made

        await self._call(ask, _ACT_S, create)

    async def remove_volume(self, ask: Ask, name: str) -> None:
        async def remove(docker: Docker) -> None:
            volume = await docker.volumes.get(name)  # type: ignore[no-untyped-call]
            await volume.delete()

        with _absent_is_done():
            await self._call(ask, _ACT_S, remove)

    @asynccontextmanager
    async def events(
        self, ask: Ask, params: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """Open an event stream of JSON lines on a client of its own, without a read time-out."""
        with _translated(ask):
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
                    yield response.content
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
        return await self._call(
            ask, timeout_s, lambda docker: act(docker.containers.container(container_id))
        )

    async def _call(self, ask: Ask, timeout_s: float, call: Callable[[Docker], Awaitable[T]]) -> T:
        with _translated(ask):
            async with self.budget.place(ask.priority), asyncio.timeout(timeout_s):
                return await call(_opened(self._control, ask))


def _opened(client: Docker | None, ask: Ask) -> Docker:
    if client is None:
        raise BackendError(ask.operation, ask.engine_id, "not connected", unavailable=True)
    return client


@contextmanager
def _translated(ask: Ask) -> Iterator[None]:
    """Turn what aiodocker and the wire raise into our errors; nothing else is caught."""
    try:
        yield
    except DockerError as exc:
        if exc.status in _NOT_ASKED:
            raise _not_asked(ask, exc.message) from exc
        raise RefusedError(ask, exc.status, exc.message) from exc
    except TimeoutError as exc:
        raise _not_asked(ask, "no answer in time") from exc
    except (aiohttp.ClientError, OSError) as exc:
        raise _not_asked(ask, str(exc) or type(exc).__name__) from exc
    except (msgspec.MsgspecError, ValueError, LookupError, TypeError) as exc:
        raise _not_asked(ask, f"an answer that is not understood: {exc}") from exc


def _not_asked(ask: Ask, detail: str) -> BackendError:
    return BackendError(ask.operation, ask.engine_id, detail, unavailable=True)


@contextmanager
def _absent_is_done() -> Iterator[None]:
    try:
        yield
    except RefusedError as refusal:
        if refusal.status != HTTPStatus.NOT_FOUND:
            raise


def _decoded(ask: Ask, raw: bytes, wanted: type[T]) -> T:
    with _translated(ask):
        return msgspec.json.decode(raw, type=wanted)


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
