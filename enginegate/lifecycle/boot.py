"""Bringing an engine up: a port that is free, a start, and patience until it is healthy."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from enginegate import facts as f
from enginegate.backends.base import EngineSpec, Observation, Presence
from enginegate.config import Config
from enginegate.errors import (
    BackendError,
    BackendFailedError,
    BackendUnavailableError,
    DataLostError,
    GateError,
    ImageUnavailableError,
    NoRoomError,
    PortExhaustionError,
    PortTakenError,
    StorageUnavailableError,
)
from enginegate.lifecycle.ground import Ground
from enginegate.model import Engine
from enginegate.policy import valid_key_hashes
from enginegate.probe import Health
from enginegate.registry import LiveEngine

log = logging.getLogger(__name__)

LOG_LINES = 50  # of a failed boot, kept in its audit entry
LOG_WAIT_S = 3.0  # part of what an answer may be late by
PORTS_TRIED_MAX = 20
POLL_FIRST_S = 0.005
POLL_MAX_S = 0.25
POLL_GROWTH = 1.2  # so that a boot is seen at most a fifth of its time late
LOOK_EVERY_S = 1.0  # how often a boot asks the backend whether the engine still lives
PROBE_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - names, not a bind

_KEY = re.compile(r"\b(sk-eg|pk-eg|ak-eg)-[A-Za-z0-9_-]{43}")


class DataGoneError(BackendFailedError):
    """The engine's data are gone. No restart helps, and none is tried."""


class Booter:
    """Starts engines and waits for them; knows nothing of states."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    def spec(self, engine: Engine, *, key_hash: str | None = None) -> EngineSpec:
        """Return what to start the engine from; `key_hash` stands in for the one in force."""
        in_force, *old = valid_key_hashes(engine, self.ground.clock.wall_ms())
        if key_hash not in (None, in_force):
            old = []  # a rotation by restart ends them all
        return EngineSpec(
            engine_id=engine.engine_id,
            engine_version=engine.engine_version,
            port=engine.port,
            key_hashes=(key_hash or in_force, *old),
            fresh=engine.booted_at_ms is None,
        )

    async def bring_up(
        self,
        live: LiveEngine,
        *,
        late: type[GateError],
        key_hash: str | None = None,
        turn: AbstractAsyncContextManager[None] | None = None,
    ) -> Observation:
        """Start the engine and wait until it is healthy, in `boot.timeout_s` for both.

        What has to be fetched first is not counted; `turn` is waited for, and held during
        the start. Returns what was started.

        Raises:
            PortExhaustionError: every port of the range is leased or held.
            BackendFailedError, BackendUnavailableError: the backend could not.
            StorageUnavailableError: no room on the disk for its files.
            GateError: `late`, when the time is over.
        """
        try:
            await self.ground.backend.prepare(self.spec(live.engine, key_hash=key_hash))
        except BackendError as error:
            raise told(error) from error
        timeout_s = self.ground.config.boot.timeout_s
        began = self.ground.clock.now()
        try:
            async with asyncio.timeout(timeout_s), turn or nullcontext():
                begun = await self._start(live, key_hash)
        except TimeoutError as error:
            raise told(unanswered("start", live)) from error
        async with self._key_put(live, begun):
            await self.until_healthy(live, since=began, timeout_s=timeout_s, late=late)
        return begun

    @asynccontextmanager
    async def _key_put(self, live: LiveEngine, begun: Observation) -> AsyncIterator[None]:
        """Put the key file, if the start has left it to us, while the engine boots."""
        if begun.keyed:
            yield
            return
        hashes = self.spec(live.engine).key_hashes
        put = self.ground.backend.put_key(begun.engine_id, hashes, first=True)
        putting = asyncio.ensure_future(put)
        try:
            yield
            await putting
        except BackendError as error:
            raise told(error) from error
        finally:
            putting.cancel()
            await asyncio.gather(putting, return_exceptions=True)

    async def _start(self, live: LiveEngine, key_hash: str | None) -> Observation:
        """Start it; if another program holds its port, move it to a free one."""
        held: set[int] = set()
        while True:
            live.exit_seen = False
            try:
                begun = await self.ground.backend.start(self.spec(live.engine, key_hash=key_hash))
            except PortTakenError:
                held.add(live.engine.port)
                await self._move_port(live, held)
            except NoRoomError as error:
                self.ground.registry.out_of_room(str(error))
                raise told(error) from error
            except BackendError as error:
                raise told(error) from error
            else:
                live.life, live.ended = begun.life, None
                return begun

    async def _move_port(self, live: LiveEngine, held: set[int]) -> None:
        port = self.ground.registry.free_port(held)
        if port is None or len(held) > PORTS_TRIED_MAX:
            raise exhausted(self.ground.config)
        log.warning("port %d is held by another program, trying %d", live.engine.port, port)
        await self.ground.registry.commit(
            f.PortMoved(**self.ground.ids(live), at_ms=self.ground.clock.wall_ms(), port=port)
        )

    async def check(self, live: LiveEngine, *, timeout_s: float) -> Health:
        """Probe the engine once, and note what that may have cost it."""
        live.probes += 1
        health = await self.ground.probe.check(self.probe_url(live), timeout_s=timeout_s)
        live.probing_s += health.took_ms / 1000
        return health

    def probe_url(self, live: LiveEngine) -> str:
        """Return the health address: the published port, or the container on its network."""
        engine = self.ground.config.engine
        if engine.url_mode == "network":
            return live.url + engine.health_path
        host = PROBE_HOST.get(engine.publish_address, engine.publish_address)
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{live.engine.port}{engine.health_path}"

    async def until_healthy(
        self,
        live: LiveEngine,
        *,
        timeout_s: float,
        late: type[GateError],
        since: float | None = None,
    ) -> None:
        """Wait for the first good probe, for `timeout_s` counted from `since` (monotonic) or now.

        Raises:
            BackendFailedError: the engine exited instead.
            GateError: `late`, when the time is over.
        """
        deadline = (self.ground.clock.now() if since is None else since) + timeout_s
        clock = self.ground.clock
        look_at = clock.now() + LOOK_EVERY_S
        pause_s = POLL_FIRST_S
        while (left_s := deadline - clock.now()) > 0:
            probe_s = min(self.ground.config.health.timeout_s, left_s)
            if (await self.check(live, timeout_s=probe_s)).ok:
                return
            if live.exit_seen or clock.now() >= look_at:
                live.exit_seen = False
                look_at = clock.now() + LOOK_EVERY_S
                await self._refuse_if_gone(live)
            await clock.sleep(max(min(pause_s, deadline - clock.now()), 0))
            pause_s = min(pause_s * POLL_GROWTH, POLL_MAX_S)
        raise late(f"The engine was not healthy within {timeout_s:g} s.")

    async def _refuse_if_gone(self, live: LiveEngine) -> None:
        try:
            seen = await self.ground.backend.inspect(live.engine.engine_id)
            if not seen.connected:
                await self.ground.backend.reconnect(live.engine.engine_id)
        except BackendError:
            return  # nothing is known, so nothing is concluded
        if seen.presence in (Presence.STOPPED, Presence.ABSENT):
            code = "" if seen.exit_code is None else f" with code {seen.exit_code}"
            raise BackendFailedError(f"The engine exited{code} instead of becoming healthy.")

    async def log_tail(self, live: LiveEngine) -> list[str]:
        """Return the engine's last log lines for the audit trail, keys blotted out."""
        try:
            async with asyncio.timeout(LOG_WAIT_S):
                lines = await self.ground.backend.logs(live.engine.engine_id, lines=LOG_LINES)
        except (BackendError, TimeoutError) as error:
            log.warning("no log of engine %s: %s", live.engine.engine_id, error)
            return []
        return [_KEY.sub(r"\1-***", line) for line in lines]


