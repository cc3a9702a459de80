"""Stand-ins for the world: a backend, a probe and a clock that tests hold in their hands.

`FakeBackend` runs the same contract suite as the real backends. What survives a
"restart of enginegate" lives in its `FakeWorld`: a new `FakeBackend(world=old.world)`
finds every engine again.
"""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import AsyncIterator, Sequence, Sized
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec

from enginegate.backends.base import (
    BackendEvent,
    Connection,
    EngineSpec,
    Observation,
    Presence,
    Usage,
)
from enginegate.clock import Clock, SystemClock
from enginegate.errors import BackendError, DataLostError, NotRunningError, PortTakenError
from enginegate.probe import Health

WALL_START_MS = 1_750_000_000_000
SETTLE_TURNS, SETTLE_TURNS_MAX = 25, 500
KILLED = 137
LOG_LINES_MAX = 1000


class ManualClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, *, wall_ms: int = WALL_START_MS) -> None:
        self._now = 1000.0
        self._wall_offset_ms = wall_ms - self._now * 1000
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def now(self) -> float:
        return self._now

    def wall_ms(self) -> int:
        return round(self._now * 1000 + self._wall_offset_ms)

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wake = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._numbers), wake))
        await wake

    @property
    def sleepers(self) -> int:
        """How many are waiting."""
        return sum(not wake.done() for _, _, wake in self._sleepers)

    def next_wake_s(self) -> float | None:
        """Return how long the first sleeper still has to wait, None where nobody sleeps."""
        self._drop_cancelled()
        return self._sleepers[0][0] - self._now if self._sleepers else None

    async def advance(self, seconds: float = 0.0) -> None:
        """Go on; sleepers wake in order of their time, each at its own time.

        Between two wakes everything that can run runs, so that one who sleeps again
        within the span wakes again within it.
        """
        until = self._now + seconds
        await settle()
        while self._wake_first(until):
            await settle()
        self._now = until

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock forth or back, as an administrator or NTP would."""
        self._wall_offset_ms += seconds * 1000

    def _wake_first(self, until: float) -> bool:
        self._drop_cancelled()
        if not self._sleepers or self._sleepers[0][0] > until:
            return False
        at, _, wake = heapq.heappop(self._sleepers)
        self._now = max(self._now, at)
        wake.set_result(None)
        return True

    def _drop_cancelled(self) -> None:
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)


async def settle(turns: int = SETTLE_TURNS) -> None:
    """Let everything run that can run without time passing; who runs in circles is left."""
    ready: Sized = getattr(asyncio.get_running_loop(), "_ready", ())  # uvloop does not tell
    for turn in range(SETTLE_TURNS_MAX):
        await asyncio.sleep(0)
        if turn >= turns and not ready:
            return


class SimulatedCrash(BaseException):
    """enginegate dies here, as by `kill -9`; no `except Exception` may catch it."""


@dataclass
class FakeEngine:
    """An engine of the fake world; tests may read and set everything."""

    spec: EngineSpec
    presence: Presence = Presence.RUNNING
    life: int = 0
    started_at: float = 0.0
    exit_code: int | None = None
    restarts: int = 0
    connected: bool = True
    key_file: tuple[str, ...] = ()
    delivered: tuple[str, ...] = ()
    healthy: bool = True
    busy: bool = False
    probe_delay_s: float = 0.0
    ignores_sigterm: bool = False
    connections: list[Connection] = field(default_factory=list)
    usage: Usage = field(default_factory=lambda: Usage(cpu_s=0.0, rx_bytes=0, tx_bytes=0))

    @property
    def alive(self) -> bool:
        return self.presence in {Presence.RUNNING, Presence.PAUSED}

    def observe(self) -> Observation:
        return Observation(
            engine_id=self.spec.engine_id,
            presence=self.presence,
            life=f"life-{self.life}",
            key_hash=self.spec.key_hashes[0],
            port=self.spec.port,
            engine_version=self.spec.engine_version,
            exit_code=None if self.alive else self.exit_code,
            restarts=self.restarts,
            connected=self.connected,
        )


@dataclass
class FakeWorld:
    """What lives outside enginegate: engines, their data, ports held by strangers."""

    engines: dict[str, FakeEngine] = field(default_factory=dict)
    volumes: dict[str, dict[str, str]] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)
    taken_ports: set[int] = field(default_factory=set)
    lives: int = 0

    def by_port(self, port: int) -> FakeEngine | None:
        """Return the engine that listens on the port."""
        return next((e for e in self.engines.values() if e.alive and e.spec.port == port), None)


@dataclass
class Hang:
    """A call that hangs: `reached` tells that it does, `release()` lets it go on."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    _go: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        self._go.set()

    async def wait(self) -> None:
        self.reached.set()
        await self._go.wait()


