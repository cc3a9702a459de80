"""The fake keeps the contract that the real backends keep, and does what tests tell it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from enginegate.backends.base import BackendEvent, Connection, EngineSpec, Presence
from enginegate.errors import BackendError
from tests.backends.contract import BackendContract, Harness, eventually, key_hash
from tests.fakes import FakeBackend, FakeProbe, ManualClock, SimulatedCrash, settle


class FakeHarness(Harness):
    """Reaches into the fake world where others speak HTTP."""

    backend: FakeBackend

    def __init__(self, backend: FakeBackend) -> None:
        super().__init__()
        self.backend = backend

    async def crash(self, engine_id: str) -> None:
        self.backend.crash(engine_id)

    async def reopen(self) -> None:
        await self.backend.close()
        self.backend = FakeBackend(clock=self.backend.clock, world=self.backend.world)
        await self.backend.open()

    async def wait_healthy(self, spec: EngineSpec) -> None:
        probe = FakeProbe(self.backend)

        async def healthy() -> bool:
            return (await probe.check(self.backend.url(spec) + "/health", timeout_s=1)).ok

        await eventually(healthy)

    async def write(self, spec: EngineSpec, name: str, text: str) -> None:
        self.backend.world.volumes[spec.engine_id][name] = text

    async def read(self, spec: EngineSpec, name: str) -> str | None:
        return self.backend.world.volumes[spec.engine_id].get(name)

    async def accepts(self, spec: EngineSpec, key: str) -> bool:
        return key_hash(key) in self.backend.alive[spec.engine_id].key_file

    @asynccontextmanager
    async def connection(self, spec: EngineSpec) -> AsyncIterator[None]:
        connections = self.backend.engine(spec.engine_id).connections
        connections.append(Connection(0.0))
        yield
        connections.clear()

    @contextmanager
    def port_held(self, port: int) -> Iterator[None]:
        self.backend.world.taken_ports.add(port)
        yield
        self.backend.world.taken_ports.discard(port)


@pytest.fixture
async def harness() -> FakeHarness:
    backend = FakeBackend(boot_s=0.02)
    await backend.open()
    return FakeHarness(backend)


class TestFakeBackend(BackendContract):
    """The contract, run by the fake."""


class TestScript:
    """What tests can tell the fake to do."""

    @pytest.fixture
    def backend(self) -> FakeBackend:
        return FakeBackend(clock=ManualClock())

    @pytest.fixture
    def spec(self) -> EngineSpec:
        return EngineSpec(engine_id="e", engine_version="v", port=9001, key_hashes=("h",))

    async def test_the_nth_call_fails(self, backend: FakeBackend, spec: EngineSpec) -> None:
        """Only the call that was named fails, and has no effect."""
        backend.fail("start", nth=2)
        await backend.start(spec)
        await backend.stop("e", grace_s=1)
        with pytest.raises(BackendError):
            await backend.start(spec)
        assert not backend.alive
        await backend.start(spec)
        assert backend.count("start") == 3
        assert list(backend.alive) == ["e"]

    async def test_an_answer_can_get_lost(self, backend: FakeBackend, spec: EngineSpec) -> None:
        """With `after` the effect takes place and the caller still sees a failure."""
        backend.fail("start", after=True)
        with pytest.raises(BackendError):
            await backend.start(spec)
        assert list(backend.alive) == ["e"]

    async def test_a_call_hangs_until_released(
        self, backend: FakeBackend, spec: EngineSpec
    ) -> None:
        """A hanging call tells that it hangs, and goes on when it may."""
        hang = backend.hang("start")
        call = asyncio.create_task(backend.start(spec))
        await hang.reached.wait()
        assert not backend.alive
        hang.release()
        await call
        assert list(backend.alive) == ["e"]

    async def test_a_call_is_delayed_by_the_clock(
        self, backend: FakeBackend, spec: EngineSpec
    ) -> None:
        """A delay passes with the clock, not with time."""
        backend.delay("start", 5.0)
        call = asyncio.create_task(backend.start(spec))
        await backend.clock.advance(4.9)
        assert not call.done()
        await backend.clock.advance(0.1)
        await settle()
        assert call.done()

    @pytest.mark.parametrize("after", [False, True])
    async def test_enginegate_dies_at_a_call(
        self, backend: FakeBackend, spec: EngineSpec, after: bool
    ) -> None:
        """From the crash on every call dies; what had happened is found by the next backend."""
        backend.die("*", nth=2, after=after)
        await backend.list()
        with pytest.raises(SimulatedCrash):
            await backend.start(spec)
        for call in (backend.list(), backend.ping(), anext(backend.watch())):
            with pytest.raises(SimulatedCrash):
                await call
        assert len(await FakeBackend(world=backend.world).list()) == after

    async def test_a_backend_that_is_away(self, backend: FakeBackend, spec: EngineSpec) -> None:
        """While it is down nothing is known, and nothing is absent."""
        backend.down = True
        assert not await backend.ping()
        with pytest.raises(BackendError) as caught:
            await backend.inspect("e")
        assert caught.value.unavailable

    async def test_things_happen_behind_its_back(
        self, backend: FakeBackend, spec: EngineSpec
    ) -> None:
        """Crashes, restarts, freezes, thaws, removals and free inventions are all told."""
        await backend.start(spec)
        backend.crash("e", exit_code=3)
        backend.restart_behind("e")
        backend.freeze_behind("e")
        backend.thaw_behind("e")
        assert (await backend.inspect("e")).restarts == 1
        backend.vanish("e")
        backend.emit(BackendEvent(kind="resync"))
        events = aiter(backend.watch())
        kinds = [(await anext(events)).kind for _ in range(6)]
        assert kinds == ["exited", "started", "paused", "unpaused", "removed", "resync"]
        assert (await backend.inspect("e")).presence is Presence.ABSENT
        assert backend.world.volumes == {"e": {}}

    async def test_an_engine_that_ignores_sigterm_takes_its_grace(
        self, backend: FakeBackend, spec: EngineSpec
    ) -> None:
        """It is killed when the grace is over."""
        await backend.start(spec)
        backend.engine("e").ignores_sigterm = True
        call = asyncio.create_task(backend.stop("e", grace_s=30))
        await backend.clock.advance(29.9)
        assert not call.done()
        await backend.clock.advance(0.2)
        await call
        assert backend.engine("e").exit_code == 137


class TestProbe:
    """What the fake probe says."""

    @pytest.fixture
    async def backend(self) -> FakeBackend:
        backend = FakeBackend(clock=ManualClock(), boot_s=2.0)
        await backend.start(
            EngineSpec(engine_id="e", engine_version="v", port=9001, key_hashes=("h",))
        )
        return backend

    async def ask(self, backend: FakeBackend, *, advance_s: float = 0.0) -> tuple[bool, bool]:
        call = asyncio.create_task(
            FakeProbe(backend).check("http://127.0.0.1:9001/health", timeout_s=10)
        )
        await backend.clock.advance(advance_s)
        health = await call
        return health.ok, health.busy

    async def test_an_engine_is_healthy_after_its_boot(self, backend: FakeBackend) -> None:
        """Before the boot is over the connection is refused."""
        assert await self.ask(backend) == (False, False)
        await backend.clock.advance(2)
        assert await self.ask(backend) == (True, False)

    async def test_an_engine_says_what_it_is_told_to(self, backend: FakeBackend) -> None:
        """Health, busy and delay are the test's to set."""
        await backend.clock.advance(2)
        engine = backend.engine("e")
        engine.busy = True
        assert await self.ask(backend) == (True, True)
        engine.probe_delay_s = 3
        assert await self.ask(backend, advance_s=3) == (True, True)
        engine.probe_delay_s = 11
        assert await self.ask(backend, advance_s=10) == (False, False)
        engine.probe_delay_s, engine.healthy = 0, False
        assert await self.ask(backend) == (False, False)

    async def test_a_frozen_engine_is_silent(self, backend: FakeBackend) -> None:
        """The probe of a frozen engine takes the whole time-out."""
        await backend.clock.advance(2)
        await backend.pause("e")
        assert await self.ask(backend, advance_s=10) == (False, False)


