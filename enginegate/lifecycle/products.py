"""What an operator does with products: register, policy, keys, delete."""

import asyncio
from uuid import uuid4

from enginegate import facts as f
from enginegate.clock import Clock
from enginegate.errors import (
    EngineNotFoundError,
    ProductNotFoundError,
    ProductSlugExistsError,
)
from enginegate.keys import digest_hex, new_platform_key
from enginegate.lifecycle.verbs import Lifecycle
from enginegate.model import Policy
from enginegate.registry import LiveProduct, Operation, Registry

ADMIN = "admin"


class Products:
    def __init__(self, *, registry: Registry, lifecycle: Lifecycle, clock: Clock) -> None:
        self.registry = registry
        self.lifecycle = lifecycle
        self.clock = clock
        self.operations = lifecycle.operations
        self._deletions: dict[str, Operation] = {}

    def get(self, product_id: str) -> LiveProduct:
        """Return the product.

        Raises:
            ProductNotFoundError: there is none with this id.
        """
        live = self.registry.products.get(product_id)
        if live is None:
            raise ProductNotFoundError("No such product.")
        return live

    async def register(self, slug: str, display_name: str, policy: Policy) -> tuple[str, str]:
        """Create a product; return its id and its platform key, which is kept nowhere.

        Raises:
            ProductSlugExistsError: another product has the slug.
        """
        self.operations.refuse_if_closed()
        while self.registry.slug_taken(slug):
            if slug in self.registry.by_slug:
                raise ProductSlugExistsError(f"A product with the slug {slug!r} exists.", slug=slug)
            await self.registry.flushed()  # refuse only for a product that really came to be
        product_id, key = str(uuid4()), new_platform_key()
        await self.registry.commit(
            f.ProductRegistered(
                at_ms=self.clock.wall_ms(),
                actor=ADMIN,
                product_id=product_id,
                slug=slug,
                display_name=display_name,
                policy=policy,
                key_hash=digest_hex(key),
            )
        )
        return product_id, key

    async def set_policy(self, product_id: str, policy: Policy) -> Policy:
        """Replace the policy; it holds from the next request on."""
        self.operations.refuse_if_closed()
        self._alive(product_id)
        await self.registry.commit(
            f.PolicyChanged(
                at_ms=self.clock.wall_ms(), actor=ADMIN, product_id=product_id, policy=policy
            )
        )
        return policy

    async def rotate_key(self, product_id: str, *, overlap_s: float) -> str:
        """Return a new platform key; the old one works for `overlap_s` more seconds.

        So do those that rotations before have left; one without an overlap ends them all.
        """
        self.operations.refuse_if_closed()
        self._alive(product_id)
        key, at_ms = new_platform_key(), self.clock.wall_ms()
        await self.registry.commit(
            f.PlatformKeyRotated(
                at_ms=at_ms,
                actor=ADMIN,
                product_id=product_id,
                key_hash=digest_hex(key),
                old_key_until_ms=at_ms + round(overlap_s * 1000) if overlap_s > 0 else 0,
            )
        )
        return key

    async def delete(self, product_id: str, *, actor: str = ADMIN) -> int:
        """Destroy the product's engines, then the product; return how many engines went.

        Its platform key stops at once. A second caller joins the first; what a
        failing backend leaves behind is tried again in the background.
        """
        live = self.get(product_id)
        count: int = await self._begin_deletion(live, actor=actor).join()
        return count

    def _begin_deletion(self, live: LiveProduct, *, actor: str) -> Operation:
        product_id = live.product.product_id
        at_work = self._deletions.get(product_id)
        if at_work is None:
            at_work = self.operations.operation(
                "delete_product", actor=actor, params=None, holds=False
            )
            self._deletions[product_id] = at_work
            self.operations.launch(
                at_work,
                lambda _: self._delete(live, actor=actor),
                lambda: self._deletions.pop(product_id),
            )
        return at_work

    async def _delete(self, live: LiveProduct, *, actor: str) -> int:
        product_id = live.product.product_id
        if not live.product.deleting:
            await self.registry.commit(
                f.ProductDeletionBegun(
                    at_ms=self.clock.wall_ms(), actor=actor, product_id=product_id
                ),
                use_reserve=True,
            )
        count = 0
        while live.size:
            count += await self._destroy_all(live, actor=actor)
        await self.registry.commit(
            f.ProductDeleted(
                at_ms=self.clock.wall_ms(),
                actor=actor,
                product_id=product_id,
                slug=live.product.slug,
                metadata={"engines_destroyed": count},
            ),
            use_reserve=True,
        )
        return count

    async def _destroy_all(self, live: LiveProduct, *, actor: str) -> int:
        """Destroy every engine that has a row by now; return how many went."""
        await self.registry.flushed()
        ends = await asyncio.gather(
            *(self.lifecycle.destroy(engine, actor=actor) for engine in live.engines.values()),
            return_exceptions=True,
        )
        for end in ends:
            if isinstance(end, BaseException) and not isinstance(end, EngineNotFoundError):
                raise end
        return len(ends)

    def _alive(self, product_id: str) -> LiveProduct:
        live = self.get(product_id)
        if live.product.deleting:
            raise ProductNotFoundError("The product is being deleted.")
        return live

    def go_on_with_deletions(self) -> None:
        """Take up deletions that a crash or a failing backend left half-done."""
        for live in self.registry.products.values():
            if live.product.deleting and not self.operations.closed:
                self._begin_deletion(live, actor="system")
