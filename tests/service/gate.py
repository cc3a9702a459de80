"""A whole gate without HTTP, disk or processes: real core, fake backend, manual clock."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

from enginegate.admission import Admission, Admitted, Options, Refused
from enginegate.config import Config
from enginegate.errors import StorageUnavailableError
from enginegate.facts import AnyFact
from enginegate.health import HealthLoop
from enginegate.idle import IdleLoop
from enginegate.keys import Keyring, KeyUnsealError, digest
from enginegate.lifecycle import Lifecycle, Operations, Products
from enginegate.lifecycle.ground import Ground
from enginegate.model import Policy, SnapshotRecord
from enginegate.pool import Pool
from enginegate.ports import PortMap
from enginegate.recovery import Recovery
from enginegate.registry import LiveEngine, LiveProduct, Registry
from enginegate.tiers import TierLoop
from tests.fakes import FakeBackend, FakeProbe, FakeWorld, ManualClock, settle

MASTER_KEY = "x" * 43 + "="


class MemoryJournal:
    """Makes facts durable one loop turn later, and keeps them as a disk would."""

    def __init__(self) -> None:
        self.facts: list[tuple[int, AnyFact]] = []
        self.status = "ok"
        self.numbers = itertools.count(1)
        self.apply: Callable[[list[tuple[int, AnyFact]]], None] = lambda _: None
        self.abandon: Callable[[], None] = lambda: None
        self.failing = False
        self.reserve = True
        self.held: list[tuple[AnyFact, asyncio.Future[int]]] | None = None

    def submit(self, fact: AnyFact, *, use_reserve: bool = False) -> "asyncio.Future[int]":
        if self.status == "failed" or (self.status == "full" and not use_reserve):
            raise StorageUnavailableError("The journal cannot be written.")
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self.held is None:
            asyncio.get_running_loop().call_soon(self._sync, fact, future)
        else:
            self.held.append((fact, future))
        return future

    def check(self) -> str:
        return self.status

    def has_reserve(self) -> bool:
        return self.reserve

    def out_of_room(self, why: str) -> None:
        if self.status == "ok":
            self.status = "full"

    def hold(self) -> None:
        """Let the disk be slow: nothing becomes durable until `release`."""
        self.held = []

    def release(self) -> None:
        held, self.held = self.held or [], None
        for fact, future in held:
            self._sync(fact, future)

    def _sync(self, fact: AnyFact, future: "asyncio.Future[int]") -> None:
        if self.failing:
            self.status = "failed"
            self.abandon()
            if not future.done():
                future.set_exception(StorageUnavailableError("The journal failed."))
            return
        if self.status == "failed":
            if not future.done():
                future.set_exception(StorageUnavailableError("The journal failed."))
            return
        number = next(self.numbers)
        self.facts.append((number, fact))
        self.apply([(number, fact)])
        if not future.done():
            future.set_result(number)


class Gate:
    """The parts of a gate, and the few words tests use."""

    def __init__(
        self,
        *,
        config: Config,
        clock: ManualClock,
        world: FakeWorld | None = None,
        journal: MemoryJournal | None = None,
        snapshot: list[SnapshotRecord] | None = None,
        backend: Any = None,
        probe: Any = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.journal = journal or MemoryJournal()
        self.backend = backend or FakeBackend(clock=clock, world=world)
        self.probe = probe or FakeProbe(self.backend)
        self.tasks: set[asyncio.Task[Any]] = set()
        keyring = Keyring([MASTER_KEY])
        self.registry = Registry(
            ports=PortMap(config.ports.min, config.ports.max),
            keyring=keyring,
            clock=clock,
            url_of=lambda engine: f"http://127.0.0.1:{engine.port}",
            sleep_after_s=config.idle.sleep_after_s,
        )
        self.registry.load(snapshot or [], [] if snapshot else self.journal.facts)
        self.journal.apply = self.registry.apply
        self.journal.abandon = self.registry.abandon
        self.registry.attach(self.journal, self.journal)
        self.ground = Ground(
            registry=self.registry,
            backend=self.backend,
            probe=self.probe,
            keyring=keyring,
            clock=clock,
            config=config,
        )
        self.operations = Operations(spawn=self.spawn, clock=clock, meters=self.registry.meters)
        self.lifecycle = Lifecycle(self.ground, self.operations)
        self.products = Products(registry=self.registry, lifecycle=self.lifecycle, clock=clock)
        self.health = HealthLoop(self.ground, self.lifecycle)
        self.pool = Pool(self.ground, self.lifecycle)
        self.available_mb = 1_000_000
        self.tiers = TierLoop(
            self.ground,
            self.lifecycle,
            spawn=self.spawn,
            available_mb=lambda: self.available_mb,
        )
        self.recovery = Recovery(self.ground, self.lifecycle, self.products, self.health)
        self.idle = IdleLoop(
            self.ground, self.lifecycle, look_into=self.recovery.look, spawn=self.spawn
        )
        self.admission = Admission(
            registry=self.registry,
            lifecycle=self.lifecycle,
            health=self.health,
            clock=clock,
            encode=_encoded,
        )
        self.key = b""

    def spawn(self, work: Coroutine[Any, Any, None], name: str = "") -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        return task

    async def product(self, slug: str = "acme", **policy: Any) -> LiveProduct:
        product_id, key = await self.products.register(slug, slug.title(), Policy(**policy))
        self.key = key.encode()
        return self.registry.products[product_id]

    async def engine(self, owner: LiveProduct, user_id: str = "ann") -> LiveEngine:
        return await self.lifecycle.provision(owner, user_id, version=None, actor="acme")

    async def admit(
        self, owner: LiveProduct, user_id: str = "ann", **options: Any
    ) -> Admitted | Refused:
        return await self.admission.admit(owner, user_id, Options(**options), actor="acme")

    def warm(self, user_id: str = "ann", body: bytes = b"") -> bytes | None:
        return self.admission.warm(self.key, user_id, body)

    def product_by_key(self, key: bytes) -> LiveProduct | None:
        return self.registry.product_by_key(digest(key))

    def actions(self, *, user_id: str | None = None) -> list[str]:
        """Return the audited actions so far, oldest first, failures marked with `!`."""
        return [
            entry.action + ("" if entry.outcome == "ok" else "!")
            for entry in self.registry.trail.recent
            if user_id in (None, entry.user_id)
        ]

    async def crash_and_restart(self, config: Config | None = None) -> "Gate":
        """Kill this gate as by kill -9 and start another on its journal and world."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        again = Gate(
            config=config or self.config,
            clock=self.clock,
            world=self.backend.world,
            journal=self.journal,
        )
        again.key = self.key
        await again.start()
        return again

    async def start(self) -> None:
        """Recover, then run what a server runs beside the requests."""
        await self.recovery.at_start()
        self.idle.plan_all()
        self.pool.at_start()
        self.tiers.plan_all()
        self.spawn(self.recovery.watch_forever())
        await settle()

    def run_loops(self) -> None:
        """Run the loops that need the clock to go on."""
        self.spawn(self.health.sweep_forever())
        self.spawn(self.health.restart_forever())
        self.spawn(self.idle.run_forever())
        self.spawn(self.pool.run_forever())
        self.spawn(self.tiers.run_forever())
        self.spawn(self.tiers.relieve_forever())
        self.spawn(self.recovery.compare_forever())
        self.spawn(self.recovery.trim_logs_forever())

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def _encoded(live: LiveEngine, lease_s: float) -> bytes | None:
    """Stand in for the real answer, which is made where HTTP is known."""
    try:
        return f"{live.engine.engine_id} {live.api_key} {lease_s}".encode()
    except KeyUnsealError:
        return None
