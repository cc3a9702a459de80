"""One life of a simulated server: the real gate, from the journal up to its HTTP API."""

import asyncio
import logging
import os
import random
import re
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from enginegate import facts as f
from enginegate.api.app import build
from enginegate.config import Config, Secrets
from enginegate.journal import Committer, Journal
from enginegate.keys import Keyring
from enginegate.lifecycle.ground import Ground
from enginegate.ports import PortMap
from enginegate.registry import Registry
from enginegate.server import Parts
from tests.fakes import FakeProbe, FakeWorld
from tests.simulation.disk import Disk
from tests.simulation.loop import SimulatedLoop
from tests.simulation.model import Fleet, Violation, demand
from tests.simulation.world import SimulatedClock, TroubledBackend

ADMIN_KEY = "ak-eg-admin-key-of-the-simulation"
SECRETS = Secrets(admin_key=ADMIN_KEY, master_keys=("x" * 43 + "=",))
KEYS = re.compile(rb"(?:sk|pk|ak)-eg-[A-Za-z0-9_-]{10}")
UP_TO_S = 400.0  # the longest that anything may take to be answered


def encoded(fact: f.AnyFact) -> bytes:
    return msgspec.msgpack.encode(fact)


class Past:
    """What became durable, as this side saw it: outlives every life."""

    def __init__(self) -> None:
        self.facts: list[bytes] = []
        self.in_flight: list[bytes] = []
        self.fleet = Fleet()
        self.leases: dict[str, float] = {}


