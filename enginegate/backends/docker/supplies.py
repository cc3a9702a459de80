"""What must be there before an engine can run: image, network, volume, and the container."""

import asyncio
import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from enginegate.backends.base import Presence
from enginegate.backends.docker.answers import Network
from enginegate.backends.docker.asking import Ask, NeverSentError, RefusedError, not_asked
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
from enginegate.backends.docker.daemon import Daemon
from enginegate.errors import BackendError, DataLostError, ImageUnavailableError

log = logging.getLogger(__name__)

_ICC: Final = "com.docker.network.bridge.enable_icc"
_NO_IMAGE: Final = "no such image"
LATE_S: Final = 20.0  # how long after its answer was lost a create may still take effect
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
        self._creating: dict[str, asyncio.Task[None]] = {}
        self._doubtful: dict[str, float] = {}

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

    async def close(self) -> None:
        """Wait for no create any more."""
        for task in [*self._creating.values()]:
            task.cancel()
        await asyncio.gather(*self._creating.values(), return_exceptions=True)

    async def settled(self, engine_id: str) -> None:
        """Wait for a create of this engine that an earlier, cancelled start left under way."""
        if (at_work := self._creating.get(engine_id)) is not None:
            await asyncio.wait([at_work])

    async def volume(self, ask: Ask, wanted: ContainerSpec, *, fresh: bool) -> None:
        """Have the volume; one that is there already is left as it is.

        Raises:
            DataLostError: it was there once; an empty one in its place would hide the loss.
        """
        name = volume_name(wanted.engine_id)
        if not fresh:
            if not await self._daemon.volume_exists(ask, name):
                raise DataLostError(ask.operation, ask.engine_id, f"volume {name}")
            return
        labels = {ENGINE_ID: wanted.engine_id, INSTANCE: wanted.instance}
        await self._daemon.create_volume(ask, name, labels)

    async def key(
        self, ask: Ask, found: Container, key_hashes: Sequence[str], *, first: bool = False
    ) -> None:
        """Replace the key file: by a rename where the image has `mv` and may, else by a link.

        The link is also for the `first` one, where there is nothing to replace.
        """
        box, path = found.container_id, KEY_FILE
        if found.presence is Presence.RUNNING and not first:
            staged = key_archive(path, key_hashes, linked=False)
            await self._daemon.put(ask, box, DATA_DIR, staged)
            move = ["mv", "-f", f"{DATA_DIR}/{path}.new", f"{DATA_DIR}/{path}"]
            try:
                code, _ = await self._daemon.run(ask, box, move)
                if code == 0:
                    return
            except RefusedError as refusal:  # paused or gone meanwhile: nobody reads
                log.debug("no rename: %s", refusal)
        await self._daemon.put(ask, box, DATA_DIR, key_archive(path, key_hashes))

    async def container(self, ask: Ask, wanted: ContainerSpec, *, fresh: bool) -> bytes:
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
        name = container_name(wanted.engine_id)
        for _ in range(_TRIES):
            lost = await self._create(ask, wanted)
            answer = await self._daemon.inspect(ask, name)
            if answer is not None:
                self._doubtful.pop(wanted.engine_id, None)
                return answer
            if lost is not None:
                raise lost
            await asyncio.sleep(_PAUSE_S)
        raise BackendError(ask.operation, ask.engine_id, f"{name} is taken, but by nothing")

    async def _create(self, ask: Ask, wanted: ContainerSpec) -> BackendError | None:
        """Create, or find the name taken; return the error of an answer that got lost.

        The call goes on if the caller is cancelled: cut off, it could take effect later
        than a destroy that follows.
        """
        engine_id = wanted.engine_id
        at_work = self._creating.get(engine_id)
        if at_work is None:
            call = self._daemon.create(ask, container_name(engine_id), create_body(wanted))
            at_work = self._creating[engine_id] = asyncio.ensure_future(call)
            at_work.add_done_callback(lambda done: self._created(engine_id, done))
        try:
            await asyncio.shield(at_work)
        except RefusedError as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND and _NO_IMAGE in refusal.detail.lower():
                raise ImageUnavailableError(ask.operation, engine_id, wanted.image) from refusal
            if refusal.status != HTTPStatus.CONFLICT:
                raise
        except NeverSentError:
            raise
        except BackendError as lost:
            return lost
        return None

    def _created(self, engine_id: str, done: "asyncio.Task[None]") -> None:
        del self._creating[engine_id]
        error = None if done.cancelled() else done.exception()
        lost = isinstance(error, BackendError) and error.unavailable
        if lost and not isinstance(error, NeverSentError):
            self._doubtful[engine_id] = asyncio.get_running_loop().time() + LATE_S

    async def none_to_come(self, ask: Ask) -> None:
        """Wait for a create of this engine that is still on its way.

        Raises:
            BackendError: its answer got lost a moment ago; it may still take effect, so
                that "there is no container" means nothing yet.
        """
        assert ask.engine_id is not None
        await self.settled(ask.engine_id)
        until = self._doubtful.get(ask.engine_id, 0.0)
        if asyncio.get_running_loop().time() < until:
            raise not_asked(ask, "whether it was created is not known yet")
        self._doubtful.pop(ask.engine_id, None)

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
