"""Every fault of every call to Docker, under the whole gate: the right state, or a reason.

The Engine is one in memory, and time jumps. `ENGINEGATE_LONG=1` takes each call of a verb
by itself, however often the verb makes it; else each kind of call once.
"""

import asyncio
import gc
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from enginegate.backends.base import EngineSpec, Presence
from enginegate.backends.docker import DockerBackend, catalogue, daemon
from enginegate.config import Config, EngineSettings, Idle, Ports
from enginegate.errors import BackendError, GateError
from enginegate.model import Status
from enginegate.probe import Health
from enginegate.registry import LiveEngine
from tests.backends.contract import key_hash
from tests.backends.dockerd import FAULTS, HANG, LOST, LOST_AND_LATE, Dockerd
from tests.backends.jumping import LoopClock, run
from tests.service.gate import Gate, MemoryJournal

IMAGE = "my-engine:1"
SLACK_S = 5.0
CONVERGED_S = 150.0  # two comparisons after the last fault, the longest backoff, and a restart

CONFIG = Config(
    engine=EngineSettings(backend="docker", image=IMAGE),
    idle=Idle(sleep_after_s=0),
    ports=Ports(min=21_000, max=22_999),
)
KEY_FILE = ".enginegate/key_hash"


class DockerdProbe:
    """Answers for the containers of an Engine in memory."""

    sources: frozenset[tuple[str, int]] = frozenset()

    def __init__(self, dockerd: Dockerd) -> None:
        self.dockerd = dockerd

    async def check(self, url: str, *, timeout_s: float) -> Health:
        box = self.dockerd.by_port(urlsplit(url).port or 0)
        if box is None or not box.networks:
            return Health(ok=False, detail="connection refused")
        if box.status == "paused":
            await asyncio.sleep(timeout_s)
            return Health(ok=False, detail="no answer")
        return Health(ok=True)


class World:
    """An Engine in memory, and a gate on it that can be killed and started again."""

    def __init__(self, dockerd: Dockerd, config: Config) -> None:
        self.dockerd = dockerd
        self.config = config
        self.journal = MemoryJournal()
        self.clock = LoopClock()

    async def start(self) -> None:
        self.backend = DockerBackend(
            instance="here",
            docker_host=self.dockerd.address,
            rotate_mode=self.config.engine.rotate_mode,
        )
        await self.backend.open()
        self.gate = Gate(
            config=self.config,
            clock=self.clock,  # type: ignore[arg-type]
            journal=self.journal,
            backend=self.backend,  # type: ignore[arg-type]
            probe=DockerdProbe(self.dockerd),
        )
        await self.gate.recovery.at_start()
        self.gate.run_loops()
        self.gate.spawn(self.gate.recovery.watch_forever())

    async def stop(self) -> None:
        await self.gate.close()
        await self.backend.close()

    def wrong(self) -> list[str]:
        """Return what rows, containers and volumes are not of one mind about."""
        rows = self.gate.registry.engines
        found = [
            fault for live in rows.values() for fault in self._wrong_with(live) if fault is not None
        ]
        by_name = Counter(box.name for box in self.dockerd.boxes.values())
        found += [f"{name} is there {count} times" for name, count in by_name.items() if count > 1]
        names = {f"enginegate-{engine_id}" for engine_id in rows}
        found += [f"{name} has no row" for name in by_name if name not in names]
        volumes = {f"engine-data-{engine_id}" for engine_id in rows}
        found += [f"{name} has no row" for name in self.dockerd.volumes if name not in volumes]
        return found

    def _wrong_with(self, live: LiveEngine) -> list[str | None]:
        status, box = live.engine.status, self.dockerd.box(live.engine.engine_id)
        seen = None if box is None else box.status
        if live.operation is not None:
            return [f"{live.operation.verb} is still at work"]
        if status is Status.FAILED:
            return [None if live.engine.reason else "failed without a reason"]
        fits = {
            Status.RUNNING: ("running",),
            Status.SLEEPING: ("paused", "exited"),
            Status.STOPPED: ("exited", "created", None),
        }
        if status not in fits or seen not in fits[status]:
            return [f"row {status}, container {seen}"]
        if box is not None and box.alive:
            file = self.dockerd.volumes[box.volume].get(KEY_FILE)
            keys = file.decode().split() if file else [box.key_hash]
            return [None if live.engine.key_hash in keys else "it has another key"]
        return []


@asynccontextmanager
async def world(config: Config = CONFIG) -> AsyncIterator[World]:
    """Have a world, and see at its end that nothing was left at work in it."""
    dockerd = Dockerd(images=(IMAGE, "my-engine:2"))
    await dockerd.open()
    made = World(dockerd, config)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
        await asyncio.sleep(1)
        left = dockerd.at_work
        await dockerd.close()
    assert left == [], "calls that nobody waits for any more"
    assert made.backend._daemon.budget.free == daemon.IN_FLIGHT
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert others == set()


