"""Finding an engine's container: there, surely not there, or not known.

A container is trusted when its name and both labels agree, and is then spoken to by its
id, so that a look-alike is neither seen nor touched. That there is none takes two answers
of the Engine, and no create still on its way: anything less is not known.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from msgspec.structs import replace

from enginegate.backends.base import Presence
from enginegate.backends.docker.asking import Ask, not_asked
from enginegate.backends.docker.container import (
    ENGINE_ID,
    INSTANCE,
    Container,
    container_name,
    parse,
)
from enginegate.backends.docker.daemon import Daemon
from enginegate.backends.docker.supplies import Supplies
from enginegate.errors import BackendError, NotRunningError

log = logging.getLogger(__name__)

LOOK_S: Final = 2.0  # for the look after a call that went wrong


class Finder:
    """Looks for containers of one instance."""

    def __init__(self, daemon: Daemon, supplies: Supplies, instance: str) -> None:
        self._daemon = daemon
        self._supplies = supplies
        self._instance = instance
        self._lives: dict[str, str] = {}

    async def find(self, ask: Ask) -> Container | None:
        """Return the engine's container; None when there is none, or one that is not ours."""
        assert ask.engine_id is not None
        answer = await self._daemon.inspect(ask, container_name(ask.engine_id))
        found = None if answer is None else self.parsed(ask, answer)
        if found is None:
            self._lives.pop(ask.engine_id, None)
        elif found.alive:
            self._lives[ask.engine_id] = found.observation.life
        return found

    async def ended_life(self, ask: Ask) -> str:
        """Return the life that ended a moment ago: the one seen last, without a question.

        Docker may be busy with beginning another, and would keep the news waiting. Where
        none was seen it is asked; empty where it has begun another by then.
        """
        assert ask.engine_id is not None
        if (before := self._lives.pop(ask.engine_id, "")) != "":
            return before
        try:
            found = await self.find(ask)
        except BackendError:
            return ""
        return "" if found is None or found.alive else found.observation.life

    async def find_or_none(self, ask: Ask) -> Container | None:
        """Return the engine's container, or None when there surely is none, now or soon.

        Raises:
            BackendError: nobody can say, or the Engine says both.
        """
        found = await self.find(ask)
        if found is not None:
            return found
        assert ask.engine_id is not None
        await self._supplies.none_to_come(ask)
        mine = (f"{INSTANCE}={self._instance}", f"{ENGINE_ID}={ask.engine_id}")
        name = f"/{container_name(ask.engine_id)}"
        if all(name not in (row.names or ()) for row in await self._daemon.listing(ask, *mine)):
            return None
        if (found := await self.find(ask)) is None:
            raise not_asked(ask, "its container is listed, but not found")
        return found

    def parsed(self, ask: Ask, answer: bytes) -> Container | None:
        assert ask.engine_id is not None
        try:
            seen = msgspec.json.decode(answer)
            return parse(seen, engine_id=ask.engine_id, instance=self._instance)
        except msgspec.MsgspecError as exc:
            raise not_asked(ask, str(exc)) from exc

    async def find_alive(self, ask: Ask) -> Container:
        found = await self.find(ask)
        if found is None or not found.alive:
            raise NotRunningError(ask.operation, ask.engine_id, "it is not running")
        return found

    async def remove_volume(self, ask: Ask, name: str) -> None:
        """Remove it; if that goes wrong, look: where it is not there, it is done."""
        try:
            await self._daemon.remove_volume(ask, name)
        except BackendError:
            if await self._daemon.volume_exists(replace(ask, until=within(LOOK_S)), name):
                raise

    async def unless(
        self, ask: Ask, act: Awaitable[object], so: Callable[[Container | None], bool]
    ) -> None:
        """Do it; if that goes wrong, look: where what we wanted is so already, it is done."""
        try:
            await act
        except BackendError as error:
            if not await self._turned_out(ask, so):
                raise
            log.debug("done all the same: %s", error)

    async def _turned_out(self, ask: Ask, so: Callable[[Container | None], bool]) -> bool:
        try:
            return so(await self.find_or_none(replace(ask, until=within(LOOK_S))))
        except BackendError:
            return False


def is_paused(found: Container | None) -> bool:
    return found is not None and found.presence is Presence.PAUSED


def is_running(found: Container | None) -> bool:
    return found is not None and found.presence is Presence.RUNNING


def is_alive(found: Container | None) -> bool:
    return found is not None and found.alive


def is_down(found: Container | None) -> bool:
    return found is None or (found.settled and not found.alive)


def within(seconds: float) -> float:
    """Return the time (of the loop's clock) so many seconds from now."""
    return asyncio.get_running_loop().time() + seconds
