"""The verbs of the backend protocol, in containers.

Every verb looks first (`finding`) and acts on what it saw; what raced with it comes back
as a refusal, what got lost as an error, and either way it is looked at again.
"""

import asyncio
import logging
import math
import os
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Final, Literal

from msgspec.structs import replace

from enginegate.backends.base import (
    BackendEvent,
    Connection,
    EngineSpec,
    Observation,
    Presence,
    Usage,
)
from enginegate.backends.docker import consumption, events, finding, peers
from enginegate.backends.docker.asking import Ask, RefusedError
from enginegate.backends.docker.budget import Priority
from enginegate.backends.docker.catalogue import Catalogue
from enginegate.backends.docker.container import (
    INSTANCE,
    KEY_HASH,
    STOP_GRACE_S,
    Container,
    ContainerSpec,
    container_name,
    fits,
    valid_engine_id,
    volume_name,
)
from enginegate.backends.docker.daemon import Daemon
from enginegate.backends.docker.finding import Finder, within
from enginegate.backends.docker.supplies import Supplies
from enginegate.config import Limits
from enginegate.errors import BackendError, ConfigError, ImageUnavailableError, PortTakenError
from enginegate.policy import valid_image_reference
from enginegate.sockets import Established

log = logging.getLogger(__name__)

_PORT_TAKEN: Final = re.compile(r"port is already allocated|address already in use")
# Of a start: its network was removed, or there are two of that name.
_NETWORK_TROUBLE: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST})
_SOCKET: Final = "unix:///var/run/docker.sock"
_SCHEMES: Final = ("unix://", "tcp://", "http://", "https://")
_OWN_PREFIX: Final = "ENGINEGATE_"
_LOG_LINES_MAX: Final = 10_000
_LOG_LINE_MAX: Final = 4_096
_PAUSE_S: Final = 7.0  # leaves time to thaw again before whoever asked gives up
_ROUSE_S: Final = 2.0
_LIST_S: Final = 20.0