Verb = Callable[[Gate, LiveEngine], Awaitable[object]]

VERBS: dict[str, tuple[Status, Verb, float]] = {
    "sleep": (Status.RUNNING, lambda g, e: g.lifecycle.sleep(e, actor="a", force=True), 10),
    "wake": (Status.SLEEPING, lambda g, e: g.lifecycle.wake(e, actor="a"), 10),
    "stop": (Status.RUNNING, lambda g, e: g.lifecycle.stop(e, actor="a"), 35),
    "start": (Status.STOPPED, lambda g, e: g.lifecycle.start(e, version=None, actor="a"), 60),
    "rotate": (Status.RUNNING, lambda g, e: g.lifecycle.rotate_key(e, actor="a"), 120),
    "destroy": (Status.RUNNING, lambda g, e: g.lifecycle.destroy(e, actor="a"), 60),
    "compare": (Status.RUNNING, lambda g, e: g.recovery.compare(), 60),
}
"""What state it starts from, what is done, and the deadline of that in seconds."""


async def made_ready(world: World, verb: str) -> LiveEngine:
    gate, state = world.gate, VERBS[verb][0]
    live = await gate.engine(await gate.product())
    if state is Status.SLEEPING:
        await gate.lifecycle.sleep(live, actor="a", force=True)
    elif state is Status.STOPPED:
        await gate.lifecycle.stop(live, actor="a")
    await asyncio.sleep(2)
    return live


async def did(world: World, verb: str) -> tuple[BaseException | None, float]:
    """Do the verb; return how it ended and how long it took."""
    gate, began = world.gate, asyncio.get_running_loop().time()
    try:
        if verb == "provision":
            await gate.engine(await gate.product())
        else:
            [live] = gate.registry.engines.values()
            await VERBS[verb][1](gate, live)
    except GateError as error:
        return error, asyncio.get_running_loop().time() - began
    return None, asyncio.get_running_loop().time() - began


async def calls_of(verb: str) -> list[str]:
    """Return the calls that a verb makes when all goes well."""
    async with world() as one:
        if verb != "provision":
            await made_ready(one, verb)
        one.dockerd.asked.clear()
        ended, _ = await did(one, verb)
        assert ended is None
        return list(one.dockerd.asked)


async def survives(verb: str, route: str, nth: int, kind: str | int) -> str | None:
    """Live through one fault; return what was wrong in the end, None if nothing was."""
    deadline_s = VERBS[verb][2] if verb in VERBS else CONFIG.boot.timeout_s
    async with world() as one:
        if verb != "provision":
            await made_ready(one, verb)
        one.dockerd.fail(route, kind, nth=nth)
        ended, took_s = await did(one, verb)
        if took_s > deadline_s + SLACK_S:
            return f"answered after {took_s:.1f} s: {ended}"
        if ended is not None and ended.code == "INTERNAL_ERROR":  # type: ignore[attr-defined]
            return f"a bug: {ended}"
        await asyncio.sleep(CONVERGED_S)
        wrong = one.wrong()
        return f"{ended}: {wrong}" if wrong else None


def numbered(calls: list[str]) -> list[tuple[str, int]]:
    """Return each call with the number of its occurrence; in short, each route once."""
    seen: Counter[str] = Counter()
    found = []
    for call in calls:
        seen[call] += 1
        found.append((call, seen[call]))
    return found if os.environ.get("ENGINEGATE_LONG") else [one for one in found if one[1] == 1]


@pytest.mark.parametrize("verb", ["provision", *VERBS])
def test_every_fault_of_every_call_ends_in_the_right_state(verb: str) -> None:
    """Answered within the deadline; then row, container and key agree, or it failed for a reason.

    Nothing is there twice, nothing without a row, and no call, task or place is left over.
    """
    calls = numbered(run(calls_of(verb)))
    wrong = [
        f"{route} [{nth}] {kind}: {found}"
        for route, nth in calls
        for kind in FAULTS
        if (found := run(survives(verb, route, nth, kind))) is not None
    ]
    assert wrong == []


ENGINES = 1000
AT_ONCE = 50


def containers(dockerd: Dockerd) -> Counter[str]:
    """Return what was asked about containers, and how often."""
    return Counter(asked for asked in dockerd.asked if "/containers/" in asked)


