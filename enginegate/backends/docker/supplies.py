"""What must be there before an engine can run: image, network, volume, and the container."""

import asyncio
import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from enginegate.backends.base import Presence
from enginegate.backends.docker.answers import Network
from enginegate.backends.docker.container import (
    DATA_DIR,
    ENGINE_ID,
    INSTANCE,
    KEY_FILE,
    Container,
    ContainerSpec,
    container_name,
    create_body,
    key_archive,
    volume_name,
)
from enginegate.backends.docker.daemon import Ask, Daemon, RefusedError
from enginegate.errors import BackendError, DataLostError, ImageUnavailableError

log = logging.getLogger(__name__)

_ICC: Final = "com.docker.network.bridge.enable_icc"
_NO_IMAGE: Final = "no such image"
_TRIES: Final = 100
_PAUSE_S: Final = 0.05
_ROOT: Final = frozenset({"", "0", "root"})


class Supplies:
    """Makes what is missing, once; `isolated` networks let no engine reach another."""

    def __init__(self, daemon: Daemon, *, isolated: bool) -> None:
        self._daemon = daemon
        self._isolated = isolated
        self._networks: set[str] = set()
        self._network_lock = asyncio.Lock()

    async def image(self, ask: Ask, wanted: ContainerSpec) -> None:
        """Have the image, pulled if need be.

        Raises:
            ImageUnavailableError: it is not there and not to be had.
            BackendError: it runs as root, and the profile forbids that.
        """
        user = await self._daemon.image_user(ask, wanted.image)
        if user is None:
            user = await self._pulled(ask, wanted.image)
        if wanted.limits.profile == "strict" and user.partition(":")[0] in _ROOT:
            detail = f"{wanted.image} runs as root, which limits.profile strict refuses: set USER"
            raise BackendError(ask.operation, ask.engine_id, detail)

    async def network(self, ask: Ask, wanted: ContainerSpec) -> None:
        """Have the network. It is looked at once; `forget` makes it be looked at again."""
        async with self._network_lock:
            if wanted.network not in self._networks:
                await self._make_network(ask, wanted)
                self._networks.add(wanted.network)

    def forget(self) -> None:
        self._networks.clear()

    async def volume(self, ask: Ask, wanted: ContainerSpec, *, fresh: bool) -> None:
        """Have the volume; one that is there already is left as it is.

        Raises:
            DataLostError: it was there once; an empty one in its place would hide the loss.
        """
        name = volume_name(wanted.engine_id)
        if not fresh and not await self._daemon.volume_exists(ask, name):
            raise DataLostError(ask.operation, ask.engine_id, f"volume {name}")
        labels = {ENGINE_ID: wanted.engine_id, INSTANCE: wanted.instance}
        await self._daemon.create_volume(ask, name, labels)

    async def key(self, ask: Ask, found: Container, key_hashes: Sequence[str]) -> None:
        """Replace the key file: by a rename where the image has `mv` and may, else by unpacking."""
        box, path = found.container_id, KEY_FILE
        if found.presence is Presence.RUNNING:
            await self._daemon.put(ask, box, DATA_DIR, key_archive(f"{path}.new", key_hashes))
            move = ["mv", "-f", f"{DATA_DIR}/{path}.new", f"{DATA_DIR}/{path}"]
            try:
                code, _ = await self._daemon.run(ask, box, move)
                if code == 0:
                    return
            except RefusedError as refusal:  # paused or gone meanwhile: nobody reads
                log.debug("no rename: %s", refusal)
        await self._daemon.put(ask, box, DATA_DIR, key_archive(path, key_hashes))

    async def container(self, ask: Ask, wanted: ContainerSpec, *, fresh: bool) -> object:
        """Have the container with all it needs, and return Docker's description of it.

        The name is the guard: where a container has it already, ours or not, that one is
        described. It may be in the making, by a start that was cut off, and not yet to be seen.

        Raises:
            ImageUnavailableError: its image is not to be had.
            DataLostError: its volume was there once, and is not.
            BackendError: anything else.
        """
        await self.image(ask, wanted)
        await self.network(ask, wanted)
        await self.volume(ask, wanted, fresh=fresh)
        name, body = container_name(wanted.engine_id), create_body(wanted)
        for _ in range(_TRIES):
            try:
                await self._daemon.create(ask, name, body)
            except RefusedError as refusal:
                if refusal.status == HTTPStatus.NOT_FOUND and _NO_IMAGE in refusal.detail.lower():
                    raise ImageUnavailableError(
                        ask.operation, ask.engine_id, wanted.image
                    ) from refusal
                if refusal.status != HTTPStatus.CONFLICT:
                    raise
            answer = await self._daemon.inspect(ask, name)
            if answer is not None:
                return answer
            await asyncio.sleep(_PAUSE_S)
        raise BackendError(ask.operation, ask.engine_id, f"{name} is taken, but by nothing")

    async def _pulled(self, ask: Ask, image: str) -> str:
        async with self._daemon.pulling():
            user = await self._daemon.image_user(ask, image)
            if user is not None:  # somebody pulled it while we waited
                return user
            try:
                await self._daemon.pull(ask, image)
            except BackendError as error:
                if error.unavailable and not await self._daemon.ping():
                    raise
                log.warning("pull: %s", error)
                raise ImageUnavailableError(ask.operation, ask.engine_id, image) from error
            user = await self._daemon.image_user(ask, image)
        if user is None:
            raise ImageUnavailableError(ask.operation, ask.engine_id, image)
        return user

    async def _make_network(self, ask: Ask, wanted: ContainerSpec) -> None:
        name = wanted.network
        found = await self._daemon.networks(ask, name)
        if not found:
            await self._create_network(ask, wanted)
            found = await self._daemon.networks(ask, name)
        left = await self._one_of(ask, found)
        if self._isolated and any((net.options or {}).get(_ICC) != "false" for net in left):
            log.warning(
                "engines can reach each other on network %s: it was made without %s=false",
                name,
                _ICC,
            )

    async def _create_network(self, ask: Ask, wanted: ContainerSpec) -> None:
        body = {
            "Name": wanted.network,
            "Driver": "bridge",
            "CheckDuplicate": True,
            "Options": {_ICC: "false"} if self._isolated else {},
            "Labels": {INSTANCE: wanted.instance},
        }
        try:
            await self._daemon.create_network(ask, body)
        except RefusedError as refusal:
            if refusal.status != HTTPStatus.CONFLICT:  # 409: made by somebody else meanwhile
                raise

    async def _one_of(self, ask: Ask, found: Sequence[Network]) -> Sequence[Network]:
        """Remove all but the oldest network in use, for two makers at once make two of a name.

        Then no container starts: the name is ambiguous. Docker refuses to remove what is used.
        """
        left = sorted(found, key=lambda net: net.created)
        for network in reversed(left.copy()):
            if len(left) > 1 and INSTANCE in (network.labels or {}):
                try:
                    await self._daemon.remove_network(ask, network.id)
                except RefusedError as refusal:
                    log.info("a second network %s stays: %s", network.name, refusal)
                else:
                    left.remove(network)
        return left
