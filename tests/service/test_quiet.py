"""When an engine counts as in use: connections, CPU time, bytes, and its own word."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from enginegate.admission import Admitted
from enginegate.backends.base import Connection, Usage
from enginegate.config import Config, EngineSettings, Idle, Limits
from tests.fakes import FakeEngine, settle


class Working:
    """Lets a fake engine use CPU time: `share` of a processor, from now until told otherwise."""

    def __init__(self, fake: FakeEngine, clock: Any, share: float) -> None:
        self.fake, self.clock, self.share = fake, clock, share
        self.used_s, self.since = fake.usage.cpu_s or 0.0, clock.now()
        type(fake).usage = property(self._usage, lambda *_: None)  # type: ignore[assignment]

    def _usage(self, fake: FakeEngine) -> Usage:
        if fake is not self.fake:
            return Usage(cpu_s=0.0)
        return Usage(cpu_s=self.used_s + self.share * (self.clock.now() - self.since))

    def at(self, share: float) -> None:
        self.used_s = self._usage(self.fake).cpu_s or 0.0
        self.since, self.share = self.clock.now(), share


@pytest.fixture
def work() -> Iterator[Any]:
    """Give one fake engine an appetite; all are undone at the end."""
    kept = FakeEngine.__dict__.get("usage")
    yield Working
    if kept is None and "usage" in FakeEngine.__dict__:
        del FakeEngine.usage
    elif kept is not None:
        FakeEngine.usage = kept


async def test_a_job_without_a_connection_is_seen_by_its_cpu_time(
    gate: Any, clock: Any, work: Any
) -> None:
    """Three seconds of work on a lease of one: asleep only afterwards, with one audit entry."""
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=1))
    job = work(gate.backend.engine(live.engine.engine_id), clock, 1.0)
    await clock.advance(3)
    assert live.running
    assert live.vetoes[-1].kind == "cpu"
    assert live.vetoes[-1].value == pytest.approx(1.0, abs=0.01)
    job.at(0.0)
    await clock.advance(2.5)
    assert live.engine.status == "sleeping"
    assert gate.actions().count("sleep_vetoed!") == 1


@pytest.mark.parametrize(("share", "asleep"), [(0.02, True), (0.04, True), (0.08, False)])
async def test_what_an_engine_uses_that_only_waits_is_no_work(
    gate: Any, clock: Any, work: Any, share: float, asleep: bool
) -> None:
    """Timers and garbage collectors stay below a twentieth of a processor."""
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=20))
    work(gate.backend.engine(live.engine.engine_id), clock, share)
    await clock.advance(21)
    assert (live.engine.status == "sleeping") == asleep


async def test_a_job_that_has_just_begun_is_seen_by_a_second_look(
    gate: Any, clock: Any, work: Any
) -> None:
    """Thirty milliseconds before the end of the lease leave a doubt, and a doubt is looked into."""
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=20))
    job = work(gate.backend.engine(live.engine.engine_id), clock, 0.0)
    await clock.advance(19.96)
    job.at(1.0)
    await clock.advance(2)
    assert live.running
    assert live.vetoes[-1].kind == "cpu"


async def test_a_throttled_container_is_judged_by_what_it_may_use(
    make_gate: Any, clock: Any, work: Any
) -> None:
    """A job in a tenth of a processor is a job."""
    engine = EngineSettings(backend="docker", image="e:1", limits=Limits(cpus=0.1))
    gate = await make_gate(Config(engine=engine))
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=20))
    work(gate.backend.engine(live.engine.engine_id), clock, 0.1)
    await clock.advance(22)
    assert live.running


async def test_what_our_own_probes_cost_is_no_work(gate: Any, clock: Any, work: Any) -> None:
    """An engine that needs a tenth of a second for an answer is not kept awake by being asked."""
    live = await gate.engine(await gate.product(idle_sleep_s=20))
    fake = gate.backend.engine(live.engine.engine_id)
    job = work(fake, clock, 0.0)
    await gate.lifecycle.quietness.read(live)
    fake.probe_delay_s = 0.1
    job.at(1.0)
    probe = asyncio.create_task(gate.lifecycle.booter.check(live, timeout_s=1))
    await clock.advance(0.1)
    await probe
    job.at(0.0)
    fake.probe_delay_s = 0.0
    await clock.advance(0.5)
    asking = asyncio.create_task(gate.lifecycle.quietness.veto(live, idle=True))
    await clock.advance(0.3)
    assert await asking is None


async def test_a_reading_of_another_life_is_no_reading(gate: Any, clock: Any) -> None:
    """Counters start anew with the engine; there is nothing to compare with."""
    owner = await gate.product(idle_sleep_s=20)
    live = await gate.engine(owner)
    quietness = gate.lifecycle.quietness
    assert (await quietness.veto(live, idle=True)).kind == "unread"
    assert await quietness.veto(live, idle=True) is None
    await gate.lifecycle.stop(live, actor="acme")
    await gate.lifecycle.start(live, version=None, actor="acme")
    assert (await quietness.veto(live, idle=True)).kind == "unread"
    await clock.advance(60)
    assert (await quietness.veto(live, idle=True)).kind == "unread"


async def test_a_request_to_sleep_does_not_ask_for_cpu_time(
    gate: Any, clock: Any, work: Any
) -> None:
    """Only busy and connections refuse it; whoever asks knows what the engine is doing."""
    live = await gate.engine(await gate.product())
    work(gate.backend.engine(live.engine.engine_id), clock, 1.0)
    await gate.lifecycle.quietness.read(live)
    await clock.advance(1)
    assert await gate.lifecycle.sleep(live, actor="acme")


async def test_a_connection_that_is_quiet_for_long_keeps_nobody_awake(
    gate: Any, clock: Any
) -> None:
    """Pooled and half-open ones are known by when something last moved on them."""
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=20))
    fake = gate.backend.engine(live.engine.engine_id)
    fake.connections = [Connection(899.0)]
    await clock.advance(21)
    assert live.running
    fake.connections = [Connection(901.0), Connection(5000.0)]
    await clock.advance(3)
    assert live.engine.status == "sleeping"


async def test_where_the_kernel_does_not_say_how_long_bytes_do(make_gate: Any, clock: Any) -> None:
    """A table of connections without times: they count until no byte has moved for long."""
    gate = await make_gate(Config(idle=Idle(sleep_after_s=20, connection_idle_s=30)))
    gate.run_loops()
    live = await gate.engine(await gate.product())
    fake = gate.backend.engine(live.engine.engine_id)
    fake.connections = [Connection(0.0)]
    fake.usage = Usage(cpu_s=0.0, rx_bytes=10_000, tx_bytes=10_000)
    await clock.advance(40)
    assert live.running
    fake.usage = replace(fake.usage, tx_bytes=20_000)
    await clock.advance(25)
    assert live.running
    await clock.advance(10)
    assert live.engine.status == "sleeping"


async def test_where_connections_cannot_be_seen_bytes_are_counted(gate: Any, clock: Any) -> None:
    """A stream keeps it awake, what our probes move does not."""
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=20))
    fake = gate.backend.engine(live.engine.engine_id)
    fake.usage = Usage(cpu_s=0.0, rx_bytes=0, tx_bytes=0)
    gate.backend.fail("connections", times=None)
    for second in range(60):
        fake.usage = replace(fake.usage, tx_bytes=second * 3000 + live.probes * 1500)
        await clock.advance(1)
    assert live.running
    assert live.vetoes[-1].kind == "bytes_still_s"
    for _ in range(6):
        fake.usage = replace(fake.usage, tx_bytes=60 * 3000 + live.probes * 1500)
        await clock.advance(1)
    assert live.engine.status == "sleeping"


async def test_what_cannot_be_asked_is_no_permission(gate: Any, clock: Any) -> None:
    """Neither CPU time nor connections: the engine stays awake, and `activity` says why."""
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=20))
    gate.backend.fail("usage", times=None)
    await clock.advance(60)
    assert live.running
    assert gate.backend.count("pause") == 0


async def test_who_connects_during_the_freeze_reverses_it(gate: Any, clock: Any) -> None:
    """What came in between the look and the freeze is seen right after it; no sleep is recorded."""
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=10))
    fake = gate.backend.engine(live.engine.engine_id)
    hang = gate.backend.hang("pause")
    await clock.advance(10.5)
    await hang.reached.wait()
    fake.connections = [Connection(0.01)]
    hang.release()
    await settle()
    assert (fake.presence, live.engine.status) == ("running", "running")
    assert "sleep" not in gate.actions()
    assert live.vetoes[-1].kind == "connections"
    fake.connections = []
    await clock.advance(2)
    assert live.engine.status == "sleeping"


async def test_a_connection_during_a_requested_freeze_refuses_it(gate: Any) -> None:
    """`ENGINE_BUSY`, as if it had come before; the engine goes on."""
    live = await gate.engine(await gate.product())
    fake = gate.backend.engine(live.engine.engine_id)
    hang = gate.backend.hang("pause")
    asked = asyncio.create_task(gate.lifecycle.sleep(live, actor="acme"))
    await hang.reached.wait()
    fake.connections = [Connection(0.0)]
    hang.release()
    error = (await asyncio.gather(asked, return_exceptions=True))[0]
    assert error.code == "ENGINE_BUSY"
    assert (fake.presence, live.engine.status) == ("running", "running")
    assert gate.actions().count("sleep!") == 0
    assert await gate.lifecycle.sleep(live, actor="acme", force=True)


async def test_a_sleep_that_cannot_be_written_is_undone(gate: Any) -> None:
    """The disk fails after the freeze: nobody is ever sent to a frozen engine."""
    live = await gate.engine(await gate.product())
    gate.journal.failing = True
    with pytest.raises(Exception, match="The journal failed"):
        await gate.lifecycle.sleep(live, actor="acme")
    assert live.running
    assert gate.backend.engine(live.engine.engine_id).presence == "running"
    assert isinstance(await gate.admit(live.owner), Admitted)


async def test_what_cannot_be_thawed_counts_as_asleep(gate: Any, clock: Any) -> None:
    """The freeze is undone in vain: the next admit wakes it instead of calling a frozen engine."""
    owner = await gate.product()
    live = await gate.engine(owner)
    fake = gate.backend.engine(live.engine.engine_id)
    gate.backend.fail("pause", after=True)
    gate.backend.fail("unpause")
    asked = asyncio.ensure_future(gate.lifecycle.sleep(live, actor="acme"))
    await clock.advance(1)  # the time it has to show that it is not frozen
    with pytest.raises(Exception, match="could not pause"):
        await asked
    assert (fake.presence, live.engine.status) == ("paused", "sleeping")
    assert isinstance(await gate.admit(owner, auto_wake=True), Admitted)
    assert (fake.presence, live.engine.status) == ("running", "running")


async def test_an_engine_that_answers_is_not_frozen(gate: Any) -> None:
    """A backend that is away says nothing of it: it runs on, and whoever comes is admitted."""
    live = await gate.engine(await gate.product())
    gate.backend.down = True
    with pytest.raises(Exception, match="cannot be reached"):
        await gate.lifecycle.sleep(live, actor="acme", force=True)
    assert live.running
    assert isinstance(await gate.admit(live.owner), Admitted)


async def test_a_pause_that_fails_after_all_is_undone(gate: Any) -> None:
    """The answer got lost, the engine froze: it is thawed again."""
    live = await gate.engine(await gate.product())
    gate.backend.fail("pause", after=True)
    with pytest.raises(Exception, match="could not pause"):
        await gate.lifecycle.sleep(live, actor="acme")
    assert live.running
    assert gate.backend.engine(live.engine.engine_id).presence == "running"


async def test_a_job_that_gets_no_processor_is_a_job(gate: Any, clock: Any) -> None:
    """On an overbooked machine it runs for a hundredth of the time, and waits for the rest."""
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=20))
    fake = gate.backend.engine(live.engine.engine_id)
    for tenth in range(250):
        fake.usage = Usage(cpu_s=tenth * 0.001, wanted_s=tenth * 0.1)
        await clock.advance(0.1)
    assert live.running
    assert live.vetoes[-1].kind == "cpu"


async def test_short_turns_that_wait_in_the_queue_are_no_job(gate: Any, clock: Any) -> None:
    """Ten wake-ups a second, each of which waits for twenty milliseconds."""
    gate.run_loops()
    live = await gate.engine(await gate.product(idle_sleep_s=20))
    fake = gate.backend.engine(live.engine.engine_id)
    for tenth in range(215):
        fake.usage = Usage(cpu_s=tenth * 0.0001, wanted_s=tenth * 0.02)
        await clock.advance(0.1)
    assert live.engine.status == "sleeping"
