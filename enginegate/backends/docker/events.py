"""The Engine's events as hints: redialled for ever, with `resync` where some may be lost.

The Engine keeps 256 events of all kinds, drops them for slow readers and may end a
stream without a word. So each dial asks for a few seconds more than it needs, doubles
are dropped, and the listing has the truth: each dial begins with `resync`, and between
a stream's end and the next dial the watch is `blind`, and says so.
"""

import asyncio
import json
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp
import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from enginegate.backends.base import BackendEvent
from enginegate.backends.docker.asking import Ask
from enginegate.backends.docker.budget import Priority
from enginegate.backends.docker.container import ENGINE_ID, INSTANCE, is_ours
from enginegate.backends.docker.daemon import Daemon
from enginegate.errors import BackendError

log = logging.getLogger(__name__)

RESYNC: Final = BackendEvent(kind="resync")
BLIND: Final = BackendEvent(kind="blind")
_REDIAL_S: Final = 0.5
_REDIAL_MAX_S: Final = 5.0
_RENEW_S: Final = 300.0  # a stream that stalled without a word is dead for no longer
_STEADY_S: Final = 10.0  # a stream that lasted so long, or told something, was a good one
_OVERLAP_S: Final = 5.0
_REMEMBERED: Final = 512  # doubles come from the overlap; the Engine itself keeps 256
_KINDS: Final = {
    "die": "exited",
    "start": "started",
    "pause": "paused",
    "unpause": "unpaused",
    "destroy": "removed",
}
_ASK: Final = Ask("watch", None, Priority.PROBE)


class _Actor(Struct, rename="pascal"):
    attributes: dict[str, str]


class _Event(Struct):
    action: str = field(name="Action")
    actor: _Actor = field(name="Actor")
    time_ns: int = field(name="timeNano")


class _Position:
    """How far the stream has been read, and what came last.

    Before the first dial that is a time of our clock, and afterwards of the Engine's.
    """

    def __init__(self) -> None:
        self.since_s = time.time()  # compared with the Engine's clock: never waited for
        self.overlap_s = 0.0
        self.recent: deque[tuple[int, str, str]] = deque(maxlen=_REMEMBERED)

    def dialled(self, response: aiohttp.ClientResponse) -> None:
        """Take the Engine's word for what time it is, once: there may be no event to tell."""
        if not self.overlap_s and (date := response.headers.get("Date")):
            self.since_s = parsedate_to_datetime(date).timestamp()
        self.overlap_s = _OVERLAP_S

    def passes(self, seen: _Event, event: BackendEvent) -> bool:
        """Move on; return whether this one was not told before."""
        self.since_s = max(self.since_s, seen.time_ns / 1e9)
        mark = (seen.time_ns, seen.action, event.engine_id)
        if mark in self.recent:
            return False
        self.recent.append(mark)
        return True


async def watch(
    daemon: Daemon, instance: str, ended_life: Callable[[str], Awaitable[str]]
) -> AsyncIterator[BackendEvent]:
    """Yield what happens to containers of this instance, from now on, until closed.

    `ended_life` is asked which life of an engine it was that ended.
    """
    loop = asyncio.get_running_loop()
    position, redial_s, seeing = _Position(), _REDIAL_S, True
    while True:
        dialled_at = loop.time()
        try:
            async with daemon.events(_ASK, _filters(instance, position)) as response:
                dialled_at, seeing = loop.time(), True
                position.dialled(response)
                yield RESYNC
                while line := await _line(response, dialled_at + _RENEW_S):
                    event = _read(line, instance, position)
                    if event is None:
                        continue
                    redial_s = _REDIAL_S
                    if event.kind == "exited":
                        event = replace(event, life=await ended_life(event.engine_id))
                    yield event
        except BackendError as error:
            log.info("the event stream broke: %s", error.detail)
        lasted_s = loop.time() - dialled_at
        if seeing and lasted_s >= _RENEW_S:
            continue
        if seeing:
            seeing = False
            yield BLIND
        if lasted_s >= _STEADY_S:
            redial_s = _REDIAL_S
        await asyncio.sleep(redial_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreads, no secret
        redial_s = min(redial_s * 2, _REDIAL_MAX_S)


async def _line(response: aiohttp.ClientResponse, until: float) -> bytes:
    """Return the next line; empty at the stream's end, and when it is time to dial anew."""
    try:
        async with asyncio.timeout_at(until):
            return await response.content.readline()
    except TimeoutError:
        return b""


def _filters(instance: str, position: _Position) -> dict[str, str]:
    chosen = {
        "type": ["container"],
        "label": [f"{INSTANCE}={instance}"],
        "event": list(_KINDS),
    }
    since_s = position.since_s - position.overlap_s
    return {"since": f"{since_s:.9f}", "filters": json.dumps(chosen)}


def _read(line: bytes, instance: str, position: _Position) -> BackendEvent | None:
    """Return what a line tells that is news; a line that is no event may have hidden one."""
    try:
        seen = msgspec.json.decode(line, type=_Event)
    except (msgspec.MsgspecError, ValueError) as exc:
        log.info("an event is not understood: %s", exc)
        return RESYNC
    event = _translated(seen, instance)
    return event if event is not None and position.passes(seen, event) else None


def _translated(seen: _Event, instance: str) -> BackendEvent | None:
    kind = _KINDS.get(seen.action)
    told = seen.actor.attributes
    engine_id = told.get(ENGINE_ID, "")
    name = f"/{told.get('name', '')}"
    if kind is None or not is_ours(name, told, engine_id=engine_id, instance=instance):
        return None
    code = told.get("exitCode", "")
    return BackendEvent(
        kind=kind, engine_id=engine_id, exit_code=int(code) if code.isdecimal() else None
    )