class TestManualClock:
    """Time in the hands of the test."""

    async def test_sleepers_wake_in_order_and_at_their_time(self) -> None:
        """Each sees the time it asked for, and one who sleeps on wakes again in the same span."""
        clock, seen = ManualClock(), []
        start = clock.now()

        async def sleeper(name: str, *naps: float) -> None:
            for nap in naps:
                await clock.sleep(nap)
                seen.append((name, clock.now() - start))

        tasks = [asyncio.create_task(sleeper("a", 3, 0, 3)), asyncio.create_task(sleeper("b", 5))]
        await settle()
        assert (clock.sleepers, clock.next_wake_s()) == (2, 3)
        await clock.advance(10)
        assert seen == [("a", 3), ("a", 3), ("b", 5), ("a", 6)]
        assert clock.now() - start == 10
        assert clock.next_wake_s() is None
        await asyncio.gather(*tasks)

    async def test_a_cancelled_sleeper_is_forgotten(self) -> None:
        """Cancelling works as with real sleep."""
        clock = ManualClock()
        task = asyncio.create_task(clock.sleep(5))
        await settle()
        task.cancel()
        await clock.advance(10)
        assert task.cancelled()

    async def test_the_wall_clock_may_jump(self) -> None:
        """A jump of the wall clock moves no deadline."""
        clock = ManualClock()
        before, wall = clock.now(), clock.wall_ms()
        clock.jump_wall(-3600)
        assert (clock.now(), clock.wall_ms()) == (before, wall - 3_600_000)
        await clock.advance(1)
        assert clock.wall_ms() == wall - 3_599_000
