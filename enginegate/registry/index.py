"""Where products and engines are found, and how durable facts change them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

from msgspec.structs import replace

from enginegate import facts as f
from enginegate.clock import Clock
from enginegate.metrics import Tally
from enginegate.model import Counters, Engine, Policy, Product, SnapshotRecord, Spare
from enginegate.policy import OLD_KEYS_MAX, old_keys
from enginegate.ports import PortMap
from enginegate.registry.fleet import LiveEngine, LiveProduct, Opener
from enginegate.registry.spares import Spares
from enginegate.slices import SLICE

RETIRED = ""  # the product id under which a snapshot keeps the totals of deleted products


class Index:
    """The durable fleet by id, slug, key and user. Changed by `install` alone."""

    def __init__(
        self,
        *,
        ports: PortMap,
        keyring: Opener,
        clock: Clock,
        url_of: Callable[[Engine], str],
        sleep_after_s: float,
    ) -> None:
        self.ports = ports
        self.products: dict[str, LiveProduct] = {}
        self.by_slug: dict[str, LiveProduct] = {}
        self.by_key: dict[bytes, LiveProduct] = {}
        self.engines: dict[str, LiveEngine] = {}
        self.slugs: set[str] = set()  # those of queued registrations too
        self.retired = Tally()
        self.spares = Spares()
        self._old_keys: dict[bytes, LiveProduct] = {}
        self._keyring = keyring
        self._clock = clock
        self.url_of = url_of
        self._sleep_after_s = sleep_after_s

    def product_by_key(self, digest: bytes) -> LiveProduct | None:
        """Return the product whose platform key has this SHA-256, old keys in overlap too."""
        product = self.by_key.get(digest)
        if product is not None:
            return product
        replaced = self._old_keys.get(digest)
        if replaced is None:
            return None
        works = old_keys(replaced.product, self._clock.wall_ms())
        return replaced if any(old.key_hash == digest.hex() for old in works) else None

    async def walk(self, *, running: bool = False) -> AsyncIterator[LiveEngine]:
        """Yield the fleet, or who of it runs, in short turns of the loop.

        Engines may change or go meanwhile.
        """
        met = 0
        for product in [*self.products.values()]:
            async for live in product.roster.walk(running=running):
                yield live
                met += 1
            met += 1  # many products with few engines are a long turn, too
            if met >= SLICE:
                met = 0
                await asyncio.sleep(0)

    def records(self) -> Iterator[SnapshotRecord]:
        """Yield the durable state as records that `restore` understands; install none meanwhile.

        None where nothing ever happened: a first start that is killed before its snapshot
        has its name leaves a segment that says there was nothing to lose.
        """
        now_ms = self._clock.wall_ms()
        products = list(self.products.values())
        yield from (live.product for live in products)
        for live in products:
            yield from live.tally.counters(live.product.product_id, now_ms)
        if not self.retired.empty:
            yield from self.retired.counters(RETIRED, now_ms)
        yield from (live.engine for live in self.engines.values())
        yield from self.spares.rows.values()

    def restore(self, record: SnapshotRecord) -> None:
        match record:
            case Product():
                self._add_product(record)
                self.slugs.add(record.slug)
            case Counters(product_id=product_id) if product_id == RETIRED:
                self.retired.restore(record)
            case Counters():
                self.products[record.product_id].tally.restore(record)
            case Engine():
                self.restore_engine(record)
            case Spare():
                self.ports.lease(record.port)
                self.spares.add(record)

    def restore_engine(self, engine: Engine) -> None:
        """Restore what nearly all records are, without asking what it is."""
        self.ports.lease(engine.port)
        self._add_engine(engine)

    def install(self, fact: f.AnyFact, after: Engine | None) -> None:
        """Make a durable fact visible; `after` is what it made of the engine's row."""
        if isinstance(fact, f.EngineFact):
            self._install_engine(fact, after)
        elif isinstance(fact, f.ProductFact):
            self._install_product(fact)
        elif isinstance(fact, f.SpareBegun):
            self.spares.add(
                Spare(
                    engine_id=fact.engine_id,
                    port=fact.port,
                    engine_version=fact.engine_version,
                    sealed_key=fact.sealed_key,
                    key_hash=fact.key_hash,
                    created_at_ms=fact.at_ms,
                )
            )
        elif isinstance(fact, f.SpareRemoved):
            self.ports.release(self.spares.remove(fact.engine_id).port)

    def _install_engine(self, fact: f.EngineFact, after: Engine | None) -> None:
        live = self.engines.get(fact.engine_id)
        if live is None:
            assert after is not None
            if isinstance(fact, f.Claimed):
                self.spares.remove(fact.engine_id)  # its port goes with it
            self._add_engine(after)
            return
        if after is None:
            self._remove_engine(live)
            return
        before, live.engine, live.answer = live.engine, after, None
        if after.status is not before.status:
            live.owner.roster.moved(live, before.status)
        if after.port != before.port:
            self.ports.release(before.port)
            live.url = self.url_of(after)
        if after.sealed_key != before.sealed_key:
            live.change_key()
        if after.incarnation != before.incarnation:
            self._into_service(live)

    def _into_service(self, live: LiveEngine) -> None:
        live.probe_failures = 0
        live.failing = False
        live.exit_seen = False
        live.healthy_at_ms = live.engine.healthy_at_ms
        live.extend_lease(self._clock.now())

    def _add_engine(self, engine: Engine) -> None:
        owner = self.products[engine.product_id]
        live = LiveEngine(engine, owner, keys=self._keyring, url=self.url_of(engine))
        live.operation = owner.boots.get(engine.user_id)
        self._set_lease(live)
        owner.engines[engine.user_id] = live
        owner.promised.pop(engine.user_id, None)
        owner.roster.add(live)
        self.engines[engine.engine_id] = live

    def _remove_engine(self, live: LiveEngine) -> None:
        engine = live.engine
        live.answer = None
        live.gone = True
        self.ports.release(engine.port)
        del self.engines[engine.engine_id]
        del live.owner.engines[engine.user_id]
        live.owner.roster.remove(live)

    def _set_lease(self, live: LiveEngine) -> None:
        policy_s = live.owner.product.policy.idle_sleep_s
        live.lease_s = self._sleep_after_s if policy_s is None else policy_s
        live.extend_lease(self._clock.now())

    def _install_product(self, fact: f.ProductFact) -> None:
        match fact:
            case f.ProductRegistered():
                self._add_product(
                    Product(
                        product_id=fact.product_id,
                        slug=fact.slug,
                        display_name=fact.display_name,
                        policy=fact.policy,
                        key_hash=fact.key_hash,
                        created_at_ms=fact.at_ms,
                    )
                )
            case f.PolicyChanged():
                self._change_policy(self.products[fact.product_id], fact.policy)
            case f.PlatformKeyRotated():
                self._change_key(self.products[fact.product_id], fact)
            case f.ProductDeletionBegun():
                live = self.products[fact.product_id]
                live.set(replace(live.product, deleting=True))
                self._forget_keys(live)
            case f.ProductDeleted():
                live = self.products.pop(fact.product_id)
                self.retired.absorb(live.tally)
                del self.by_slug[live.product.slug]
                self.slugs.discard(live.product.slug)
            case _:  # pragma: no cover - every product fact has its case above
                raise AssertionError(fact)

    def _add_product(self, product: Product) -> None:
        live = LiveProduct(product)
        self.products[product.product_id] = live
        self.by_slug[product.slug] = live
        if not product.deleting:
            self.by_key[bytes.fromhex(product.key_hash)] = live
            self._keep_old_keys(live)

    def _change_policy(self, live: LiveProduct, policy: Policy) -> None:
        idle_changed = policy.idle_sleep_s != live.product.policy.idle_sleep_s
        live.set(replace(live.product, policy=policy))
        for engine in live.engines.values():
            engine.answer = None
            if idle_changed:
                self._set_lease(engine)

    def _change_key(self, live: LiveProduct, fact: f.PlatformKeyRotated) -> None:
        """Put a new key in force; one without an overlap ends all the old ones."""
        self._forget_keys(live)
        before, overlaps = live.product, bool(fact.old_key_until_ms)
        live.set(
            replace(
                before,
                key_hash=fact.key_hash,
                old_key_hash=before.key_hash if overlaps else None,
                old_key_until_ms=fact.old_key_until_ms,
                older_keys=old_keys(before, fact.at_ms)[: OLD_KEYS_MAX - 1] if overlaps else (),
            )
        )
        self.by_key[bytes.fromhex(fact.key_hash)] = live
        self._keep_old_keys(live)

    def _keep_old_keys(self, live: LiveProduct) -> None:
        for old in old_keys(live.product, 0):
            self._old_keys[bytes.fromhex(old.key_hash)] = live

    def _forget_keys(self, live: LiveProduct) -> None:
        self.by_key.pop(bytes.fromhex(live.product.key_hash), None)
        for old in old_keys(live.product, 0):
            self._old_keys.pop(bytes.fromhex(old.key_hash), None)