@dataclass
class _Rule:
    """What happens at the n-th to (n + times - 1)-th matching call."""

    operation: str
    engine_id: str | None
    nth: int
    times: int | None
    after: bool
    error: BaseException | None = None
    hang: Hang | None = None
    delay_s: float = 0.0
    seen: int = 0

    def meets(self, operation: str, engine_id: str | None) -> bool:
        """Count the call and return whether the rule is for it."""
        if self.operation not in {"*", operation} or self.engine_id not in {None, engine_id}:
            return False
        self.seen += 1
        return self.nth <= self.seen and (self.times is None or self.seen < self.nth + self.times)


class FakeBackend:
    """A backend in memory that keeps the whole protocol and does as it is told.

    Calls are counted from 1 for each rule, from when the rule was made; the
    operation `"*"` counts every call. With `after=True` the effect takes place and
    only then the rule strikes: an answer that got lost.
    """

    name = "fake"

    def __init__(
        self, *, clock: Clock | None = None, world: FakeWorld | None = None, boot_s: float = 0.0
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.world = world or FakeWorld()
        self.boot_s = boot_s
        self.down = False
        self.opened = False
        self.calls: list[tuple[str, str | None]] = []
        self._rules: list[_Rule] = []
        self._events: deque[BackendEvent] = deque()
        self._news = asyncio.Event()
        self._dead: SimulatedCrash | None = None

    # What a test tells it.

    def fail(
        self,
        operation: str = "*",
        *,
        nth: int = 1,
        times: int | None = 1,
        engine_id: str | None = None,
        error: BaseException | None = None,
        after: bool = False,
    ) -> None:
        """Let the n-th call fail (`times=None`: and every one from there on)."""
        error = error or BackendError(operation, engine_id, "told to fail")
        self._rules.append(_Rule(operation, engine_id, nth, times, after, error=error))

    def hang(
        self,
        operation: str = "*",
        *,
        nth: int = 1,
        engine_id: str | None = None,
        after: bool = False,
    ) -> Hang:
        """Let the n-th call hang until it is released."""
        rule = _Rule(operation, engine_id, nth, 1, after, hang=Hang())
        self._rules.append(rule)
        assert rule.hang is not None
        return rule.hang

    def delay(
        self,
        operation: str = "*",
        seconds: float = 1.0,
        *,
        nth: int = 1,
        times: int | None = 1,
        engine_id: str | None = None,
    ) -> None:
        """Let the n-th call take so long, by the clock."""
        self._rules.append(_Rule(operation, engine_id, nth, times, after=False, delay_s=seconds))

    def die(self, operation: str = "*", *, nth: int = 1, after: bool = False) -> None:
        """Kill enginegate at the n-th call: it and every later call raise `SimulatedCrash`."""
        crash = SimulatedCrash(f"killed at call {nth} of {operation}")
        self._rules.append(_Rule(operation, None, nth, 1, after, error=crash))

    def emit(self, event: BackendEvent) -> None:
        """Send an event, true or not."""
        self._events.append(event)
        self._news.set()

    @property
    def alive(self) -> dict[str, FakeEngine]:
        """The engines that run or are frozen, by id."""
        return {name: e for name, e in self.world.engines.items() if e.alive}

    def engine(self, engine_id: str) -> FakeEngine:
        return self.world.engines[engine_id]

    def count(self, operation: str, engine_id: str | None = None) -> int:
        """Return how often it was called."""
        return sum(op == operation and engine_id in {None, who} for op, who in self.calls)

    def crash(self, engine_id: str, *, exit_code: int = KILLED, tell: bool = True) -> None:
        """Let the engine's process end by itself."""
        engine = self.engine(engine_id)
        self._end(engine, exit_code)
        if tell:
            self._tell("exited", engine, exit_code)

    def restart_behind(self, engine_id: str, *, tell: bool = True) -> None:
        """Let the backend restart the engine by itself: same container, another life."""
        engine = self.engine(engine_id)
        restarts = engine.restarts
        self._run(engine)
        engine.restarts = restarts + 1
        if tell:
            self._tell("started", engine)

    def freeze_behind(self, engine_id: str, *, tell: bool = True) -> None:
        """Freeze a running engine behind enginegate's back."""
        self.engine(engine_id).presence = Presence.PAUSED
        if tell:
            self._tell("paused", self.engine(engine_id))

    def thaw_behind(self, engine_id: str, *, tell: bool = True) -> None:
        """Thaw a frozen engine behind enginegate's back."""
        self.engine(engine_id).presence = Presence.RUNNING
        if tell:
            self._tell("unpaused", self.engine(engine_id))

    def vanish(self, engine_id: str, *, tell: bool = True, with_data: bool = False) -> None:
        """Remove the container behind enginegate's back; its data stays unless told otherwise."""
        engine = self.world.engines.pop(engine_id)
        if with_data:
            del self.world.volumes[engine_id]
        if tell:
            self._tell("removed", engine)

    # The protocol.

    async def open(self) -> None:
        self.opened = True

    async def close(self) -> None:
        self.opened = False

    async def ping(self) -> bool:
        if self._dead is not None:
            raise self._dead
        return not self.down

    def url(self, spec: EngineSpec) -> str:
        return f"http://127.0.0.1:{spec.port}"

    async def prepare(self, spec: EngineSpec) -> None:
        """Do nothing: every image is there."""

    async def start(self, spec: EngineSpec) -> Observation:
        async with self._call("start", spec.engine_id):
            self._start(spec)
            return self.engine(spec.engine_id).observe()

    async def stop(self, engine_id: str, *, grace_s: float) -> None:
        async with self._call("stop", engine_id):
            engine = self.world.engines.get(engine_id)
            if engine is not None and engine.alive and engine.ignores_sigterm:
                await self.clock.sleep(grace_s)
                self._end(engine, KILLED)
            elif engine is not None:
                self._end(engine, 0)

    async def pause(self, engine_id: str) -> None:
        async with self._call("pause", engine_id):
            self._living("pause", engine_id).presence = Presence.PAUSED

    async def unpause(self, engine_id: str) -> Observation:
        async with self._call("unpause", engine_id):
            engine = self._living("unpause", engine_id)
            engine.presence, engine.connected = Presence.RUNNING, True
            return engine.observe()

    async def reconnect(self, engine_id: str) -> None:
        async with self._call("reconnect", engine_id):
            if (engine := self.world.engines.get(engine_id)) is not None:
                engine.connected = True

    async def destroy(self, engine_id: str) -> None:
        async with self._call("destroy", engine_id):
            self.world.engines.pop(engine_id, None)
            self.world.logs.pop(engine_id, None)
            self.world.volumes.pop(engine_id, None)

    async def remove_orphan(self, engine_id: str) -> None:
        async with self._call("remove_orphan", engine_id):
            self.world.engines.pop(engine_id, None)
            self.world.logs.pop(engine_id, None)

    async def inspect(self, engine_id: str) -> Observation:
        async with self._call("inspect", engine_id):
            engine = self.world.engines.get(engine_id)
            if engine is None:
                lost = engine_id not in self.world.volumes
                return Observation(
                    engine_id=engine_id, presence=Presence.ABSENT, data_lost=lost, detail="its data"
                )
            return engine.observe()

    async def list(self) -> Sequence[Observation]:
        async with self._call("list"):
            return [engine.observe() for engine in self.world.engines.values()]

    async def logs(self, engine_id: str, *, lines: int) -> Sequence[str]:
        async with self._call("logs", engine_id):
            return self.world.logs.get(engine_id, [])[-lines:] if lines > 0 else []

    async def trim_logs(self) -> None:
        async with self._call("trim_logs"):
            for lines in self.world.logs.values():
                del lines[:-LOG_LINES_MAX]

    async def usage(self, engine_id: str) -> Usage:
        async with self._call("usage", engine_id):
            engine = self.alive.get(engine_id)
            return engine.usage if engine is not None else Usage()

    async def connections(self, engine_id: str, *, port: int) -> Sequence[Connection]:
        async with self._call("connections", engine_id):
            engine = self.alive.get(engine_id)
            return [] if engine is None or engine.spec.port != port else list(engine.connections)

    async def put_key(
        self, engine_id: str, key_hashes: Sequence[str], *, first: bool = False
    ) -> None:
        async with self._call("put_key", engine_id):
            engine = self.world.engines.get(engine_id)
            if engine is None:
                raise BackendError("put_key", engine_id, "no such engine")
            engine.key_file = engine.delivered = tuple(key_hashes)

    async def watch(self) -> AsyncIterator[BackendEvent]:
        while True:
            while self._events:
                yield self._events.popleft()
            self._news.clear()
            if self._dead is not None:
                raise self._dead
            await self._news.wait()

    # How it does it.

    @asynccontextmanager
    async def _call(self, operation: str, engine_id: str | None = None) -> AsyncIterator[None]:
        self._stop_if_dead()
        self.calls.append((operation, engine_id))
        met = [rule for rule in self._rules if rule.meets(operation, engine_id)]
        await asyncio.sleep(0)
        for rule in met:
            if not rule.after:
                await self._strike(rule)
        if self.down:
            raise BackendError(operation, engine_id, "told to be away", unavailable=True)
        self._stop_if_dead()
        yield
        for rule in met:
            if rule.after:
                await self._strike(rule)

    async def _strike(self, rule: _Rule) -> None:
        if rule.delay_s > 0:
            await self.clock.sleep(rule.delay_s)
        if rule.hang is not None:
            await rule.hang.wait()
        if isinstance(rule.error, SimulatedCrash):
            self._dead = rule.error
            self._news.set()
        if rule.error is not None:
            raise rule.error

    def _stop_if_dead(self) -> None:
        if self._dead is not None:
            raise self._dead

    def _start(self, spec: EngineSpec) -> None:
        engine = self.world.engines.get(spec.engine_id)
        if engine is not None and engine.alive and self._fits(engine, spec):
            engine.presence = Presence.RUNNING
            engine.key_file = spec.key_hashes
            return
        holder = self.world.by_port(spec.port)
        if spec.port in self.world.taken_ports or not (holder is None or holder is engine):
            if engine is not None:
                self._end(engine, 0)
            raise PortTakenError("start", spec.engine_id, f"port {spec.port} is taken")
        if not spec.fresh and spec.engine_id not in self.world.volumes:
            raise DataLostError("start", spec.engine_id, "its data")
        if engine is None:
            engine = self.world.engines[spec.engine_id] = FakeEngine(spec)
            self.world.volumes.setdefault(spec.engine_id, {})
        engine.spec, engine.key_file, engine.delivered = spec, spec.key_hashes, ()
        self._run(engine)

    @staticmethod
    def _fits(engine: FakeEngine, spec: EngineSpec) -> bool:
        keys = {engine.spec.key_hashes[0], *engine.delivered}
        same = (engine.spec.port, engine.spec.engine_version) == (spec.port, spec.engine_version)
        return same and spec.key_hashes[0] in keys

    def _run(self, engine: FakeEngine) -> None:
        self.world.lives += 1
        engine.life, engine.started_at = self.world.lives, self.clock.now()
        engine.presence, engine.exit_code, engine.connected = Presence.RUNNING, None, True
        engine.restarts = 0
        engine.connections = []
        name = engine.spec.engine_id
        self.world.logs.setdefault(name, []).append(
            f"engine {name} {engine.spec.engine_version} listens on {engine.spec.port}"
        )

    def _end(self, engine: FakeEngine, exit_code: int) -> None:
        if engine.alive:
            engine.presence, engine.exit_code = Presence.STOPPED, exit_code
            engine.connections = []

    def _living(self, operation: str, engine_id: str) -> FakeEngine:
        engine = self.alive.get(engine_id)
        if engine is None:
            raise NotRunningError(operation, engine_id, "the engine does not run")
        return engine

    def _tell(self, kind: str, engine: FakeEngine, exit_code: int | None = None) -> None:
        self.emit(
            BackendEvent(
                kind=kind,
                engine_id=engine.spec.engine_id,
                life=engine.observe().life,
                exit_code=exit_code,
            )
        )


class FakeProbe:
    """Answers for the engines of a `FakeWorld`: healthy iff booted, running and not told otherwise.

    A frozen engine is silent until the time-out, by the clock; a stopped one refuses
    at once. The engine is known by the port in the URL.
    """

    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend
        self.checks: list[str] = []
        self.sources: frozenset[tuple[str, int]] = frozenset()

    async def close(self) -> None:
        """Do nothing: there is nothing open."""

    async def check(self, url: str, *, timeout_s: float) -> Health:
        self.checks.append(url)
        await asyncio.sleep(0)
        clock = self.backend.clock
        began = clock.now()
        health = await self._ask(urlsplit(url).port or 80, timeout_s)
        return msgspec.structs.replace(health, took_ms=(clock.now() - began) * 1000)

    async def _ask(self, port: int, timeout_s: float) -> Health:
        clock, engine = self.backend.clock, self.backend.world.by_port(port)
        deaf = engine is None or not engine.connected
        if engine is None or deaf or clock.now() < engine.started_at + self.backend.boot_s:
            return Health(ok=False, detail="ConnectError: connection refused")
        if engine.presence is Presence.PAUSED or engine.probe_delay_s > timeout_s:
            await clock.sleep(timeout_s)
            return Health(ok=False, detail=f"no answer within {timeout_s:g} s")
        if engine.probe_delay_s > 0:
            await clock.sleep(engine.probe_delay_s)
        if not engine.alive or not engine.healthy:
            return Health(ok=False, detail="status 503")
        return Health(ok=True, busy=engine.busy)