class DockerBackend:
    """Implements `Backend`.

    `rotate_mode` "recreate" means that another key is another container; with "live" the
    key file is enough. `env_passthrough` is read once, here. `own_sources` returns the
    (address, port) pairs that our probes connect from.
    """

    name = "docker"

    def __init__(
        self,
        *,
        instance: str,
        container_port: int = 8000,
        url_mode: Literal["host", "network"] = "host",
        advertise_host: str = "127.0.0.1",
        publish_address: str = "127.0.0.1",
        network: str = "engine_net",
        env: Mapping[str, str] | None = None,
        env_passthrough: Sequence[str] = (),
        catalog_dir: str = "",
        limits: Limits | None = None,
        rotate_mode: Literal["recreate", "live"] = "recreate",
        docker_host: str | None = None,
        own_sources: Callable[[], Collection[tuple[str, int]]] = frozenset,
    ) -> None:
        host = docker_host or os.environ.get("DOCKER_HOST") or _SOCKET
        if not host.startswith(_SCHEMES):
            raise ConfigError(
                [f"DOCKER_HOST: {host!r} does not begin with {' or '.join(_SCHEMES)}"]
            )
        secret = [name for name in env_passthrough if name.startswith(_OWN_PREFIX)]
        if secret:
            raise ConfigError([f"engine.env_passthrough: {name} is ours alone" for name in secret])
        passed = {name: os.environ[name] for name in env_passthrough if name in os.environ}
        self._env = tuple(sorted((passed | dict(env or {})).items()))
        self._instance = instance
        self._container_port = container_port
        self._url_mode = url_mode
        self._advertise_host = advertise_host
        self._publish_address = publish_address
        self._network = network
        self._catalog_dir = str(Path(catalog_dir).absolute()) if catalog_dir else ""
        self._limits = limits or Limits()
        self._rotate_mode = rotate_mode
        self._daemon = Daemon(host)
        self._own_sources = own_sources
        self._supplies = Supplies(self._daemon, isolated=url_mode == "host")
        self._finder = Finder(self._daemon, self._supplies, instance)
        self._find, self._unless = self._finder.find, self._finder.unless
        self._catalogue = Catalogue(instance, self._find)
        self._frozen: dict[str, Container] = {}  # by us, as they were: a wake need not look first

    async def open(self) -> None:
        self._daemon.open()
        if self._url_mode == "network":
            told = "engines can reach each other on network %s: url_mode is network"
            log.warning(told, self._network)

    async def close(self) -> None:
        await self._supplies.close()
        await self._daemon.close()

    async def ping(self) -> bool:
        return await self._daemon.ping()

    def url(self, spec: EngineSpec) -> str:
        if self._url_mode == "network":
            return f"http://{container_name(spec.engine_id)}:{self._container_port}"
        host = self._advertise_host
        return f"http://{f'[{host}]' if ':' in host else host}:{spec.port}"

    async def prepare(self, spec: EngineSpec) -> None:
        ask = _ask("prepare", spec.engine_id, Priority.PROVISION)
        await self._supplies.image(ask, self._wanted(ask, spec))

    async def start(self, spec: EngineSpec) -> Observation:
        ask = _ask("start", spec.engine_id, Priority.PROVISION)
        wanted = self._wanted(ask, spec)
        await self._supplies.settled(spec.engine_id)
        found = await self._find(ask)
        late = spec.fresh and (found is None or found.labels.get(KEY_HASH) == wanted.key_hash)
        if found is not None and not self._fits(found, wanted):
            ask = replace(ask, priority=Priority.RESTART)
            await self._supplies.image(ask, wanted)  # before anything is taken down
            await self._take_down(ask, found)
            found = None
        if found is None:
            found = await self._create(ask, wanted, fresh=spec.fresh)
        key_hashes = () if late else spec.key_hashes
        try:
            begun = await self._bring_up(ask, found, key_hashes)
        except RefusedError as refusal:
            if refusal.status not in _NETWORK_TROUBLE or "network" not in refusal.detail:
                raise
            self._supplies.forget()
            await self._remove(ask, found)
            found = await self._create(ask, wanted, fresh=spec.fresh)
            begun = await self._bring_up(ask, found, key_hashes)
        return replace(begun, keyed=not late)

    async def stop(self, engine_id: str, *, grace_s: float) -> None:
        ask = _ask("stop", engine_id, Priority.RESTART)
        self._frozen.pop(engine_id, None)
        found = await self._finder.find_or_none(ask)
        if found is not None and (found.alive or not found.settled):
            await self._stop(ask, found, math.ceil(grace_s))

    async def pause(self, engine_id: str) -> None:
        ask = _ask("pause", engine_id, Priority.SLEEP, within_s=_PAUSE_S)
        found = await self._finder.find_alive(ask)
        if found.presence is not Presence.PAUSED:
            freeze = self._daemon.pause(ask, found.container_id)
            try:
                await self._unless(ask, freeze, finding.is_paused)
            except BackendError:
                await self._rouse(engine_id, found)
                raise
        self._frozen[engine_id] = found

    async def unpause(self, engine_id: str) -> Observation:
        ask = _ask("unpause", engine_id, Priority.WAKE)
        found = self._frozen.pop(engine_id, None)
        if found is None or not await self._thawed(ask, found):
            found = await self._finder.find_alive(ask)
            await self._connect(ask, found)
            await self._thaw(ask, found)
        return replace(found.observation, presence=Presence.RUNNING, connected=True)

    async def reconnect(self, engine_id: str) -> None:
        ask = _ask("reconnect", engine_id, Priority.RESTART)
        if (found := await self._find(ask)) is not None:
            await self._connect(ask, found)

    async def destroy(self, engine_id: str) -> None:
        ask = _ask("destroy", engine_id, Priority.RESTART)
        self._frozen.pop(engine_id, None)
        found = await self._finder.find_or_none(ask)
        if found is not None:
            await self._remove(ask, found)
        await self._finder.remove_volume(ask, volume_name(engine_id))

    async def inspect(self, engine_id: str) -> Observation:
        ask = _ask("inspect", engine_id, Priority.PROBE)
        found = await self._finder.find_or_none(ask)
        if found is not None:
            return found.observation
        volume = volume_name(engine_id)
        return Observation(
            engine_id=engine_id,
            presence=Presence.ABSENT,
            data_lost=not await self._daemon.volume_exists(ask, volume),
            detail=f"volume {volume}",
        )

    async def list(self) -> Sequence[Observation]:
        """Ask which containers are ours, and look closer only at those that changed."""
        ask = Ask("list", None, Priority.PROBE, within(_LIST_S))
        rows = await self._daemon.listing(ask, f"{INSTANCE}={self._instance}")
        return await self._catalogue.read(ask, rows)

    async def remove_orphan(self, engine_id: str) -> None:
        ask = _ask("remove_orphan", engine_id, Priority.SLEEP)
        found = await self._finder.find_or_none(ask)
        if found is not None:
            await self._take_down(ask, found)

    async def logs(self, engine_id: str, *, lines: int) -> Sequence[str]:
        ask = _ask("logs", engine_id, Priority.PROBE)
        found = await self._find(ask)
        if found is None or lines <= 0:
            return []
        tail = min(lines, _LOG_LINES_MAX)
        text = await self._daemon.logs(ask, found.container_id, tail)
        return [line[:_LOG_LINE_MAX] for line in text.splitlines()][-tail:]

    async def trim_logs(self) -> None:
        """Do nothing: Docker rotates them, as the container was created with."""

    async def usage(self, engine_id: str) -> Usage:
        ask = _ask("usage", engine_id, Priority.PROBE)
        found = await self._find(ask)
        if found is None or not found.alive:
            return Usage()
        try:
            return await asyncio.to_thread(
                consumption.read, pid=found.pid, container_id=found.container_id
            )
        except (OSError, KeyError, StopIteration) as exc:
            log.debug("%s from here: %s", ask, exc)
        return await self._daemon.usage(ask, found.container_id) or Usage()

    async def connections(self, engine_id: str, *, port: int) -> Sequence[Connection]:
        ask = _ask("connections", engine_id, Priority.PROBE)
        found = await self._find(ask)
        if found is None or not found.alive:
            return []
        seen = await self._seen_inside(ask, found)
        host = await asyncio.to_thread(peers.on_host, port)
        own = self._own_sources()  # asked last: a probe may have connected meanwhile
        return peers.connections(seen, host, gateways=found.gateways, own=own)

    async def put_key(
        self, engine_id: str, key_hashes: Sequence[str], *, first: bool = False
    ) -> None:
        """Replace the key file: by a rename where the image has `mv` and may, else by a link.

        Linking leaves a moment in which the file is missing; it is never half written.
        """
        ask = _ask("put_key", engine_id, Priority.RESTART)
        found = await self._find(ask)
        if found is None:
            raise BackendError(ask.operation, engine_id, "it does not exist")
        await self._supplies.key(ask, found, key_hashes, first=first)

    def watch(self) -> AsyncIterator[BackendEvent]:
        return events.watch(self._daemon, self._instance, self._ended_life)

    def _wanted(self, ask: Ask, spec: EngineSpec) -> ContainerSpec:
        if not valid_image_reference(spec.engine_version):
            raise ImageUnavailableError(ask.operation, ask.engine_id, repr(spec.engine_version))
        try:
            return ContainerSpec(
                engine_id=spec.engine_id,
                instance=self._instance,
                image=spec.engine_version,
                port=spec.port,
                key_hash=spec.key_hashes[0] if spec.key_hashes else "",
                container_port=self._container_port,
                publish_address=self._publish_address,
                network=self._network,
                env=self._env,
                catalog_dir=self._catalog_dir,
                limits=self._limits,
            )
        except ValueError as exc:
            raise BackendError(ask.operation, ask.engine_id, str(exc)) from exc

    def _fits(self, found: Container, wanted: ContainerSpec) -> bool:
        return fits(found, wanted, any_key=self._rotate_mode == "live")

    async def _ended_life(self, engine_id: str) -> str:
        return await self._finder.ended_life(_ask("watch", engine_id, Priority.RESTART))

    async def _seen_inside(self, ask: Ask, found: Container) -> Sequence[Established]:
        """Look from the host; where its /proc is not ours, from inside the container."""
        box, port = found.container_id, self._container_port
        try:
            return await asyncio.to_thread(peers.inside, pid=found.pid, container_id=box, port=port)
        except OSError as exc:
            log.debug("%s from here: %s", ask, exc)
        _, table = await self._daemon.run(ask, box, ["cat", "/proc/net/tcp", "/proc/net/tcp6"])
        if "local_address" not in table:
            detail = "its sockets can be read neither from here nor in the container"
            raise BackendError(ask.operation, ask.engine_id, detail, unavailable=True)
        return list(peers.parse_table(table, port))

    async def _create(self, ask: Ask, wanted: ContainerSpec, *, fresh: bool) -> Container:
        """Create the container, or adopt what an earlier start of the same has created."""
        found = self._finder.parsed(ask, await self._supplies.container(ask, wanted, fresh=fresh))
        if found is None or not self._fits(found, wanted):
            detail = f"the name {container_name(wanted.engine_id)} is held by another container"
            raise BackendError(ask.operation, ask.engine_id, detail)
        return found

    async def _bring_up(self, ask: Ask, found: Container, key_hashes: Sequence[str]) -> Observation:
        await self._connect(ask, found)
        if found.alive:
            if key_hashes and found.labels.get(KEY_HASH) != key_hashes[0]:
                await self._supplies.key(ask, found, key_hashes)
            await self._thaw(replace(ask, priority=Priority.WAKE), found)
            return replace(found.observation, presence=Presence.RUNNING, connected=True)
        if key_hashes:
            await self._supplies.key(ask, found, key_hashes)
        try:
            await self._unless(ask, self._daemon.start(ask, found.container_id), finding.is_alive)
        except RefusedError as refusal:
            if _PORT_TAKEN.search(refusal.detail) is None:
                raise
            await self._remove(ask, found)
            raise PortTakenError(ask.operation, ask.engine_id, refusal.detail) from refusal
        begun = await self._find(ask)
        if begun is None:
            raise BackendError(ask.operation, ask.engine_id, "it was removed while it started")
        return begun.observation

    async def _connect(self, ask: Ask, found: Container) -> None:
        """Put it back on its network, if somebody took it off."""
        if not found.observation.connected:
            await self._daemon.connect(ask, found.network, found.container_id)

    async def _thaw(self, ask: Ask, found: Container) -> None:
        if found.presence is Presence.PAUSED:
            thaw = self._daemon.unpause(ask, found.container_id)
            await self._unless(ask, thaw, finding.is_running)

    async def _thawed(self, ask: Ask, frozen: Container) -> bool:
        """Thaw the very container that we froze; False where a closer look is needed."""
        with suppress(BackendError):
            await self._daemon.unpause(ask, frozen.container_id)
            return True
        return False

    async def _rouse(self, engine_id: str, found: Container) -> None:
        """Thaw after a failed pause: half frozen is worse than awake. Its failure is no news."""
        ask = _ask("unpause", engine_id, Priority.WAKE, within_s=_ROUSE_S)
        try:
            await self._daemon.unpause(ask, found.container_id)
        except BackendError as error:
            log.debug("after a failed pause: %s", error)

    async def _stop(self, ask: Ask, found: Container, grace_s: int) -> None:
        halt = self._daemon.stop(ask, found.container_id, grace_s)
        await self._unless(ask, halt, finding.is_down)

    async def _take_down(self, ask: Ask, found: Container) -> None:
        """Stop the engine as it is entitled to, and remove the container; never the volume."""
        if found.alive or not found.settled:
            await self._stop(ask, found, STOP_GRACE_S)
        await self._remove(ask, found)

    async def _remove(self, ask: Ask, found: Container) -> None:
        def other(seen: Container | None) -> bool:
            return seen is None or seen.container_id != found.container_id

        await self._unless(ask, self._daemon.remove(ask, found.container_id), other)


def _ask(operation: str, engine_id: str, priority: Priority, within_s: float = math.inf) -> Ask:
    """Name a verb and its engine; no id that is not one of ours gets any further."""
    if not valid_engine_id(engine_id):
        raise BackendError(operation, None, "this is no engine id")
    return Ask(operation, engine_id, priority, within(within_s))
