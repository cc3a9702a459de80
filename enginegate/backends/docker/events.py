"""The Engine's events as hints: redialled for ever, with `resync` where some may be lost.

The Engine keeps 256 events of all kinds, drops them for slow readers and may end a
stream without a word. So each dial asks for a few seconds more than it needs, doubles
are dropped, and after a gap the listing has the truth.
"""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from enginegate.backends.base import BackendEvent
from enginegate.backends.docker.budget import Priority
from enginegate.backends.docker.container import ENGINE_ID, INSTANCE, is_ours
from enginegate.backends.docker.daemon import Ask, Daemon
from enginegate.errors import BackendError

log = logging.getLogger(__name__)

RESYNC: Final = BackendEvent(kind="resync")
_REDIAL_S: Final = 0.5
_REDIAL_MAX_S: Final = 15.0
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


async def watch(
    daemon: Daemon, instance: str, ended_life: Callable[[str], Awaitable[str]]
) -> AsyncIterator[BackendEvent]:
    """Yield what happens to containers of this instance, from now on, until closed.

    `ended_life` is asked which life of an engine it was that ended.
    """
    since_s = time.time()  # compared with the Engine's clock: a stamp, never waited for
    recent: deque[tuple[int, str, str]] = deque(maxlen=_REMEMBERED)
    redial_s = _REDIAL_S
    gap = False
    while True:
        try:
            overlap_s = _OVERLAP_S if gap else 0
            async with daemon.events(_ASK, _filters(instance, since_s - overlap_s)) as stream:
                redial_s = _REDIAL_S
                if gap:
                    yield RESYNC
                async for line in stream:
                    seen = msgspec.json.decode(line, type=_Event)
                    since_s = max(since_s, seen.time_ns / 1e9)
                    event = _translated(seen, instance)
                    mark = (seen.time_ns, seen.action, event.engine_id if event else "")
                    if event is not None and mark not in recent:
                        recent.append(mark)
                        if event.kind == "exited":
                            event = replace(event, life=await ended_life(event.engine_id))
                        yield event
        except BackendError as error:
            log.info("the event stream broke: %s", error.detail)
        gap = True
        await asyncio.sleep(redial_s)
        redial_s = min(redial_s * 2, _REDIAL_MAX_S)


def _filters(instance: str, since_s: float) -> dict[str, str]:
    chosen = {
        "type": ["container"],
        "label": [f"{INSTANCE}={instance}"],
        "event": list(_KINDS),
    }
    return {"since": f"{since_s:.9f}", "filters": json.dumps(chosen)}


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