def test_a_thousand_lost_answers_to_creates_are_a_thousand_adopted() -> None:
    """Each container is there once, and runs for the row that it was made for."""

    async def lived() -> None:
        async with world() as one:
            owner = await one.gate.product()
            one.dockerd.fail("POST /containers/create", LOST, times=ENGINES)
            ends: list[object] = []
            for first in range(0, ENGINES, AT_ONCE):  # so that none of them waits past its deadline
                users = (f"user-{n}" for n in range(first, first + AT_ONCE))
                engines = (one.gate.engine(owner, user) for user in users)
                ends += await asyncio.gather(*engines, return_exceptions=True)
            await asyncio.sleep(CONVERGED_S)
            assert sum(isinstance(end, LiveEngine) for end in ends) == ENGINES
            assert len(one.dockerd.boxes) == len(one.gate.registry.engines) == ENGINES
            assert one.wrong() == []

    run(lived())


@pytest.mark.parametrize("leave", ["time out", "cancelled"])
def test_a_thousand_hung_calls_leave_nothing_behind(leave: str) -> None:
    """Neither a connection nor a task nor a place, whether they time out or their callers go."""

    async def lived() -> None:
        async with world() as one:
            live = await one.gate.engine(await one.gate.product())
            one.dockerd.fail("*", HANG, times=10**9)
            verbs = (one.backend.inspect, one.backend.pause, one.backend.unpause, one.backend.usage)
            calls = [
                asyncio.ensure_future(verbs[n % len(verbs)](live.engine.engine_id))
                for n in range(1000)
            ]
            await asyncio.sleep(1)
            assert len(one.dockerd.at_work) <= daemon.IN_FLIGHT + 4  # usage has places of its own
            if leave == "cancelled":
                for call in calls:
                    call.cancel()
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert all(
                isinstance(end, asyncio.CancelledError)
                or (isinstance(end, BackendError) and end.unavailable)
                for end in ends
            )
            one.dockerd.faults.clear()
            await asyncio.sleep(CONVERGED_S)
            assert live.running
            assert one.wrong() == []
        gc.collect()  # a connection that was left open would warn, and a warning is an error

    run(lived())


def test_hung_probes_keep_no_wake_from_going() -> None:
    """What is less urgent may hang in all its places; the most urgent has its own."""

    async def lived() -> None:
        async with world() as one:
            live = await made_ready(one, "wake")
            one.dockerd.fail("GET /containers/json", HANG, times=10**9)
            hung = [asyncio.ensure_future(one.backend.list()) for _ in range(50)]
            await asyncio.sleep(1)
            began = asyncio.get_running_loop().time()
            await one.gate.lifecycle.wake(live, actor="a")
            assert asyncio.get_running_loop().time() - began < 0.5
            for call in hung:
                call.cancel()
            await asyncio.gather(*hung, return_exceptions=True)

    run(lived())


def test_a_create_that_comes_late_is_not_left_behind_by_a_destroy() -> None:
    """While it may still take effect, "there is no container" is not known, and nothing leaks."""

    async def lived() -> None:
        async with world() as one:
            owner = await one.gate.product()
            one.dockerd.fail("POST /containers/create", LOST_AND_LATE, times=2)
            booting = asyncio.ensure_future(one.gate.engine(owner))
            await asyncio.sleep(1)
            [live] = one.gate.registry.engines.values()
            with pytest.raises(GateError):
                await one.gate.lifecycle.destroy(live, actor="a")
            assert live.engine.status is Status.DESTROYING
            await asyncio.gather(booting, return_exceptions=True)
            await asyncio.sleep(CONVERGED_S)
            assert live.gone
            assert (one.dockerd.boxes, one.dockerd.volumes, one.wrong()) == ({}, {}, [])

    run(lived())


