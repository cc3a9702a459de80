"""A new key for a running engine, by replacing it or under its feet."""

import asyncio
from collections.abc import Iterable

from enginegate import facts as f
from enginegate.errors import (
    BackendError,
    BackendUnavailableError,
    BootTimeoutError,
    GateError,
    StorageUnavailableError,
)
from enginegate.keys import digest_hex
from enginegate.lifecycle.boot import Booter, told, unanswered
from enginegate.lifecycle.failure import SLACK_S, STOP_GRACE_S, Failures
from enginegate.lifecycle.ground import Ground
from enginegate.model import Engine
from enginegate.policy import valid_key_hashes
from enginegate.registry import LiveEngine


class Rotation:
    def __init__(self, ground: Ground, booter: Booter, failures: Failures) -> None:
        self.ground = ground
        self.booter = booter
        self.failures = failures

    async def rotate(self, live: LiveEngine, key: str, *, actor: str) -> None:
        started = self.ground.clock.now()
        ids = self.ground.ids(live)
        engine_id = ids["engine_id"]
        await self.ground.registry.commit(
            f.KeyRotationBegun(
                **ids,
                at_ms=self.ground.clock.wall_ms(),
                actor=actor,
                sealed_key=self.ground.keyring.seal(engine_id, key),
                key_hash=digest_hex(key),
            )
        )
        overlap_until_ms = 0
        try:
            if self.ground.config.engine.rotate_mode == "live":
                overlap_until_ms = await self._swap_live(live, digest_hex(key))
            else:
                await self._end_old_life(live, digest_hex(key))
                await self._swap_by_restart(live, digest_hex(key))
        except GateError as error:
            await self._rotation_failed(live, error, started, actor=actor)
            raise
        await self.ground.registry.commit(
            f.KeyRotated(
                **ids,
                at_ms=self.ground.clock.wall_ms(),
                actor=actor,
                duration_ms=self.ground.took_ms(started),
                old_key_until_ms=overlap_until_ms,
                metadata={"mode": self.ground.config.engine.rotate_mode},
            ),
            use_reserve=True,
        )

    async def _swap_live(self, live: LiveEngine, key_hash: str) -> int:
        """Let new and old keys work; return until when (Unix, ms) the one in force does."""
        engine = live.engine
        try:
            await self.ground.backend.put_key(engine.engine_id, [key_hash, *self._valid(engine)])
        except BackendError as error:
            raise told(error) from error
        overlap_s = self.ground.config.engine.key_overlap_s
        return self.ground.clock.wall_ms() + max(round(overlap_s * 1000), 1)

    async def _end_old_life(self, live: LiveEngine, key_hash: str) -> None:
        """Stop the old life in the time a stop has, once all that the new one needs is there."""
        try:
            await self.ground.backend.prepare(self.booter.spec(live.engine, key_hash=key_hash))
            async with asyncio.timeout(STOP_GRACE_S + SLACK_S):
                await self.failures.halt(live, grace_s=STOP_GRACE_S)
        except BackendError as error:
            raise told(error) from error
        except TimeoutError as error:
            raise told(unanswered("stop", live)) from error

    async def _swap_by_restart(self, live: LiveEngine, key_hash: str) -> None:
        await self.booter.bring_up(live, late=BootTimeoutError, key_hash=key_hash)

    async def _rotation_failed(
        self, live: LiveEngine, error: GateError, started: float, *, actor: str
    ) -> None:
        """Bring the engine back with its old key; if even that fails, it has failed."""
        await self.ground.registry.commit(
            f.KeyRotationFailed(
                **self.ground.ids(live),
                at_ms=self.ground.clock.wall_ms(),
                actor=actor,
                duration_ms=self.ground.took_ms(started),
                reason=error.message,
            ),
            use_reserve=True,
        )
        try:
            if self.ground.config.engine.rotate_mode == "live":
                await self.ground.backend.put_key(live.engine.engine_id, self._valid(live.engine))
            else:
                await self._swap_by_restart(live, live.engine.key_hash)
        except BackendError as again:
            told(again)  # to the log; the caller hears of the first error
        except GateError as again:
            away = isinstance(again, BackendUnavailableError) and await self._serves(live)
            if not (away or isinstance(again, StorageUnavailableError)):
                await self.failures.fail(live, during="running", error=again, cause="rotate_key")

    async def _serves(self, live: LiveEngine) -> bool:
        """Return whether it answers all the while that the backend does not.

        The comparison sees to it that its key is the one in force.
        """
        timeout_s = self.ground.config.health.timeout_s
        return (await self.booter.check(live, timeout_s=timeout_s)).ok

    async def keep_keys(self, live: LiveEngine, old: Iterable[str]) -> None:
        """Leave in the file the key in force and the `old` ones (hashes) whose overlap goes on."""
        try:
            await self.ground.backend.put_key(live.engine.engine_id, [live.engine.key_hash, *old])
        except BackendError as error:
            raise told(error) from error

    def _valid(self, engine: Engine) -> list[str]:
        return valid_key_hashes(engine, self.ground.clock.wall_ms())
