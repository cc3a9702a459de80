"""Engines booted in advance, so that a user's first request need not wait for a boot.

A spare has its identity, port, key and data from the start, and no user; a provision
claims it with a single fact. The pool only keeps as many ready as `pool.size` says: it
boots what is missing, checks what waits, removes what is not fit. An image that is
broken is not tried for ever.
"""

import asyncio
import logging
from typing import Final
from uuid import uuid4

from enginegate import facts as f
from enginegate.backends.base import EngineSpec, Observation, Presence
from enginegate.backoff import wait_s
from enginegate.errors import (
    BackendError,
    BackendFailedError,
    BackendUnavailableError,
    BootTimeoutError,
    GateError,
    PortTakenError,
    StorageUnavailableError,
)
from enginegate.keys import digest_hex, new_engine_key
from enginegate.lifecycle import Lifecycle
from enginegate.lifecycle.boot import exhausted, told
from enginegate.lifecycle.ground import Ground
from enginegate.model import Policy, Product, Spare
from enginegate.registry import LiveEngine, LiveProduct, Operation
from enginegate.transitions import evolve

log = logging.getLogger(__name__)

TICK_S = 0.1
AT_ONCE = 2  # boots at a time: users' own boots and wakes come first
TRIES = 5  # boots that fail in a row before the pool stops
RETRY_BASE_S = 0.5
RETRY_MAX_S = 30.0  # and how often a pool that has stopped tries once more
PAUSE_S = 1.0  # before a backend that did not answer is asked again

_NOBODY: Final = Product(
    product_id="", slug="", display_name="", policy=Policy(), key_hash="", created_at_ms=0
)


class _PortHeldError(BackendFailedError):
    """Another program holds the spare's port, whatever it is to run."""


