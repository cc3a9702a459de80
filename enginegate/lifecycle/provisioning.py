"""A user's engine comes to be: checks, reservation, row, boot."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from uuid import uuid4

from enginegate import facts as f
from enginegate.errors import (
    BackendUnavailableError,
    EngineAlreadyExistsError,
    GateError,
    PolicyDeniedError,
    PortExhaustionError,
    QuotaExceededError,
    StorageUnavailableError,
)
from enginegate.keys import digest_hex, new_engine_key
from enginegate.lifecycle.boot import away, exhausted
from enginegate.lifecycle.ground import Ground
from enginegate.lifecycle.operations import Operations, Work
from enginegate.lifecycle.starting import Starter
from enginegate.model import Outcome, Spare
from enginegate.policy import image_allowed, quota_left
from enginegate.registry import LiveEngine, LiveProduct, Operation

Undo = Callable[[LiveEngine, str], Awaitable[object]]
"""Removes what a provision has begun; told by whom."""


class Provisioning:
    def __init__(
        self, ground: Ground, operations: Operations, starter: Starter, *, undo: Undo
    ) -> None:
        self.ground = ground
        self.operations = operations
        self.starter = starter
        self.undo = undo

    async def refuse_if_exists(self, owner: LiveProduct, user_id: str) -> None:
        while owner.has(user_id):
            live = owner.engines.get(user_id)
            if live is not None:
                raise EngineAlreadyExistsError(
                    f"The user has an engine already, {live.engine.status}.",
                    engine_id=live.engine.engine_id,
                    status=live.engine.status.value,
                )
            await self.ground.registry.flushed()  # somebody's provision is on its way to the disk

    async def begin(
        self, owner: LiveProduct, user_id: str, *, version: str | None, actor: str
    ) -> Operation | None:
        """Check, reserve, and start the boot; None if the user has an engine by now.

        The last check and the reservation share one turn of the loop: that is the lock.
        A backend that cannot be asked is no reason to make a row that nobody can boot.
        """
        reachable = await self.ground.backend.ping()
        self.operations.refuse_if_closed()
        self.ground.refuse_if_unwritable()
        if owner.product.deleting:
            raise PolicyDeniedError("The product is being deleted.")
        version = self.checked_version(version)
        while not quota_left(owner.product.policy, owner.size):
            if not owner.promised:
                raise QuotaExceededError(
                    "The product has as many engines as its policy allows.",
                    limit=owner.product.policy.max_engines,
                )
            await self.ground.registry.flushed()  # refuse only for engines that really came to be
        if owner.has(user_id):
            return None
        operation = self.operations.operation("provision", actor=actor, params=None, holds=True)
        spare = self.ground.registry.spares.take(version)
        if spare is None and not reachable:
            raise self._unreachable(owner, user_id, actor)
        if spare is None:
            fact = self._provisioned(owner, user_id, version, actor)
            recorded = self.ground.registry.record(fact)
            work = self._booting(fact.engine_id, recorded, actor)
        else:
            work = self._claiming(spare, self._claim(owner, user_id, spare, actor))
        owner.boots[user_id] = operation
        self.operations.launch(operation, work, lambda: self._leave_boot(owner, user_id))
        return operation

    def _booting(self, engine_id: str, recorded: "asyncio.Future[int]", actor: str) -> Work:
        async def work(_: Operation) -> LiveEngine:
            await asyncio.shield(recorded)
            live = self.ground.registry.engines[engine_id]
            try:
                await self.starter.boot(live, via="provision", actor=actor)
            except (StorageUnavailableError, PortExhaustionError):
                with suppress(GateError):  # then the next start, or DELETE, does it
                    await self.undo(live, actor)
                raise
            return live

        return work

    def _claiming(self, spare: Spare, recorded: "asyncio.Future[int]") -> Work:
        async def work(_: Operation) -> LiveEngine:
            try:
                await asyncio.shield(recorded)
            except StorageUnavailableError:
                self.ground.registry.spares.offer(spare.engine_id)
                raise
            return self.ground.registry.engines[spare.engine_id]

        return work

    def _claim(
        self, owner: LiveProduct, user_id: str, spare: Spare, actor: str
    ) -> "asyncio.Future[int]":
        """Record that the spare is the user's; without a journal it stays a spare."""
        try:
            return self.ground.registry.record(
                f.Claimed(
                    at_ms=self.ground.clock.wall_ms(),
                    actor=actor,
                    engine_id=spare.engine_id,
                    product_id=owner.product.product_id,
                    user_id=user_id,
                    port=spare.port,
                    engine_version=spare.engine_version,
                    sealed_key=spare.sealed_key,
                    key_hash=spare.key_hash,
                    metadata={"from_pool": True},
                )
            )
        except StorageUnavailableError:
            self.ground.registry.spares.offer(spare.engine_id)
            raise

    def _leave_boot(self, owner: LiveProduct, user_id: str) -> None:
        del owner.boots[user_id]
        live = owner.engines.get(user_id)
        if live is not None:
            live.operation = None
            live.answer = None

    def _unreachable(self, owner: LiveProduct, user_id: str, actor: str) -> BackendUnavailableError:
        """Return the refusal, which leaves no row but its entry in the trail."""
        refusal = away()
        self.ground.registry.note(
            "provision",
            product=owner.product,
            user_id=user_id,
            outcome=Outcome.FAILED,
            actor=actor,
            reason=refusal.message,
        )
        return refusal

    def _provisioned(
        self, owner: LiveProduct, user_id: str, version: str, actor: str
    ) -> f.Provisioned:
        port = self.ground.registry.free_port()
        if port is None:
            raise exhausted(self.ground.config)
        engine_id, key = str(uuid4()), new_engine_key()
        return f.Provisioned(
            at_ms=self.ground.clock.wall_ms(),
            actor=actor,
            engine_id=engine_id,
            product_id=owner.product.product_id,
            user_id=user_id,
            port=port,
            engine_version=version,
            sealed_key=self.ground.keyring.seal(engine_id, key),
            key_hash=digest_hex(key),
        )

    def checked_version(self, version: str | None) -> str:
        default = self.default_version
        if version is None or version == default:
            return default
        allowed = self.ground.config.engine.allowed_images
        if not image_allowed(version, image=self.ground.config.engine.image, allowed=allowed):
            raise PolicyDeniedError(
                "This engine_version is not allowed; the operator lists versions in "
                "[engine] allowed_images.",
                engine_version=version,
            )
        return version

    @property
    def default_version(self) -> str:
        return self.ground.config.engine.image or "process"

    def resume(self, live: LiveEngine) -> Operation:
        """Go on with a boot that a crash of enginegate cut in half."""
        return self.operations.begin(
            live,
            "provision",
            lambda _: self.starter.boot(live, via="provision", actor="system"),
            actor="system",
        )