class Life:
    """From a start to its end. Raises JournalError or SimulatedCrash where the start fails."""

    def __init__(
        self,
        *,
        dice: random.Random,
        config: Config,
        directory: Path,
        disk: Disk,
        world: FakeWorld,
        past: Past,
        start_s: float,
        wall_jump_s: float,
        shuffle: bool,
        late_s: float,
    ) -> None:
        self.dice = dice
        self.config = config
        self.past = past
        self.loop = SimulatedLoop(dice, start_s=start_s, shuffle=shuffle)
        self.clock = SimulatedClock(self.loop, wall_jump_s=wall_jump_s, late_s=late_s)
        self.mount = disk.mount()
        self.mount.on_crash = self.loop.die
        self.tasks: set[asyncio.Task[Any]] = set()
        self.lines: list[str] = []
        self.broken: list[str] = []
        self.directory = directory
        self.disk = disk
        self.backend = TroubledBackend(
            dice, self.clock, world, guard=self._guard, on_crash=self.loop.die
        )
        self.journal: Journal | None = None
        self.app: Any = None
        self.ready = False
        self._watch_log()

    # From start to end

    def start(self, *, segment_bytes: int, snapshot_after_bytes: int) -> None:
        """Open, compare what was recovered with what must be there, and run."""
        self.journal = journal = Journal.open(
            self.directory,
            key_id=Keyring(SECRETS.master_keys).key_id,
            storage=self.mount,
            clock=self.clock,
            segment_bytes=segment_bytes,
            snapshot_after_bytes=snapshot_after_bytes,
            check=lambda _: [],
        )
        surfaced = self._compare_history(journal)
        keyring = Keyring(SECRETS.master_keys)
        self.registry = registry = Registry(
            ports=PortMap(self.config.ports.min, self.config.ports.max),
            keyring=keyring,
            clock=self.clock,
            url_of=lambda engine: f"http://127.0.0.1:{engine.port}",
            sleep_after_s=self.config.idle.sleep_after_s,
        )
        registry.load(journal.snapshot, journal.tail)
        journal.release_replay()
        journal.begin(registry.snapshot(), may_wait=True)
        self._take_over(surfaced)
        self.compare_fleet()
        self.committer = Committer(
            journal,
            apply=self._apply,
            abandon=self._abandon,
            snapshot_source=registry.records,
            clock=self.clock,
        )
        registry.trail.history = lambda before, naming: journal.history(
            before=before, naming=naming
        )
        registry.attach(self.committer, journal)
        ground = Ground(
            registry=registry,
            backend=self.backend,
            probe=FakeProbe(self.backend),  # type: ignore[arg-type]
            keyring=keyring,
            clock=self.clock,
            config=self.config,
        )
        self.spawn(self._run(ground), "server")

    async def _run(self, ground: Ground) -> None:
        assert self.journal is not None
        self.spawn(self.committer.run(), "journal")
        self.parts = Parts(ground, SECRETS, self.spawn)
        self.app = build(self.parts.services)
        await self.parts.recovery.at_start()
        self.parts.idle.plan_all()
        self.parts.pool.at_start()
        for name, work in self.parts.loops(self.journal):
            self.spawn(work, name)
        self.parts.services.phase.name = "serving"
        self.ready = True

    def spawn(self, work: Coroutine[Any, Any, Any], name: str = "") -> "asyncio.Task[Any]":
        task = self.loop.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def stop(self) -> None:
        """End as SIGTERM does: finish what is at work or hand it over, close the journal."""

        async def stop() -> None:
            self.parts.services.phase.name = "stopping"
            await self.parts.operations.close(5.0)
            await self.committer.close()

        if not self.ready:
            return
        ending = self.spawn(stop(), "stop")  # kept until the burial, should it die on the way
        ending.add_done_callback(lambda _: self.loop.stop())
        self.loop.advance(UP_TO_S)
        demand(self.loop.dead or ending.done(), "the server does not end on SIGTERM")

    def end(self) -> None:
        """Be dead: nothing of this life does anything any more."""
        self.past.in_flight = self._in_flight() or self.past.in_flight
        self.loop.die()
        self.mount.kill()
        if self.journal is not None and self.journal._lock_fd is not None:
            os.close(self.journal._lock_fd)  # as the kernel does for a killed process
            self.journal._lock_fd = None
        self._forget_log()
        self.loop.bury()

    def _in_flight(self) -> list[bytes]:
        committer = getattr(self, "committer", None)
        return [encoded(item.fact) for item in committer._in_flight] if committer else []

    # What is watched

    def _apply(self, batch: Sequence[tuple[int, f.AnyFact]]) -> None:
        with self._noticing():
            self._note(batch)
        self.registry.apply(batch)

    def _note(self, batch: Sequence[tuple[int, f.AnyFact]]) -> None:
        for number, fact in batch:
            self.past.facts.append(encoded(fact))
            demand(number == len(self.past.facts), f"fact {number} is the {len(self.past.facts)}th")
            self.past.fleet.apply(fact)
            self._check_lease(fact)

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Keep a violation seen from inside the server, which would take it for its own bug."""
        try:
            yield
        except Violation as violation:
            self.broken.append(str(violation))

    def _abandon(self) -> None:
        """Whether what was in flight when the disk failed is there only the next start knows."""
        if self.journal is not None and self.journal.status == "failed":
            self.past.in_flight = self._in_flight() or self.past.in_flight
        self.registry.abandon()

    def _check_lease(self, fact: f.AnyFact) -> None:
        """No idle sleep before the end of a lease that somebody was told."""
        if isinstance(fact, f.PolicyChanged):
            self.past.leases.clear()
        elif isinstance(fact, f.Slept) and fact.reason == "idle":
            until = self.past.leases.get(fact.engine_id, 0.0)
            left = until - self.loop.time()
            demand(left <= 1e-6, f"{fact.engine_id} slept {left:.3f} s before its lease's end")

    def _guard(self, operation: str, engine_id: str) -> None:
        """Intent first: nothing is made, replaced or removed without a durable reason."""
        with self._noticing():
            self._check_intent(operation, engine_id)

    def _check_intent(self, operation: str, engine_id: str) -> None:
        row = self.past.fleet.engines.get(engine_id)
        if operation == "start":
            known = engine_id in self.past.fleet.owners
            demand(known, f"{engine_id} was started before its row was durable")
        elif operation == "destroy":
            going = row is None or row["status"] == "destroying"
            demand(going, f"{engine_id} was destroyed without a durable intent: {row}")
        elif operation == "remove_orphan":
            demand(row is None, f"{engine_id} has a row and was removed as an orphan: {row}")

    def _compare_history(self, journal: Journal) -> list[bytes]:
        """All that was durable is there, in order; of what was in flight all or nothing.

        Returns what of it was found. Whether it stays is known once the start has succeeded.
        """
        found = [encoded(fact) for _, fact in reversed([*journal.history()])]
        past = self.past
        durable = found[: len(past.facts)]
        same = 0
        while same < len(durable) and durable[same] == past.facts[same]:
            same += 1
        demand(
            same == len(past.facts),
            f"fact {same + 1} of {len(past.facts)} was lost or changed, {len(found)} were found",
        )
        more = found[len(past.facts) :]
        demand(
            more in ([], past.in_flight),
            f"{len(more)} facts appeared; {len(past.in_flight)} were in flight",
        )
        return more

    def _take_over(self, surfaced: list[bytes]) -> None:
        """What was in flight is durable, or gone for ever."""
        for raw in surfaced:
            fact = msgspec.msgpack.decode(raw, type=f.AnyFact)
            self.past.facts.append(raw)
            self.past.fleet.apply(fact)
            if not isinstance(fact, f.Slept):  # which is older than the leases told since
                self._check_lease(fact)
        self.past.in_flight = []

    def compare_fleet(self) -> None:
        """Memory is what the facts add up to; ports are those of rows, durable or on their way."""
        registry, fleet = self.registry, self.past.fleet
        rows = {
            live.engine.engine_id: {
                "product": live.engine.product_id,
                "user": live.engine.user_id,
                "status": live.engine.status.value,
                "port": live.engine.port,
                "version": live.engine.engine_version,
                "key": live.engine.key_hash,
                "pending": live.engine.pending_key.key_hash if live.engine.pending_key else None,
                "restart": live.engine.restart_at_ms,
                "stopping": live.engine.stopping,
            }
            for live in registry.engines.values()
        }
        demand(rows == fleet.engines, _difference(rows, fleet.engines))
        products = {
            live.product.product_id: {
                "slug": live.product.slug,
                "key": live.product.key_hash,
                "old": live.product.old_key_hash,
                "policy": live.product.policy,
                "deleting": live.product.deleting,
            }
            for live in registry.products.values()
        }
        demand(products == fleet.products, _difference(products, fleet.products))
        ports = [row["port"] for row in fleet.engines.values()]
        coming = [
            one.fact.port
            for one in registry._pending
            if isinstance(one.fact, f.Provisioned | f.PortMoved)
        ]
        demand(len(set(ports)) == len(ports), f"a port is leased twice: {sorted(ports)}")
        leased = sorted(registry.ports.leased)
        demand(leased == sorted({*ports, *coming}), f"leased {leased}, rows {ports} + {coming}")

    def check_noise(self) -> None:
        """Nothing was seen from inside, no exception unheard, and no log line tells of a bug."""
        demand(not self.broken, "; ".join(self.broken))
        demand(not self.loop.faults, f"unheard: {self.loop.faults}")
        demand(not self.lines, f"the log tells of a bug or a key: {self.lines}")
        touched = self.mount.touched_after_failure
        demand(not touched, f"after a failed sync the file was touched again: {touched}")

    def _watch_log(self) -> None:
        self._handler = _Watcher(self.lines)
        logger = logging.getLogger("enginegate")
        self._before = (logger.propagate, logger.level)
        logger.propagate = False
        logger.setLevel(logging.INFO)
        logger.addHandler(self._handler)

    def _forget_log(self) -> None:
        logger = logging.getLogger("enginegate")
        logger.removeHandler(self._handler)
        logger.propagate = self._before[0]
        logger.setLevel(self._before[1])


def _difference(memory: dict[str, Any], facts: dict[str, Any]) -> str:
    names = sorted(memory.keys() | facts.keys())
    odd = [(memory.get(one), facts.get(one)) for one in names if memory.get(one) != facts.get(one)]
    return "; ".join(f"memory has {one}, the facts say {other}" for one, other in odd)


class _Watcher(logging.Handler):
    """Keeps log lines that must not be: those with a traceback, and those with a key."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines
        self._form = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or KEYS.search(record.getMessage().encode()):
            self._lines.append(self._form.format(record))