class Pool:
    """Owned by the server: `at_start` before it listens, then `run_forever`."""

    def __init__(self, ground: Ground, lifecycle: Lifecycle) -> None:
        self.ground = ground
        self.lifecycle = lifecycle
        self.size = ground.config.pool.size
        self.spares = ground.registry.spares
        self._booting: set[Operation] = set()
        self._at_work: set[str] = set()
        self._held_ports: set[int] = set()
        self._failures = 0
        self._boot_from = 0.0
        self._remove_from = 0.0
        self._check_at = 0.0

    @property
    def stalled(self) -> bool:
        """Whether so many boots failed in a row that only one is tried now and then."""
        return self._failures >= TRIES

    def state(self) -> dict[str, int | bool]:
        """Return what `/status` shows."""
        return {
            "size": self.size,
            "ready": len([*self.spares.ready]),
            "booting": len(self._booting),
            "stalled": self.stalled,
        }

    def at_start(self) -> None:
        """Take back what an earlier enginegate had booted; what is not fit any more goes."""
        for spare in [*self.spares.rows.values()][: self.size]:
            if spare.engine_version == self.lifecycle.provisioning.default_version:
                self._launch(spare)

    async def run_forever(self) -> None:
        """Keep the pool as it should be; without one, end with the last spare of earlier days."""
        while self.size or self.spares.rows:
            await self.ground.clock.sleep(TICK_S)
            await self.look()

    async def look(self) -> None:
        """Boot what is missing, check what waits, remove what nobody may claim."""
        now, registry = self.ground.clock.now(), self.ground.registry
        if self.lifecycle.operations.closed or registry.journal_status != "ok":
            return
        if now >= self._check_at:
            self._check_at = now + self.ground.config.health.interval_s
            await asyncio.gather(*map(self._check, self.spares.ready))
        if now >= self._remove_from:
            for engine_id in self._unfit():
                self._launch_removal(self.spares.rows[engine_id])
        if now >= self._boot_from:
            self._fill()

    def _fill(self) -> None:
        missing = self.size - len([*self.spares.ready]) - len(self._booting)
        at_once = 1 if self._failures else AT_ONCE
        for _ in range(min(missing, at_once - len(self._booting))):
            self._launch(None)

    def stop(self) -> None:
        """Cut boots short: the next start takes them back or removes them."""
        for operation in [*self._booting]:
            operation.overtake()

    def _unfit(self) -> list[str]:
        """Return rows that are neither ready nor claimed nor at work, and those beyond the size."""
        ready = [*self.spares.ready]
        surplus = ready[self.size :]
        for engine_id in surplus:
            self.spares.withdraw(engine_id)
        kept = {*ready[: self.size], *self.spares.claims, *self._at_work}
        return [engine_id for engine_id in self.spares.rows if engine_id not in kept]

    # Boots

    def _launch(self, known: Spare | None) -> None:
        operation = self.lifecycle.operations.operation(
            "pool_boot", actor="system", params=None, holds=False
        )
        self._booting.add(operation)

        async def work(_: Operation) -> None:
            await self._bring_up(known)

        self.lifecycle.operations.launch(operation, work, lambda: self._booting.discard(operation))

    async def _bring_up(self, known: Spare | None) -> None:
        spare = known or await self._begin()
        self._at_work.add(spare.engine_id)
        try:
            if known is not None:
                await self._refuse_if_down(known)
            else:
                await self._start(spare)
            await self.lifecycle.booter.until_healthy(
                self._stand_in(spare),
                timeout_s=self.ground.config.boot.timeout_s,
                late=BootTimeoutError,
            )
        except (StorageUnavailableError, _PortHeldError):
            raise  # a fault of no engine: the next tick goes on, with the next port
        except GateError as error:
            if known is None:
                self._failed(error)
            raise
        else:
            self._failures = 0
            self.spares.offer(spare.engine_id)
        finally:
            self._at_work.discard(spare.engine_id)

    async def _begin(self) -> Spare:
        """Record a new spare: from here on its port is leased and its key exists."""
        ground = self.ground
        port = ground.registry.free_port(self._held_ports)
        if port is None:
            error = exhausted(ground.config)
            self._failed(error)
            raise error
        engine_id, key = str(uuid4()), new_engine_key()
        await ground.registry.commit(
            f.SpareBegun(
                at_ms=ground.clock.wall_ms(),
                engine_id=engine_id,
                port=port,
                engine_version=self.lifecycle.provisioning.default_version,
                sealed_key=ground.keyring.seal(engine_id, key),
                key_hash=digest_hex(key),
            )
        )
        return self.spares.rows[engine_id]

    async def _start(self, spare: Spare) -> None:
        spec = EngineSpec(
            engine_id=spare.engine_id,
            engine_version=spare.engine_version,
            port=spare.port,
            key_hashes=(spare.key_hash,),
        )
        try:
            await self.ground.backend.start(spec)
        except PortTakenError as error:
            self._held_ports.add(spare.port)
            message = f"Port {spare.port} is held by another program."
            raise _PortHeldError(message) from error
        except BackendError as error:
            raise told(error) from error

    async def _refuse_if_down(self, spare: Spare) -> None:
        """Take back only what is up: what is down may have lost more than its process."""
        while (seen := await self._seen(spare)) is None:
            await self.ground.clock.sleep(PAUSE_S)
        if seen.presence is not Presence.RUNNING:
            raise BackendFailedError(f"The spare engine is {seen.presence}.")

    async def _seen(self, spare: Spare) -> Observation | None:
        """Return what the backend says; None while it says nothing, and nothing is concluded."""
        try:
            return await self.ground.backend.inspect(spare.engine_id)
        except BackendError:
            return None

    def _failed(self, error: GateError) -> None:
        if isinstance(error, BackendUnavailableError):
            self._boot_from = self.ground.clock.now() + PAUSE_S
            return  # it says nothing about the image
        self._failures += 1
        pause_s = wait_s(self._failures, base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
        if self.stalled:
            pause_s = RETRY_MAX_S
        self._boot_from = self.ground.clock.now() + pause_s
        log.warning(
            "the pool could not boot an engine, %d in a row, the next try is in %g s: %s",
            self._failures,
            pause_s,
            error.message,
        )

    def _stand_in(self, spare: Spare) -> LiveEngine:
        """Return the spare as the engine it would be if somebody had claimed it."""
        engine = evolve(
            None,
            f.Claimed(
                at_ms=spare.created_at_ms,
                engine_id=spare.engine_id,
                product_id="",
                user_id="",
                port=spare.port,
                engine_version=spare.engine_version,
                sealed_key=spare.sealed_key,
                key_hash=spare.key_hash,
            ),
        )
        assert engine is not None
        url = self.ground.registry.index.url_of(engine)
        return LiveEngine(engine, LiveProduct(_NOBODY), keys=self.ground.keyring, url=url)

    # Those that wait, and those that go

    async def _check(self, engine_id: str) -> None:
        spare = self.spares.rows[engine_id]
        health = await self.lifecycle.booter.check(
            self._stand_in(spare), timeout_s=self.ground.config.health.timeout_s
        )
        if not health.ok:
            self.spares.withdraw(engine_id)  # unless somebody claimed it meanwhile

    def _launch_removal(self, spare: Spare) -> None:
        operation = self.lifecycle.operations.operation(
            "pool_remove", actor="system", params=None, holds=False
        )
        self._at_work.add(spare.engine_id)

        async def work(_: Operation) -> None:
            await self._remove(spare)

        self.lifecycle.operations.launch(
            operation, work, lambda: self._at_work.discard(spare.engine_id)
        )

    async def _remove(self, spare: Spare) -> None:
        try:
            await self.ground.backend.destroy(spare.engine_id)
        except BackendError as error:
            self._remove_from = self.ground.clock.now() + PAUSE_S
            raise told(error) from error
        await self.ground.registry.commit(
            f.SpareRemoved(at_ms=self.ground.clock.wall_ms(), engine_id=spare.engine_id),
            use_reserve=True,
        )
