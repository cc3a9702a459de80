"""The composition root: builds everything from a Config, and owns every task.

Start: lock and replay the journal, write a fresh snapshot, settle what a crash cut in
half, then listen. Stop: take no new changes, let what runs finish within the grace,
hand the rest to the next start, close the journal. Engines stay up.
"""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from typing import Any

from enginegate.admission import Admission
from enginegate.api.app import build
from enginegate.api.prepared import prepare
from enginegate.api.services import Services
from enginegate.backends.base import Backend, EngineSpec
from enginegate.backends.counted import counted
from enginegate.clock import SystemClock
from enginegate.config import Config, Secrets
from enginegate.edge import HttpServer, Limits, listening
from enginegate.facts import AnyFact
from enginegate.health import HealthLoop
from enginegate.idle import IdleLoop
from enginegate.journal import Committer, Journal
from enginegate.keys import Keyring
from enginegate.lifecycle import Lifecycle, Operations, Products
from enginegate.lifecycle.ground import Ground
from enginegate.model import Engine, SnapshotRecord
from enginegate.pool import Pool
from enginegate.ports import PortMap
from enginegate.probe import Probe
from enginegate.recovery import Recovery
from enginegate.registry import Registry, Sealer, open_keys
from enginegate.slices import sliced
from enginegate.stages import Stages
from enginegate.tiers import TierLoop

log = logging.getLogger(__name__)

SECOND_S = 1.0
SWITCH_S = 0.0001  # a thread at work (snapshot, history) makes the event loop wait no longer
RETAIN_EVERY_S = 3600.0

Ready = Callable[[str], None]
"""Told the URL, once, when requests are accepted."""