def test_a_listing_costs_one_call_when_nothing_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A closer look is taken at what is new, changed, or younger than it was."""

    async def lived() -> None:
        async with world() as one:
            owner = await one.gate.product()
            monkeypatch.setattr(catalogue, "time", one.dockerd)  # whose clock has jumped ahead
            lives = [await one.gate.engine(owner, f"user-{n}") for n in range(300)]
            await one.backend.list()
            one.dockerd.asked.clear()
            assert len(await one.backend.list()) == 300
            assert containers(one.dockerd) == {"GET /containers/json": 1}
            await asyncio.sleep(120)
            changed, again = (one.dockerd.box(live.engine.engine_id) for live in lives[:2])
            assert changed is not None
            assert again is not None
            one.dockerd.deaf = True
            one.dockerd.cut_events()
            one.dockerd.exit(again)
            one.dockerd.move(changed, "paused")
            one.dockerd.asked.clear()
            seen = {one.engine_id: one for one in await one.backend.list()}
            assert containers(one.dockerd) == {
                "GET /containers/json": 1,
                "GET /containers/{}/json": 2,
            }
            assert seen[lives[0].engine.engine_id].presence is Presence.PAUSED
            assert seen[lives[1].engine.engine_id].restarts == 1

    run(lived())


def test_an_outage_of_the_engine_blames_nobody() -> None:
    """Changes are answered in time, admits go on, and afterwards all is as it was."""

    async def lived() -> None:
        async with world() as one:
            owner = await one.gate.product()
            awake, asleep = [await one.gate.engine(owner, user) for user in ("a", "b")]
            await one.gate.lifecycle.sleep(asleep, actor="a", force=True)
            await asyncio.sleep(30)
            one.dockerd.fail("*", HANG, times=10**9)
            one.dockerd.deaf = True
            one.dockerd.cut_events()
            loop, failed = asyncio.get_running_loop(), []
            for verb, live in (("sleep", awake), ("wake", asleep), ("stop", awake)):
                began = loop.time()
                try:
                    await VERBS[verb][1](one.gate, live)
                except GateError as error:
                    failed.append(error.code)
                assert loop.time() - began <= VERBS[verb][2] + SLACK_S
            assert failed == ["BACKEND_UNAVAILABLE"] * 3
            await asyncio.sleep(120)
            assert (awake.engine.status, asleep.engine.status) == (Status.RUNNING, Status.SLEEPING)
            assert (one.gate.health.backend_ok, one.gate.health.blind) == (False, True)
            one.dockerd.faults.clear()
            one.dockerd.deaf = False
            await asyncio.sleep(60)
            assert (one.gate.health.backend_ok, one.gate.health.blind) == (True, False)
            assert one.wrong() == []
            assert "health_failed!" not in one.gate.actions()

    run(lived())


def test_dockers_own_restarts_are_crashes_and_nobody_fights() -> None:
    """One crash is counted and the restart taken; a crash loop ends in giving up, and in peace."""

    async def lived() -> None:
        async with world() as one:
            owner = await one.gate.product()
            live = await one.gate.engine(owner)
            box = one.dockerd.box(live.engine.engine_id)
            assert box is not None
            one.dockerd.exit(box, 3)
            await asyncio.sleep(1)
            assert live.running
            assert box.restarts == 1
            assert [sample.kind for sample in owner.tally.samples] == [
                "provision",
                "crash",
                "restart",
            ]
            assert "POST /containers/{}/stop" not in one.dockerd.asked
            for _ in range(3000):
                if box.alive and live.engine.restart_at_ms is None and not live.running:
                    break
                if box.alive:
                    one.dockerd.exit(box, 3)
                await asyncio.sleep(1)
            await asyncio.sleep(60)
            assert live.engine.status is Status.FAILED
            assert live.engine.restart_at_ms is None
            assert not box.alive
            assert "auto_restart_gave_up!" in one.gate.actions()

    run(lived())


@pytest.mark.parametrize("mode", ["recreate", "live"])
@pytest.mark.parametrize("nth", range(1, 12))
def test_a_rotation_cut_off_by_a_crash_ends_with_a_key_that_works(mode: str, nth: int) -> None:
    """Killed at its n-th call to Docker: the row's key is the engine's, old or new."""
    config = Config(
        engine=EngineSettings(backend="docker", image=IMAGE, rotate_mode=mode)  # type: ignore[arg-type]
    )

    async def lived() -> None:
        async with world(config) as one:
            live = await one.gate.engine(await one.gate.product())
            one.dockerd.fail("*", HANG, nth=nth, times=10**9)
            rotating = asyncio.ensure_future(one.gate.lifecycle.rotate_key(live, actor="a"))
            await asyncio.sleep(0.5)
            one.dockerd.faults.clear()
            await one.stop()
            await asyncio.gather(rotating, return_exceptions=True)
            await one.start()
            await asyncio.sleep(CONVERGED_S)
            assert one.wrong() == []
            [again] = one.gate.registry.engines.values()
            assert again.running
            assert again.engine.pending_key is None

    run(lived())


def test_a_port_that_others_hold_is_given_up_with_the_container_made_for_it() -> None:
    """The next free one is taken, and nothing is left of the first try."""

    async def lived() -> None:
        async with world() as one:
            stranger = EngineSpec(
                engine_id="00000000-0000-4000-8000-000000000000",
                engine_version=IMAGE,
                port=CONFIG.ports.min,
                key_hashes=(key_hash("x"),),
            )
            other = DockerBackend(instance="elsewhere", docker_host=one.dockerd.address)
            await other.open()
            await other.start(stranger)
            live = await one.gate.engine(await one.gate.product())
            assert live.engine.port == CONFIG.ports.min + 1
            assert str(live.engine.port) in live.url
            assert len(one.dockerd.boxes) == 2
            await other.destroy(stranger.engine_id)
            await other.close()
            assert one.wrong() == []

    run(lived())