def unanswered(operation: str, live: LiveEngine) -> BackendError:
    """Return the error of a verb whose time is over: nothing is known of how it ended."""
    engine_id = live.engine.engine_id
    return BackendError(operation, engine_id, "no answer in time", unavailable=True)


def told(error: BackendError) -> GateError:
    """Return what a caller is told of a backend error; its detail stays in the log."""
    log.warning("backend: %s", error)
    if error.unavailable:
        return away()
    if isinstance(error, DataLostError):
        return lost(error.detail)
    if isinstance(error, NoRoomError):
        return StorageUnavailableError(
            f"The disk is full, the engine could not be told to {error.operation}; it goes on by"
            " itself once there is room."
        )
    if isinstance(error, ImageUnavailableError):
        return BackendFailedError(
            f"The image {error.detail} cannot be had; make it available or choose another."
        )
    return BackendFailedError(f"The backend could not {error.operation} the engine.")


def away() -> BackendUnavailableError:
    return BackendUnavailableError(
        "The backend that runs engines cannot be reached; ask again in a moment."
    )


def lost(what: str) -> DataGoneError:
    """Return what is said of an engine whose data are not there any more."""
    return DataGoneError(
        f"The engine's data are gone ({what}), and nothing is put in their place: "
        "bring them back and start the engine, or destroy it."
    )


def exhausted(config: Config) -> PortExhaustionError:
    low, high = config.ports.min, config.ports.max
    return PortExhaustionError(
        f"All ports from {low} to {high} are in use; destroy engines or widen [ports].",
        min=low,
        max=high,
    )