def serve(config: Config, secrets: Secrets, ready: Ready) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code.

    Raises:
        JournalError: the data directory cannot be used as it is.
        OSError: the address cannot be bound.
    """
    if not __debug__:
        raise SystemExit("enginegate does not run under python -O: its asserts are its invariants")
    _runner()(Server(config, secrets).run(ready))
    return 0


def _runner() -> Callable[[Coroutine[Any, Any, None]], None]:
    import uvloop

    return uvloop.run


class Server:
    """One enginegate from start to stop."""

    def __init__(
        self, config: Config, secrets: Secrets, *, backend: "MakeBackend | None" = None
    ) -> None:
        self.config = config
        self._make_backend = backend or make_backend
        self.secrets = secrets
        self.clock = SystemClock()
        self.inherited = False  # the listening socket, by who started us

    async def run(self, ready: Ready) -> None:
        """Do everything, in order; return when stopped cleanly."""
        stages = Stages(self.clock)
        keyring = Keyring(self.secrets.master_keys)
        journal = Journal.open(
            self.config.data_path, key_id=keyring.key_id, older_key_ids=keyring.key_ids[1:]
        )
        stages.ended("read")
        async with AsyncExitStack() as closing:
            closing.callback(journal.close)
            gc.disable()  # until the fleet is built: it would walk, again and again, what is kept
            closing.callback(gc.enable)
            closing.callback(sys.setswitchinterval, sys.getswitchinterval())
            sys.setswitchinterval(SWITCH_S)
            inherited = listening.inherited()
            self.inherited = inherited is not None
            asked = self.config.server
            listener = inherited or listening.bound(asked.host, asked.port)
            closing.enter_context(listening.impatient(listener, asked.request_timeout_s))
            probe = Probe(require_status_ok=self.config.health.require_status_ok)
            closing.push_async_callback(probe.close)
            backend = self._make_backend(self.config, journal.instance, probe)
            registry = make_registry(self.config, keyring, backend.url)
            registry.load(journal.snapshot, journal.tail, sealer=keyring.resealer)
            journal.release_replay()
            stages.ended("fleet")
            journal.begin(registry.snapshot(), may_wait=True)
            stages.ended("new files")
            journal.on_sync = registry.meters.synced
            registry.trail.history = lambda before, naming: journal.history(
                before=before, naming=naming
            )
            registry.trail.oldest = lambda: journal.archive.oldest_number
            committer = Committer(
                journal,
                apply=registry.apply,
                abandon=registry.abandon,
                snapshot_source=registry.records,
            )
            registry.attach(committer, journal)
            closing.push_async_callback(backend.close)
            await backend.open()
            stages.ended("backend")
            ground = Ground(
                registry=registry,
                backend=counted(backend, registry.meters.called),
                probe=probe,
                keyring=keyring,
                clock=self.clock,
                config=self.config,
            )

            def listens(url: str) -> None:
                stages.ended("engines")
                said = "%d engines, listening %.3f s after the journal was opened (%s)"
                log.info(said, len(registry.engines), stages.total_s, stages)
                ready(url)

            await self._serve(ground, journal, committer, listener, listens)

    async def _serve(
        self,
        ground: Ground,
        journal: Journal,
        committer: Committer,
        listener: socket.socket,
        ready: Ready,
    ) -> None:
        async with asyncio.TaskGroup() as tasks:

            def spawn(work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
                return tasks.create_task(work, name=name)

            writing = spawn(committer.run(), "journal")
            parts = Parts(ground, self.secrets, spawn)
            await parts.recovery.at_start()
            parts.idle.plan_all()
            parts.pool.at_start()
            parts.tiers.plan_all()
            loops = [spawn(work, name) for name, work in parts.loops(journal)]
            # Without a collection before: it takes 50 ms, of 100,000 engines 0.2 s, to find some
            # hundred objects among all those that stay.
            gc.freeze()
            gc.enable()
            await self._listen(parts, listener, ready)
            for loop in loops:
                loop.cancel()
            await committer.close()
            await asyncio.wait([writing])

    async def _listen(self, parts: "Parts", listener: socket.socket, ready: Ready) -> None:
        """Answer requests until told to stop, then finish what is at work.

        With an inherited socket new clients wait for the successor, and those that are
        here get every answer they would have got, changes included, until they have
        gone. Without it there may be no successor: changes are refused at once.
        """
        services, grace_s = parts.services, self.config.server.shutdown_grace_s
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        ended: list[asyncio.Task[None]] = []

        def refuse_changes() -> None:
            if not ended:
                services.phase.name = "stopping"
                services.registry.trail.end_all()
                parts.pool.stop()
                ended.append(parts.spawn(parts.operations.close(grace_s), "shutdown"))

        def stop() -> None:
            http.stop()
            if not self.inherited:
                refuse_changes()

        http = HttpServer(
            build(services),
            _limits(self.config),
            warm=services.admission.warm,
            grace_s=grace_s,
            on_started=lambda: ready(url),
            on_drained=refuse_changes,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        services.phase.name = "serving"
        await http.serve(sockets=[listener])
        refuse_changes()
        await asyncio.wait(ended)


class Parts:
    """The parts of a running gate, wired once."""

    def __init__(self, ground: Ground, secrets: Secrets, spawn: Any) -> None:
        self.ground = ground
        self.spawn = spawn
        registry, clock = ground.registry, ground.clock
        self.operations = Operations(spawn=spawn, clock=clock, meters=registry.meters)
        self.lifecycle = Lifecycle(ground, self.operations)
        self.products = Products(registry=registry, lifecycle=self.lifecycle, clock=clock)
        self.health = HealthLoop(ground, self.lifecycle)
        self.pool = Pool(ground, self.lifecycle)
        self.tiers = TierLoop(ground, self.lifecycle, spawn=spawn)
        self.recovery = Recovery(ground, self.lifecycle, self.products, self.health)
        self.idle = IdleLoop(ground, self.lifecycle, look_into=self.recovery.look, spawn=spawn)
        self.admission = Admission(
            registry=registry,
            lifecycle=self.lifecycle,
            health=self.health,
            clock=clock,
            encode=prepare,
        )
        self.services = Services(
            config=ground.config,
            secrets=secrets,
            registry=registry,
            lifecycle=self.lifecycle,
            products=self.products,
            admission=self.admission,
            health=self.health,
            clock=clock,
            started_at=clock.now(),
            pool=self.pool.state,
        )

    def loops(self, journal: Journal) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """Return what runs beside the requests, by name."""
        return [
            ("probes", self.health.sweep_forever()),
            ("watch", self.recovery.watch_forever()),
            ("restarts", self.health.restart_forever()),
            ("idle", self.idle.run_forever()),
            ("pool", self.pool.run_forever()),
            ("tiers", self.tiers.run_forever()),
            ("memory", self.tiers.relieve_forever()),
            ("compare", self.recovery.compare_forever()),
            ("logs", self.recovery.trim_logs_forever()),
            ("ticks", self._tick_forever()),
            ("retention", self._retain_forever(journal)),
            ("keys", self._open_keys()),
        ]

    async def _tick_forever(self) -> None:
        """Once a second: what keeps counters and windows of the last minute right."""
        registry = self.ground.registry
        status = registry.journal_status
        while True:
            before = self.ground.clock.now()
            await self.ground.clock.sleep(SECOND_S)
            registry.meters.loop_lag_s.add(max(self.ground.clock.now() - before - SECOND_S, 0.0))
            async for product in sliced(registry.products.values()):
                product.traffic.tick()
            self.admission.denials.flush()
            await self.admission.forget_idle_windows()
            await self.recovery.overlaps.end_due()
            if status != (status := registry.journal_status) == "ok":
                self.spawn(self.recovery.compare(), "compare after a full disk")

    async def _open_keys(self) -> None:
        await open_keys(self.ground.registry)

    async def _retain_forever(self, journal: Journal) -> None:
        """Now and then: drop what is older or larger than `[audit]` allows."""
        audit = self.ground.config.audit
        while True:
            try:
                await asyncio.to_thread(
                    journal.retain, days=audit.retention_days, max_mb=audit.max_mb
                )
            except OSError as error:  # the disk's, or too many open files; admits go on with both
                log.warning("old entries are kept for now: %s", error)
            await self.ground.clock.sleep(RETAIN_EVERY_S)


MakeBackend = Callable[[Config, str, Probe], Backend]
"""Makes what runs engines: configuration, instance and the probe whose connections are ours."""


def make_backend(config: Config, instance: str, probe: Probe) -> Backend:
    """Return the backend that the configuration names; the only place that knows both."""
    engine = config.engine
    if engine.backend == "docker":
        from enginegate.backends.docker import DockerBackend  # aiohttp costs half a start

        return DockerBackend(
            instance=instance,
            container_port=engine.container_port,
            url_mode=engine.url_mode,
            advertise_host=engine.advertise_host,
            publish_address=engine.publish_address,
            network=engine.network,
            env=engine.env,
            env_passthrough=engine.env_passthrough,
            catalog_dir=engine.catalog_dir,
            limits=engine.limits,
            rotate_mode=engine.rotate_mode,
            own_sources=lambda: probe.sources,
        )
    from enginegate.backends.process import ProcessBackend
    from enginegate.backends.process_launch import SAMPLE_COMMAND

    return ProcessBackend(
        data_dir=config.data_path,
        command=engine.command or SAMPLE_COMMAND,
        env=engine.env,
        env_passthrough=engine.env_passthrough,
        catalog_dir=engine.catalog_dir,
        advertise_host=engine.advertise_host,
        publish_address=engine.publish_address,
        instance=instance,
        own_sources=lambda: probe.sources,
    )


def make_registry(config: Config, keyring: Keyring, url: Callable[[EngineSpec], str]) -> Registry:
    """Return an empty registry for this configuration."""

    def url_of(engine: Engine) -> str:
        return url(
            EngineSpec(
                engine_id=engine.engine_id,
                engine_version=engine.engine_version,
                port=engine.port,
                key_hashes=(engine.key_hash,),
            )
        )

    return Registry(
        ports=PortMap(config.ports.min, config.ports.max),
        keyring=keyring,
        clock=SystemClock(),
        url_of=url_of,
        sleep_after_s=config.idle.sleep_after_s,
    )


class _Blind:
    """Stands in for the keyring where no key is needed."""

    def open(self, engine_id: str, sealed: str) -> str:  # noqa: ARG002 - the keyring's shape
        return ""


def fold(
    snapshot: Iterable[SnapshotRecord],
    tail: Iterable[tuple[int, AnyFact]],
    *,
    sealer: Sealer | None = None,
) -> list[SnapshotRecord]:
    """Return the state that a snapshot and the facts after it add up to.

    It needs no key, unless a `sealer` is to seal it anew.
    """
    ports = Config().ports
    registry = Registry(
        ports=PortMap(ports.min, ports.max),
        keyring=_Blind(),
        clock=SystemClock(),
        url_of=lambda _: "",
        sleep_after_s=0,
    )
    registry.load(snapshot, tail, sealer=sealer)
    return registry.snapshot()


def _limits(config: Config) -> Limits:
    server = config.server
    return Limits(
        max_connections=server.max_connections,
        max_header_bytes=server.max_header_bytes,
        max_body_bytes=server.max_body_bytes,
        request_timeout_s=server.request_timeout_s,
    )
